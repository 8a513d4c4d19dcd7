"""Numbers with a source: how every number of a hardware or runtime file is written.

::

    bandwidth: {value: 3.35 TB/s, source: datasheet, cite: h100-datasheet, confidence: A, note: HBM3}

``source`` says how the number came about, ``cite`` names an entry of the file's
``citations:`` table. A number that is merely ``assumed`` says why in ``note``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from perfmodel._model_errors import location_text
from perfmodel.errors import UnitError, suggestion
from perfmodel.units import parse_quantity
from perfmodel.yamlfile import FileModel, problem

__all__ = [
    "OVERRIDE",
    "Citation",
    "Source",
    "SourcedBandwidth",
    "SourcedBytes",
    "SourcedCarbon",
    "SourcedCount",
    "SourcedEnergyPrice",
    "SourcedFile",
    "SourcedFlops",
    "SourcedFraction",
    "SourcedHertz",
    "SourcedNumber",
    "SourcedNumeral",
    "SourcedPower",
    "SourcedPrice",
    "SourcedTime",
    "quantity",
]

#: How the note of a number starts that was changed by hand.
OVERRIDE = "override;"

#: How a number came about.
Origin = Literal["datasheet", "measured", "fitted", "assumed"]

#: A: two sources agree. B: one source. C: recalled, not looked up. D: derived, or sources disagree.
Confidence = Literal["A", "B", "C", "D"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a number comes from.

    Attributes
    ----------
    source : str
        ``"datasheet"``, ``"measured"``, ``"fitted"`` or ``"assumed"``.
    confidence : str
        A (two sources agree), B (one source), C (recalled), D (derived or disputed).
    title, url : str
        The citation, resolved; empty for an assumption without one.
    note : str
        What else a reader should know.
    """

    source: str
    confidence: str
    title: str = ""
    url: str = ""
    note: str = ""

    def to_dict(self) -> dict[str, str]:
        """JSON form, without empty members."""
        members = {name: getattr(self, name) for name in ("source", "confidence", "title", "url", "note")}
        return {name: text for name, text in members.items() if text}

    @classmethod
    def from_dict(cls, data: Mapping[str, str]) -> Source:
        """Inverse of :meth:`to_dict`."""
        return cls(**data)


def quantity(dimension: str) -> BeforeValidator:
    """A pydantic validator that reads a quantity of ``dimension`` into an SI float.

    For fields without a source of their own: ``Annotated[float, quantity("s")]``.
    """
    return BeforeValidator(_reader(dimension))


def _reader(dimension: str) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        try:
            return parse_quantity(value, dimension)
        except UnitError as error:
            raise problem(str(error)) from None

    return read


class Citation(FileModel):
    """An entry of a file's ``citations:``."""

    title: str = Field(min_length=1)
    url: str = ""


class SourcedNumber(FileModel):
    """A number and where it comes from; the subclasses say its dimension."""

    value: Any
    source: Origin
    cite: str | None = None
    confidence: Confidence
    note: str = ""

    @property
    def is_override(self) -> bool:
        """Whether it was changed by hand against its file (:mod:`perfmodel.hardware.override`)."""
        return self.note.startswith(OVERRIDE)

    @model_validator(mode="after")
    def _has_source(self) -> SourcedNumber:
        if self.cite is None and self.source != "assumed":
            raise problem(f"a {self.source} number needs cite:; name an entry of citations:")
        if self.cite is None and not self.note.strip():
            raise problem("an assumed number needs note:; say why it is assumed and how it was chosen")
        return self


class SourcedBytes(SourcedNumber):
    """A size in bytes."""

    value: Annotated[float, quantity("bytes")]


class SourcedBandwidth(SourcedNumber):
    """A bandwidth in bytes/s."""

    value: Annotated[float, quantity("bytes/s")]


class SourcedFlops(SourcedNumber):
    """A rate of arithmetic in FLOP/s (or OP/s)."""

    value: Annotated[float, quantity("FLOP/s")]


class SourcedTime(SourcedNumber):
    """A time in seconds."""

    value: Annotated[float, quantity("s")]


class SourcedHertz(SourcedNumber):
    """A frequency in Hz."""

    value: Annotated[float, quantity("Hz")]


class SourcedPower(SourcedNumber):
    """A power in W."""

    value: Annotated[float, quantity("W")]


class SourcedPrice(SourcedNumber):
    """A price in USD/s."""

    value: Annotated[float, quantity("USD/s")]


class SourcedNumeral(SourcedNumber):
    """A bare number."""

    value: Annotated[float, quantity("number")]


class SourcedEnergyPrice(SourcedNumber):
    """A price of energy in USD/J."""

    value: Annotated[float, quantity("USD/J")]


class SourcedCarbon(SourcedNumber):
    """A carbon intensity in kg/J."""

    value: Annotated[float, quantity("kg/J")]


class SourcedFraction(SourcedNumber):
    """A fraction between 0 and 1."""

    value: Annotated[float, quantity("fraction")]


class SourcedCount(SourcedNumber):
    """A whole number."""

    value: Annotated[float, quantity("count")]

    @model_validator(mode="after")
    def _is_whole(self) -> SourcedCount:
        if self.value != int(self.value):
            raise problem(f"{self.value!r} is not a whole number; write one", "value")
        return self


_File = TypeVar("_File", bound="SourcedFile")


class SourcedFile(FileModel):
    """Base of files whose numbers cite their ``citations:`` table."""

    citations: dict[str, Citation] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _cites_exist(self: _File) -> _File:
        for at, number in self._found:
            if number.cite is not None and number.cite not in self.citations:
                cure = suggestion(number.cite, self.citations) or "add it there"
                raise problem(f"{number.cite!r} is not in citations:; {cure}", *at, "cite")
        return self

    @cached_property
    def _found(self) -> list[tuple[tuple[str | int, ...], SourcedNumber]]:
        return list(numbers_of(self))

    def numbers(self) -> dict[str, SourcedNumber]:
        """Every sourced number, keyed by its dotted path, e.g. ``"memory[0].bandwidth"``."""
        return {location_text(at): number for at, number in self._found}

    def sources(self) -> dict[str, Source]:
        """The source of every number, keyed like :meth:`numbers`."""
        return {path: self._source(number) for path, number in self.numbers().items()}

    def unused_citations(self) -> list[str]:
        """Citations that no number names."""
        used = {number.cite for number in self.numbers().values()}
        return sorted(key for key in self.citations if key not in used)

    def _source(self, number: SourcedNumber) -> Source:
        citation = self.citations[number.cite] if number.cite is not None else None
        return Source(
            source=number.source,
            confidence=number.confidence,
            title=citation.title if citation else "",
            url=citation.url if citation else "",
            note=number.note,
        )


def numbers_of(value: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], SourcedNumber]]:
    """The sourced numbers inside a model, with their places as the file names them."""
    if isinstance(value, SourcedNumber):
        yield at, value
    elif isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            yield from numbers_of(getattr(value, name), (*at, field.alias or name))
    elif isinstance(value, Mapping):
        for key, member in value.items():
            yield from numbers_of(member, (*at, key))
    elif isinstance(value, (list, tuple)):
        for index, member in enumerate(value):
            yield from numbers_of(member, (*at, index))
