"""A link as collectives see it: its bandwidth and latency, and the constants that hold on it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from perfmodel.errors import UnsupportedError
from perfmodel.hardware import Fabric, Interconnect, Node
from perfmodel.hardware.collectives import CollectiveConstants, Collectives, Residual
from perfmodel.timing.collectives.kinds import borrowed

__all__ = ["Route", "between_route", "inside_route"]

#: Operations that stand in for one that a link has no constants of: the same pattern of messages.
_STAND_INS = {
    "all_reduce": ("reduce_scatter", "all_gather"),
    "all_gather": ("reduce_scatter", "all_reduce"),
    "reduce_scatter": ("all_gather", "all_reduce"),
    "all_to_all": ("send_recv",),
    "broadcast": ("all_gather", "all_reduce"),
    "send_recv": ("all_to_all", "all_gather", "all_reduce"),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Route:
    """A link as collectives see it.

    Attributes
    ----------
    name, topology : str
    bandwidth : float
        Bytes/s in one direction: what one rank can send; for a network, what one port can.
    latency : float
        Seconds of a small message.
    collectives : Collectives
        Constants.
    transfer : tuple of Residual
        How far off links of its kind are with constants of another one; empty where nothing was measured.
    library : str
        ``"nccl"`` (or one that works alike) or ``"gloo"``.
    source : {"fitted", "borrowed", "assumed"}
        Measured on this very link, on another one of its kind, or not at all.
    multicast : bool
        Whether the switch reduces and broadcasts.
    across : float or None
        Bandwidth between devices that it doesn't join (topology ``pairs``).
    lanes : int
        Into how many links a device's bandwidth is split, each to another device.
    dims : tuple of int
        Of a torus inside a node.
    fallback : Route or None
        The same link with the constants of its kind, for operations that weren't measured on it.
    """

    name: str
    topology: str
    bandwidth: float
    latency: float
    collectives: Collectives
    library: str
    source: str
    transfer: tuple[Residual, ...] = ()
    multicast: bool = False
    across: float | None = None
    lanes: int = 1
    dims: tuple[int, ...] = ()
    fallback: Route | None = None

    def constants(self, op: str) -> CollectiveConstants:
        """Constants of an operation; else of one with the same pattern; else of the kind of link.

        Raises
        ------
        UnsupportedError
            If none are there.
        """
        ops = self.collectives.ops
        for name in (op, *_STAND_INS[op]):
            if name in ops:
                return ops[name]
        if self.fallback is not None:
            return self.fallback.constants(op)
        raise UnsupportedError(f"{self.name} has no constants for {op}; add collectives: ops: {op}: to its file")

    def measured(self, op: str) -> bool:
        """Whether the constants of an operation were fitted on this link and this operation."""
        return self.source_of(op) == "fitted"

    def source_of(self, op: str) -> str:
        """Where :meth:`constants` come from: fitted here, borrowed from another operation or link, or assumed."""
        if self.fallback is None or op in self.collectives.ops:
            return self.source
        return "borrowed" if any(name in self.collectives.ops for name in _STAND_INS[op]) else self.fallback.source


def inside_route(node: Node) -> Route:
    """The interconnect of a node that has several devices."""
    link = node.interconnect
    assert link is not None
    host = node.device.host_link
    route = Route(
        name=link.name,
        topology=link.topology,
        bandwidth=link.bandwidth,
        latency=link.latency,
        multicast=link.multicast,
        lanes=_lanes(link, node.devices),
        dims=link.dims,
        across=None if host is None else host.total,
        **_of_kind("interconnect", link.name, link.topology),
    )
    return _with_own(route, node.collectives)


def _lanes(link: Interconnect, devices: int) -> int:
    if link.topology == "all-to-all":
        return max(devices - 1, 1)
    if link.topology == "torus":
        return max(2 * sum(size > 1 for size in link.dims), 1)
    return 2 if link.topology == "ring" and devices > 2 else 1


def between_route(fabric: Fabric, node: Node, ports: float) -> Route:
    """A port of a node on a fabric.

    Raises
    ------
    UnsupportedError
        If the node has none.
    """
    if fabric.torus is None and not ports:
        raise UnsupportedError(f"{node.name} has no network ports (nics:), so {fabric.name} can't join several")
    # A port can't be faster than the node's own, nor than the fabric's link.
    port = fabric.bandwidth if fabric.torus is not None else min(fabric.bandwidth, node.network_bandwidth / ports)
    route = Route(
        name=fabric.link,
        topology=fabric.topology,
        bandwidth=port * fabric.efficiency,
        latency=fabric.latency,
        **_of_kind("network", fabric.link, fabric.topology),
    )
    return _with_own(route, fabric.collectives)


def _of_kind(role: str, link: str, topology: str) -> dict[str, Any]:
    kind = borrowed(role, link, topology)
    return {
        "collectives": kind.collectives,
        "library": kind.library,
        "source": "borrowed" if kind.like else "assumed",
        "transfer": kind.residuals,
    }


def _with_own(route: Route, own: Collectives | None) -> Route:
    return route if own is None else replace(route, collectives=own, source="fitted", fallback=route)
