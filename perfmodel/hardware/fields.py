"""Parts that the file forms of devices, nodes, fabrics and clusters share."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from perfmodel.hardware.device import Link, Power, Price
from perfmodel.sourced import SourcedBandwidth, SourcedPower, SourcedPrice
from perfmodel.yamlfile import FileModel, problem

__all__ = ["LinkFile", "Name", "PowerFile", "PriceFile", "Text"]


def _name(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9]+([.-][a-z0-9]+)*", text):
        raise problem(f"{text[:40]!r} is not a name; write lower-case letters, digits, single hyphens and dots")
    return text


Name = Annotated[str, AfterValidator(_name)]
Text = Annotated[str, Field(min_length=1)]


class LinkFile(FileModel):
    """Equal links; ``bandwidth`` is of one of them in one direction."""

    name: Text
    bandwidth: SourcedBandwidth
    count: int = Field(default=1, ge=1, le=4096)

    def link(self) -> Link:
        """The link in SI."""
        return Link(name=self.name, bandwidth=self.bandwidth.value, count=self.count)


class PowerFile(FileModel):
    """Power of the device or the node alone."""

    tdp: SourcedPower
    idle: SourcedPower | None = None

    def power(self) -> Power:
        """The power in SI."""
        return Power(tdp=self.tdp.value, idle=None if self.idle is None else self.idle.value)


class PriceFile(SourcedPrice):
    """A price with its date (``YYYY-MM`` or ``YYYY-MM-DD``) and what it buys."""

    date: Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}(-[0-9]{2})?$")]
    what: Text

    def price(self) -> Price:
        """The price in SI."""
        return Price(rate=self.value, date=self.date, what=self.what)
