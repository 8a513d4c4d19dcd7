"""Networks between nodes, and tori between devices, as the rest of the library sees them: plain SI floats, frozen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from perfmodel.errors import UnsupportedError
from perfmodel.hardware import dictform
from perfmodel.hardware.collectives import Collectives
from perfmodel.sourced import Source

__all__ = ["Fabric", "Tier", "Torus"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """A level of switches.

    Attributes
    ----------
    name : str
    nodes : int or None
        How many nodes are reached without going higher; ``None``: all.
    oversubscription : float
        Bandwidth into this tier from below over bandwidth out of it: 1 doesn't block, 2 has half.
    hops : int
        Switches that a message passes when it turns round here.
    """

    name: str
    nodes: int | None
    oversubscription: float
    hops: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Torus:
    """Links from device to device along axes, instead of switches.

    Attributes
    ----------
    dims : tuple of int
        Size of the largest torus that is built.
    wrap : int
        An axis closes into a ring where its length is a multiple of this; 0: never.
    """

    dims: tuple[int, ...]
    wrap: int

    def shape(self, devices: int) -> tuple[int, ...]:
        """The most even sizes, smallest first, of a slice of so many devices.

        Raises
        ------
        UnsupportedError
            If no box of whole devices inside ``dims`` has that many.

        Examples
        --------
        >>> Torus(dims=(16, 20, 28), wrap=4).shape(512)
        (8, 8, 8)
        """
        limits = sorted(self.dims)
        boxes = [box for box in _boxes(devices, len(limits)) if all(a <= b for a, b in zip(box, limits, strict=True))]
        if not boxes:
            raise UnsupportedError(
                f"{devices} devices don't make a box in a torus of {' x '.join(map(str, limits))}; "
                "choose a product of sizes that fit"
            )
        # The most even, then the one with the most rings.
        return min(boxes, key=lambda box: (box[-1], sum(not self.wraps(size) for size in box), -box[0]))

    def wraps(self, size: int) -> bool:
        """Whether an axis of this length closes into a ring."""
        return self.wrap > 0 and size > 1 and size % self.wrap == 0


def _boxes(volume: int, axes: int, least: int = 1) -> list[tuple[int, ...]]:
    """Every non-decreasing tuple of ``axes`` whole numbers whose product is ``volume``."""
    if axes == 1:
        return [(volume,)] if volume >= least else []
    found = []
    for size in range(least, round(volume ** (1 / axes)) + 2):
        if volume % size == 0:
            found += [(size, *rest) for rest in _boxes(volume // size, axes - 1, size)]
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Fabric:
    """The network between nodes; for a torus, between devices.

    Attributes
    ----------
    name : str
    topology : str
        ``"switch"``, ``"fat-tree"``, ``"dragonfly"``, ``"torus"``.
    link : str
        Name of the links, e.g. ``"infiniband-ndr"``.
    bandwidth : float
        Bytes/s of one link in one direction. A node's NIC may be slower.
    latency : float
        Seconds of a small message between two nodes below one switch (torus: two neighbours).
    hop : float
        Seconds that each further switch (torus: device) adds.
    efficiency : float
        Fraction of the bandwidth that large messages reach.
    rails : bool
        Whether the i-th NICs of all nodes share switches, so that devices of the same rank meet early.
    reduction : bool
        Whether switches reduce (SHARP).
    tiers : tuple of Tier
        From the nodes upward; empty for a torus.
    torus : Torus, optional
    collectives : Collectives, optional
        What measurements say about collectives between nodes.
    """

    name: str
    topology: str
    link: str
    bandwidth: float
    latency: float
    hop: float
    efficiency: float
    rails: bool = False
    reduction: bool = False
    tiers: tuple[Tier, ...] = ()
    torus: Torus | None = None
    collectives: Collectives | None = None
    sources: Mapping[str, Source] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    path: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON form, versioned."""
        return dictform.to_dict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Fabric:
        """Inverse of :meth:`to_dict`; raises PerfModelError for another version."""
        return dictform.from_dict(cls, data)

    def tier(self, nodes: int) -> int:
        """Index of the lowest tier that connects so many neighbouring nodes.

        Raises
        ------
        UnsupportedError
            If the fabric is too small, or has no tiers.
        """
        for index, tier in enumerate(self.tiers):
            if tier.nodes is None or nodes <= tier.nodes:
                return index
        if not self.tiers:
            raise UnsupportedError(f"{self.name} is a torus: it has axes, not tiers")
        raise UnsupportedError(
            f"{self.name} connects {self.tiers[-1].nodes} nodes, not {nodes}; choose a larger fabric"
        )

    def oversubscription(self, tier: int) -> float:
        """By how much bandwidth shrinks for traffic that turns round in a tier: the product of those below it."""
        return math.prod(below.oversubscription for below in self.tiers[:tier])
