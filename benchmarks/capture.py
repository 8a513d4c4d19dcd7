"""What a capture costs: the largest catalogue model folded, and folded against full, in one process.

Run: ``python benchmarks/capture.py``. Prints JSON. PyTorch is imported before the clock starts.
"""

from __future__ import annotations

import json
import resource
import statistics
import time
from collections.abc import Callable

import torch

import perfmodel as pm


def seconds(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def main() -> None:
    torch.empty(1)

    def capture(name: str, *, folded: bool = True) -> pm.Graph:
        return pm.capture(
            name, batch=4, seq_len=4096, optimizer="adamw", implementation="reference", folded=folded, cache=False
        )

    first = seconds(lambda: capture("llama-3.1-405b"))
    again = [seconds(lambda: capture("llama-3.1-405b")) for _ in range(5)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    ratios = [
        seconds(lambda: capture("llama-2-7b", folded=False)) / seconds(lambda: capture("llama-2-7b")) for _ in range(3)
    ]
    print(
        json.dumps(
            {
                "llama-3.1-405b_first_capture_s": first,
                "llama-3.1-405b_capture_s_median_of_5": statistics.median(again),
                "process_peak_bytes": peak,
                "llama-2-7b_full_over_folded_median_of_3": statistics.median(ratios),
            }
        )
    )


if __name__ == "__main__":
    main()
