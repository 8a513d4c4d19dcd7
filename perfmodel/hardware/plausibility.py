"""Bounds that physics and today's silicon set, wide enough for any real device.

They are there to catch a number that slipped by a factor of a thousand, which is
how most wrong hardware files go wrong: GB for TB, GHz for MHz, a peak in GFLOP/s.
Single values have absolute bounds; where those must be wide, ratios of two values
of one device (flops per byte, flops per joule) are narrower.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from perfmodel.hardware.peaks import BITS, check_peaks
from perfmodel.hardware.standards import standard_rate
from perfmodel.sourced import SourcedNumber
from perfmodel.units import format_quantity
from perfmodel.yamlfile import problem

if TYPE_CHECKING:
    from perfmodel.hardware.fields import LinkFile
    from perfmodel.hardware.schema import DeviceFile

__all__ = ["check_link", "check_number", "check_plausible"]

_PEAK = (1e8, 2e17)  # FLOP/s: a microcontroller to a wafer-scale chip
_BANDWIDTH = (1e7, 5e16)  # bytes/s of a memory level: the latter is a wafer of SRAM
_LINK = (1e6, 1e14)
_MAIN_CAPACITY = (16e6, 100e12)  # bytes
_NEAR_BYTES = (4e3, 8e9)
_CACHE_BYTES = (4e3, 1.5e9)  # 1.15 GB of L3 on the largest CPU
_CLOCK = (1e7, 2e10)  # Hz: an FPGA has 300 MHz
_UNITS = (1, 1e6)
_POWER = (1.0, 1e5)  # W of one device: the latter is more than any wafer
_PRICE = (5e-3 / 3600, 500 / 3600)  # USD/s of one device: half a cent to 500 USD an hour
_FRACTION = (1e-3, 1.0)
_LATENCY = (1e-9, 1e-2)  # s

_FLOPS_PER_BYTE = (1.0, 3.2e4)  # at one bit: 2,000 at 16 bits, where an L4 has 400; a B300 has 1,900 at 4 bits
_FLOPS_PER_JOULE = (1e9, 1e14)  # best matrix peak over TDP: 4e10 for a CPU, 1e13 for fp4
_VECTOR_SHARE = (1e-4, 1.0)  # best vector peak over best matrix peak: 0.03 for a TPU, 1 for a CPU
_READ_TIME = (1e-6, 15.0)  # s to read the main memory once: 3 us for SRAM, 13 s for a CPU with 6 TB
_DRAM_READ_TIME = (4e-3, 15.0)  # 17 ms for 8 GB of HBM
_GRAPHICS_READ_TIME = (4e-3, 2.0)  # HBM and GDDR, of which there is never much: 40 ms
_NEAR_CAPACITY = 3e-6  # of the main memory's: 1.9e-4 for a V100's L2, 5e-6 for an L3 beside 6 TB
_NEAR_SPEED = 500.0  # of the level before: 76 for the SRAM of an FPGA with HBM
_LINK_SHARE = (1e-4, 2.0)  # of the main memory's bandwidth: 3e-4 for 1 Gbit/s on an FPGA; all links together at most
_IDLE_SHARE = (2e-3, 1.0)  # of the TDP: 0.05 to 0.3


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
        check_number(unit.clock, _CLOCK, "Hz", "compute", name, "clock")
        check_number(unit.count, _UNITS, "count", "compute", name, "count")
    for index, level in enumerate(file.memory):
        near = _CACHE_BYTES if re.fullmatch(r"l[1-4]", level.name) else _NEAR_BYTES
        capacity = near if index else _MAIN_CAPACITY
        check_number(level.capacity, capacity, "bytes", "memory", index, "capacity")
        check_number(level.bandwidth, _BANDWIDTH, "bytes/s", "memory", index, "bandwidth")
    for index, link in enumerate(file.links):
        check_link(link, "links", index)
    if file.host_link is not None:
        check_link(file.host_link, "host_link")
    if file.power is not None:
        check_number(file.power.tdp, _POWER, "W", "power", "tdp")
        low, high = (share * file.power.tdp.value for share in _IDLE_SHARE)
        check_number(file.power.idle, (low, high), "W", "power", "idle")
    for index, price in enumerate(file.price):
        check_number(price, _PRICE, "USD/s", "price", index)
    for key, entry in file.calibration.items():
        check_number(entry.rate, _FRACTION, "fraction", "calibration", key, "rate")
        check_number(entry.bandwidth, _FRACTION, "fraction", "calibration", key, "bandwidth")
        check_number(entry.latency, _LATENCY, "s", "calibration", key, "latency")
    # First what points at the number that is most likely wrong.
    check_peaks(file)
    _check_ratios(file)
    _check_order(file)
    _check_link_shares(file)


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
        _ratio(
            near.bandwidth.value / far.bandwidth.value,
            (1.0, _NEAR_SPEED),
            f"{{:.3g}} times as fast as {far.name[:40]!r}",
            *("memory", index, "bandwidth"),
        )
        _ratio(
            near.capacity.value / file.memory[0].capacity.value,
            (_NEAR_CAPACITY, 1.0),
            "{:.3g} of the main memory",
            *("memory", index, "capacity"),
        )


def _check_ratios(file: DeviceFile) -> None:
    matrix = file.compute.matrix.peak.rates()
    vector = file.compute.vector.peak.rates()
    fastest = max(matrix, key=lambda dtype: matrix[dtype])
    best = matrix[fastest]
    main = file.memory[0]
    low, high = _FLOPS_PER_BYTE
    for dtype in sorted(matrix, key=lambda dtype: -matrix[dtype]):
        _ratio(
            matrix[dtype] / main.bandwidth.value,
            (low if dtype == fastest else 0.0, high / BITS[dtype]),
            f"compute.matrix.peak.{dtype} over this bandwidth is {{:.3g}} FLOP/byte",
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
        _read_time(main.name),
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


def _read_time(name: str) -> tuple[float, float]:
    if re.search(r"hbm|gddr", name):
        return _GRAPHICS_READ_TIME
    return _DRAM_READ_TIME if re.search(r"ddr|dram|unified", name) else _READ_TIME


def _check_link_shares(file: DeviceFile) -> None:
    main = file.memory[0].bandwidth.value
    low, high = _LINK_SHARE
    words = "{:.3g} of the main memory's bandwidth"
    places: list[tuple[LinkFile, tuple[str | int, ...]]] = [
        (link, ("links", index, "bandwidth")) for index, link in enumerate(file.links)
    ]
    if file.host_link is not None:
        places.append((file.host_link, ("host_link", "bandwidth")))
    for link, at in places:
        _ratio(link.bandwidth.value / main, (low, high), words, *at)
        _ratio(link.count * link.bandwidth.value / main, (low, high), f"all {link.count} together are {words}", *at)


def check_link(link: LinkFile, *at: str | int) -> None:
    """Refuse a link that no machine has, or that its standard doesn't carry."""
    check_number(link.bandwidth, _LINK, "bytes/s", *at, "bandwidth")
    rate = standard_rate(link.name)
    if rate is None or link.bandwidth.is_override or 0.5 * rate <= link.bandwidth.value <= 1.02 * rate:
        return
    stated, standard = (format_quantity(value, "bytes/s", digits=4) for value in (link.bandwidth.value, rate))
    raise problem(
        f"{stated} is not a {link.name} link, which carries {standard} in one direction; "
        "check bits and bytes, one link and all of them, and one direction and both",
        *at,
        "bandwidth",
    )


def check_number(number: SourcedNumber | None, bounds: tuple[float, float], dimension: str, *at: str | int) -> None:
    """Refuse a number outside bounds."""
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
