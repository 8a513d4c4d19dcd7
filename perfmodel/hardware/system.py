"""Nodes and clusters as the rest of the library sees them: plain SI floats, frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from perfmodel.errors import UnsupportedError
from perfmodel.hardware import dictform
from perfmodel.hardware.collectives import Collectives
from perfmodel.hardware.device import Device, Power, Price
from perfmodel.hardware.fabric import Fabric
from perfmodel.sourced import Source

__all__ = [
    "Cluster",
    "Failures",
    "Group",
    "Host",
    "Interconnect",
    "Location",
    "Nic",
    "Node",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interconnect:
    """How the devices of a node reach each other.

    Attributes
    ----------
    topology : str
        ``"switch"`` (any pair at full rate), ``"all-to-all"`` (a link for each pair: a pair has
        ``bandwidth / (devices - 1)``), ``"ring"``, ``"torus"``, ``"cube-mesh"``, ``"pairs"``
        (neighbours two by two), ``"host"`` (through the host's PCIe or memory).
    name : str
        Of the links, e.g. ``"nvlink4"``.
    bandwidth : float
        Bytes/s that one device can send, all of its links together, in one direction.
    latency : float
        Seconds of a small message between two devices of the node.
    multicast : bool
        Whether the switch itself reduces and broadcasts (NVLS).
    dims : tuple of int
        Of a torus: how many devices along each axis.
    """

    topology: str
    name: str
    bandwidth: float
    latency: float
    multicast: bool = False
    dims: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic:
    """``count`` network ports of a node, each of ``bandwidth`` bytes/s in one direction."""

    name: str
    bandwidth: float
    count: int

    @property
    def total(self) -> float:
        """Bytes/s of all of them, in one direction."""
        return self.bandwidth * self.count


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The processors and the memory beside the devices.

    Attributes
    ----------
    processor : str
        What the maker calls one.
    device : str
        Its name in the catalogue of devices; empty if it isn't there.
    sockets : int
    memory, bandwidth : float
        Bytes, and bytes/s, of all sockets together.
    """

    processor: str
    device: str
    sockets: int
    memory: float
    bandwidth: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A server, or a domain in which every device reaches every other without the network.

    Attributes
    ----------
    name, vendor : str
    year : int
    device : Device
    devices : int
        How many.
    interconnect : Interconnect, optional
        ``None`` where there is one device.
    nics : tuple of Nic
        For the traffic between nodes.
    host : Host, optional
    power : Power, optional
        Of the whole node: ``tdp`` is the rated maximum.
    prices : tuple of Price
        Of the whole node.
    fabric : str
        Name of the fabric that it is usually built with; empty if none.
    collectives : Collectives, optional
        What measurements say about collectives over the interconnect.
    sources : mapping of str to Source
        Of every number, keyed by its place in the file.
    aliases : tuple of str
    path : str
    """

    name: str
    vendor: str
    year: int
    device: Device
    devices: int
    interconnect: Interconnect | None = None
    nics: tuple[Nic, ...] = ()
    host: Host | None = None
    power: Power | None = None
    prices: tuple[Price, ...] = ()
    fabric: str = ""
    collectives: Collectives | None = None
    sources: Mapping[str, Source] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    path: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON form, versioned."""
        return dictform.to_dict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Node:
        """Inverse of :meth:`to_dict`; raises PerfModelError for another version."""
        return dictform.from_dict(cls, data)

    @property
    def network_bandwidth(self) -> float:
        """Bytes/s that the node can send to others, all NICs together."""
        return sum(nic.total for nic in self.nics)


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """Where a cluster stands: power usage effectiveness, carbon intensity in kg/J, electricity in USD/J."""

    place: str
    pue: float | None = None
    carbon: float | None = None
    electricity: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """Mean seconds between failures of one device, of one node apart from its devices; seconds to restart."""

    device: float | None = None
    node: float | None = None
    restart: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Equal nodes of a cluster."""

    name: str
    node: Node
    nodes: int

    @property
    def devices(self) -> int:
        """How many devices they have together."""
        return self.nodes * self.node.devices


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Nodes and the fabric between them.

    Attributes
    ----------
    name : str
    groups : tuple of Group
        One, or several where the nodes differ.
    fabric : Fabric, optional
        ``None`` for a single node.
    prices : tuple of Price
        Of one device of it.
    location : Location, optional
    failures : Failures, optional
    overrides : mapping
        What was changed against the files, by dotted path.
    """

    name: str
    groups: tuple[Group, ...]
    fabric: Fabric | None = None
    prices: tuple[Price, ...] = ()
    location: Location | None = None
    failures: Failures | None = None
    sources: Mapping[str, Source] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    path: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, versioned."""
        return dictform.to_dict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Cluster:
        """Inverse of :meth:`to_dict`; raises PerfModelError for another version."""
        return dictform.from_dict(cls, data)

    @property
    def nodes(self) -> int:
        """How many nodes there are."""
        return sum(group.nodes for group in self.groups)

    @property
    def devices(self) -> int:
        """How many devices there are."""
        return sum(group.devices for group in self.groups)

    @property
    def mixed(self) -> bool:
        """Whether there is more than one kind of node."""
        return len({group.node.name for group in self.groups}) > 1

    @property
    def node(self) -> Node:
        """The one kind of node.

        Raises
        ------
        UnsupportedError
            If the cluster is mixed.
        """
        if self.mixed:
            kinds = ", ".join(group.node.name for group in self.groups)
            raise UnsupportedError(f"{self.name} has nodes of several kinds ({kinds}); go through its groups")
        return self.groups[0].node

    @property
    def device(self) -> Device:
        """The one kind of device; raises like :attr:`node`."""
        return self.node.device
