"""Whatever a name means: a device, a node or a cluster."""

from __future__ import annotations

import os
from collections.abc import Mapping

from perfmodel.errors import FileError, UnknownNameError, UnsupportedError
from perfmodel.hardware.catalogue import load_device
from perfmodel.hardware.device import Device
from perfmodel.hardware.files import index, is_path, nodes_of
from perfmodel.hardware.override import Override, with_prefix
from perfmodel.hardware.system import Cluster, Group, Node
from perfmodel.hardware.systems import load_cluster, load_fabric, load_node

__all__ = ["as_cluster", "load_machine"]

PathLike = str | os.PathLike[str]


def load_machine(
    name_or_path: PathLike, *, nodes: int | None = None, overrides: Mapping[str, Override] | None = None
) -> Device | Cluster:
    """The device, or the cluster of nodes, that a name or file describes.

    Parameters
    ----------
    name_or_path : str or path
        A name is looked up among devices first, then among clusters and nodes.
    nodes : int, optional
        Of a cluster; see :func:`perfmodel.hardware.load_cluster`.
    overrides : mapping, optional
        By dotted path: ``device.…``, and for a cluster ``node.…`` and ``fabric.…``.

    Raises
    ------
    UnknownNameError
        If nothing has that name.
    UnsupportedError
        If ``nodes`` is given for a device, or an override isn't valid.
    FileError
        If a file is missing or wrong.

    Examples
    --------
    >>> load_machine("h100").name, load_machine("dgx-h100", nodes=2).devices
    ('nvidia-h100-sxm-80gb', 16)
    """
    kind = _kind(name_or_path)
    if kind == "node" and is_path(name_or_path):
        return _of_nodes(name_or_path, nodes or 1, overrides)
    if kind != "device":
        return load_cluster(name_or_path, nodes=nodes, overrides=overrides)
    if nodes is not None:
        raise UnsupportedError(
            f"{name_or_path} is a device, and nodes={nodes} were asked for; name a node or a cluster"
        )
    changes = {}
    for path, value in (overrides or {}).items():
        if not path.startswith("device."):
            raise UnsupportedError(f"{path}: {name_or_path} is a device; write device.{path}")
        changes[path.removeprefix("device.")] = value
    return load_device(name_or_path, overrides=changes)


def as_cluster(machine: Device | Node | Cluster) -> Cluster:
    """A device or a node as a cluster of one."""
    if isinstance(machine, Cluster):
        return machine
    if isinstance(machine, Device):
        machine = Node(name=machine.name, vendor=machine.vendor, year=machine.year, device=machine, devices=1)
    return Cluster(name=machine.name, groups=(Group(name=machine.name, node=machine, nodes=1),))


def _of_nodes(path: PathLike, nodes: int, overrides: Mapping[str, Override] | None) -> Cluster:
    """A cluster of the nodes that a file describes, on the fabric that it names."""
    changes = dict(overrides or {})
    of_fabric = with_prefix(changes, "fabric")
    of_node = {name: value for name, value in changes.items() if not name.startswith("fabric.")}
    node = load_node(path, overrides={name.removeprefix("node."): value for name, value in of_node.items()})
    if nodes > 1 and not node.fabric:
        raise UnsupportedError(
            f"{os.fspath(path)} names no fabric for {nodes} nodes; name one in it, or write a cluster"
        )
    return Cluster(
        name=node.name,
        groups=(Group(name=node.name, node=node, nodes=nodes),),
        fabric=load_fabric(node.fabric, overrides=of_fabric) if node.fabric else None,
        overrides=changes,
    )


def _kind(name_or_path: PathLike) -> str:
    if is_path(name_or_path):
        schema = nodes_of(os.fspath(name_or_path)).value.get("schema")
        kind = str(schema.value).partition("/")[0] if schema is not None else ""
        if kind not in ("device", "node", "cluster"):
            raise FileError(f"{os.fspath(name_or_path)}: schema {kind or None!r}; give a device, node or cluster file")
        return kind
    name = str(name_or_path)
    for kind in _KINDS:
        if any(name == known or name in entry.aliases for known, entry in index(kind, mentioning=name).items()):
            return kind
    entries = {known: entry for kind in _KINDS for known, entry in index(kind).items()}
    names = [*entries, *(alias for entry in entries.values() for alias in entry.aliases)]
    raise UnknownNameError("device", name, names, "`perfmodel hardware list` shows all, nodes and clusters with --what")


_KINDS = ("device", "cluster", "node")
