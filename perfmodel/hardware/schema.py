"""The file form of a device, ``schema: device/1``, and its reading into a :class:`Device`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from perfmodel.errors import suggestion
from perfmodel.families import FAMILIES
from perfmodel.hardware.device import (
    CALIBRATION_GROUPS,
    PEAK_NAMES,
    Calibration,
    ComputeUnit,
    Device,
    MemoryLevel,
)
from perfmodel.hardware.fields import LinkFile, Name, PowerFile, PriceFile, Text
from perfmodel.hardware.inherit import resolve
from perfmodel.hardware.kernels_schema import KernelFile, check_kernels
from perfmodel.hardware.override import Override, overridden
from perfmodel.hardware.plausibility import check_plausible
from perfmodel.sourced import (
    SourcedBandwidth,
    SourcedBytes,
    SourcedCount,
    SourcedFile,
    SourcedFlops,
    SourcedFraction,
    SourcedHertz,
    SourcedTime,
)
from perfmodel.yamlfile import FileModel, problem

__all__ = ["SCHEMA", "DeviceFile", "device_of", "load_device_file"]

SCHEMA = "device/1"


class PeaksFile(FileModel):
    """Peak rates by type of arithmetic."""

    fp64: SourcedFlops | None = None
    fp32: SourcedFlops | None = None
    tf32: SourcedFlops | None = None
    bf16: SourcedFlops | None = None
    fp16: SourcedFlops | None = None
    fp8: SourcedFlops | None = None
    fp6: SourcedFlops | None = None
    fp4: SourcedFlops | None = None
    int32: SourcedFlops | None = None
    int8: SourcedFlops | None = None
    int4: SourcedFlops | None = None

    @model_validator(mode="after")
    def _has_one(self) -> PeaksFile:
        if not self.rates():
            raise problem("no peak is given; write at least one, e.g. bf16:")
        return self

    def numbers(self) -> dict[str, SourcedFlops]:
        """Those that are given."""
        given = {name: getattr(self, name) for name in PEAK_NAMES}
        return {name: number for name, number in given.items() if number is not None}

    def rates(self) -> dict[str, float]:
        """FLOP/s of those that are given."""
        return {name: number.value for name, number in self.numbers().items()}


class TileFile(FileModel):
    """The product that the hardware does at once."""

    m: int = Field(ge=1, le=2**20)
    n: int = Field(ge=1, le=2**20)
    k: int = Field(ge=1, le=2**20)


class UnitFile(FileModel):
    """The matrix or the vector unit. ``sparse`` is kept for the reader: nothing is computed from it."""

    peak: PeaksFile
    sparse: PeaksFile | None = None
    count: SourcedCount | None = None
    clock: SourcedHertz | None = None
    tile: TileFile | None = None

    def unit(self) -> ComputeUnit:
        """The unit in SI."""
        return ComputeUnit(
            peak=self.peak.rates(),
            sparse={} if self.sparse is None else self.sparse.rates(),
            count=None if self.count is None else int(self.count.value),
            clock=None if self.clock is None else self.clock.value,
            tile=None if self.tile is None else (self.tile.m, self.tile.n, self.tile.k),
        )


class ComputeFile(FileModel):
    """Both units. A device without a matrix unit states there what its vector unit reaches in products."""

    matrix: UnitFile
    vector: UnitFile


class MemoryFile(FileModel):
    """A level of memory."""

    name: Text
    capacity: SourcedBytes
    bandwidth: SourcedBandwidth


class CalibrationFile(FileModel):
    """Constants of a group or a family of ops."""

    rate: SourcedFraction
    bandwidth: SourcedFraction
    latency: SourcedTime


class DeviceFile(SourcedFile):
    """A device file."""

    schema_: Literal["device/1"] = Field(alias="schema")
    name: Name
    aliases: list[Name] = Field(default_factory=list, max_length=32)
    kind: Text
    vendor: Text
    architecture: Text
    year: int = Field(ge=1940, le=2100)
    validated: Text
    execution: Literal["asynchronous", "synchronous"]
    runtimes: list[Text] = Field(min_length=1, max_length=32)
    compute: ComputeFile
    memory: list[MemoryFile] = Field(min_length=1, max_length=16)
    links: list[LinkFile] = Field(default_factory=list, max_length=32)
    host_link: LinkFile | None = None
    power: PowerFile | None = None
    price: list[PriceFile] = Field(default_factory=list, max_length=256)
    calibration: dict[str, CalibrationFile]
    kernels: dict[str, dict[str, KernelFile]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_complete(self) -> DeviceFile:
        known = tuple(dict.fromkeys((*CALIBRATION_GROUPS, *FAMILIES)))
        for key in self.calibration:
            if key not in known:
                cure = suggestion(key, known) or f"known: {', '.join(known)}"
                raise problem(f"unknown op family {key[:40]!r}; {cure}", "calibration", key)
        for group in CALIBRATION_GROUPS:
            if group not in self.calibration:
                raise problem(f"group {group!r} is missing; add rate, bandwidth and latency", "calibration")
        check_kernels(self.kernels)
        levels = [level.name for level in self.memory]
        for index, name in enumerate(levels):
            if name in levels[:index]:
                raise problem(f"level {name[:40]!r} comes twice; give each level its own name", "memory", index, "name")
        check_plausible(self)
        return self


def load_device_file(path: str | Path, overrides: Mapping[str, Override] | None = None) -> DeviceFile:
    """Read and check a device file, every number still with its source.

    Raises
    ------
    FileError
        If it isn't a device: ``path:line:column: what; cure``.
    UnsupportedError
        If an override leads nowhere, or the device isn't valid with it.
    """
    return overridden(resolve("device", path).root, DeviceFile, overrides or {})


def device_of(file: DeviceFile, path: str | Path, overrides: Mapping[str, Override] | None = None) -> Device:
    """The device that a file describes, in SI."""
    return Device(
        name=file.name,
        aliases=tuple(file.aliases),
        kind=file.kind,
        vendor=file.vendor,
        architecture=file.architecture,
        year=file.year,
        validated=file.validated,
        execution=file.execution,
        runtimes=tuple(file.runtimes),
        compute={"matrix": file.compute.matrix.unit(), "vector": file.compute.vector.unit()},
        memory=tuple(
            MemoryLevel(name=level.name, capacity=level.capacity.value, bandwidth=level.bandwidth.value)
            for level in file.memory
        ),
        links=tuple(link.link() for link in file.links),
        host_link=None if file.host_link is None else file.host_link.link(),
        power=None if file.power is None else file.power.power(),
        prices=tuple(price.price() for price in file.price),
        calibration={
            key: Calibration(rate=entry.rate.value, bandwidth=entry.bandwidth.value, latency=entry.latency.value)
            for key, entry in file.calibration.items()
        },
        kernels={
            family: {dtype: entry.kernel() for dtype, entry in by_dtype.items()}
            for family, by_dtype in file.kernels.items()
        },
        sources=file.sources(),
        path=str(path),
        overrides=dict(overrides or {}),
    )
