"""Where the ranks of a group sit: in a node, over how many nodes, over which links."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from perfmodel.errors import UnsupportedError
from perfmodel.hardware import Cluster, Fabric, Node
from perfmodel.timing.collectives.route import Route, between_route, inside_route

__all__ = ["Network", "RankGroup", "group_of", "network_of", "regular_group"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Network:
    """The links of a cluster of equal nodes.

    Attributes
    ----------
    devices : int
        Of a node.
    inside : Route or None
        Within a node; ``None`` where it has one device.
    between : Route or None
        Between nodes; ``None`` for a single node.
    ports : float
        Network ports of a node.
    ports_per_device : float
        How many of them a device can use.
    fabric : Fabric or None
        For its tiers and its torus.
    total : int
        Devices of the cluster.
    """

    devices: int
    inside: Route | None
    between: Route | None
    ports: float
    ports_per_device: float
    fabric: Fabric | None
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RankGroup:
    """Ranks that communicate with each other.

    Attributes
    ----------
    network : Network
    ranks : int
    local : int
        How many of them are in one node (the most in any).
    nodes : int
        How many nodes they are in.
    tier : int
        Index of the lowest tier of switches that joins those nodes.
    concurrent : int
        How many groups like this one, this one included, use each node's ports at once.
    shape : tuple of int
        On a torus: ranks along each axis.
    wraps : tuple of bool
        On a torus: which axes close into a ring.
    strides : tuple of int
        On a torus: how many devices apart the ranks are along each axis.
    """

    network: Network
    ranks: int
    local: int
    nodes: int
    tier: int = 0
    concurrent: int = 1
    shape: tuple[int, ...] = field(default=())
    wraps: tuple[bool, ...] = field(default=())
    strides: tuple[int, ...] = field(default=())


_NETWORKS: dict[int, tuple[Cluster, Network]] = {}
_KEPT = 64


def network_of(cluster: Cluster) -> Network:
    """The links of a cluster; of the slowest of each where its nodes differ.

    Raises
    ------
    UnsupportedError
        If no constants are known for a link.

    Examples
    --------
    >>> from perfmodel.hardware import load_cluster
    >>> network = network_of(load_cluster("dgx-h100", nodes=4))
    >>> network.inside.name, network.inside.source, network.between.name, network.ports_per_device
    ('nvlink4', 'fitted', 'infiniband-ndr', 1.0)
    """
    known = _NETWORKS.get(id(cluster))
    if known is not None and known[0] is cluster:
        return known[1]
    parts = [_network(group.node, cluster) for group in cluster.groups]
    network = parts[0] if len(parts) == 1 else _slowest(parts)
    if len(_NETWORKS) >= _KEPT:
        _NETWORKS.clear()
    _NETWORKS[id(cluster)] = (cluster, network)
    return network


def group_of(cluster: Cluster, ranks: Iterable[int], *, concurrent: int = 1) -> RankGroup:
    """The group that some devices of a cluster form.

    Parameters
    ----------
    cluster : Cluster
    ranks : iterable of int
        Devices, counted from 0 through the first node, then the second, and so on.
    concurrent : int
        How many groups like this one use each node's ports at once, e.g. one for each tensor-parallel rank.

    Raises
    ------
    UnsupportedError
        If a device isn't in the cluster or comes twice, or those on a torus don't form a box.

    Examples
    --------
    >>> from perfmodel.hardware import load_cluster
    >>> group = group_of(load_cluster("dgx-h100", nodes=16), range(0, 128, 8))
    >>> group.ranks, group.local, group.nodes
    (16, 1, 16)
    """
    members = ranks if isinstance(ranks, range) else tuple(ranks)
    return _group_of(_Same(cluster), members, concurrent)


def regular_group(cluster: Cluster, ranks: int, stride: int = 1, *, concurrent: int = 1) -> RankGroup:
    """The group of every ``stride``-th device from the first on; raises like :func:`group_of`."""
    return group_of(cluster, range(0, ranks * stride, stride), concurrent=concurrent)


class _Same:
    """A cluster by identity, since its mappings can't be hashed; keeps it alive while it's a key."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def __hash__(self) -> int:
        return id(self.cluster)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.cluster is self.cluster


@lru_cache(maxsize=4096)
def _group_of(same: _Same, ranks: range | tuple[int, ...], concurrent: int) -> RankGroup:
    cluster = same.cluster
    network = network_of(cluster)
    if concurrent < 1:
        raise UnsupportedError(f"concurrent={concurrent} groups; write 1 or more")
    if not ranks:
        raise UnsupportedError("a group without ranks; name at least one device")
    if min(ranks) < 0 or max(ranks) >= cluster.devices:
        raise UnsupportedError(
            f"device {min(ranks) if min(ranks) < 0 else max(ranks)} isn't in {cluster.name}, "
            f"which has {cluster.devices}, counted from 0"
        )
    if len(set(ranks)) != len(ranks):
        raise UnsupportedError("a device comes twice in a group; name each once")
    per_node = Counter(_node_index(cluster, rank) for rank in ranks)
    torus = network.fabric is not None and network.fabric.torus is not None
    shape, wraps, strides = _box(network, ranks) if torus else ((), (), ())
    return RankGroup(
        network=network,
        ranks=len(ranks),
        local=max(per_node.values()),
        nodes=len(per_node),
        tier=_tier(network.fabric, per_node),
        concurrent=concurrent,
        shape=shape,
        wraps=wraps,
        strides=strides,
    )


def _node_index(cluster: Cluster, rank: int) -> int:
    passed = 0
    for group in cluster.groups:
        if rank < group.devices:
            return passed + rank // group.node.devices
        rank -= group.devices
        passed += group.nodes
    raise AssertionError("a rank was checked to be in the cluster")


def _tier(fabric: Fabric | None, nodes: Iterable[int]) -> int:
    """The lowest tier whose switches join nodes: those of one block of as many as it reaches."""
    if fabric is None or not fabric.tiers:
        return 0
    first, last = min(nodes), max(nodes)
    for index, tier in enumerate(fabric.tiers):
        if tier.nodes is None or first // tier.nodes == last // tier.nodes:
            return index
    raise UnsupportedError(
        f"{fabric.name} connects {fabric.tiers[-1].nodes} nodes, not those from {first} to {last}; "
        "choose a larger fabric"
    )


def _network(node: Node, cluster: Cluster) -> Network:
    fabric = cluster.fabric
    ports = sum(nic.count for nic in node.nics)
    between = None
    if fabric is not None and (cluster.nodes > 1 or fabric.torus is not None):
        between = between_route(fabric, node, ports)
    return Network(
        devices=node.devices,
        inside=inside_route(node) if node.devices > 1 and node.interconnect is not None else None,
        between=between,
        ports=ports,
        ports_per_device=max(1.0, ports / node.devices),
        fabric=fabric,
        total=cluster.devices,
    )


def _slowest(parts: list[Network]) -> Network:
    """A ring through unlike nodes goes at the pace of the slowest."""
    inside = [part.inside for part in parts if part.inside is not None]
    between = [part.between for part in parts if part.between is not None]
    least = min(parts, key=lambda part: part.ports * (part.between.bandwidth if part.between else 0.0))
    return Network(
        devices=min(part.devices for part in parts),
        inside=min(inside, key=lambda route: route.bandwidth) if inside else None,
        between=min(between, key=lambda route: route.bandwidth) if between else None,
        ports=least.ports,
        ports_per_device=least.ports_per_device,
        fabric=parts[0].fabric,
        total=parts[0].total,
    )


def _box(network: Network, ranks: range | tuple[int, ...]) -> tuple[tuple[int, ...], tuple[bool, ...], tuple[int, ...]]:
    """Ranks along each axis of a torus, in row-major order of its slice; which axes close; how far apart they are."""
    fabric = network.fabric
    assert fabric is not None
    torus = fabric.torus
    assert torus is not None
    whole = torus.shape(network.total)
    found: list[set[int]] = [set() for _ in whole]
    for rank in ranks:
        for axis in reversed(range(len(whole))):
            rank, place = divmod(rank, whole[axis])
            found[axis].add(place)
    sizes = tuple(len(places) for places in found)
    gaps = [{b - a for a, b in itertools.pairwise(sorted(places))} or {1} for places in found]
    if math.prod(sizes) != len(ranks) or any(len(gap) > 1 for gap in gaps):
        raise UnsupportedError(
            f"{len(ranks)} devices don't form an even box in the slice of {' x '.join(map(str, whole))}; "
            "choose whole axes or equal steps along them"
        )
    strides, wraps = [], []
    for size, full, (gap,) in zip(sizes, whole, gaps, strict=True):
        ring = torus.wraps(full)
        strides.append(min(gap, full - gap) if size == 2 and ring else gap)
        wraps.append(ring and size * gap == full)
    return sizes, tuple(wraps), tuple(strides)
