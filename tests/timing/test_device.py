"""Time of an op on a device, against the same formula written out for one op."""

from __future__ import annotations

import numpy as np
import pytest

from perfmodel.errors import UnsupportedError
from perfmodel.hardware import Device, load_device
from perfmodel.ops.cost import OpCost
from perfmodel.timing import OpTimes, OpWork, op_times, rates_of


@pytest.fixture(scope="module")
def h100() -> Device:
    return load_device("nvidia-h100-sxm-80gb")


def times(device: Device, *costs: OpCost) -> OpTimes:
    work = OpWork.from_costs(costs)
    return op_times(work, rates_of(device, work))


def test_a_large_product_takes_its_flops_over_the_rate(h100: Device) -> None:
    n = 8192
    t = times(h100, OpCost(family="matmul", dtype="bfloat16", matrix_flops=2 * n**3, read=4 * n * n, written=2 * n * n))
    constants = h100.constants("matmul")
    expected = constants.latency + 2 * n**3 / (h100.peak("matrix", "bfloat16") * constants.rate)
    assert t.time[0] == pytest.approx(expected)
    assert t.bound.tolist() == ["matrix"]


def test_a_large_copy_takes_its_bytes_over_the_main_memory(h100: Device) -> None:
    size = 10e9
    t = times(h100, OpCost(family="copy", dtype="float32", read=size / 2, written=size / 2))
    cached = h100.memory[1].capacity
    fraction = h100.constants("copy").bandwidth
    expected = ((size - cached) / h100.main_memory.bandwidth + cached / h100.memory[1].bandwidth) / fraction
    assert t.memory[0] == pytest.approx(expected)
    assert t.bound.tolist() == ["memory"]


def test_what_fits_in_the_nearest_level_is_served_by_it(h100: Device) -> None:
    size = h100.memory[1].capacity / 2
    t = times(h100, OpCost(family="copy", dtype="float32", read=size / 2, written=size / 2))
    assert t.memory[0] == pytest.approx(size / (h100.memory[1].bandwidth * h100.constants("copy").bandwidth))


def test_a_small_op_takes_its_kernels_latency(h100: Device) -> None:
    t = times(h100, OpCost(family="elementwise", dtype="float32", vector_flops=1, read=4, written=4, kernels=3))
    assert t.time[0] == pytest.approx(3 * h100.constants("elementwise").latency, rel=1e-3)
    assert t.bound.tolist() == ["latency"]


def test_views_and_host_ops_take_no_device_time(h100: Device) -> None:
    t = times(h100, OpCost(family="view", dtype="bfloat16", kernels=0), OpCost(family="host", dtype="int64"))
    assert t.time.tolist() == [0.0, 0.0]
    assert t.bound.tolist() == ["none", "none"]


@pytest.mark.parametrize(
    ("family", "executed"), [("attention", 60e12), ("attention_backward", 60e12), ("matmul", 100e12)]
)
def test_only_fused_attention_skips_what_the_mask_hides(family: str, executed: float, h100: Device) -> None:
    t = times(h100, OpCost(family=family, dtype="bfloat16", matrix_flops=100e12, masked=40e12))
    rate = h100.peak("matrix", "bfloat16") * h100.constants(family).rate
    assert t.matrix[0] == pytest.approx(executed / rate)


def test_both_bounds_are_at_hand(h100: Device) -> None:
    cost = OpCost(family="matmul", dtype="bfloat16", matrix_flops=1e12, vector_flops=1e10, read=1e9, written=1e9)
    t = times(h100, cost)
    terms = [t.matrix[0], t.vector[0], t.memory[0]]
    assert t.time[0] == pytest.approx(t.latency[0] + max(terms))
    assert t.serial[0] == pytest.approx(t.latency[0] + sum(terms))


def test_a_type_without_arithmetic_is_refused_with_the_cure() -> None:
    cost = OpCost(family="matmul", dtype="bfloat16", matrix_flops=1e9)
    with pytest.raises(UnsupportedError, match=r"bf16.*use float16 or float32"):
        times(load_device("nvidia-v100-sxm-32gb"), cost)


def test_a_type_that_is_only_moved_needs_no_arithmetic() -> None:
    moved = OpCost(family="copy", dtype="float8_e4m3fn", read=1e6, written=1e6)
    assert np.isfinite(times(load_device("nvidia-v100-sxm-32gb"), moved).time).all()


def test_a_column_per_cost() -> None:
    work = OpWork.from_costs(
        [OpCost(family="matmul", dtype="bfloat16", matrix_flops=2**80, read=3), OpCost(family="view", dtype="float32")]
    )
    assert work.family.tolist() == ["matmul", "view"]
    assert work.dtype.tolist() == ["bfloat16", "float32"]
    assert work.matrix_flops.tolist() == [2.0**80, 0.0]
    assert work.read.dtype == np.float64
