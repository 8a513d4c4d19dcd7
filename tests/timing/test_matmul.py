"""Times of matrix products against what can be reckoned by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from perfmodel.errors import UnknownNameError, UnsupportedError
from perfmodel.hardware import load_device
from perfmodel.hardware.kernels import KernelConstants
from perfmodel.ops.cost import MatmulShape
from perfmodel.timing.matmul import (
    FORMATS,
    BlockConstants,
    Machine,
    Menu,
    Products,
    Tile,
    TileConstants,
    kernel_of,
    matmul_time,
    menu_named,
    model_of,
    packed_time,
    products_of,
    systolic_time,
    tiled_time,
)

#: 10 units of 1 GHz, 1 TFLOP/s each; a cache of 64 bytes a clock and unit, memory that is never the limit.
MACHINE = Machine(units=10.0, clock=1e9, peak=1e13, bandwidth=1e15, cache=1e6, cache_bandwidth=1e16)
CONSTANTS = TileConstants(rate=1.0, bandwidth=1.0, cache=1.0, launch=1000.0)
ONE = Menu(name="one", tiles=(Tile(m=100, n=100, k=10),), source="a test", feed=1e6)


def product(m: float, n: float, k: float, b: float = 1.0, **other: float) -> Products:
    return Products(b=np.array(b), m=np.array(m), n=np.array(n), k=np.array(k), **other)


def seconds(
    case: Products, menu: Menu = ONE, machine: Machine = MACHINE, dtype: str = "fp32", **values: float
) -> float:
    return float(tiled_time(case, FORMATS[dtype], machine, replace(CONSTANTS, **values), menu))


def test_waves_of_tiles() -> None:
    # 2 x 100 x 100 x 1000 flops a tile at 1 TFLOP/s a unit: 20 us, and a launch of 1000 clocks: 1 us.
    assert seconds(product(100, 100, 1000)) == pytest.approx(21e-6, rel=1e-2)
    assert seconds(product(1000, 100, 1000)) == pytest.approx(21e-6, rel=1e-2)
    assert seconds(product(1001, 100, 1000)) == pytest.approx(41e-6, rel=1e-2)
    assert seconds(product(100, 100, 1000, b=11)) == pytest.approx(41e-6, rel=1e-2)


def test_every_wave_fills_its_pipeline() -> None:
    assert seconds(product(1001, 100, 1000), fill=500.0) == pytest.approx(42e-6, rel=1e-2)


def test_k_is_padded_to_the_step() -> None:
    assert seconds(product(100, 100, 991)) == seconds(product(100, 100, 1000))


def test_a_tile_waits_for_its_operands() -> None:
    slow = replace(ONE, feed=4.0)  # 4 bytes x 200 x 1000 at 4 GB/s a unit: 200 us
    assert seconds(product(100, 100, 1000), slow) == pytest.approx(201e-6, rel=1e-2)
    shared = replace(slow, shared_issue=True)
    assert seconds(product(100, 100, 1000), shared) == pytest.approx(221e-6, rel=1e-2)


def test_skinny_products_are_split_along_k() -> None:
    split = replace(ONE, splits=(1, 2, 5, 10))
    whole, parts = seconds(product(100, 100, 10_000)), seconds(product(100, 100, 10_000), split)
    assert whole == pytest.approx(201e-6, rel=1e-2)
    # 20 us for a tenth of k, and a second launch; the partial sums cost nothing here.
    assert parts == pytest.approx(22e-6, rel=1e-2)
    assert seconds(product(100, 100, 10_000), split, split=3000.0) == pytest.approx(25e-6, rel=1e-2)


def test_the_fastest_tile_is_taken() -> None:
    small = Tile(m=50, n=50, k=10)
    both = replace(ONE, tiles=(*ONE.tiles, small))
    # Four small tiles keep four units busy where a large one keeps one.
    assert seconds(product(100, 100, 1000), both) == pytest.approx(6e-6, rel=1e-2)


def test_two_units_share_a_tile() -> None:
    pair = replace(ONE, tiles=(Tile(m=200, n=100, k=10, units=2),))
    assert seconds(product(1000, 100, 1000), pair) == pytest.approx(21e-6, rel=1e-2)
    assert seconds(product(1001, 100, 1000), pair) == pytest.approx(41e-6, rel=1e-2)


def test_writing_that_is_not_hidden_is_added() -> None:
    slow = replace(MACHINE, bandwidth=1e9)  # 40 kB of result: 40 us; 800 kB of operands: 800 us
    shown, hidden = (seconds(product(100, 100, 1000), machine=slow, store=share) for share in (1.0, 0.0))
    assert shown == hidden == pytest.approx(841e-6, rel=1e-3)  # bound by memory: nothing to hide behind
    busy = replace(MACHINE, bandwidth=1e12)
    assert seconds(product(100, 100, 1000), machine=busy, store=1.0) - seconds(
        product(100, 100, 1000), machine=busy, store=0.0
    ) == pytest.approx(40e-9)


def test_long_products_are_throttled_and_all_are_in_a_step() -> None:
    long, short = product(100, 100, 1e8), product(100, 100, 1000)
    assert seconds(long, throttle=0.5) / seconds(long) == pytest.approx(1.5, rel=2e-3)
    assert seconds(short, throttle=0.5) / seconds(short) < 1.02
    step = tiled_time(short, FORMATS["fp32"], MACHINE, replace(CONSTANTS, throttle=0.5), ONE, sustained=True)
    assert float(step) == pytest.approx(31e-6, rel=1e-2)


def test_quantizing_is_a_kernel_of_its_own() -> None:
    slow = replace(MACHINE, bandwidth=1e9)
    plain = replace(FORMATS["fp8"], quantized_from=0.0)
    case = product(100, 100, 1000)
    with_kernel = float(tiled_time(case, FORMATS["fp8"], slow, CONSTANTS, ONE))
    without = float(tiled_time(case, plain, slow, CONSTANTS, ONE))
    assert with_kernel - without == pytest.approx(1e-6 + 300e-6)  # two bytes read and one written for each of 100,000


def test_operands_that_stay_in_the_cache_are_not_read_again() -> None:
    slow, keeps = replace(MACHINE, bandwidth=1e9), replace(ONE, resident=1.0)
    cold, hot = product(100, 100, 100), product(100, 100, 100, copies=1.0)
    assert seconds(hot, keeps, slow) < 0.1 * seconds(cold, keeps, slow)
    assert seconds(product(100, 100, 100, copies=20.0), keeps, slow) > 0.5 * seconds(cold, keeps, slow)
    assert seconds(hot, ONE, slow) == seconds(cold, ONE, slow)


def test_uneven_groups_make_more_tiles() -> None:
    even = product(100, 100, 1000, b=10)
    assert seconds(replace(even, uneven=1.0)) == pytest.approx(21e-6, rel=1e-2)
    # The largest group has 250 rows and so three tiles, each other one 83 and so one: 12 tiles on 10 units.
    assert seconds(replace(even, uneven=2.5)) == pytest.approx(41e-6, rel=1e-2)


@pytest.mark.parametrize(("m", "n", "tile"), [(64, 10**6, 16), (65, 9472, 64), (65, 9473, 128), (129, 9473, 256)])
def test_a_rule_chooses_as_the_library_does(m: int, n: int, tile: int) -> None:
    # The smallest tile whose tiles fit on the 148 units at once: 74 columns of tiles and 2 rows, or 75 and 1.
    menu = menu_named("cutlass-blockwise-sm100")
    assert menu.rule is not None
    assert menu.tiles[int(menu.rule(np.array(m), np.array(n), np.array(1), 148.0))].m == tile


def test_a_systolic_array_pads_and_loads_before_it_computes() -> None:
    values = BlockConstants(rate=1.0, bandwidth=1.0, start=1e-6)
    machine = replace(MACHINE, bandwidth=1e9, peak=1e13)
    form, array = FORMATS["bf16"], (8, 100, 100)
    one = float(systolic_time(product(1, 1, 1), form, machine, values, array))
    assert one == float(systolic_time(product(8, 100, 100), form, machine, values, array))
    # Before: 2 bytes x 100 x (8 + 200) = 41.6 us; half a block: 2 x 200 x (100 + 8) / 2 = 21.6 us; after: 3.2 us.
    assert one == pytest.approx(1e-6 + 41.6e-6 + 21.6e-6 + 3.2e-6)


def test_cores_pack_before_they_multiply() -> None:
    values = BlockConstants(rate=0.5, bandwidth=0.5, start=1e-6)
    time = float(packed_time(product(100, 100, 1000), FORMATS["fp32"], replace(MACHINE, bandwidth=1e9), values))
    assert time == pytest.approx(1e-6 + 4e-6 + 4 * 210_000 / 0.5e9)


def test_shapes_of_groups() -> None:
    forward = products_of(MatmulShape(b=1, m=1000, n=64, k=32, groups=10, skew=2.0))
    assert (forward.b, forward.m, forward.k, forward.uneven) == (10, 100, 32, 2.0)
    gradient = products_of(MatmulShape(b=1, m=32, n=64, k=1000, groups=10, x_transposed=True))
    assert (gradient.b, gradient.m, gradient.k) == (10, 32, 100)
    plain = products_of(MatmulShape(b=3, m=np.array([1, 2]), n=64, k=32))
    assert plain.m.tolist() == [1, 2]


def entry(model: str) -> KernelConstants:
    values = {"rate": 0.8, "bandwidth": 0.8, "cache": 0.5, "launch": 5000.0, "gap": 1e-5}
    return KernelConstants(values=values, data="a test", date="2026-11", model=model)


def test_constants_of_a_like_type_or_family_serve() -> None:
    device = replace(load_device("h100"), kernels={"matmul": {"bf16": entry("tiles/cublas-hopper")}})
    assert kernel_of(device, "grouped_matmul", "fp16") is device.kernels["matmul"]["bf16"]
    assert kernel_of(device, "matmul", "fp8") is None
    shape = MatmulShape(b=1, m=np.array([64, 4096]), n=4096, k=4096)
    time = matmul_time(device, "batched_matmul", "fp16", shape)
    assert time.shape == (2,)
    assert time[0] < time[1]
    assert matmul_time(device, "matmul", "fp8", shape) is None


def test_what_a_measurement_adds_is_not_part_of_the_time() -> None:
    model = model_of(load_device("h100"), "bf16", "tiles/cublas-hopper")
    case, values = product(64, 64, 64), entry("").values
    assert float(model.measured(case, values)) == pytest.approx(float(model.time(case, values)) + 1e-5)
    assert float(model.measured(case, {**values, "floor": 1e-3})) == 1e-3


def test_unknown_formulas_and_menus_are_refused() -> None:
    device = load_device("h100")
    with pytest.raises(UnsupportedError, match="known: tiles/MENU, systolic, packed"):
        model_of(device, "bf16", "tile")
    with pytest.raises(UnknownNameError, match="did you mean 'cublas-hopper'"):
        model_of(device, "bf16", "tiles/cublas-hoper")
    with pytest.raises(UnsupportedError, match="how large its array is"):
        model_of(device, "bf16", "systolic")
    unit = replace(device.compute["vector"], clock=None)
    with pytest.raises(UnsupportedError, match="doesn't say the clock of the units"):
        model_of(replace(device, compute={**device.compute, "vector": unit}), "bf16", "tiles/cublas-hopper")
