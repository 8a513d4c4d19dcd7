"""A very large model is captured in seconds and within a gigabyte, and predicted without PyTorch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

CAPTURE = """
import json, resource, time
import torch
import perfmodel as pm
begun = time.process_time()
graph = pm.capture("llama-3.1-405b", batch=4, seq_len=8192, optimizer="adamw", implementation="reference", cache=False)
spent = time.process_time() - begun
resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"seconds": spent, "bytes": resident, "ops": graph.depth}))
"""

PREDICT = """
import sys
from perfmodel.cli import main
try:
    main(["predict", "llama-3.1-405b", "--on", "nvidia-h100-sxm-80gb", "--batch", "4", "--seq", "8192", "--json"])
finally:
    assert "torch" not in sys.modules, "torch was imported"
"""


def run(code: str, tmp_path: Path) -> str:
    environment = {**os.environ, "PERFMODEL_CACHE": str(tmp_path)}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    ).stdout


def test_405b_within_seconds_and_a_gigabyte(tmp_path: Path) -> None:
    told = json.loads(run(CAPTURE, tmp_path))
    assert told["ops"] > 39_000
    assert told["bytes"] < 2**30
    # Seconds of the processor, whatever else runs here. Not a benchmark (that is benchmarks/capture.py).
    assert told["seconds"] < 10


def test_a_cached_graph_is_predicted_without_torch(tmp_path: Path) -> None:
    run(
        "from perfmodel.cli import main; main(['capture', 'llama-3.1-405b', '--batch', '4', '--seq', '8192'])", tmp_path
    )
    told = json.loads(run(PREDICT, tmp_path))
    assert told["step_time_s"] > 0 and told["fits"] is False
