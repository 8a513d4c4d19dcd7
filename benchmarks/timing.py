"""Times of a million ops by one vectorised call against a loop of calls, as JSON: the ratio, in one process."""

from __future__ import annotations

import json
import time

import numpy as np

from perfmodel.timing import OpWork, Rates, op_times

MANY, LOOPED = 1_000_000, 2_000


def columns(ops: int) -> tuple[OpWork, Rates]:
    draw = np.random.default_rng(0).uniform
    work = OpWork(
        family=np.full(ops, "matmul"),
        dtype=np.full(ops, "bfloat16"),
        matrix_flops=draw(1e9, 1e12, ops),
        vector_flops=draw(1e6, 1e9, ops),
        read=draw(1e6, 1e9, ops),
        written=draw(1e6, 1e9, ops),
        kernels=np.ones(ops),
    )
    bandwidth = (np.full(ops, 3e12), np.full(ops, 9e12))
    return work, Rates(
        matrix=np.full(ops, 8e14),
        vector=np.full(ops, 3e13),
        bandwidth=bandwidth,
        capacity=(8e10, 5e7),
        latency=np.full(ops, 3e-6),
    )


def main() -> None:
    work, rates = columns(MANY)
    begun = time.perf_counter()
    op_times(work, rates)
    vectorised = (time.perf_counter() - begun) / MANY
    work, rates = columns(1)
    begun = time.perf_counter()
    for _ in range(LOOPED):
        op_times(work, rates)
    looped = (time.perf_counter() - begun) / LOOPED
    print(
        json.dumps(
            {"ops": MANY, "vectorised_s_per_op": vectorised, "looped_s_per_op": looped, "ratio": looped / vectorised}
        )
    )


if __name__ == "__main__":
    main()
