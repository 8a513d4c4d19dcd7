"""The file form of a device, ``schema: device/1``, and its reading into a :class:`Device`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from perfmodel.errors import suggestion
from perfmodel.hardware.device import (
    CALIBRATION_GROUPS,
    PEAK_NAMES,
    Calibration,
    ComputeUnit,
    Device,
    Link,
    MemoryLevel,
    Power,
    Price,
)
from perfmodel.hardware.plausibility import check_plausible
from perfmodel.ops.cost import FAMILIES
from perfmodel.sourced import (
    SourcedBandwidth,
    SourcedBytes,
    SourcedCount,
    SourcedFile,
    SourcedFlops,
    SourcedFraction,
    SourcedHertz,
    SourcedPower,
    SourcedPrice,
    SourcedTime,
)
from perfmodel.yamlfile import FileModel, load_model, problem

__all__ = ["SCHEMA", "DeviceFile", "device_of", "load_device_file"]

SCHEMA = "device/1"


def _name(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9]+([.-][a-z0-9]+)*", text):
        raise problem(f"{text[:40]!r} is not a name; write lower-case letters, digits, single hyphens and dots")
    return text


Name = Annotated[str, AfterValidator(_name)]
Text = Annotated[str, Field(min_length=1)]


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

    def rates(self) -> dict[str, float]:
        """FLOP/s of those that are given."""
        given = {name: getattr(self, name) for name in PEAK_NAMES}
        return {name: number.value for name, number in given.items() if number is not None}


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


class LinkFile(FileModel):
    """Equal links; ``bandwidth`` is of one of them in one direction."""

    name: Text
    bandwidth: SourcedBandwidth
    count: int = Field(default=1, ge=1, le=4096)

    def link(self) -> Link:
        """The link in SI."""
        return Link(name=self.name, bandwidth=self.bandwidth.value, count=self.count)


class PowerFile(FileModel):
    """Power of the device alone."""

    tdp: SourcedPower
    idle: SourcedPower | None = None


class PriceFile(SourcedPrice):
    """A price with its date (``YYYY-MM`` or ``YYYY-MM-DD``) and what it buys."""

    date: Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}(-[0-9]{2})?$")]
    what: Text


class CalibrationFile(FileModel):
    """Constants of a group or a family of ops."""

    rate: SourcedFraction
    bandwidth: SourcedFraction
    latency: SourcedTime


class DeviceFile(SourcedFile):
    """A device file."""

    schema_: Literal["device/1"] = Field(alias="schema")
    name: Name
    aliases: list[Name] = Field(default_factory=list)
    kind: Text
    vendor: Text
    architecture: Text
    year: int = Field(ge=1940, le=2100)
    validated: Text
    execution: Literal["asynchronous", "synchronous"]
    runtimes: list[Text] = Field(min_length=1)
    compute: ComputeFile
    memory: list[MemoryFile] = Field(min_length=1)
    links: list[LinkFile] = Field(default_factory=list)
    host_link: LinkFile | None = None
    power: PowerFile | None = None
    price: list[PriceFile] = Field(default_factory=list)
    calibration: dict[str, CalibrationFile]

    @model_validator(mode="after")
    def _is_complete(self) -> DeviceFile:
        known = (*CALIBRATION_GROUPS, *FAMILIES)
        for key in self.calibration:
            if key not in known:
                cure = suggestion(key, known) or f"known: {', '.join(dict.fromkeys(known))}"
                raise problem(f"unknown op family {key[:40]!r}; {cure}", "calibration", key)
        for group in CALIBRATION_GROUPS:
            if group not in self.calibration:
                raise problem(f"group {group!r} is missing; add rate, bandwidth and latency", "calibration")
        levels = [level.name for level in self.memory]
        for index, name in enumerate(levels):
            if name in levels[:index]:
                raise problem(f"level {name[:40]!r} comes twice; give each level its own name", "memory", index, "name")
        check_plausible(self)
        return self


def load_device_file(path: str | Path) -> DeviceFile:
    """Read and check a device file, every number still with its source.

    Raises
    ------
    FileError
        If it isn't a device: ``path:line:column: what; cure``.
    """
    return load_model(path, DeviceFile)


def device_of(file: DeviceFile, path: str | Path) -> Device:
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
        power=None
        if file.power is None
        else Power(tdp=file.power.tdp.value, idle=None if file.power.idle is None else file.power.idle.value),
        prices=tuple(Price(rate=price.value, date=price.date, what=price.what) for price in file.price),
        calibration={
            key: Calibration(rate=entry.rate.value, bandwidth=entry.bandwidth.value, latency=entry.latency.value)
            for key, entry in file.calibration.items()
        },
        sources=file.sources(),
        path=str(path),
    )
