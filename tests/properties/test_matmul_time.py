"""What must hold for the time of any matrix product, whatever the tiles."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfmodel.timing.matmul import (
    FORMATS,
    MENUS,
    BlockConstants,
    Machine,
    Products,
    TileConstants,
    packed_time,
    systolic_time,
    tiled_time,
)

#: Menus of which the fastest tile is taken; a rule may take a slower one.
CHOSEN = sorted(name for name, menu in MENUS.items() if menu.rule is None)
size = st.integers(1, 20_000)
share = st.floats(0.1, 1.0)
clocks = st.floats(0, 2e4)
more = st.floats(1.0, 8.0)

constants = st.builds(
    TileConstants,
    rate=share,
    bandwidth=share,
    cache=share,
    launch=clocks,
    throttle=st.floats(0, 1),
    store=st.floats(0, 1),
    fill=clocks,
    split=clocks,
)
machines = st.builds(
    Machine,
    units=st.integers(1, 200).map(float),
    clock=st.floats(1e9, 3e9),
    peak=st.floats(1e12, 1e16),
    bandwidth=st.floats(1e11, 1e13),
    cache=st.floats(1e6, 2e8),
    cache_bandwidth=st.floats(1e13, 1e14),
)


@st.composite
def products(draw: st.DrawFn) -> Products:
    b, m, n, k = (np.array(float(value)) for value in (draw(st.integers(1, 64)), draw(size), draw(size), draw(size)))
    return Products(b=b, m=m, n=n, k=k, copies=draw(st.sampled_from([None, 1.0, 5.0])))


def seconds(case: Products, machine: Machine, values: TileConstants, menu: str, dtype: str = "bf16") -> float:
    return float(tiled_time(case, FORMATS[dtype], machine, values, MENUS[menu]))


@given(products(), machines, constants, st.sampled_from(CHOSEN), st.sampled_from("bmnk"), st.integers(1, 3000))
@settings(deadline=None, max_examples=60)
def test_a_smaller_product_is_never_slower(
    case: Products, machine: Machine, values: TileConstants, menu: str, name: str, added: int
) -> None:
    larger = replace(case, **{name: getattr(case, name) + added})
    assert seconds(case, machine, values, menu) <= seconds(larger, machine, values, menu) * (1 + 1e-9)


@given(
    products(),
    machines,
    constants,
    st.sampled_from(sorted(MENUS)),
    st.sampled_from(["bandwidth", "peak", "cache"]),
    more,
)
@settings(deadline=None, max_examples=60)
def test_a_better_machine_is_never_slower(
    case: Products, machine: Machine, values: TileConstants, menu: str, name: str, factor: float
) -> None:
    better = replace(machine, **{name: getattr(machine, name) * factor})
    assert seconds(case, better, values, menu) <= seconds(case, machine, values, menu) * (1 + 1e-9)


@given(products(), machines, constants, st.sampled_from(CHOSEN), st.integers(1, 200))
@settings(deadline=None, max_examples=60)
def test_more_units_of_the_same_kind_are_never_slower(
    case: Products, machine: Machine, values: TileConstants, menu: str, added: int
) -> None:
    units = np.asarray(machine.units) + added
    larger = replace(machine, units=units, peak=machine.peak * units / machine.units)
    assert seconds(case, larger, values, menu) <= seconds(case, machine, values, menu) * (1 + 1e-9)


@given(products(), machines, constants, st.sampled_from(sorted(MENUS)))
@settings(deadline=None, max_examples=60)
def test_nothing_beats_the_peak_or_the_fastest_memory_that_holds_the_operands(
    case: Products, machine: Machine, values: TileConstants, menu: str
) -> None:
    time, form = seconds(case, machine, values, menu), FORMATS["bf16"]
    flops = float(2 * case.b * case.m * case.n * case.k)
    moved = float(case.b * (form.operand * (case.m * case.k + case.k * case.n) + form.result * case.m * case.n))
    held = case.copies is not None and moved <= machine.cache
    fastest = machine.cache_bandwidth if held else machine.bandwidth
    if case.copies is None or held:
        assert time >= moved / fastest * (1 - 1e-9)
    assert time >= flops / machine.peak * (1 - 1e-9)


@given(machines, constants, st.sampled_from([name for name in CHOSEN if not MENUS[name].shared_issue]))
@settings(deadline=None, max_examples=60)
def test_a_large_product_reaches_the_achievable_rate(machine: Machine, values: TileConstants, menu: str) -> None:
    values = replace(values, cache=1.0, fill=0.0)
    # At most as many flops a clock as the cache can feed.
    fed = 1e3 * float(machine.units) * float(machine.clock) / MENUS[menu].lanes
    machine = replace(machine, peak=min(float(machine.peak), fed))
    edge = np.array(2.0**21)
    case = Products(b=np.array(1.0), m=edge, n=edge, k=edge)
    time = seconds(case, machine, values, menu)
    rate = float(2 * edge**3) / time
    assert rate == pytest.approx(machine.peak * values.rate / (1 + values.throttle), rel=0.02)


@given(st.lists(products(), min_size=1, max_size=8), machines, constants, st.sampled_from(sorted(MENUS)))
@settings(deadline=None, max_examples=60)
def test_many_at_once_are_the_same_as_one_by_one(
    cases: list[Products], machine: Machine, values: TileConstants, menu: str
) -> None:
    cases = [replace(case, copies=None) for case in cases]
    columns = {name: np.array([float(getattr(case, name)) for case in cases]) for name in "bmnk"}
    together = tiled_time(Products(**columns), FORMATS["bf16"], machine, values, MENUS[menu])
    assert together.tolist() == [seconds(case, machine, values, menu) for case in cases]


@given(products(), machines, share, share, st.floats(0, 1e-4), st.sampled_from("bmnk"), st.integers(1, 3000))
@settings(deadline=None, max_examples=60)
def test_arrays_and_cores_take_longer_for_more(
    case: Products, machine: Machine, rate: float, bandwidth: float, start: float, name: str, added: int
) -> None:
    values = BlockConstants(rate=rate, bandwidth=bandwidth, start=start)
    larger, form = replace(case, **{name: getattr(case, name) + added}), FORMATS["bf16"]
    flops = 2 * case.b * case.m * case.n * case.k
    for time in (
        lambda some: float(packed_time(some, form, machine, values)),
        lambda some: float(systolic_time(some, form, machine, values, (8, 128, 128))),
    ):
        assert time(case) <= time(larger) * (1 + 1e-9)
        assert time(case) >= float(flops / machine.peak) * (1 - 1e-9)
