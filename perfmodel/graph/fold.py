"""Store layers that repeat once, and spell them out again.

A captured step spells out every layer. :func:`fold` finds runs of layers, or of
groups of layers, whose ops are the same in name, shape, order and in which
storages they use, allocate and free, seen from the layer itself, and keeps one of
them with a count. :func:`unfold` is its exact inverse.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from perfmodel.graph.ir import Block, Graph, Op, Ref, Storage, blocks_by_phase
from perfmodel.graph.paths import adopted, layer_of, numbered, starred
from perfmodel.ops.tensor import Tensor

__all__ = ["LARGEST_PERIOD", "fold", "refs_of", "unfold", "with_refs"]

#: Longest group of layers that is looked for.
LARGEST_PERIOD = 8


def fold(graph: Graph) -> Graph:
    """The graph with runs of alike layers, or groups of layers, stored once.

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
        for layer in storage.layers or (0,):
            index[number, layer] = len(storages)
            storages.append(storage if storage.layers is None else _copy_of(storage, layer))

    def spelled(blocks: tuple[Block, ...]) -> tuple[Block, ...]:
        ops: list[Op] = []
        for block in blocks:
            for layer in block.layers:

                def place(ref: Ref, layer: int = layer) -> Ref:
                    where = ref.layer if ref.absolute else layer + ref.layer
                    return Ref(index[ref.storage, 0 if graph.storages[ref.storage].layers is None else where])

                for op in block.ops:
                    ops.append(with_refs(op, place, numbered(op.module, layer) if block.stack else op.module))
        return blocks_by_phase(ops)

    return replace(
        graph, blocks=spelled(graph.blocks), first_optimizer=spelled(graph.first_optimizer), storages=tuple(storages)
    )


def _copy_of(storage: Storage, layer: int) -> Storage:
    name, module = numbered(storage.name, layer), numbered(storage.module, layer)
    return replace(storage, name=name, module=module, stack="", layers=None)


class _StorageTable:
    """Storages of all layers under one name: the same one of each layer gets the same number."""

    def __init__(self, graph: Graph) -> None:
        self.stacks = graph.stacks
        self._layers: dict[Storage, list[int]] = {}
        self.place: list[tuple[int, int]] = []  # flat storage -> (entry, layer or -1)
        numbers: dict[Storage, int] = {}
        for storage in graph.storages:
            stack, layer = ("", -1) if storage.role == "input" else layer_of(storage.name, graph.stacks)
            name, module = starred(storage.name, stack, layer), starred(storage.module, stack, layer)
            general = replace(storage, name=name, module=module, stack=stack)
            self._layers.setdefault(general, []).append(layer)
            self.place.append((numbers.setdefault(general, len(numbers)), layer))

    def storages(self) -> tuple[Storage, ...]:
        return tuple(
            replace(entry, layers=tuple(sorted(layers))) if entry.stack else entry
            for entry, layers in self._layers.items()
        )


@dataclass(slots=True)
class _Segment:
    """Consecutive ops of one layer."""

    stack: str
    layer: int
    ops: list[Op] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)  # of each op: the same for ops that are alike
    layers: list[int] = field(default_factory=list)  # of each reference, in order; -1 outside a stack


@dataclass(slots=True)
class _Run:
    """Groups of ``unit`` segments that repeat, each ``step`` layers after the one before."""

    unit: int = 1
    count: int = 1
    step: int = 1
    relative: list[list[bool]] | None = None  # for each reference of each segment whether it moves along

    def saved(self, segments: Sequence[_Segment], start: int) -> int:
        """Ops that needn't be stored."""
        return (self.count - 1) * sum(len(segment.ops) for segment in segments[start : start + self.unit])


def _fold_ops(blocks: tuple[Block, ...], table: _StorageTable) -> Iterator[Block]:
    segments = _segments([op for block in blocks for op in block.ops], table)
    start = 0
    while start < len(segments):
        run = _best_run(segments, start)
        yield _block(segments[start : start + run.unit], run, table)
        start += run.unit * run.count


def _best_run(segments: Sequence[_Segment], start: int) -> _Run:
    """The run from ``start`` on that saves most; of those that save the same, that of the smallest groups."""
    best, saved = _Run(), 0
    for unit in range(1, LARGEST_PERIOD + 1):
        step = _step(segments, start, unit)
        if step == 0:
            continue
        run = _Run(unit, _alike(segments, start, unit, step), step)
        # Looking at every reference takes long, so only where it could pay.
        if run.saved(segments, start) > saved:
            run = _checked(segments, start, run)
        if run.saved(segments, start) > saved:
            best, saved = run, run.saved(segments, start)
    return best


def _step(segments: Sequence[_Segment], start: int, unit: int) -> int:
    """Layers from one group of segments to the next; 0 if they are no groups of neighbouring layers."""
    if start + 2 * unit > len(segments):
        return 0
    head, after = segments[start], segments[start + unit]
    step = after.layer - head.layer if head.stack == after.stack != "" else 0
    if abs(step) > LARGEST_PERIOD:
        return 0
    for segment in segments[start : start + unit]:
        ahead = (segment.layer - head.layer) * (1 if step > 0 else -1)
        if not segment.stack or (segment.stack == head.stack and not 0 <= ahead < abs(step)):
            return 0
    return step


def _alike(segments: Sequence[_Segment], start: int, unit: int, step: int) -> int:
    """How many groups follow one another whose ops are the same."""
    for position in count(start + unit):
        if position == len(segments):
            break
        before, after = segments[position - unit], segments[position]
        if (after.stack, after.layer, after.keys) != (before.stack, before.layer + step, before.keys):
            break
    return (position - start) // unit


def _checked(segments: Sequence[_Segment], start: int, run: _Run) -> _Run:
    """The part of a run in which each reference always moves along with the layer, or never."""
    first: list[list[bool]] = []
    for number in range(1, run.count):
        for position in range(run.unit):
            where = start + number * run.unit + position
            kinds = _kinds(segments[where - run.unit], segments[where], run.step)
            if number == 1 and kinds is not None:
                first.append(kinds)
            if kinds is None or kinds != first[position]:
                return replace(run, count=number, relative=first)
    return replace(run, relative=first)


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


def _block(group: Sequence[_Segment], run: _Run, table: _StorageTable) -> Block:
    first = group[0].layer
    flags = iter([flag for kinds in run.relative or () for flag in kinds])

    def place(ref: Ref) -> Ref:
        number, layer = table.place[ref.storage]
        if next(flags, False):
            return Ref(number, layer - first, False)
        return Ref(number, 0, False) if layer < 0 else Ref(number, layer, True)

    ops = tuple(
        with_refs(op, place, starred(op.module, segment.stack, segment.layer, segment.layer - first))
        for segment in group
        for op in segment.ops
    )
    return Block(ops=ops, count=run.count, stack=group[0].stack, first=max(first, 0), step=run.step)


def _segments(ops: Sequence[Op], table: _StorageTable) -> list[_Segment]:
    segments: list[_Segment] = []
    numbers: dict[Any, int] = {}
    places = adopted([op.module for op in ops], [op.phase for op in ops], table.stacks)
    kind = ""
    for op, (stack, layer) in zip(ops, places, strict=True):
        phase = "backward" if op.phase == "recompute" else op.phase
        if not segments or (stack, layer, phase) != (segments[-1].stack, segments[-1].layer, kind):
            segments.append(_Segment(stack, layer))
            kind = phase
        segment = segments[-1]
        refs = [table.place[ref.storage] for ref in refs_of(op)]
        key = (_key(op, stack, layer), tuple(number for number, _ in refs))
        segment.ops.append(op)
        segment.keys.append(numbers.setdefault(key, len(numbers)))
        segment.layers.extend(layer for _, layer in refs)
    return segments


def _key(op: Op, stack: str, layer: int) -> tuple[Any, ...]:
    looks = tuple((name, t.shape, t.dtype, t.strides) for name, t in op.inputs.items())
    results = tuple((t.shape, t.dtype, t.strides) for t in op.outputs)
    sizes = (len(op.allocates), len(op.frees))
    attrs = json.dumps(op.attrs, default=str, sort_keys=True) if op.attrs else ""
    return op.name, op.phase, starred(op.module, stack, layer), looks, results, sizes, attrs, op.on_chip, op.launches


def refs_of(op: Op) -> Iterator[Ref]:
    """Every reference of an op to a storage, in the order of :func:`with_refs`."""
    for tensor in (*op.inputs.values(), *op.outputs):
        yield Ref(tensor.storage, tensor.layer, tensor.absolute)
    yield from op.allocates
    yield from op.frees


def with_refs(op: Op, place: Callable[[Ref], Ref], module: str) -> Op:
    """The op of ``module`` with every reference replaced, in the order of :func:`refs_of`."""

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
