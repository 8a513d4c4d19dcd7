"""A device as the rest of the library sees it: plain SI floats, frozen, without pydantic or YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from perfmodel.dtypes import compute_name
from perfmodel.errors import PerfModelError, UnsupportedError
from perfmodel.families import FAMILIES
from perfmodel.hardware.kernels import ANY_DTYPE, KernelConstants
from perfmodel.sourced import Source

if TYPE_CHECKING:
    from perfmodel.hardware.override import Override

__all__ = [
    "CALIBRATION_GROUPS",
    "PEAK_NAMES",
    "Calibration",
    "ComputeUnit",
    "Device",
    "Link",
    "MemoryLevel",
    "Power",
    "Price",
    "group_of",
]

#: Types of arithmetic for which a file may state a peak.
PEAK_NAMES = ("fp64", "fp32", "tf32", "bf16", "fp16", "fp8", "fp6", "fp4", "int32", "int8", "int4")

#: Groups of op families that share constants where a family has none of its own.
CALIBRATION_GROUPS = ("matmul", "attention", "vector")

_GROUPS = {
    "matmul": "matmul",
    "batched_matmul": "matmul",
    "attention": "attention",
    "attention_backward": "attention",
    "recurrent": "matmul",
    "scan": "attention",
}
_VERSION = 1
_HALF = {"bf16": "float16 or float32", "fp16": "bfloat16 or float32", "fp8": "bfloat16"}


def group_of(family: str) -> str:
    """The calibration group of an op family.

    >>> group_of("batched_matmul"), group_of("softmax")
    ('matmul', 'vector')
    """
    if family in CALIBRATION_GROUPS:
        return family
    if family not in FAMILIES:
        raise UnsupportedError(f"op family {family!r} is unknown; known: {', '.join(FAMILIES)}")
    return _GROUPS.get(family, "vector")


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeUnit:
    """The matrix or the vector arithmetic of a device, all its units together.

    Attributes
    ----------
    peak : mapping of str to float
        FLOP/s (OP/s for integers), dense, keyed by :data:`PEAK_NAMES`.
    sparse : mapping of str to float
        The same with structured sparsity. For the reader: nothing is computed from it.
    count : int, optional
        Number of units: streaming multiprocessors, cores, matrix units.
    clock : float, optional
        Hz at which ``peak`` is reached.
    tile : tuple of int, optional
        ``(m, n, k)`` of the product that the hardware does at once; for a systolic
        array, its dimensions.
    """

    peak: Mapping[str, float]
    sparse: Mapping[str, float] = field(default_factory=dict)
    count: int | None = None
    clock: float | None = None
    tile: tuple[int, int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLevel:
    """A level of memory: ``capacity`` in bytes, ``bandwidth`` in bytes/s, reads and writes together."""

    name: str
    capacity: float
    bandwidth: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """``count`` equal links, each of ``bandwidth`` bytes/s in one direction."""

    name: str
    bandwidth: float
    count: int = 1

    @property
    def total(self) -> float:
        """Bytes/s of all links together, in one direction."""
        return self.bandwidth * self.count


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """Thermal design power and idle power in W; ``idle`` is ``None`` where it isn't known."""

    tdp: float
    idle: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What the device cost at a date, in USD/s, and what that is for."""

    rate: float
    date: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Constants of a family of ops on a device.

    Attributes
    ----------
    rate : float
        Fraction of the unit's peak that a large op reaches.
    bandwidth : float
        Fraction of a memory level's bandwidth that a large op reaches.
    latency : float
        Fixed seconds of a kernel on the device, without the host.
    """

    rate: float
    bandwidth: float
    latency: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One accelerator, or one socket of a CPU.

    Attributes
    ----------
    name, kind, vendor, architecture : str
        ``kind`` is free text (gpu, tpu, cpu, fpga, photonic, …): no code depends on it.
    year : int
        Of introduction.
    validated : str
        What measured data has checked predictions for this device.
    execution : str
        ``"asynchronous"`` where the host runs ahead of the device, ``"synchronous"`` where it waits.
    runtimes : tuple of str
        Names of the software runtimes that exist on it.
    compute : mapping of str to ComputeUnit
        ``"matrix"`` and ``"vector"``.
    memory : tuple of MemoryLevel
        From the farthest, the main memory, to the nearest.
    links : tuple of Link
        To other devices.
    host_link : Link, optional
        To the host.
    power : Power, optional
    prices : tuple of Price
    calibration : mapping of str to Calibration
        Keyed by group (:data:`CALIBRATION_GROUPS`) or by op family, which overrides its group.
    kernels : mapping of str to mapping of str to KernelConstants
        What measured kernels were fitted to, by family of kernels and type of data.
    sources : mapping of str to Source
        Of every number, keyed by its place in the file, e.g. ``"memory[0].bandwidth"``.
    aliases : tuple of str
        Other names in the catalogue.
    path : str
        The file; empty for a device that wasn't loaded from one.
    overrides : mapping of str to str, number or list
        What was changed against the file, by dotted path.
    """

    name: str
    kind: str
    vendor: str
    architecture: str
    year: int
    validated: str
    execution: str
    runtimes: tuple[str, ...]
    compute: Mapping[str, ComputeUnit]
    memory: tuple[MemoryLevel, ...]
    calibration: Mapping[str, Calibration]
    kernels: Mapping[str, Mapping[str, KernelConstants]] = field(default_factory=dict)
    links: tuple[Link, ...] = ()
    host_link: Link | None = None
    power: Power | None = None
    prices: tuple[Price, ...] = ()
    sources: Mapping[str, Source] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    path: str = ""
    overrides: Mapping[str, Override] = field(default_factory=dict)

    @property
    def main_memory(self) -> MemoryLevel:
        """The level that holds weights and activations: HBM, DRAM."""
        return self.memory[0]

    @property
    def asynchronous(self) -> bool:
        """Whether the host runs ahead of the device."""
        return self.execution == "asynchronous"

    def peak(self, unit: str, dtype: str) -> float:
        """Peak rate of a unit in FLOP/s, dense.

        Parameters
        ----------
        unit : str
            ``"matrix"`` or ``"vector"``.
        dtype : str
            PyTorch name of the type that the arithmetic runs in (``"bfloat16"``), or one
            of :data:`PEAK_NAMES` for a mode that isn't a type (``"tf32"``).

        Raises
        ------
        UnsupportedError
            If the device has no such unit or no such arithmetic.
        """
        if unit not in self.compute:
            raise UnsupportedError(f"{self.name} has no unit {unit!r}; it has {', '.join(sorted(self.compute))}")
        peaks = self.compute[unit].peak
        name = dtype if dtype in PEAK_NAMES else compute_name(dtype)
        if unit == "vector" and name == "int8" and name not in peaks:
            name = "int32"  # element-wise byte arithmetic is done in registers of 32 bits
        if name not in peaks:
            known = ", ".join(peaks)
            cure = f"use {_HALF[name]}" if name in _HALF else "choose one of them"
            raise UnsupportedError(
                f"{self.name} has no {name} arithmetic in its {unit} unit (it has {known}); "
                f"{cure}, or describe a device that has it"
            )
        return peaks[name]

    def constants(self, family: str) -> Calibration:
        """The constants of an op family: its own where the file has them, else its group's.

        Families without a kernel (``"view"``, ``"host"``) have the vector group's; no
        time of theirs depends on them.

        Raises
        ------
        UnsupportedError
            If the family is unknown, or the device has neither.
        """
        if family in self.calibration:
            return self.calibration[family]
        group = group_of(family)
        if group in self.calibration:
            return self.calibration[group]
        raise UnsupportedError(
            f"{self.name} has no calibration for {family!r} or its group {group!r}; "
            f"add calibration: {group}: to its file"
        )

    def kernel(self, family: str, dtype: str) -> KernelConstants | None:
        """The constants of a family of kernels for a type of data; ``None`` where the device has none.

        Parameters
        ----------
        family : str
            One of :data:`~perfmodel.hardware.kernels.KERNEL_CONSTANTS`.
        dtype : str
            One of :data:`~perfmodel.hardware.kernels.KERNEL_DTYPES`; those of ``"any"`` serve a type without its own.
        """
        known = self.kernels.get(family, {})
        return known.get(dtype, known.get(ANY_DTYPE))

    def override(self, overrides: Mapping[str, Override]) -> Device:
        """The device with other values, on top of earlier overrides.

        Parameters
        ----------
        overrides : mapping of str to str, number or list
            By dotted path in the device's file, e.g. ``{"memory.hbm.bandwidth": "4 TB/s"}``.
            Numbers are written with their units; ``None`` removes what is optional.

        Raises
        ------
        UnsupportedError
            If a path leads nowhere, a value isn't valid there, or the device has no file.

        Examples
        --------
        >>> from perfmodel.hardware import load_device
        >>> load_device("h100").override({"memory.hbm.bandwidth": "4 TB/s"}).main_memory.bandwidth
        4000000000000.0
        """
        from perfmodel.hardware.schema import device_of, load_device_file

        if not self.path:
            raise UnsupportedError(f"{self.name} wasn't loaded from a file, so nothing of it can be overridden")
        both = {**self.overrides, **overrides}
        return device_of(load_device_file(self.path, both), self.path, both)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, versioned."""
        return {
            "version": _VERSION,
            "name": self.name,
            "aliases": list(self.aliases),
            "kind": self.kind,
            "vendor": self.vendor,
            "architecture": self.architecture,
            "year": self.year,
            "validated": self.validated,
            "execution": self.execution,
            "runtimes": list(self.runtimes),
            "compute": {
                name: {
                    "peak": dict(unit.peak),
                    "sparse": dict(unit.sparse),
                    "count": unit.count,
                    "clock": unit.clock,
                    "tile": None if unit.tile is None else list(unit.tile),
                }
                for name, unit in self.compute.items()
            },
            "memory": [
                {"name": level.name, "capacity": level.capacity, "bandwidth": level.bandwidth} for level in self.memory
            ],
            "links": [_link_dict(link) for link in self.links],
            "host_link": None if self.host_link is None else _link_dict(self.host_link),
            "power": None if self.power is None else {"tdp": self.power.tdp, "idle": self.power.idle},
            "prices": [{"rate": price.rate, "date": price.date, "what": price.what} for price in self.prices],
            "calibration": {
                key: {"rate": value.rate, "bandwidth": value.bandwidth, "latency": value.latency}
                for key, value in self.calibration.items()
            },
            "kernels": {
                family: {dtype: entry.to_dict() for dtype, entry in known.items()}
                for family, known in self.kernels.items()
            },
            "sources": {path: source.to_dict() for path, source in self.sources.items()},
            "path": self.path,
            "overrides": dict(self.overrides),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Device:
        """Inverse of :meth:`to_dict`.

        Raises
        ------
        PerfModelError
            If ``data`` is of another version.
        """
        if data.get("version") != _VERSION:
            raise PerfModelError(
                f"a device of version {data.get('version')!r} can't be read by this release, "
                f"which reads version {_VERSION}; write it again"
            )
        return cls(
            name=data["name"],
            aliases=tuple(data["aliases"]),
            kind=data["kind"],
            vendor=data["vendor"],
            architecture=data["architecture"],
            year=data["year"],
            validated=data["validated"],
            execution=data["execution"],
            runtimes=tuple(data["runtimes"]),
            compute={
                name: ComputeUnit(
                    peak=dict(unit["peak"]),
                    sparse=dict(unit.get("sparse", {})),
                    count=unit["count"],
                    clock=unit["clock"],
                    tile=None if unit["tile"] is None else (unit["tile"][0], unit["tile"][1], unit["tile"][2]),
                )
                for name, unit in data["compute"].items()
            },
            memory=tuple(MemoryLevel(**level) for level in data["memory"]),
            links=tuple(Link(**link) for link in data["links"]),
            host_link=None if data["host_link"] is None else Link(**data["host_link"]),
            power=None if data["power"] is None else Power(**data["power"]),
            prices=tuple(Price(**price) for price in data["prices"]),
            calibration={key: Calibration(**value) for key, value in data["calibration"].items()},
            kernels={
                family: {dtype: KernelConstants.from_dict(entry) for dtype, entry in known.items()}
                for family, known in data.get("kernels", {}).items()
            },
            sources={path: Source.from_dict(source) for path, source in data["sources"].items()},
            path=data["path"],
            overrides=dict(data.get("overrides", {})),
        )


def _link_dict(link: Link) -> dict[str, Any]:
    return {"name": link.name, "bandwidth": link.bandwidth, "count": link.count}
