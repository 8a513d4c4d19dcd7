"""``base:``: a file that says only how it differs from another.

Mappings are merged key by key, the file over its base. A number with its source (a
mapping with ``value``) and a list replace the base's whole; ``null`` removes a key
of the base. What identifies or dates a description is never inherited.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from perfmodel.errors import FileError, suggestion
from perfmodel.hardware.files import KINDS, base_file, hardware_roots, is_path, nodes_of
from perfmodel.yamlfile import Node

__all__ = ["MAX_BASES", "NOT_INHERITED", "Resolved", "resolve"]

#: Longest chain of bases.
MAX_BASES = 8

#: Keys that belong to one description and not to those based on it.
NOT_INHERITED = ("schema", "name", "aliases", "base", "price", "validated")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A file merged over its bases.

    Attributes
    ----------
    root : Node
        The merged nodes, each with its place in the file that it comes from; without ``base``.
    own : Node
        The file's own nodes.
    files : tuple of Path
        The file, its base, the base of that, and so on.
    """

    root: Node
    own: Node
    files: tuple[Path, ...]


def resolve(kind: str, path: str | Path) -> Resolved:
    """Read a file of a kind (``"device"``, …) and everything that it is based on.

    Raises
    ------
    FileError
        If one of the files can't be read, a base isn't known, bases go round in a
        circle, or there are more than :data:`MAX_BASES` of them.
    """
    chain = [Path(path)]
    layers = [nodes_of(path)]
    own = layers[0]
    while (base := layers[-1].value.get("base")) is not None:
        following = _base_path(kind, base, chain[-1])
        if any(file.name == following.name and file.samefile(following) for file in chain):
            names = " -> ".join(file.stem for file in [*chain, following])
            raise FileError(f"{base.place}: bases go round in a circle: {names}; remove one `base:`")
        if len(chain) > MAX_BASES:
            raise FileError(f"{base.place}: more than {MAX_BASES} bases one upon another; merge some of them")
        chain.append(following)
        layers.append(nodes_of(following))
        _same_schema(own, layers[-1], base)
    merged = layers[-1]
    for layer in reversed(layers[:-1]):
        merged = _merged(layer, _without(merged, NOT_INHERITED))
    return Resolved(root=_cited(_without(merged, ("base",)), own), own=own, files=tuple(chain))


def _base_path(kind: str, base: Node, file: Path) -> Path:
    name = base.value
    if not isinstance(name, str) or not name:
        raise FileError(f"{base.place}: base is not a name; write the name of a {kind}, or the path of its file")
    path = file.parent / name if is_path(name) else base_file(kind, name, file)
    if path is not None and path.is_file():
        return path
    folders = [file.parent, *(root / KINDS[kind] for root in hardware_roots())]
    known = {found.stem for folder in folders for found in [*folder.glob("*.yaml"), *folder.glob("bases/*.yaml")]}
    cure = suggestion(name, known) or f"write the name of a {kind}, or the path of its file"
    raise FileError(f"{base.place}: unknown base {name[:60]!r}; {cure}")


def _same_schema(own: Node, below: Node, base: Node) -> None:
    mine, other = own.value.get("schema"), below.value.get("schema")
    if mine is not None and other is not None and mine.value != other.value:
        raise FileError(
            f"{base.place}: {below.path} has schema {str(other.value)[:40]!r}, and {own.path} "
            f"{str(mine.value)[:40]!r}; base it on one of its own kind"
        )


def _without(node: Node, keys: tuple[str, ...]) -> Node:
    if not any(key in node.value for key in keys):
        return node
    return node._replace(
        value={key: member for key, member in node.value.items() if key not in keys},
        keys={key: place for key, place in node.keys.items() if key not in keys},
    )


def _merged(over: Node, base: Node, *, whole: bool = False) -> Node:
    """``over`` on top of ``base``; both are mappings. ``whole``: members replace, they aren't merged."""
    # In the order of the file, what it inherits after its own.
    value: dict[str, Node] = {}
    for key, member in over.value.items():
        below = base.value.get(key)
        if below is not None and member.value is None:
            continue
        if below is not None and not whole and _mergeable(member) and _mergeable(below):
            member = _merged(member, below, whole=key == "citations")
        value[key] = member
    for key, below in base.value.items():
        if key not in over.value:
            value[key] = below
    places = {**base.keys, **over.keys}
    return over._replace(value=value, keys={key: places[key] for key in value})


def _cited(root: Node, own: Node) -> Node:
    """Without inherited citations that nothing names any more."""
    citations = root.value.get("citations")
    if root is own or citations is None or not isinstance(citations.value, dict):
        return root
    mine = own.value.get("citations")
    kept = set(_cites(root)) | (set(mine.value) if mine is not None and isinstance(mine.value, dict) else set())
    unused = tuple(key for key in citations.value if key not in kept)
    return root._replace(value={**root.value, "citations": _without(citations, unused)})


def _cites(node: Node) -> Iterator[str]:
    if isinstance(node.value, list):
        for member in node.value:
            yield from _cites(member)
    elif isinstance(node.value, dict):
        for key, member in node.value.items():
            if key == "cite" and isinstance(member.value, str):
                yield member.value
            elif isinstance(member.value, (dict, list)):
                yield from _cites(member)


def _mergeable(node: Node) -> bool:
    return isinstance(node.value, dict) and "value" not in node.value
