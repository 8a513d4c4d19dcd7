"""Which links a transfer passes, so that an engine can share them among what is under way at once.

Links are named after where they are: ``node3.device5.nvlink4.out``, ``node3.port5.in``,
``leaf0.up``. Each name is one direction.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from perfmodel.errors import UnsupportedError
from perfmodel.hardware import Cluster
from perfmodel.timing.collectives.group import network_of

__all__ = ["LinkLoad", "link_capacity", "link_loads", "transfer_path"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkLoad:
    """Bytes that a link carries, and how many it can carry a second."""

    name: str
    nbytes: float
    capacity: float


def transfer_path(cluster: Cluster, source: int, target: int) -> tuple[str, ...]:
    """Names of the links from one device to another, in order.

    Raises
    ------
    UnsupportedError
        If a device isn't in the cluster, both are one, or nothing joins them.

    Examples
    --------
    >>> from perfmodel.hardware import load_cluster
    >>> transfer_path(load_cluster("dgx-h100", nodes=2), 0, 9)
    ('node0.port0.out', 'node1.port1.in')
    """
    if source == target:
        raise UnsupportedError(f"device {source} sends to itself; that passes no link")
    (first, a), (second, b) = _place(cluster, source), _place(cluster, target)
    network = network_of(cluster)
    if network.fabric is not None and network.fabric.torus is not None:
        return _torus_path(cluster, source, target)
    if first == second:
        if network.inside is None:
            raise UnsupportedError(f"nothing joins the devices of a node of {cluster.name}")
        link = network.inside.name
        if network.inside.topology == "all-to-all":
            return (f"node{first}.device{a}-device{b}.{link}",)
        return (f"node{first}.device{a}.{link}.out", f"node{first}.device{b}.{link}.in")
    if network.between is None or network.fabric is None:
        raise UnsupportedError(f"nothing joins the nodes of {cluster.name}")
    ports = int(network.ports)
    path = [f"node{first}.port{_port(a, network.devices, ports)}.out"]
    path += _climb(cluster, first, second)
    return (*path, f"node{second}.port{_port(b, network.devices, ports)}.in")


def link_capacity(cluster: Cluster, link: str) -> float:
    """Bytes/s of a link by its name, as large messages reach it.

    Raises
    ------
    UnsupportedError
        If the name isn't one of :func:`transfer_path`.
    """
    network = network_of(cluster)
    if match := re.fullmatch(r"(node|tier)\d+(\.\d+)?\.(.+)", link):
        rest = match[3]
        if match[1] == "tier" and network.between is not None and network.fabric is not None:
            index = int(link[4 : link.index(".")])
            below = network.fabric.tiers[index].nodes or cluster.nodes
            whole = below * network.ports * network.between.bandwidth
            return whole / network.fabric.oversubscription(index + 1)
        if rest.startswith(("port", "axis")) and network.between is not None:
            return network.between.bandwidth
        if rest.startswith("device") and network.inside is not None:
            route = network.inside
            share = route.constants("send_recv").large
            return route.bandwidth * share / (route.lanes if route.topology == "all-to-all" else 1)
    raise UnsupportedError(f"{link!r} is not a link of {cluster.name}; take names from transfer_path")


def link_loads(op: str, nbytes: float, cluster: Cluster, ranks: Sequence[int]) -> tuple[LinkLoad, ...]:
    """What a collective puts on each link: a ring's, or of an all-to-all each pair's.

    Raises
    ------
    UnsupportedError
        If the ranks aren't in the cluster.

    Examples
    --------
    >>> from perfmodel.hardware import load_cluster
    >>> loads = link_loads("all_reduce", 8e9, load_cluster("dgx-h100", nodes=2), range(0, 16, 8))
    >>> [(load.name, load.nbytes) for load in loads]
    [('node0.port0.out', 8000000000.0), ('node1.port0.in', 8000000000.0), ('node1.port0.out', 8000000000.0), \
('node0.port0.in', 8000000000.0)]
    """
    count = len(ranks)
    loads: dict[str, float] = {}
    if count < 2:
        return ()
    if op == "send_recv":
        _add(loads, transfer_path(cluster, ranks[0], ranks[1]), nbytes)
    elif op == "all_to_all":
        for source in ranks:
            for target in ranks:
                if source != target:
                    _add(loads, transfer_path(cluster, source, target), nbytes / count)
    else:
        share = 1.0 if op == "broadcast" else (2 if op == "all_reduce" else 1) * (count - 1) / count
        # The library makes one ring for each port of a node, each through other devices.
        nodes: dict[int, list[int]] = {}
        for rank in ranks:
            nodes.setdefault(_place(cluster, rank)[0], []).append(rank)
        rings = min(len(members) for members in nodes.values())
        for shift in range(rings):
            order = [member for members in nodes.values() for member in members[shift:] + members[:shift]]
            for index, source in enumerate(order):
                target = order[(index + 1) % count]
                _add(loads, transfer_path(cluster, source, target), nbytes * share / rings)
    return tuple(
        LinkLoad(name=name, nbytes=load, capacity=link_capacity(cluster, name)) for name, load in loads.items()
    )


def _add(loads: dict[str, float], path: Sequence[str], nbytes: float) -> None:
    for name in path:
        loads[name] = loads.get(name, 0.0) + nbytes


def _place(cluster: Cluster, rank: int) -> tuple[int, int]:
    """Node and device in it."""
    left, passed = rank, 0
    if rank >= 0:
        for group in cluster.groups:
            if left < group.devices:
                node, device = divmod(left, group.node.devices)
                return passed + node, device
            left -= group.devices
            passed += group.nodes
    raise UnsupportedError(f"device {rank} isn't in {cluster.name}, which has {cluster.devices}, counted from 0")


def _port(device: int, devices: int, ports: int) -> int:
    return device * ports // devices if ports <= devices else device * (ports // devices)


def _climb(cluster: Cluster, first: int, second: int) -> list[str]:
    """The uplinks of the tiers below the one where two nodes meet; a tier that doesn't block has none to share."""
    fabric = cluster.fabric
    assert fabric is not None
    up: list[str] = []
    down: list[str] = []
    for index, tier in enumerate(fabric.tiers):
        if tier.nodes is None or first // tier.nodes == second // tier.nodes:
            break
        if tier.oversubscription > 1:
            up.append(f"tier{index}.{first // tier.nodes}.up")
            down.insert(0, f"tier{index}.{second // tier.nodes}.down")
    return up + down


def _torus_path(cluster: Cluster, source: int, target: int) -> tuple[str, ...]:
    """Along one axis after the other, the shorter way round where it closes."""
    fabric = cluster.fabric
    assert fabric is not None
    torus = fabric.torus
    assert torus is not None
    shape = torus.shape(cluster.devices)
    at, goal = _coordinates(source, shape), _coordinates(target, shape)
    path: list[str] = []
    for axis, size in enumerate(shape):
        ring = torus.wraps(size)
        ahead = (goal[axis] - at[axis]) % size
        forward = ahead <= size - ahead if ring else goal[axis] > at[axis]
        for _ in range(min(ahead, size - ahead) if ring else abs(goal[axis] - at[axis])):
            path.append(f"node{_number(at, shape)}.axis{axis}.{'plus' if forward else 'minus'}")
            at[axis] = (at[axis] + (1 if forward else -1)) % size
    return tuple(path)


def _coordinates(rank: int, shape: Sequence[int]) -> list[int]:
    found: list[int] = []
    for size in reversed(shape):
        rank, place = divmod(rank, size)
        found.insert(0, place)
    return found


def _number(place: Sequence[int], shape: Sequence[int]) -> int:
    number = 0
    for coordinate, size in zip(place, shape, strict=True):
        number = number * size + coordinate
    return number
