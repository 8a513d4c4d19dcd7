"""Checks of the peaks of a device: those that training needs are there, and none is one with sparsity."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from perfmodel.units import format_quantity
from perfmodel.yamlfile import problem

if TYPE_CHECKING:
    from perfmodel.hardware.schema import DeviceFile, UnitFile

__all__ = ["BITS", "check_peaks"]

#: Bits of an operand that a multiplier works on.
BITS = {
    "fp64": 64,
    "fp32": 32,
    "tf32": 19,
    "bf16": 16,
    "fp16": 16,
    "fp8": 8,
    "fp6": 6,
    "fp4": 4,
    "int32": 32,
    "int8": 8,
    "int4": 4,
}
_NARROW_SHARE = 1 / 70  # of the peak of a wider type, at least: 1/62 for fp16 on a P4
_FAST_SHARE = 1 / 600  # of the fastest peak, fp64 apart: 1/250 for fp16 on a P4, 1/200 for fp32 on a B300
_DOUBLE_SHARE = (1 / 100, 4.0)  # of the peak of fp32: 1/64 on consumer GPUs, 1 on an MI210


def check_peaks(file: DeviceFile) -> None:
    """Peaks that a training step needs are there, and none is a figure with sparsity."""
    for name, unit in (("matrix", file.compute.matrix), ("vector", file.compute.vector)):
        peaks = unit.peak.rates()
        at = ("compute", name, "peak")
        for dtype, rate in ({} if unit.sparse is None else unit.sparse.rates()).items():
            if dtype in peaks and peaks[dtype] > 0.99 * rate and not unit.peak.numbers()[dtype].is_override:
                raise problem("this is the figure with sparsity; write the dense one, usually half of it", *at, dtype)
        _check_widths(peaks, *at)
        _check_against_units(unit, name)
    matrix, vector = file.compute.matrix.peak.rates(), file.compute.vector.peak.rates()
    for faster, slower in (("bf16", "tf32"), ("fp8", "bf16"), ("fp8", "fp16")):
        if any(number.is_override for number in file.compute.matrix.peak.numbers().values()):
            break
        if faster in matrix and slower in matrix and matrix[faster] > 2.2 * max(matrix[slower], matrix.get("fp16", 0)):
            raise problem(
                f"{matrix[faster] / matrix[slower]:.3g} times {slower}, where twice is usual; "
                "write the dense figure, not the one with sparsity",
                *("compute", "matrix", "peak", faster),
            )
    for dtype, why in (("fp32", "losses and optimizers run in it"), ("int32", "index arithmetic runs in it")):
        if dtype not in vector:
            cure = "state its rate, or an assumed one if it is emulated"
            raise problem(f"no {dtype}, but {why}; {cure}", "compute", "vector", "peak")
    for dtype in ("bf16", "fp16"):
        if dtype in matrix and dtype not in vector:
            raise problem(
                f"no {dtype}, which the matrix unit has; state the rate of element-wise arithmetic, often that of fp32",
                *("compute", "vector", "peak"),
            )
    if not {"fp32", "bf16", "fp16"} & set(matrix):
        raise problem("none of fp32, bf16 and fp16; training needs one of them", "compute", "matrix", "peak")


def _check_widths(peaks: dict[str, float], *at: str) -> None:
    """A type isn't much slower than a wider one, and fp64 isn't much slower, nor faster by more, than fp32."""
    for dtype, rate in peaks.items():
        if dtype == "fp64":
            low, high = (share * peaks["fp32"] for share in _DOUBLE_SHARE) if "fp32" in peaks else (0.0, math.inf)
            other = "fp32"
        else:
            wider = [name for name in peaks if BITS[name] >= BITS[dtype] and name not in ("fp64", "int32")]
            other = max(wider, key=lambda name: peaks[name]) if wider else dtype
            low, high = _NARROW_SHARE * peaks[other], math.inf
            fastest = max(peaks, key=lambda name: peaks[name])
            if rate < _FAST_SHARE * peaks[fastest]:
                other, low = fastest, _FAST_SHARE * peaks[fastest]
        if not low <= rate <= high:
            raise problem(f"{rate / peaks[other]:.2g} of {other}; check both units and the factor of 1000", *at, dtype)


def _check_against_units(unit: UnitFile, name: str) -> None:
    """A unit does its tile at most once a clock; a narrower type may be faster."""
    if unit.tile is None or unit.count is None or unit.clock is None:
        return
    each = 2 * unit.tile.m * unit.tile.n * unit.tile.k * unit.count.value * unit.clock.value
    for dtype, rate in unit.peak.rates().items():
        most = each * max(1.0, 16 / BITS[dtype]) * (2 if dtype in ("fp4", "int8", "int4") else 1)
        if rate > 1.03 * most and not unit.peak.numbers()[dtype].is_override:
            stated, limit = (format_quantity(value, "FLOP/s", digits=4) for value in (rate, most))
            raise problem(
                f"{stated} is more than count x clock x tile allow, {limit}; "
                "write the dense figure, or correct the count, the clock or the tile",
                *("compute", name, "peak", dtype),
            )
