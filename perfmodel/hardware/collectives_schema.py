"""The file form of :mod:`perfmodel.hardware.collectives`: the section ``collectives:`` of nodes and fabrics."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, WithJsonSchema, model_validator

from perfmodel.errors import suggestion
from perfmodel.hardware.collectives import COLLECTIVES, CollectiveConstants, Collectives, Residual
from perfmodel.hardware.fields import Text
from perfmodel.hardware.plausibility import check_number
from perfmodel.sourced import SourcedFraction, SourcedNumeral, SourcedTime, quantity
from perfmodel.yamlfile import FileModel, problem

__all__ = ["CollectivesFile"]

_TIME = (0.0, 1e-2)  # s
_STEP = (0.0, 100.0)  # multiple of the link's latency
_FRACTION = (1e-5, 1.0)  # of the link's bandwidth
_QUANTITY = {"description": "a number with its unit", "type": ["string", "number"]}
_CONTENTION = (0.0, 4.0)


class ResidualFile(FileModel):
    """Held-out residuals of one range of sizes."""

    below: Annotated[float, quantity("bytes"), WithJsonSchema(_QUANTITY)] | None = None
    low: float
    high: float
    count: int = Field(ge=1)

    def residual(self) -> Residual:
        """The residual in SI."""
        return Residual(below=self.below, low=self.low, high=self.high, count=self.count)


def _check_ranges(ranges: list[ResidualFile], name: str) -> None:
    reached = 0.0
    for index, entry in enumerate(ranges):
        if entry.low > entry.high:
            raise problem("low is above high; exchange them", name, index)
        last = index == len(ranges) - 1
        if (entry.below is None) != last:
            raise problem("every range but the last says below:, in growing order", name, index)
        if entry.below is not None:
            if entry.below <= reached:
                raise problem("ends below the range before it; list them by size", name, index, "below")
            reached = entry.below


class ConstantsFile(FileModel):
    """Constants of one operation."""

    startup: SourcedTime
    step: SourcedNumeral
    small: SourcedFraction
    fill: SourcedTime
    large: SourcedFraction
    multicast: SourcedFraction | None = None
    contention: SourcedNumeral | None = None
    residuals: list[ResidualFile] = Field(default_factory=list, max_length=16)
    unseen: list[ResidualFile] = Field(default_factory=list, max_length=16)
    profiled: list[ResidualFile] = Field(default_factory=list, max_length=16)

    @model_validator(mode="after")
    def _is_plausible(self) -> ConstantsFile:
        for name, bounds, unit in (
            ("startup", _TIME, "s"),
            ("fill", _TIME, "s"),
            ("step", _STEP, "number"),
            ("small", _FRACTION, "fraction"),
            ("large", _FRACTION, "fraction"),
            ("multicast", _FRACTION, "fraction"),
            ("contention", _CONTENTION, "number"),
        ):
            check_number(getattr(self, name), bounds, unit, name)
        for name in ("residuals", "unseen", "profiled"):
            _check_ranges(getattr(self, name), name)
        return self

    def constants(self) -> CollectiveConstants:
        """The constants in SI."""
        return CollectiveConstants(
            startup=self.startup.value,
            step=self.step.value,
            small=self.small.value,
            fill=self.fill.value,
            large=self.large.value,
            multicast=None if self.multicast is None else self.multicast.value,
            contention=None if self.contention is None else self.contention.value,
            residuals=tuple(entry.residual() for entry in self.residuals),
            unseen=tuple(entry.residual() for entry in self.unseen),
            profiled=tuple(entry.residual() for entry in self.profiled),
        )


class CollectivesFile(FileModel):
    """Constants of the collectives of a link, and how far off they were on what they weren't fitted on."""

    data: Text
    date: Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}(-[0-9]{2})?$")]
    ranks: list[int] = Field(default_factory=list, max_length=64)
    ops: dict[str, ConstantsFile]
    arrival: SourcedTime | None = None

    @model_validator(mode="after")
    def _is_plausible(self) -> CollectivesFile:
        if not self.ops:
            raise problem(f"no operation has constants; add one of {', '.join(COLLECTIVES)}", "ops")
        for op, entry in self.ops.items():
            if op not in COLLECTIVES:
                cure = suggestion(op, COLLECTIVES) or f"known: {', '.join(COLLECTIVES)}"
                raise problem(f"unknown operation {op[:40]!r}; {cure}", "ops", op)
            if entry.multicast is not None and op != "all_reduce":
                raise problem("only all_reduce is reduced and broadcast by a switch; remove it", "ops", op, "multicast")
        check_number(self.arrival, _TIME, "s", "arrival")
        return self

    def collectives(self) -> Collectives:
        """The section in SI."""
        return Collectives(
            data=self.data,
            date=self.date,
            ranks=tuple(self.ranks),
            ops={op: entry.constants() for op, entry in self.ops.items()},
            arrival=None if self.arrival is None else self.arrival.value,
        )
