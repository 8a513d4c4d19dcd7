"""From a cached graph to a prediction of the largest runs, in fresh processes: seconds, memory, and what is predicted.

``python benchmarks/cluster.py`` prints JSON. The first call of a process also loads the clusters' files.
The public figures beside are for orientation; nothing is fitted to them.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from typing import Any

CASES: dict[str, dict[str, Any]] = {
    "llama-3.1-405b": {
        "cluster": ("grand-teton-h100", 2048),
        "seq": 8192,
        "plan": {
            "tp": 8, "sp": True, "pp": 16, "vpp": 4, "zero": 1, "global_batch": 2048, "schedule": "Interleaved1F1B",
            # One layer fewer at both ends, as Meta has it.
            "stage_layers": [1, *[2] * 62, 1],
        },
        "published": "400 TFLOP/s a device, 41 % MFU (Llama 3, table 4)",
    },
    "llama-3.1-405b with cp 16": {
        "model": "llama-3.1-405b",
        "cluster": ("grand-teton-h100", 2048),
        "seq": 131072,
        "plan": {
            "tp": 8, "sp": True, "cp": 16, "cp_kind": "all-gather", "pp": 16, "vpp": 4, "zero": 1, "global_batch": 128,
            "schedule": "Interleaved1F1B", "stage_layers": [1, *[2] * 62, 1],
        },
        "published": "380 TFLOP/s a device, 38 % MFU (Llama 3, table 4), attention counted another way",
    },
    "deepseek-v3": {
        "cluster": ("dgx-h100", 256),
        "seq": 4096,
        "plan": {"pp": 16, "ep": 64, "zero": 1, "global_batch": 15360, "stage_layers": [3, *[4] * 14, 2]},
        "published": "",
    },
}  # fmt: skip


def one(name: str) -> None:
    import perfmodel as pm

    case = CASES[name]
    step = pm.capture(case.get("model", name), batch=1, seq_len=case["seq"], optimizer="adamw")
    node, nodes = case["cluster"]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        cluster = pm.load_cluster(node, nodes=nodes)
        p = pm.predict(step, cluster, pm.Plan.from_dict(case["plan"]), runtime="eager")
        times.append(time.perf_counter() - begun)
    print(
        json.dumps(
            {
                "case": name,
                "devices": p.devices,
                "first_s": round(times[0], 3),
                "later_s": round(min(times[1:]), 3),
                "rss_before_mib": before // 1024,
                "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                "micro_batches": p.micro_steps,
                "step_time_s": p.step_time,
                "tflops_per_device": p.model_flops / p.step_time / p.devices / 1e12,
                "mfu": p.mfu,
                "time": {share: round(seconds / p.step_time, 4) for share, seconds in p.breakdown.time.items()},
                "peak_gib": round(p.memory.peak / 2**30, 1),
                "published": case["published"],
            }
        )
    )


def main() -> None:
    for name in CASES:
        # The first run captures and keeps the graph; the second is the one that counts.
        for keep in (False, True):
            done = subprocess.run([sys.executable, __file__, name], check=True, capture_output=True, text=True)
            if keep:
                print(done.stdout, end="")


if __name__ == "__main__":
    one(sys.argv[1]) if len(sys.argv) > 1 else main()
