"""What must hold for the time of any op on any machine, and for any pair of queues."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfmodel.hardware import device_names, load_device
from perfmodel.ops.cost import OpCost
from perfmodel.timing import OpWork, Rates, op_times, rates_of, two_queues

DEVICES = {name: load_device(name) for name in device_names()}
FAMILIES = ("matmul", "batched_matmul", "attention", "elementwise", "norm", "gather", "copy", "optimizer")
amount = st.integers(0, 10**15)
factor = st.floats(1, 1e3)
seconds = st.floats(0, 10, allow_subnormal=False)


@st.composite
def costs(draw: st.DrawFn) -> OpCost:
    family = draw(st.sampled_from(FAMILIES))
    product = family in FAMILIES[:3]
    return OpCost(
        family=family,
        dtype="float32",
        matrix_flops=draw(amount) if product else 0,
        vector_flops=draw(amount),
        read=draw(amount),
        written=draw(amount),
        kernels=draw(st.integers(1, 5)),
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[OpWork, Rates]:
    work = OpWork.from_costs(draw(st.lists(costs(), min_size=1, max_size=6)))
    return work, rates_of(DEVICES[draw(st.sampled_from(sorted(DEVICES)))], work)


def never_more(faster: np.ndarray, slower: np.ndarray) -> bool:
    return bool(np.all(faster <= slower * (1 + 1e-12)))


@given(cases(), factor)
def test_better_hardware_is_never_slower(case: tuple[OpWork, Rates], k: float) -> None:
    work, rates = case
    before = op_times(work, rates)
    better = (
        replace(rates, matrix=rates.matrix * k),
        replace(rates, vector=rates.vector * k),
        replace(rates, bandwidth=tuple(level * k for level in rates.bandwidth)),
        replace(rates, bandwidth=(rates.bandwidth[0] * k, *rates.bandwidth[1:])),
        replace(rates, latency=rates.latency / k),
    )
    for changed in better:
        after = op_times(work, changed)
        assert never_more(after.time, before.time)
        assert never_more(after.serial, before.serial)


@given(cases(), factor, st.sampled_from(["matrix_flops", "vector_flops", "read", "written", "kernels"]))
def test_more_work_is_never_faster(case: tuple[OpWork, Rates], k: float, column: str) -> None:
    work, rates = case
    more = (
        replace(work, **{column: getattr(work, column) * k + 1})
        if column in ("read", "written")
        else replace(work, **{column: getattr(work, column) * k})
    )
    assert never_more(op_times(work, rates).time, op_times(more, rates).time)


@given(cases())
def test_overlap_lies_between_the_slowest_term_and_their_sum(case: tuple[OpWork, Rates]) -> None:
    work, rates = case
    t = op_times(work, rates)
    assert never_more(t.time, t.serial)
    for term in (t.matrix, t.vector, t.memory):
        assert never_more(term + t.latency, t.time)
    names = {"matrix": t.matrix, "vector": t.vector, "memory": t.memory, "latency": t.latency}
    largest = np.max(list(names.values()), axis=0)
    for row, name in enumerate(t.bound):
        assert largest[row] == (names[str(name)][row] if name != "none" else 0.0)


@given(cases())
def test_many_ops_at_once_are_what_each_is_alone(case: tuple[OpWork, Rates]) -> None:
    work, rates = case
    together = op_times(work, rates).time
    for row in range(len(work.family)):
        one = slice(row, row + 1)
        alone = op_times(
            OpWork(**{name: getattr(work, name)[one] for name in OpWork.__slots__}),
            Rates(
                matrix=rates.matrix[one],
                vector=rates.vector[one],
                bandwidth=tuple(level[one] for level in rates.bandwidth),
                capacity=rates.capacity,
                latency=rates.latency[one],
            ),
        )
        assert alone.time[0] == together[row]


@given(amount, amount)
def test_a_bandwidth_bound_op_is_not_slowed_by_a_doubled_machine(size: int, flops: int) -> None:
    cost = OpCost(family="elementwise", dtype="float32", vector_flops=flops, read=size, written=size)
    for device in DEVICES.values():
        doubled = replace(
            device, memory=tuple(replace(m, bandwidth=2 * m.bandwidth, capacity=2 * m.capacity) for m in device.memory)
        )
        work = OpWork.from_costs([cost])
        assert never_more(op_times(work, rates_of(doubled, work)).time, op_times(work, rates_of(device, work)).time)


def looped(host: list[float], device: list[float], blocking: list[bool], start: float) -> tuple[float, list[float]]:
    """The recurrence, one op after the other."""
    issued, executed, ends = start, 0.0, []
    for h, t, waits in zip(host, device, blocking, strict=True):
        issued += h
        executed = max(issued, executed) + t
        ends.append(executed)
        if waits:
            issued = max(issued, executed)
    return max(issued, executed), ends


@settings(max_examples=300)
@given(st.lists(st.tuples(seconds, seconds, st.booleans()), max_size=40), seconds)
def test_two_queues_are_the_recurrence(ops: list[tuple[float, float, bool]], start: float) -> None:
    host, device, blocking = ([op[i] for op in ops] for i in range(3))
    step, ends = looped(host, device, blocking, start)
    r = two_queues(np.array(host), np.array(device), np.array(blocking, dtype=bool), start=start)
    assert r.step_time == pytest.approx(step, rel=1e-12, abs=1e-12)
    np.testing.assert_allclose(r.end, ends, rtol=1e-12, atol=1e-12)


@given(st.lists(st.tuples(seconds, seconds, st.booleans()), max_size=40), seconds)
def test_a_step_takes_at_least_either_queue_and_at_most_both(
    ops: list[tuple[float, float, bool]], start: float
) -> None:
    host, device = np.array([op[0] for op in ops]), np.array([op[1] for op in ops])
    r = two_queues(host, device, np.array([op[2] for op in ops], dtype=bool), start=start)
    both = start + host.sum() + device.sum()
    slack = 1e-12 * (1 + both)
    assert max(start + host.sum(), device.sum()) - slack <= r.step_time <= both + slack
    assert r.device_idle >= -slack
    serial = two_queues(host, device, np.zeros(len(ops), bool), start=start, synchronous=True)
    assert serial.step_time == pytest.approx(both)
