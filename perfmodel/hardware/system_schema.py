"""The file forms ``node/1``, ``fabric/1`` and ``cluster/1``."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from perfmodel.hardware.collectives_schema import CollectivesFile
from perfmodel.hardware.fabric import Tier, Torus
from perfmodel.hardware.fields import LinkFile, Name, PowerFile, PriceFile, Text
from perfmodel.hardware.plausibility import check_link, check_number
from perfmodel.hardware.system import Failures, Host, Interconnect, Location, Nic
from perfmodel.sourced import (
    SourcedBandwidth,
    SourcedBytes,
    SourcedCarbon,
    SourcedCount,
    SourcedEnergyPrice,
    SourcedFile,
    SourcedFraction,
    SourcedNumeral,
    SourcedTime,
)
from perfmodel.yamlfile import FileModel, problem

__all__ = ["ClusterFile", "FabricFile", "GroupFile", "NodeFile"]

_LATENCY = (1e-9, 1e-2)  # s of a small message
_BANDWIDTH = (1e6, 1e14)  # bytes/s of a device's links, of a host's memory
_HOST_MEMORY = (1e9, 1e15)  # bytes
_NODE_POWER = (1.0, 1e6)  # W
_NODE_PRICE = (1e-4 / 3600, 1e5 / 3600)  # USD/s
_EFFICIENCY = (0.05, 1.0)
_PUE = (1.0, 3.0)
_CARBON = (1e-3 / 3.6e6, 2.0 / 3.6e6)  # kg/J: 1 to 2,000 g/kWh
_ELECTRICITY = (1e-3 / 3.6e6, 2.0 / 3.6e6)  # USD/J: 0.001 to 2 USD/kWh
_BETWEEN_FAILURES = (3600.0, 3.2e9)  # s: an hour to a century
_RESTART = (1.0, 1e6)  # s


class InterconnectFile(FileModel):
    """How the devices of a node reach each other; ``bandwidth`` is of all links of one device, in one direction."""

    topology: Literal["switch", "all-to-all", "ring", "torus", "cube-mesh", "pairs", "host"]
    name: Text
    bandwidth: SourcedBandwidth
    latency: SourcedTime
    multicast: bool = False
    dims: list[int] = Field(default_factory=list)

    def interconnect(self) -> Interconnect:
        """The interconnect in SI."""
        return Interconnect(
            topology=self.topology,
            name=self.name,
            bandwidth=self.bandwidth.value,
            latency=self.latency.value,
            multicast=self.multicast,
            dims=tuple(self.dims),
        )


class HostFile(FileModel):
    """Processors and memory beside the devices, all together; ``device`` names the catalogue's entry of one socket."""

    processor: Text
    device: Name | None = None
    sockets: int = Field(ge=1, le=64)
    memory: SourcedBytes
    bandwidth: SourcedBandwidth

    def host(self) -> Host:
        """The host in SI."""
        return Host(
            processor=self.processor,
            device=self.device or "",
            sockets=self.sockets,
            memory=self.memory.value,
            bandwidth=self.bandwidth.value,
        )


class NodeFile(SourcedFile):
    """A node file."""

    schema_: Literal["node/1"] = Field(alias="schema")
    name: Name
    aliases: list[Name] = Field(default_factory=list, max_length=32)
    vendor: Text
    year: int = Field(ge=1940, le=2100)
    device: Name
    devices: SourcedCount
    interconnect: InterconnectFile | None = None
    nics: list[LinkFile] = Field(default_factory=list, max_length=32)
    host: HostFile | None = None
    power: PowerFile | None = None
    price: list[PriceFile] = Field(default_factory=list, max_length=256)
    fabric: Name | None = None
    collectives: CollectivesFile | None = None

    @model_validator(mode="after")
    def _is_plausible(self) -> NodeFile:
        check_number(self.devices, (1, 100_000), "count", "devices")
        if self.devices.value > 1 and self.interconnect is None:
            raise problem("several devices, but no interconnect; say how they reach each other", "devices")
        if self.collectives is not None and self.interconnect is None:
            raise problem("collectives of one device; remove them, or say how several are connected", "collectives")
        if self.interconnect is not None:
            check_number(self.interconnect.bandwidth, _BANDWIDTH, "bytes/s", "interconnect", "bandwidth")
            check_number(self.interconnect.latency, _LATENCY, "s", "interconnect", "latency")
            if self.interconnect.topology == "torus" and math.prod(self.interconnect.dims) != self.devices.value:
                raise problem(
                    f"the product of dims is not the {self.devices.value:.0f} devices; correct one of them",
                    *("interconnect", "dims"),
                )
        for index, nic in enumerate(self.nics):
            check_link(nic, "nics", index)
        if self.host is not None:
            check_number(self.host.memory, _HOST_MEMORY, "bytes", "host", "memory")
            check_number(self.host.bandwidth, _BANDWIDTH, "bytes/s", "host", "bandwidth")
        if self.power is not None:
            check_number(self.power.tdp, _NODE_POWER, "W", "power", "tdp")
            check_number(self.power.idle, (0.0, self.power.tdp.value), "W", "power", "idle")
        for index, price in enumerate(self.price):
            check_number(price, _NODE_PRICE, "USD/s", "price", index)
        return self

    def nic_ports(self) -> tuple[Nic, ...]:
        """The NICs in SI."""
        return tuple(Nic(name=nic.name, bandwidth=nic.bandwidth.value, count=nic.count) for nic in self.nics)


class TierFile(FileModel):
    """A level of switches; without ``nodes`` it reaches all."""

    name: Text
    nodes: SourcedCount | None = None
    oversubscription: SourcedNumeral
    hops: int = Field(ge=1, le=32)

    def tier(self) -> Tier:
        """The tier."""
        return Tier(
            name=self.name,
            nodes=None if self.nodes is None else int(self.nodes.value),
            oversubscription=self.oversubscription.value,
            hops=self.hops,
        )


class TorusFile(FileModel):
    """The largest torus, and which axes close into rings: those whose length is a multiple of ``wrap`` (0: none)."""

    dims: list[int] = Field(min_length=1, max_length=6)
    wrap: int = Field(ge=0, le=4096)

    def torus(self) -> Torus:
        """The torus."""
        return Torus(dims=tuple(self.dims), wrap=self.wrap)


class FabricFile(SourcedFile):
    """A fabric file."""

    schema_: Literal["fabric/1"] = Field(alias="schema")
    name: Name
    aliases: list[Name] = Field(default_factory=list, max_length=32)
    topology: Literal["switch", "fat-tree", "dragonfly", "torus"]
    link: LinkFile
    latency: SourcedTime
    hop: SourcedTime
    efficiency: SourcedFraction
    rails: bool = False
    reduction: bool = False
    tiers: list[TierFile] = Field(default_factory=list, max_length=8)
    torus: TorusFile | None = None
    collectives: CollectivesFile | None = None

    @model_validator(mode="after")
    def _is_plausible(self) -> FabricFile:
        check_link(self.link, "link")
        check_number(self.latency, _LATENCY, "s", "latency")
        check_number(self.hop, (0.0, _LATENCY[1]), "s", "hop")
        check_number(self.efficiency, _EFFICIENCY, "fraction", "efficiency")
        if (self.topology == "torus") != (self.torus is not None):
            raise problem("a torus needs torus: with dims and wrap, and nothing else has it", "topology")
        if (self.topology == "torus") == bool(self.tiers):
            raise problem("a torus has no tiers, and everything else has at least one", "topology")
        if any(size < 1 for size in (self.torus.dims if self.torus else ())):
            raise problem("an axis shorter than one device; write sizes of 1 and more", "torus", "dims")
        reached = 0.0
        for index, tier in enumerate(self.tiers):
            check_number(tier.oversubscription, (1.0, 100.0), "number", "tiers", index, "oversubscription")
            last = index == len(self.tiers) - 1
            if tier.nodes is None and not last:
                raise problem("only the last tier reaches all nodes; say how many this one does", "tiers", index)
            if tier.nodes is not None:
                check_number(tier.nodes, (1, 1e7), "count", "tiers", index, "nodes")
                if tier.nodes.value <= reached:
                    raise problem("reaches no more than the tier below; list tiers upward", "tiers", index, "nodes")
                reached = tier.nodes.value
        return self


class LocationFile(FileModel):
    """Where a cluster stands."""

    place: Text
    pue: SourcedNumeral | None = None
    carbon: SourcedCarbon | None = None
    electricity: SourcedEnergyPrice | None = None

    def location(self) -> Location:
        """The location in SI."""
        return Location(
            place=self.place,
            pue=None if self.pue is None else self.pue.value,
            carbon=None if self.carbon is None else self.carbon.value,
            electricity=None if self.electricity is None else self.electricity.value,
        )


class FailuresFile(FileModel):
    """Mean time between failures of one device, and of one node apart from its devices; time to restart a job."""

    device: SourcedTime | None = None
    node: SourcedTime | None = None
    restart: SourcedTime | None = None

    def failures(self) -> Failures:
        """The failures in SI."""
        return Failures(
            device=None if self.device is None else self.device.value,
            node=None if self.node is None else self.node.value,
            restart=None if self.restart is None else self.restart.value,
        )


class GroupFile(FileModel):
    """Equal nodes."""

    name: Name | None = None
    node: Name
    nodes: int = Field(ge=1, le=10**6)


class ClusterFile(SourcedFile):
    """A cluster file: ``node`` and ``nodes``, or ``groups`` of them."""

    schema_: Literal["cluster/1"] = Field(alias="schema")
    name: Name
    aliases: list[Name] = Field(default_factory=list, max_length=32)
    node: Name | None = None
    nodes: int | None = Field(default=None, ge=1, le=10**6)
    groups: list[GroupFile] = Field(default_factory=list, max_length=1024)
    fabric: Name | None = None
    price: list[PriceFile] = Field(default_factory=list, max_length=256)
    location: LocationFile | None = None
    failures: FailuresFile | None = None

    @model_validator(mode="after")
    def _is_plausible(self) -> ClusterFile:
        if (self.node is not None) == bool(self.groups):
            raise problem("write either node: and nodes:, or groups: of them")
        if (self.node is not None) != (self.nodes is not None):
            raise problem("node: and nodes: go together; add the other one")
        names = [group.name or group.node for group in self.groups]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise problem(f"group {name!r} comes twice; give each its own name:", "groups", index)
        for index, price in enumerate(self.price):
            check_number(price, _NODE_PRICE, "USD/s", "price", index)
        if self.location is not None:
            check_number(self.location.pue, _PUE, "number", "location", "pue")
            check_number(self.location.carbon, _CARBON, "kg/J", "location", "carbon")
            check_number(self.location.electricity, _ELECTRICITY, "USD/J", "location", "electricity")
        if self.failures is not None:
            check_number(self.failures.device, _BETWEEN_FAILURES, "s", "failures", "device")
            check_number(self.failures.node, _BETWEEN_FAILURES, "s", "failures", "node")
            check_number(self.failures.restart, _RESTART, "s", "failures", "restart")
        return self

    def parts(self) -> list[GroupFile]:
        """The groups; one where the file has only node and nodes."""
        if self.node is not None and self.nodes is not None:
            return [GroupFile(node=self.node, nodes=self.nodes)]
        return self.groups
