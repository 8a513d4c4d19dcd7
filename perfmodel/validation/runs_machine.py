"""The machine of a measured run: a device or a cluster of the catalogue, from device, numbers and words about links."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from perfmodel.errors import UnsupportedError
from perfmodel.hardware import Cluster, Device, Node, load_cluster, load_device, load_fabric, load_node
from perfmodel.validation.collectives import nodes_with
from perfmodel.validation.runs_schema import Network, Record

__all__ = ["Machine", "machine"]

#: Nodes by words about the links inside, where device and number don't tell: the first DGX were sold with
#: V100 of 16 and of 32 GB, of which the catalogue has one.
_NAMED = {"dgx-1": "dgx-1v", "dgx-2": "dgx-2"}
#: Networks: the words that name them, what the names of their fabrics start with, and those by Gbit/s of a port.
_INFINIBAND = {
    100: "infiniband-edr-fat-tree", 200: "infiniband-hdr-rail", 400: "infiniband-ndr-rail", 800: "infiniband-xdr-rail",
}  # fmt: skip
_ROCE = {rate: f"roce-{rate}-fat-tree" for rate in (100, 200, 400, 800)}
_NETWORKS: tuple[tuple[str, str, Mapping[int, str]], ...] = (
    (r"unstated|infiniband ?/ ?roce", "", {}),
    (r"omni-path", "omni-path", {100: "omni-path-100-fat-tree"}),
    (r"\broce\b", "roce", _ROCE),
    (r"\befa\b", "efa", {}),  # AWS's nodes come with it
    (r"\bib\b|infiniband|\b[ehnx]dr\b", "infiniband", _INFINIBAND),
)
_PORTS = re.compile(r"(\d+)\s*x\s*(?:[a-z]+ )?(\d+)\s*gb", re.IGNORECASE)
_GIGABIT = 1e9 / 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where a run ran; ``notes`` say what was chosen."""

    machine: Device | Cluster
    notes: tuple[str, ...] = ()

    @property
    def device(self) -> Device:
        """The kind of device."""
        return self.machine.device if isinstance(self.machine, Cluster) else self.machine


def machine(record: Record) -> Machine:
    """The machine of a run.

    Raises
    ------
    PerfModelError
        Where the catalogue has no such device, node or network.
    """
    return _machine(record.device, record.devices, record.devices_per_node, record.fabric, record.precision == "tf32")


@lru_cache(maxsize=512)
def _machine(name: str, devices: int, per_node: int, network: Network, tf32: bool) -> Machine:
    device = load_device(name)
    overrides: dict[str, str | int] = {}
    if tf32:
        # Products of float32 tensors run at the rate of TF32 where PyTorch is told so.
        overrides["compute.matrix.peak.fp32"] = f"{device.peak('matrix', 'tf32'):.6g} FLOP/s"
    if devices == 1:
        return Machine(machine=load_device(name, overrides=overrides) if overrides else device)
    overrides = {f"device.{path}": value for path, value in overrides.items()}
    host = _torus_host(device.name)
    if host is not None:
        return Machine(machine=_slice(host, devices, per_node, overrides))
    notes: list[str] = []
    used = _used(devices, per_node)
    if used != per_node and devices > per_node:
        notes.append(f"{used} of the {per_node} devices of a node are used, so that all nodes have as many")
    node = _node(device.name, per_node, network)
    if node.device.name != device.name:
        overrides["node.device"] = device.name
    if node.devices != used:
        overrides["node.devices"] = used
    nodes = devices // used
    if nodes == 1:
        return Machine(machine=load_cluster(node.name, nodes=1, overrides=overrides), notes=tuple(notes))
    fabric, ports = _network(node, network, notes)
    if node.devices != used and node.nics[0].count == node.devices:
        # A port for each device.
        overrides["node.nics[0].count"] = used
    cluster = load_cluster(node.name, nodes=nodes, fabric=fabric, overrides={**overrides, **ports})
    return Machine(machine=cluster, notes=tuple(notes))


def _used(devices: int, per_node: int) -> int:
    """Devices that are used of each node: all that there are, or the most that divide those of the run."""
    return max(used for used in range(1, min(devices, per_node) + 1) if devices % used == 0)


def _torus_host(device: str) -> Node | None:
    """The host of a device whose links go from device to device through all hosts."""
    for node in nodes_with(device):
        if node.fabric and load_fabric(node.fabric).torus is not None:
            return node
    return None


def _slice(host: Node, devices: int, per_slice: int, overrides: Mapping[str, str | int]) -> Cluster:
    if devices > per_slice:
        raise UnsupportedError(
            f"{devices // per_slice} slices of {per_slice} {host.device.name} are joined by the data centre's network, "
            "which the catalogue doesn't have"
        )
    if devices % host.devices:
        raise UnsupportedError(f"{devices} devices aren't whole hosts of {host.devices}")
    return load_cluster(host.name, nodes=devices // host.devices, overrides=overrides)


def _node(device: str, per_node: int, network: Network) -> Node:
    for words, name in _NAMED.items():
        if words in network.intra.lower():
            return load_node(name)
    found = [node for node in nodes_with(device) if node.devices >= per_node and (node.devices > 1 or per_node == 1)]
    if not found:
        raise UnsupportedError(f"no node of the catalogue has {per_node} {device}; describe one in hardware_specs")
    prefix, _ = _kind(network.inter)
    bandwidth = (network.inter_gbit_per_node or 0) * _GIGABIT

    def rank(node: Node) -> tuple[bool, int, bool, bool, str]:
        # The network that the source names, as many devices, the network's rate, measured collectives come first.
        return (
            prefix not in node.fabric,
            node.devices,
            node.network_bandwidth != bandwidth,
            node.collectives is None,
            node.name,
        )

    return min(found, key=rank)


def _kind(inter: str) -> tuple[str, Mapping[int, str]]:
    """What the names of a network's fabrics start with, and its fabrics by the rate of a port."""
    for words, prefix, fabrics in _NETWORKS:
        if re.search(words, inter.lower()):
            return prefix, fabrics
    return "", {}


def _network(node: Node, network: Network, notes: list[str]) -> tuple[str | None, dict[str, str | int]]:
    """The fabric between nodes, and what of the node's ports is other than the catalogue's."""
    prefix, fabrics = _kind(network.inter)
    gbit = network.inter_gbit_per_node
    if not prefix or gbit is None:
        notes.append(f"the network between nodes isn't stated in full: {node.fabric} is taken")
    if gbit is None:
        return None, {}
    count = node.nics[0].count if node.nics else 1
    said = _PORTS.search(network.inter)
    if said is not None and float(said[1]) * float(said[2]) == gbit:
        count = int(said[1])
    rate = gbit / count
    ports: dict[str, str | int] = {"node.nics[0].count": count, "node.nics[0].bandwidth": f"{rate:.6g} Gbit/s"}
    if not fabrics:
        return None, ports
    fast_enough = [known for known in fabrics if known >= rate]
    if not fast_enough:
        raise UnsupportedError(f"no fabric of the catalogue has ports of {rate:.4g} Gbit/s for {network.inter!r}")
    return fabrics[min(fast_enough)], ports
