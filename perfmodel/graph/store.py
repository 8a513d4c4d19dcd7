"""Graphs as JSON: versioned, compact, with a content hash.

Sizes are written once in a table; an op refers to its tensors by number. A file
is written under a temporary name and renamed, so that it is whole or absent.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perfmodel.errors import FileError, PerfModelError
from perfmodel.graph.ir import Block, Graph, Op, Ref, Storage
from perfmodel.ops.tensor import Tensor
from perfmodel.symbols import Dim, Expr, parse

__all__ = ["VERSION", "content_hash", "from_dict", "load_graph", "save_graph", "to_dict", "write_text"]

VERSION = 3


def to_dict(graph: Graph) -> dict[str, Any]:
    """A graph as plain JSON types."""
    writer = _Writer()
    blocks = [writer.block(block) for block in graph.blocks]
    first = [writer.block(block) for block in graph.first_optimizer]
    storages = [
        [s.name, _size(s.nbytes), s.role, s.module, s.stack, _runs(s.layers), s.dtype, s.trainable]
        for s in graph.storages
    ]
    return {
        "format": "perfmodel-graph",
        "version": VERSION,
        "name": graph.name,
        "bindings": dict(graph.bindings),
        "guards": list(graph.guards),
        "meta": dict(graph.meta),
        "stacks": dict(graph.stacks),
        "tensors": writer.tensors,
        "storages": storages,
        "blocks": blocks,
        "first_optimizer": first,
    }


def from_dict(data: Mapping[str, Any], where: str = "graph") -> Graph:
    """Inverse of :func:`to_dict`.

    Raises
    ------
    FileError
        If it is not a graph, or of another version.
    """
    if not isinstance(data, Mapping) or data.get("format") != "perfmodel-graph":
        raise FileError(f"{where}: not a perfmodel graph; make one with: perfmodel capture MODEL -o FILE")
    if data.get("version") != VERSION:
        raise FileError(
            f"{where}: graph version {data.get('version')!r}, this perfmodel reads version {VERSION}; "
            "capture the model again"
        )
    try:
        return _read(data)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, PerfModelError) as error:
        raise FileError(f"{where}: damaged graph ({type(error).__name__}: {error}); capture the model again") from None


def content_hash(graph: Graph) -> str:
    """SHA-256 of what the graph computes: its ops, storages, guards; not its name, bindings or origin."""
    data = to_dict(graph)
    kept = {
        key: data[key] for key in ("version", "guards", "stacks", "tensors", "storages", "blocks", "first_optimizer")
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def save_graph(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Write a graph to a file.

    Raises
    ------
    FileError
        If the file can't be written.
    """
    data = {**to_dict(graph), "hash": content_hash(graph)}
    write_text(path, json.dumps({**data, "checksum": _checksum(data)}, separators=(",", ":")))


def load_graph(path: str | os.PathLike[str]) -> Graph:
    """Read a graph from a file.

    Raises
    ------
    FileError
        If the file is missing, unreadable, damaged or of another version.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        data = json.loads(text)
    except FileNotFoundError:
        raise FileError(f"{path}: no such file; make one with: perfmodel capture MODEL -o {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{path}: can't be read: {error}; give a graph that perfmodel capture wrote") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise FileError(f"{path}: not JSON ({error}); give a graph that perfmodel capture wrote") from None
    if isinstance(data, dict) and data.get("version") == VERSION:
        told = data.pop("checksum", None)
        if told != _checksum(data):
            raise FileError(
                f"{path}: the graph was edited or damaged; capture the model again, or use .at() for other sizes"
            )
    return from_dict(data, str(path))


def _checksum(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a file whole or not at all (temporary name, then rename).

    Raises
    ------
    FileError
        If the folder isn't writable or the disk is full.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            Path(temporary).replace(target)
        except BaseException:
            Path(temporary).unlink()
            raise
    except OSError as error:
        raise FileError(f"{path}: can't be written: {error.strerror or error}; choose a writable place") from None


class _Writer:
    def __init__(self) -> None:
        self.tensors: list[Any] = []
        self._numbers: dict[Any, int] = {}

    def block(self, block: Block) -> dict[str, Any]:
        return {
            "count": block.count,
            "stack": block.stack,
            "first": block.first,
            "step": block.step,
            "ops": [self._op(op) for op in block.ops],
        }

    def _op(self, op: Op) -> list[Any]:
        return [
            op.name,
            op.phase,
            op.module,
            {name: self._tensor(tensor) for name, tensor in op.inputs.items()},
            [self._tensor(tensor) for tensor in op.outputs],
            {name: _attribute(value) for name, value in op.attrs.items()},
            [list(ref) for ref in op.allocates],
            [list(ref) for ref in op.frees],
            list(op.on_chip),
            op.launches,
        ]

    def _tensor(self, tensor: Tensor) -> list[Any]:
        look = (tensor.shape, tensor.dtype, tensor.strides)
        number = self._numbers.setdefault(look, len(self.tensors))
        if number == len(self.tensors):
            strides = None if tensor.strides is None else [_size(size) for size in tensor.strides]
            self.tensors.append([[_size(size) for size in tensor.shape], tensor.dtype, strides])
        return [number, tensor.storage, tensor.layer, tensor.absolute]


def _runs(layers: tuple[int, ...] | None) -> list[list[int]] | None:
    """Layers as runs of even steps: ``[first, count, step]``.

    >>> _runs((0, 3, 5, 7, 8))
    [[0, 2, 3], [5, 2, 2], [8, 1, 1]]
    """
    if layers is None:
        return None
    runs: list[list[int]] = []
    for layer in layers:
        first, count, step = runs[-1] if runs else (0, 0, 0)
        if count == 1:
            runs[-1] = [first, 2, layer - first]
        elif count > 1 and layer == first + count * step:
            runs[-1][1] += 1
        else:
            runs.append([layer, 1, 1])
    return runs


def _layers(runs: list[list[int]] | None) -> tuple[int, ...] | None:
    """Inverse of :func:`_runs`."""
    if runs is None:
        return None
    return tuple(first + step * n for first, count, step in runs for n in range(count))


def _size(size: Dim) -> int | str:
    return size if isinstance(size, int) else str(size)


def _attribute(value: Any) -> Any:
    if isinstance(value, Expr):
        return {"size": str(value)}
    if isinstance(value, float) and not abs(value) < float("inf"):
        return {"float": str(value)}
    if isinstance(value, (list, tuple)):
        return [_attribute(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def _read_attribute(value: Any) -> Any:
    if isinstance(value, dict):
        return parse(value["size"]) if "size" in value else float(value["float"])
    if isinstance(value, list):
        return [_read_attribute(item) for item in value]
    return value


def _read(data: Mapping[str, Any]) -> Graph:
    sizes: dict[int | str, Dim] = {}

    def size(text: int | str) -> Dim:
        if isinstance(text, int):
            return text
        if text not in sizes:
            sizes[text] = parse(text)
        return sizes[text]

    looks = [
        (tuple(map(size, shape)), dtype, None if strides is None else tuple(map(size, strides)))
        for shape, dtype, strides in data["tensors"]
    ]

    def tensor(entry: list[Any]) -> Tensor:
        shape, dtype, strides = looks[entry[0]]
        return Tensor(shape=shape, dtype=dtype, strides=strides, storage=entry[1], layer=entry[2], absolute=entry[3])

    def op(entry: list[Any]) -> Op:
        name, phase, module, inputs, outputs, attrs, allocates, frees, on_chip, launches = entry
        return Op(
            name=name,
            phase=phase,
            module=module,
            inputs={key: tensor(value) for key, value in inputs.items()},
            outputs=tuple(tensor(value) for value in outputs),
            attrs={key: _read_attribute(value) for key, value in attrs.items()},
            allocates=tuple(Ref(*ref) for ref in allocates),
            frees=tuple(Ref(*ref) for ref in frees),
            on_chip=tuple(on_chip),
            launches=launches,
        )

    def blocks(entries: list[Any]) -> tuple[Block, ...]:
        return tuple(
            Block(ops=tuple(map(op, e["ops"])), count=e["count"], stack=e["stack"], first=e["first"], step=e["step"])
            for e in entries
        )

    storages = tuple(
        Storage(
            name=name,
            nbytes=size(nbytes),
            role=role,
            module=module,
            stack=stack,
            layers=_layers(runs),
            dtype=dtype,
            trainable=trainable,
        )
        for name, nbytes, role, module, stack, runs, dtype, trainable in data["storages"]
    )
    return Graph(
        name=data["name"],
        blocks=blocks(data["blocks"]),
        first_optimizer=blocks(data["first_optimizer"]),
        storages=storages,
        stacks=data["stacks"],
        bindings=data["bindings"],
        guards=tuple(data["guards"]),
        meta=data["meta"],
    )
