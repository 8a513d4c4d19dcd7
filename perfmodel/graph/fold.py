"""Store layers that repeat once; spell them out again; change their number.

A captured step spells out every layer. :func:`fold` finds runs of consecutive
layers whose ops are the same in name, shape, order and in which storages they
use, allocate and free, seen from the layer itself, and keeps one of them with a
count. :func:`unfold` is its exact inverse. :func:`with_depth` gives a folded graph
another number of layers, which is how a model of 126 layers is captured from
four: with four, two layers have a neighbour on each side, and that these two
fold is the proof that the layers between the first and the last are alike.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from perfmodel.errors import CaptureError
from perfmodel.graph.ir import Block, Graph, Op, Ref, Storage, blocks_by_phase
from perfmodel.ops.tensor import Tensor

__all__ = ["PROBE_DEPTH", "fold", "layer_of", "resized", "unfold", "with_depth"]

#: Layers to capture so that the middle ones prove that they are alike.
PROBE_DEPTH = 4


def fold(graph: Graph) -> Graph:
    """The graph with runs of alike layers stored once.

    Parameters
    ----------
    graph : Graph
        As captured; a folded graph comes back as it is.

    Returns
    -------
    Graph
        Equal to it in every count, in memory and in the order of ops.
    """
    if any(storage.stack for storage in graph.storages):
        return graph
    table = _StorageTable(graph)
    blocks = tuple(_fold_ops(graph.blocks, table))
    first = tuple(_fold_ops(graph.first_optimizer, table))
    return replace(graph, blocks=blocks, first_optimizer=first, storages=table.storages())


def unfold(graph: Graph) -> Graph:
    """The graph with every layer spelled out, storages named by layer. Inverse of :func:`fold`."""
    storages: list[Storage] = []
    index: dict[tuple[int, int], int] = {}
    for number, storage in enumerate(graph.storages):
        layers = range(1) if storage.layers is None else range(storage.layers[0], storage.layers[1] + 1)
        for layer in layers:
            index[number, layer] = len(storages)
            if storage.layers is None:
                storages.append(storage)
            else:
                storages.append(
                    replace(
                        storage,
                        name=_numbered(storage.name, storage.stack, layer),
                        module=_numbered(storage.module, storage.stack, layer),
                        stack="",
                        layers=None,
                    )
                )

    def spelled(blocks: tuple[Block, ...]) -> tuple[Block, ...]:
        ops: list[Op] = []
        for block in blocks:
            for layer in block.layers:

                def place(ref: Ref, layer: int = layer) -> Ref:
                    where = ref.layer if ref.absolute else layer + ref.layer
                    return Ref(index[ref.storage, 0 if graph.storages[ref.storage].layers is None else where])

                for op in block.ops:
                    ops.append(_with_refs(op, place, _numbered(op.module, block.stack, layer)))
        return blocks_by_phase(ops)

    return replace(
        graph, blocks=spelled(graph.blocks), first_optimizer=spelled(graph.first_optimizer), storages=tuple(storages)
    )


def with_depth(graph: Graph, stack: str, depth: int) -> Graph:
    """The folded graph with ``depth`` layers in ``stack``.

    Parameters
    ----------
    graph : Graph
        Folded, captured with :data:`PROBE_DEPTH` layers or more in the stack.
    stack : str
        Path of the layer stack, e.g. ``"model.layers"``.
    depth : int
        The new number of layers; not less than the captured one.

    Raises
    ------
    CaptureError
        If the stack is not in the graph, is too short, or its middle layers
        aren't alike.
    """
    captured = graph.stacks.get(stack)
    if captured is None:
        raise CaptureError(f"{graph.name} has no layer stack {stack!r}; it has {', '.join(graph.stacks) or 'none'}")
    if depth == captured:
        return graph
    if captured < PROBE_DEPTH or depth < captured:
        raise CaptureError(
            f"{stack} was captured with {captured} layers; {depth} need a capture of {min(depth, PROBE_DEPTH)}"
        )
    return resized(graph, stack, captured // 2 - 1, depth - captured)


def resized(graph: Graph, stack: str, low: int, added: int) -> Graph:
    """The folded graph with ``added`` layers more (or fewer) after layer ``low`` of a stack.

    Raises
    ------
    CaptureError
        If ``low`` and the layer after it aren't alike.
    """
    high = low + 1

    def moved(layer: int) -> int:
        return layer if layer <= low else layer + added

    def deeper(block: Block) -> Block:
        ops = tuple(_with_refs(op, lambda ref: _moved_ref(ref, graph, stack, moved), op.module) for op in block.ops)
        if block.stack != stack:
            return replace(block, ops=ops)
        holds = (low in block.layers, high in block.layers)
        if holds[0] != holds[1]:
            raise CaptureError(
                f"the middle layers of {stack} differ (layers {low} and {high}, in {block.ops[0].phase}), "
                f"so {graph.stacks[stack] + added} layers can't be derived from them; "
                "capture the model with all its layers"
            )
        first = moved(block.first)
        return replace(block, ops=ops, first=first, count=abs(moved(block.layers[-1]) - first) + 1)

    storages = tuple(
        replace(storage, layers=(moved(storage.layers[0]), moved(storage.layers[1])))
        if storage.stack == stack and storage.layers is not None
        else storage
        for storage in graph.storages
    )
    return replace(
        graph,
        blocks=tuple(deeper(block) for block in graph.blocks),
        first_optimizer=tuple(deeper(block) for block in graph.first_optimizer),
        storages=storages,
        stacks={**graph.stacks, stack: graph.stacks[stack] + added},
        trace=None,
    )


def _moved_ref(ref: Ref, graph: Graph, stack: str, moved: Callable[[int], int]) -> Ref:
    if ref.absolute and graph.storages[ref.storage].stack == stack:
        return Ref(ref.storage, moved(ref.layer), True)
    return ref


def layer_of(module: str, stacks: Iterable[str]) -> tuple[str, int]:
    """Layer stack and layer that a module path lies in; ``("", -1)`` for none.

    >>> layer_of("model.layers.3.mlp", ["model.layers"])
    ('model.layers', 3)
    """
    for stack in sorted(stacks, key=len, reverse=True):
        if module.startswith(f"{stack}.") if stack else module:
            head = module[len(stack) + 1 if stack else 0 :].split(".", 1)[0]
            if head.isdigit():
                return stack or ".", int(head)
    return "", -1


class _StorageTable:
    """Storages of all layers under one name: the same one of each layer gets the same number."""

    def __init__(self, graph: Graph) -> None:
        self._stacks = graph.stacks
        self._entries: list[Storage] = []
        self._layers: list[list[int]] = []
        self.place: list[tuple[int, int]] = []  # flat storage -> (entry, layer or -1)
        numbers: dict[Any, int] = {}
        for storage in graph.storages:
            stack, layer = layer_of(storage.module, self._stacks)
            general = replace(
                storage,
                name=_starred(storage.name, stack, layer),
                module=_starred(storage.module, stack, layer),
                stack=stack,
            )
            number = numbers.setdefault(general, len(self._entries))
            if number == len(self._entries):
                self._entries.append(general)
                self._layers.append([])
            if stack:
                self._layers[number].append(layer)
            self.place.append((number, layer))

    def layer_of(self, module: str) -> tuple[str, int]:
        return layer_of(module, self._stacks)

    def storages(self) -> tuple[Storage, ...]:
        return tuple(
            replace(entry, layers=(min(layers), max(layers))) if layers else entry
            for entry, layers in zip(self._entries, self._layers, strict=True)
        )


@dataclass(slots=True)
class _Segment:
    """Consecutive ops of one layer."""

    ops: list[Op]
    stack: str
    layer: int
    keys: list[Any]
    layers: list[int]  # of each reference, in order; -1 outside a stack


def _fold_ops(blocks: tuple[Block, ...], table: _StorageTable) -> Iterator[Block]:
    segments = list(_segments([op for block in blocks for op in block.ops], table))
    start = 0
    while start < len(segments):
        head = segments[start]
        relative: list[bool] | None = None
        step, end = 1, start + 1
        while head.stack and end < len(segments):
            before, after = segments[end - 1], segments[end]
            if after.stack != head.stack or after.keys != head.keys:
                break
            move = after.layer - before.layer
            if move not in (1, -1) or (end > start + 1 and move != step):
                break
            kinds = _kinds(before, after, move)
            if kinds is None or (relative is not None and kinds != relative):
                break
            relative, step, end = kinds, move, end + 1
        yield _block(head, end - start, step, relative, table)
        start = end


def _kinds(before: _Segment, after: _Segment, move: int) -> list[bool] | None:
    """For each reference whether it moves along with the layer; ``None`` if one does neither."""
    kinds: list[bool] = []
    for a, b in zip(before.layers, after.layers, strict=True):
        if a >= 0 and b - a == move:
            kinds.append(True)
        elif a == b:
            kinds.append(False)
        else:
            return None
    return kinds


def _block(segment: _Segment, count: int, step: int, relative: list[bool] | None, table: _StorageTable) -> Block:
    flags = iter(relative or [False] * len(segment.layers))

    def place(ref: Ref) -> Ref:
        number, layer = table.place[ref.storage]
        if next(flags):
            return Ref(number, layer - segment.layer, False)
        return Ref(number, 0, False) if layer < 0 else Ref(number, layer, True)

    ops = tuple(_with_refs(op, place, _starred(op.module, segment.stack, segment.layer)) for op in segment.ops)
    return Block(ops=ops, count=count, stack=segment.stack, first=max(segment.layer, 0), step=step)


def _segments(ops: list[Op], table: _StorageTable) -> Iterator[_Segment]:
    current: _Segment | None = None
    kind = ""
    for op in ops:
        stack, layer = table.layer_of(op.module)
        phase = "backward" if op.phase == "recompute" else op.phase
        if current is None or (stack, layer, phase) != (current.stack, current.layer, kind):
            if current is not None:
                yield current
            current, kind = _Segment([], stack, layer, [], []), phase
        current.ops.append(op)
        refs = [table.place[ref.storage] for ref in _refs(op)]
        current.keys.append((_key(op, stack, layer), tuple(number for number, _ in refs)))
        current.layers.extend(layer for _, layer in refs)
    if current is not None:
        yield current


def _key(op: Op, stack: str, layer: int) -> tuple[Any, ...]:
    looks = tuple((name, t.shape, t.dtype, t.strides) for name, t in op.inputs.items())
    results = tuple((t.shape, t.dtype, t.strides) for t in op.outputs)
    sizes = (len(op.allocates), len(op.frees))
    attrs = json.dumps(op.attrs, default=str, sort_keys=True) if op.attrs else ""
    return op.name, op.phase, _starred(op.module, stack, layer), looks, results, sizes, attrs, op.on_chip, op.launches


def _refs(op: Op) -> Iterator[Ref]:
    for tensor in (*op.inputs.values(), *op.outputs):
        yield Ref(tensor.storage, tensor.layer, tensor.absolute)
    yield from op.allocates
    yield from op.frees


def _with_refs(op: Op, place: Callable[[Ref], Ref], module: str) -> Op:
    """The op with every reference replaced, in the order of :func:`_refs`."""

    def tensor(t: Tensor) -> Tensor:
        ref = place(Ref(t.storage, t.layer, t.absolute))
        return Tensor(
            shape=t.shape, dtype=t.dtype, strides=t.strides, storage=ref.storage, layer=ref.layer, absolute=ref.absolute
        )

    inputs = {name: tensor(t) for name, t in op.inputs.items()}
    outputs = tuple(tensor(t) for t in op.outputs)
    allocates = tuple(place(ref) for ref in op.allocates)
    frees = tuple(place(ref) for ref in op.frees)
    return Op(
        name=op.name,
        phase=op.phase,
        module=module,
        inputs=inputs,
        outputs=outputs,
        attrs=op.attrs,
        allocates=allocates,
        frees=frees,
        on_chip=op.on_chip,
        launches=op.launches,
    )


def _starred(path: str, stack: str, layer: int) -> str:
    """``model.layers.3.mlp`` -> ``model.layers.*.mlp``."""
    if not stack:
        return path
    prefix = "" if stack == "." else f"{stack}."
    whole = f"{prefix}{layer}"
    if path == whole or path.startswith((f"{whole}.", f"{whole}:")):
        return f"{prefix}*{path[len(whole) :]}"
    return path


def _numbered(path: str, stack: str, layer: int) -> str:
    """Inverse of :func:`_starred`."""
    if not stack:
        return path
    prefix = "" if stack == "." else f"{stack}."
    if path == f"{prefix}*" or path.startswith((f"{prefix}*.", f"{prefix}*:")):
        return f"{prefix}{layer}{path[len(prefix) + 1 :]}"
    return path
