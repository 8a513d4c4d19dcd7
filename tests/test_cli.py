"""The command line: output, exit codes, one-line errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import perfmodel as pm
from perfmodel.cli import main

GPT2 = ["gpt2", "--batch", "4", "--seq", "64", "--layers", "2", "--implementation", "reference"]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERFMODEL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        main(list(arguments))
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    told = capsys.readouterr()
    return code, told.out, told.err


def test_predict_prints_one_screen(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "predict", *GPT2, "--on", "nvidia-h100-sxm-80gb", "--tokens", "1B", "--largest-batch")
    assert code == 0
    for word in (
        "step time",
        "tokens/s",
        "MFU",
        "HFU",
        "memory",
        "phases",
        "coverage",
        "bound by",
        "training",
        "largest",
    ):
        assert word in out
    assert len(out.splitlines()) < 30


def test_json_equals_the_python_call(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "predict", *GPT2, "--on", "h100", "--on", "a100-80g", "--steps", "10", "--json")
    assert code == 0
    step = pm.capture("gpt2", batch=4, seq_len=64, layers=2, implementation="reference", optimizer="adamw")
    told = json.loads(out)
    for entry, name in zip(told, ("h100", "a100-80g"), strict=True):
        p = pm.predict(step, name, runtime="eager")
        assert entry["step_time_s"] == p.step_time
        assert entry["interval_s"] is None
        assert entry["training"]["time_s"] == 10 * p.step_time


def test_capture_saves_a_graph_that_predicts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "graph.json"
    code, out, _ = run(capsys, "capture", *GPT2, "-o", str(path), "--ops")
    assert code == 0
    assert "6N+12LHQT" in out
    assert "aten.addmm -> float32[batch*seq, 3072]" in out
    code, out, _ = run(capsys, "predict", str(path), "--on", "h100", "--batch", "16", "--json")
    assert code == 0
    assert json.loads(out)["sizes"] == {"batch": 16, "seq": 64}


def test_capture_options_are_those_of_the_python_call(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "graph.json"
    options = ["--adapter", "lora:rank=4,targets=qkv_proj+o_proj", "--accumulate", "3", "--autocast", "bfloat16"]
    code, out, _ = run(capsys, "capture", *GPT2, *options, "--optimizer", "lamb", "-o", str(path))
    assert code == 0
    assert "optimizer lamb, adapter lora, 3 micro-steps, autocast to bfloat16" in out
    assert "6N+12LHQT" not in out  # it counts the gradients of all weights
    expected = pm.capture(
        "gpt2", batch=4, seq_len=64, layers=2, implementation="reference", optimizer="lamb", accumulate=3,
        autocast="bfloat16", adapter=pm.LoRA(rank=4, targets=("qkv_proj", "o_proj")), cache=False,
    )  # fmt: skip
    assert pm.load_graph(path) == expected
    code, _, err = run(capsys, "predict", str(path), "--on", "h100", "--accumulate", "4")
    assert code == 2
    assert "--accumulate would change it" in err


def test_a_target_has_a_length_of_its_own(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = str(tmp_path / "graph.json")
    sizes = ["--batch", "2", "--seq", "32", "--target-seq", "16"]
    code, out, _ = run(
        capsys, "capture", "t5-small", *sizes, "--layers", "1", "--implementation", "reference", "-o", path
    )
    assert code == 0
    assert out.startswith("t5-small: batch 2, seq 32, target_seq 16\n")
    code, out, _ = run(capsys, "predict", path, "--on", "h100", "--target-seq", "64", "--json")
    assert code == 0
    assert json.loads(out)["sizes"] == {"batch": 2, "seq": 32, "target_seq": 64}


@pytest.mark.parametrize("named", ["config.json", "tiny.json", "."])
def test_a_config_is_a_model(capsys: pytest.CaptureFixture[str], tmp_path: Path, named: str) -> None:
    config = {"model_type": "gpt2", "vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
    file = tmp_path / ("config.json" if named == "." else named)
    file.write_text(json.dumps(config, indent=2))
    options = ["--batch", "2", "--seq", "16", "--implementation", "reference", "--no-cache"]
    code, out, _ = run(capsys, "capture", str(tmp_path / named), *options)
    assert code == 0
    assert f"parameters  {pm.dims_from_config(config).parameters():,}" in out


def test_plot(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    code, _, _ = run(capsys, "predict", *GPT2, "--on", "h100", "--plot", str(tmp_path / "roofline.png"))
    assert code == 0
    assert (tmp_path / "roofline.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["roofline.png"]


def test_hardware_commands(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = run(capsys, "hardware", "list")
    assert code == 0
    assert all(name in out for name in pm.device_names())
    code, out, _ = run(capsys, "hardware", "show", "nvidia-v100-sxm-32gb")
    assert code == 0
    assert "datasheet" in out and "memory[0].bandwidth" in out
    code, out, _ = run(capsys, "hardware", "check", pm.load_device("nvidia-a100-sxm-80gb").path)
    assert code == 0
    assert "ok" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "gpt5", "--on", "h100", "--batch", "1", "--seq", "8"], "unknown model 'gpt5'; did you mean"),
        (["predict", *GPT2, "--on", "h1000"], "unknown device 'h1000'"),
        (["predict", *GPT2, "--on", "h100", "--runtime", "eagre"], "did you mean 'eager'"),
        (["predict", *GPT2, "--on", "google-tpu-v5p", "--runtime", "eager"], "doesn't run 'eager'"),
        (["predict", "gpt2", "--on", "h100", "--batch", "4"], "needs seq_len"),
        (["predict", "gpt2", "--on", "h100", "--batch", "4", "--seq", "2048"], "1024 learned positions"),
        (["predict", "gpt2", "--on", "h100", "--batch", "0", "--seq", "8"], "positive integer"),
        (["predict", "gpt2", "--on", "h100", "--batch", "-3", "--seq", "8"], "positive integer"),
        (["predict", *GPT2, "--on", "h100", "--tokens", "nan"], "nan"),
        (["predict", *GPT2, "--on", "h100", "--tokens", "-5"], "-5"),
        (["predict", *GPT2, "--on", "h100", "--tokens", "5 parsec"], "parsec"),
        (["predict", *GPT2, "--on", "h100", "--tokens", "5", "--steps", "3"], "give one of"),
        (["predict", *GPT2, "--on", "h100", "--epochs", "nan", "--samples", "3"], "positive number"),
        (["predict", *GPT2, "--on", "h100", "--optimizer", "adamm"], "did you mean 'adam'"),
        (["predict", *GPT2, "--on", "h100", "--dtype", "bf17"], "bf17"),
        (["capture", *GPT2, "--adapter", "lorra"], "unknown adapter 'lorra'; did you mean 'lora'"),
        (["capture", *GPT2, "--adapter", "lora:rank"], "'rank' is no setting"),
        (["capture", *GPT2, "--adapter", "lora:rang=4"], "did you mean 'rank'"),
        (["capture", *GPT2, "--adapter", "lora:targets=q_proj"], "give targets: down_proj"),
        (["capture", *GPT2, "--autocast", "bfloat17"], "did you mean 'bfloat16'"),
        (["capture", *GPT2, "--accumulate", "0"], "accumulate"),
        (["capture", *GPT2, "--target-seq", "8"], "has no target_seq_len"),
        (["capture", "no/config.json", "--batch", "2", "--seq", "8"], "give the path of a config.json"),
        (["explain", "dlrm-criteo-kaggle", "--batch", "2"], "no formulas are written down"),
        (["predict", *GPT2, "--on", "nvidia-v100-sxm-32gb", "--dtype", "bfloat16"], "has no bf16"),
        (["predict", "absent.json", "--on", "h100"], "no such file"),
        (["predict", "g.json", "--on", "h100", "--optimizer", "sgd", "--layers", "3"], "--optimizer, --layers would"),
        (["predict", *GPT2, "--on", "absent.yaml"], "absent.yaml"),
        (["hardware", "check", "absent.yaml"], "absent.yaml"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_two(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert message in err
    lines = [line for line in err.splitlines() if not line.startswith("capturing ")]
    assert len(lines) == 1
    assert "Traceback" not in err
    assert out == ""


@pytest.mark.parametrize("arguments", [["predict"], ["predict", "gpt2"], ["frobnicate"], ["predict", "--batch", "x"]])
def test_wrong_usage_is_exit_code_two(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert "Traceback" not in err


def test_python_dash_m() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "perfmodel", "hardware", "list"], capture_output=True, text=True, check=True
    )
    assert "nvidia-h100-sxm-80gb" in told.stdout
