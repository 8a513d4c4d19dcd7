"""Cases of sizes and of hardware, all at once, are what each is alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from perfmodel.hardware import load_device
from perfmodel.ops.cost import OpCost
from perfmodel.symbols import Dim
from perfmodel.timing import OpWork, op_times, rates_of


def costs(seq: Dim) -> list[OpCost]:
    return [
        OpCost(family="matmul", dtype="bfloat16", matrix_flops=2 * seq * 4096**2, read=2 * seq * 4096, written=2**20),
        OpCost(family="elementwise", dtype="float32", vector_flops=seq * 4096, read=4 * seq * 4096, kernels=2),
        OpCost(family="view", dtype="float32"),
    ]


# Three cases are as many as the ops: the size at which a mistaken axis goes unnoticed.
@pytest.mark.parametrize("cases", [1, 2, 3, 4])
def test_cases_of_sizes(cases: int) -> None:
    device, sizes = load_device("h100"), np.arange(1, cases + 1) * 512.0
    work = OpWork.from_costs(costs(sizes))
    alone = []
    for size in sizes:
        one = OpWork.from_costs(costs(size))
        alone.append(op_times(one, rates_of(device, one)).time)
    np.testing.assert_allclose(op_times(work, rates_of(device, work)).time, np.stack(alone, axis=1), rtol=1e-14)


@pytest.mark.parametrize("cases", [1, 2, 3, 4])
@pytest.mark.parametrize("what", ["matrix", "vector", "latency", "bandwidth"])
def test_cases_of_hardware(what: str, cases: int) -> None:
    work = OpWork.from_costs(costs(512.0))
    rates = rates_of(load_device("h100"), work)

    def scaled(k: np.ndarray | float) -> object:
        value = getattr(rates, what)
        if isinstance(value, tuple):
            return tuple(level[:, None] * k if np.ndim(k) else level * k for level in value)
        return value[:, None] * k if np.ndim(k) else value * k

    factors = np.linspace(0.5, 2, cases)
    alone = [op_times(work, replace(rates, **{what: scaled(k)})).time for k in factors]
    together = op_times(work, replace(rates, **{what: scaled(factors)})).time
    np.testing.assert_allclose(together, np.stack(alone, axis=1), rtol=1e-14)
