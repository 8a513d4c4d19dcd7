"""Constants for links without measurements, by their kind: the file ``kinds.yaml``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field

from perfmodel.errors import UnsupportedError
from perfmodel.hardware import load_fabric, load_node
from perfmodel.hardware.collectives import COLLECTIVES, CollectiveConstants, Collectives, Residual
from perfmodel.hardware.collectives_schema import ConstantsFile, ResidualFile
from perfmodel.sourced import SourcedFile, SourcedFraction, SourcedNumeral
from perfmodel.yamlfile import FileModel, load_model

__all__ = ["Borrowed", "Structure", "borrowed", "structure"]

_FILE = Path(__file__).with_name("kinds.yaml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """Proportions that every link has in common.

    Attributes
    ----------
    first : float
        Fraction of the bandwidth that the smallest messages reach.
    wider : float
        A step over all channels against one over a single channel.
    own : float
        Cost of a rank's own share against one that is sent.
    multicast_fill : float
        Fill of the switch's reduction against that of a ring.
    tree : float
        Bandwidth of a tree against that of a ring.
    issue : float
        Cost of one more message of an all-to-all over a network, against the latency of the first.
    """

    first: float
    wider: float
    own: float
    multicast_fill: float
    tree: float
    issue: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Borrowed:
    """Constants of a kind of link.

    Attributes
    ----------
    library : str
        Communication library that runs on such links.
    collectives : Collectives
    like : str
        Name of the node or fabric whose constants come first; empty where nothing was measured.
    residuals : tuple of Residual
        How far off measured links of this kind are with constants of each other; empty where nobody knows.
    """

    library: str
    collectives: Collectives
    like: str
    residuals: tuple[Residual, ...]


class _EntryFile(FileModel):
    links: list[str] = Field(min_length=1)
    topologies: list[str] = Field(min_length=1)
    library: Literal["nccl", "gloo"]
    like: list[str] = Field(default_factory=list, max_length=8)
    constants: str = ""
    transfer: bool = False


class _StructureFile(FileModel):
    first: SourcedFraction
    wider: SourcedNumeral
    own: SourcedNumeral
    multicast_fill: SourcedNumeral
    tree: SourcedFraction
    issue: SourcedFraction


class _KindsFile(SourcedFile):
    schema_: Literal["collectives/1"] = Field(alias="schema")
    interconnects: list[_EntryFile]
    networks: list[_EntryFile]
    constants: dict[str, ConstantsFile]
    structure: _StructureFile
    transfer: list[ResidualFile] = Field(default_factory=list)


@cache
def _file() -> _KindsFile:
    return load_model(_FILE, _KindsFile)


@cache
def structure() -> Structure:
    """The proportions that every link has in common."""
    file = _file().structure
    return Structure(
        first=file.first.value,
        wider=file.wider.value,
        own=file.own.value,
        multicast_fill=file.multicast_fill.value,
        tree=file.tree.value,
        issue=file.issue.value,
    )


@cache
def borrowed(role: str, link: str, topology: str) -> Borrowed:
    """Constants for a link by its kind.

    Parameters
    ----------
    role : {"interconnect", "network"}
    link, topology : str
        Names as in the files of nodes and fabrics.

    Raises
    ------
    UnsupportedError
        If no kind matches.
    """
    file = _file()
    for entry in file.interconnects if role == "interconnect" else file.networks:
        named = any(fnmatchcase(link, pattern) for pattern in entry.links)
        if named and any(fnmatchcase(topology, pattern) for pattern in entry.topologies):
            break
    else:
        raise UnsupportedError(f"no constants of collectives for {role} {link!r} of topology {topology!r}")
    if entry.like:
        return Borrowed(
            library=entry.library,
            collectives=_measured(role, entry.like),
            like=entry.like[0],
            residuals=tuple(residual.residual() for residual in file.transfer) if entry.transfer else (),
        )
    constants = file.constants[entry.constants].constants()
    ops: Mapping[str, CollectiveConstants] = dict.fromkeys(COLLECTIVES, constants)
    assumed = Collectives(data="assumed, nothing measured", date="", ranks=(), ops=ops)
    return Borrowed(library=entry.library, collectives=assumed, like="", residuals=())


def _measured(role: str, names: list[str]) -> Collectives:
    """Each operation's constants from the first of the links that has them."""
    ops: dict[str, CollectiveConstants] = {}
    found = [(load_node if role == "interconnect" else load_fabric)(name).collectives for name in names]
    for name, one in zip(names, found, strict=True):
        if one is None:
            raise UnsupportedError(f"{name} has no section collectives: to borrow constants from; refit them")
        ops = {**one.ops, **ops}
    return Collectives(data=f"like {', '.join(names)}", date="", ranks=(), ops=ops)
