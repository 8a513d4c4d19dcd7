"""The ``Runtime`` type and its YAML files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from perfmodel.errors import FileError, UnknownNameError
from perfmodel.sourced import Source, SourcedFile, SourcedTime
from perfmodel.yamlfile import FileModel, load_model

__all__ = ["HostCost", "Runtime", "load_runtime", "runtime_names"]

_FOLDER = Path(__file__).parent
_VERSION = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCost:
    """Seconds that the host spends.

    Attributes
    ----------
    step : float
        Once a step.
    op : float
        To issue an op with one kernel.
    kernel : float
        For each kernel of an op after the first.
    view : float
        For an op without a kernel: a view, a scalar of the host's own.
    sync : float
        To read an answer back from the device, beside waiting for it.
    """

    step: float
    op: float
    kernel: float
    view: float
    sync: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """What the software does.

    Attributes
    ----------
    name, description : str
    like : str
        The runtime of the library that it varies, its own name for those: devices list on which of them they run.
    attention : {"as-captured", "unfused"}
        ``unfused`` materialises the scores.
    optimizer : {"as-captured", "foreach", "fused"}
        Kind of optimizer kernels.
    traffic : {"eager", "fused"}
        Whether every op of forward and backward is a kernel of its own that reads and writes memory,
        or ops are fused as a compiler does (:func:`perfmodel.graph.fuse`).
    host : HostCost
    caveat : str
        What this profile leaves out; becomes a note of every prediction.
    sources : mapping of str to Source
        Of every number, keyed by its place in the file.
    """

    name: str
    like: str
    description: str
    attention: str
    optimizer: str
    traffic: str
    host: HostCost
    caveat: str = ""
    sources: Mapping[str, Source] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        sources = {key: source.to_dict() for key, source in self.sources.items()}
        return {"version": _VERSION, **asdict(self), "sources": sources}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Runtime:
        """Inverse of :meth:`to_dict`.

        Raises
        ------
        FileError
            If the data is of another version.
        """
        if data.get("version") != _VERSION:
            raise FileError(f"runtime version {data.get('version')!r}; this perfmodel reads version {_VERSION}")
        fields = {key: value for key, value in data.items() if key != "version"}
        sources = {key: Source.from_dict(source) for key, source in fields["sources"].items()}
        return cls(**{**fields, "host": HostCost(**fields["host"]), "sources": sources})


class _HostFile(FileModel):
    step: SourcedTime
    op: SourcedTime
    kernel: SourcedTime
    view: SourcedTime
    sync: SourcedTime


class _RuntimeFile(SourcedFile):
    schema_: Literal["runtime/1"] = Field(alias="schema")
    name: str
    like: str = ""
    description: str
    attention: Literal["as-captured", "unfused"]
    optimizer: Literal["as-captured", "foreach", "fused"]
    traffic: Literal["eager", "fused"]
    host: _HostFile
    caveat: str = ""


def runtime_names() -> tuple[str, ...]:
    """Names of the runtimes that come with the library.

    >>> "eager" in runtime_names()
    True
    """
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))


def load_runtime(name: str | os.PathLike[str]) -> Runtime:
    """A runtime by name, or from a YAML file (a path that ends with .yaml or .yml).

    Raises
    ------
    UnknownNameError
        No such runtime.
    FileError
        The file is missing or wrong; says line and column.
    """
    text = os.fspath(name)
    if text.endswith((".yaml", ".yml")):
        path = Path(text)
    elif text in runtime_names():
        path = _FOLDER / f"{text}.yaml"
    else:
        raise UnknownNameError(
            "runtime", text, runtime_names(), f"known are {', '.join(runtime_names())}, or give a .yaml file"
        )
    file = load_model(path, _RuntimeFile)
    return Runtime(
        name=file.name,
        like=file.like or file.name,
        description=file.description,
        attention=file.attention,
        optimizer=file.optimizer,
        traffic=file.traffic,
        host=HostCost(**{key: getattr(file.host, key).value for key in ("step", "op", "kernel", "view", "sync")}),
        caveat=file.caveat,
        sources=file.sources(),
    )
