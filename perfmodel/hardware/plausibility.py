"""Bounds that physics and today's silicon set, wide enough for any real device.

They are there to catch a number that slipped by a factor of a thousand, which is
how most wrong hardware files go wrong: GB for TB, GHz for MHz, a peak in GFLOP/s.
Single values have absolute bounds; where those must be wide, ratios of two values
of one device (flops per byte, flops per joule) are narrower.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from perfmodel.sourced import SourcedNumber
from perfmodel.units import format_quantity
from perfmodel.yamlfile import problem

if TYPE_CHECKING:
    from perfmodel.hardware.schema import DeviceFile

__all__ = ["check_plausible"]

_PEAK = (1e8, 2e17)  # FLOP/s: a microcontroller to a wafer-scale chip
_BANDWIDTH = (1e7, 5e16)  # bytes/s of a memory level: the latter is a wafer of SRAM
_LINK = (1e6, 1e14)
_MAIN_CAPACITY = (16e6, 100e12)  # bytes
_CACHE_CAPACITY = (4e3, 8e9)
_CLOCK = (1e6, 2e10)  # Hz
_UNITS = (1, 1e6)
_POWER = (0.1, 1e5)  # W of one device: the latter is more than any wafer
_PRICE = (1e-4 / 3600, 1e4 / 3600)  # USD/s
_FRACTION = (1e-3, 1.0)
_LATENCY = (0.0, 1e-2)  # s

_FLOPS_PER_BYTE = (1.0, 1e4)  # best matrix peak over main bandwidth: 2 for SRAM machines, 2,000 for fp4 on HBM
_FLOPS_PER_JOULE = (1e8, 1e14)  # best matrix peak over TDP: 4e10 for a CPU, 1e13 for fp4
_VECTOR_SHARE = (1e-4, 1.0)  # best vector peak over best matrix peak: 0.03 for a TPU, 1 for a CPU
_READ_TIME = (1e-6, 1e2)  # s to read the main memory once: 3 us for SRAM, 2 s for a CPU


def check_plausible(file: DeviceFile) -> None:
    """Refuse a device with a number that no device has.

    Raises
    ------
    pydantic_core.PydanticCustomError
        Pointing at the number.
    """
    for name, unit in (("matrix", file.compute.matrix), ("vector", file.compute.vector)):
        for kind, peaks in (("peak", unit.peak), ("sparse", unit.sparse)):
            for dtype, rate in ({} if peaks is None else peaks.rates()).items():
                _within(rate, _PEAK, "FLOP/s", "compute", name, kind, dtype)
        _number(unit.clock, _CLOCK, "Hz", "compute", name, "clock")
        _number(unit.count, _UNITS, "count", "compute", name, "count")
    for index, level in enumerate(file.memory):
        capacity = _CACHE_CAPACITY if index else _MAIN_CAPACITY
        _number(level.capacity, capacity, "bytes", "memory", index, "capacity")
        _number(level.bandwidth, _BANDWIDTH, "bytes/s", "memory", index, "bandwidth")
    for index, link in enumerate(file.links):
        _number(link.bandwidth, _LINK, "bytes/s", "links", index, "bandwidth")
    if file.host_link is not None:
        _number(file.host_link.bandwidth, _LINK, "bytes/s", "host_link", "bandwidth")
    if file.power is not None:
        _number(file.power.tdp, _POWER, "W", "power", "tdp")
        _number(file.power.idle, (0.0, file.power.tdp.value), "W", "power", "idle")
    for index, price in enumerate(file.price):
        _number(price, _PRICE, "USD/s", "price", index)
    for key, entry in file.calibration.items():
        _number(entry.rate, _FRACTION, "fraction", "calibration", key, "rate")
        _number(entry.bandwidth, _FRACTION, "fraction", "calibration", key, "bandwidth")
        _number(entry.latency, _LATENCY, "s", "calibration", key, "latency")
    _check_order(file)
    _check_ratios(file)


def _check_order(file: DeviceFile) -> None:
    for index in range(1, len(file.memory)):
        far, near = file.memory[index - 1], file.memory[index]
        if near.capacity.value >= far.capacity.value:
            raise problem(
                f"{near.name[:40]!r} is not smaller than {far.name[:40]!r} before it; list levels from the farthest",
                *("memory", index, "capacity"),
            )
        if near.bandwidth.value < far.bandwidth.value:
            raise problem(
                f"{near.name[:40]!r} is slower than {far.name[:40]!r} before it; list levels from the farthest",
                *("memory", index, "bandwidth"),
            )


def _check_ratios(file: DeviceFile) -> None:
    matrix = file.compute.matrix.peak.rates()
    vector = file.compute.vector.peak.rates()
    fastest = max(matrix, key=lambda dtype: matrix[dtype])
    best = matrix[fastest]
    main = file.memory[0]
    _ratio(
        best / main.bandwidth.value,
        _FLOPS_PER_BYTE,
        f"compute.matrix.peak.{fastest} over this bandwidth is {{:.3g}} FLOP/byte",
        *("memory", 0, "bandwidth"),
    )
    _ratio(
        max(vector.values()) / best,
        _VECTOR_SHARE,
        f"the fastest vector peak is {{:.3g}} of compute.matrix.peak.{fastest}",
        *("compute", "vector", "peak"),
    )
    _ratio(
        main.capacity.value / main.bandwidth.value,
        _READ_TIME,
        "reading this memory once would take {:.3g} s",
        *("memory", 0, "capacity"),
    )
    if file.power is not None:
        _ratio(
            best / file.power.tdp.value,
            _FLOPS_PER_JOULE,
            f"compute.matrix.peak.{fastest} over this power is {{:.3g}} FLOP/J",
            *("power", "tdp"),
        )


def _number(number: SourcedNumber | None, bounds: tuple[float, float], dimension: str, *at: str | int) -> None:
    if number is not None:
        _within(number.value, bounds, dimension, *at)


def _within(value: float, bounds: tuple[float, float], dimension: str, *at: str | int) -> None:
    low, high = bounds
    if not low <= value <= high:
        shown, least, most = (format_quantity(number, dimension, digits=4) for number in (value, low, high))
        raise problem(f"{shown} is outside {least} to {most}; check the unit and the factor of 1000", *at)


def _ratio(value: float, bounds: tuple[float, float], words: str, *at: str | int) -> None:
    low, high = bounds
    if not low <= value <= high:
        text = words.format(value)
        raise problem(f"{text}, outside {low:g} to {high:g}; check both units and the factor of 1000", *at)
