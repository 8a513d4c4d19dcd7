"""Nodes, fabrics and clusters by name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from perfmodel.errors import UnknownNameError, UnsupportedError
from perfmodel.hardware.catalogue import load_device
from perfmodel.hardware.fabric import Fabric
from perfmodel.hardware.files import file_of, index, is_path, nodes_of
from perfmodel.hardware.inherit import resolve
from perfmodel.hardware.override import Override, overridden, with_prefix
from perfmodel.hardware.system import Cluster, Group, Node
from perfmodel.hardware.system_schema import ClusterFile, FabricFile, GroupFile, NodeFile

__all__ = ["load_cluster", "load_fabric", "load_node"]

PathLike = str | os.PathLike[str]
Overrides = Mapping[str, Override]


def load_node(name_or_path: PathLike, *, overrides: Overrides | None = None) -> Node:
    """Load a node by name, alias, or the path of its file.

    Parameters
    ----------
    name_or_path : str or path
    overrides : mapping, optional
        Other values by dotted path in the node's file; ``device.…`` is in that of its device.

    Raises
    ------
    UnknownNameError
        If no node, or no device of it, has that name.
    UnsupportedError
        If two nodes claim the alias, or an override isn't valid.
    FileError
        If a file is missing or wrong.

    Examples
    --------
    >>> node = load_node("dgx-h100")
    >>> node.devices, node.device.name, node.network_bandwidth
    (8, 'nvidia-h100-sxm-80gb', 400000000000.0)
    """
    path = _path("node", name_or_path)
    mine, ofs_device = _split(overrides, "device")
    file = overridden(resolve("node", path).root, NodeFile, mine)
    return Node(
        name=file.name,
        aliases=tuple(file.aliases),
        vendor=file.vendor,
        year=file.year,
        device=load_device(_named("device", file.device, path), overrides=ofs_device),
        devices=int(file.devices.value),
        interconnect=None if file.interconnect is None else file.interconnect.interconnect(),
        nics=file.nic_ports(),
        host=None if file.host is None else file.host.host(),
        power=None if file.power is None else file.power.power(),
        prices=tuple(price.price() for price in file.price),
        fabric=file.fabric or "",
        collectives=None if file.collectives is None else file.collectives.collectives(),
        sources=file.sources(),
        path=str(path),
    )


def load_fabric(name_or_path: PathLike, *, overrides: Overrides | None = None) -> Fabric:
    """Load a fabric by name, alias, or the path of its file; raises like :func:`load_node`."""
    path = _path("fabric", name_or_path)
    file = overridden(resolve("fabric", path).root, FabricFile, overrides or {})
    return Fabric(
        name=file.name,
        aliases=tuple(file.aliases),
        topology=file.topology,
        link=file.link.name,
        bandwidth=file.link.bandwidth.value * file.link.count,
        latency=file.latency.value,
        hop=file.hop.value,
        efficiency=file.efficiency.value,
        rails=file.rails,
        reduction=file.reduction,
        tiers=tuple(tier.tier() for tier in file.tiers),
        torus=None if file.torus is None else file.torus.torus(),
        collectives=None if file.collectives is None else file.collectives.collectives(),
        sources=file.sources(),
        path=str(path),
    )


def load_cluster(
    name_or_path: PathLike,
    *,
    nodes: int | None = None,
    fabric: PathLike | None = None,
    overrides: Overrides | None = None,
) -> Cluster:
    """Load a cluster by name, alias, or the path of its file; or put one together from a node.

    Parameters
    ----------
    name_or_path : str or path
        A cluster; or the name of a node, which gives a cluster of ``nodes`` of them (one if left
        out) on the fabric that the node's file names.
    nodes : int, optional
        Another number of nodes. Refused for a mixed cluster, whose groups have their own.
    fabric : str or path, optional
        Another fabric.
    overrides : mapping, optional
        Other values by dotted path in the cluster's file; ``device.…``, ``node.…`` and
        ``fabric.…`` are in those of its parts, which must then be of one kind.

    Raises
    ------
    UnknownNameError
        If nothing has that name.
    UnsupportedError
        If an override isn't valid, or several nodes have no fabric.
    FileError
        If a file is missing or wrong.

    Examples
    --------
    >>> cluster = load_cluster("dgx-h100", nodes=16)
    >>> cluster.devices, cluster.device.name, cluster.fabric.name
    (128, 'nvidia-h100-sxm-80gb', 'infiniband-ndr-rail')
    """
    if nodes is not None and (isinstance(nodes, bool) or not isinstance(nodes, int) or nodes < 1):
        raise UnsupportedError(f"nodes={nodes!r} is not a number of nodes; write a whole number of 1 or more")
    path = _cluster_path(name_or_path)
    mine, parts = dict(overrides or {}), {}
    for prefix in ("device", "node", "fabric"):
        mine, parts[prefix] = _split(mine, prefix)
    if path is None:
        if mine:
            raise UnsupportedError(f"{next(iter(mine))}: write device.…, node.… or fabric.… before the path")
        groups = [GroupFile(node=str(name_or_path), nodes=nodes or 1)]
        file = None
    else:
        file = overridden(resolve("cluster", path).root, ClusterFile, mine)
        groups = file.parts()
        if nodes is not None:
            if len(groups) > 1:
                raise UnsupportedError(
                    f"{file.name} has {len(groups)} groups of nodes; change their numbers in its file"
                )
            groups = [groups[0].model_copy(update={"nodes": nodes})]
    changed = {**{f"device.{path}": value for path, value in parts["device"].items()}, **parts["node"]}
    if changed and len(groups) > 1:
        raise UnsupportedError(
            f"{next(iter(changed))}: the nodes are of several kinds; write a file for the changed one"
        )
    built = tuple(
        Group(
            name=group.name or group.node,
            node=load_node(_named("node", group.node, path), overrides=changed),
            nodes=group.nodes,
        )
        for group in groups
    )
    stated = (file.fabric if file is not None else None) or built[0].node.fabric
    network = fabric or (_named("fabric", stated, path) if stated else None)
    name = file.name if file is not None else built[0].node.name
    if not network and sum(group.nodes for group in built) > 1:
        raise UnsupportedError(
            f"{name} has several nodes, but no fabric; name one of {', '.join(sorted(index('fabric')))}"
        )
    if not network and parts["fabric"]:
        raise UnsupportedError(f"fabric.{next(iter(parts['fabric']))}: {name} has no fabric; name one")
    return Cluster(
        name=name,
        aliases=() if file is None else tuple(file.aliases),
        groups=built,
        fabric=load_fabric(network, overrides=parts["fabric"]) if network else None,
        prices=() if file is None else tuple(price.price() for price in file.price),
        location=None if file is None or file.location is None else file.location.location(),
        failures=None if file is None or file.failures is None else file.failures.failures(),
        sources={} if file is None else file.sources(),
        path="" if path is None else str(path),
        overrides=dict(overrides or {}),
    )


def _path(kind: str, name_or_path: PathLike) -> Path:
    return Path(name_or_path) if is_path(name_or_path) else file_of(kind, str(name_or_path))


def _named(kind: str, name: str, near: Path | None) -> Path:
    """The file that a name in the file ``near`` means: one of that kind beside it, or the catalogue's."""
    neighbour = None if near is None else near.parent / f"{name}.yaml"
    if neighbour is not None and neighbour.is_file():
        schema = nodes_of(neighbour).value.get("schema")
        if schema is not None and str(schema.value).startswith(f"{kind}/"):
            return neighbour
    return file_of(kind, name)


def _cluster_path(name_or_path: PathLike) -> Path | None:
    """The file of a cluster; ``None`` for the name of a node."""
    if is_path(name_or_path):
        return Path(name_or_path)
    try:
        return file_of("cluster", str(name_or_path))
    except UnknownNameError as error:
        try:
            file_of("node", str(name_or_path))
        except UnknownNameError as other:
            names = sorted({*error.known, *other.known})
            raise UnknownNameError(
                "cluster", str(name_or_path), names, "see `perfmodel hardware list --what clusters`, or `--what nodes`"
            ) from None
    return None


def _split(overrides: Overrides | None, prefix: str) -> tuple[dict[str, Override], dict[str, Override]]:
    """Overrides of the file itself, and those of a part of it."""
    parts = with_prefix(overrides or {}, prefix)
    mine = {path: value for path, value in (overrides or {}).items() if not path.startswith(f"{prefix}.")}
    return mine, parts
