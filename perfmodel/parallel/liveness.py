"""When storages are complete and when they die."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from perfmodel.graph.ir import Block, Graph, Op, Ref

__all__ = ["free_where_last_used", "last_gradient_writes"]

Instance = tuple[int, int | None]


def free_where_last_used(graph: Graph, origin: Mapping[int, int], replaced: Iterable[int]) -> Graph:
    """The graph with storages that a pass made freed after their last use.

    Parameters
    ----------
    graph : Graph
        Ops that use the new storages, without frees of them.
    origin : mapping of int to int
        The storage that each new one is a redistributed copy of.
    replaced : iterable of int
        Storages of the graph that are used less long than before.
    """
    mortal = ("activation", "temporary")
    numbers = {n for n in (*origin, *replaced) if graph.storages[n].role in mortal}
    if not numbers:
        return graph
    ends = _last_uses(graph, numbers)
    blocks: list[Block] = []
    for index, block in enumerate(graph.blocks):
        blocks += _with_frees(block, numbers, [ends.get((index, k), {}) for k in range(block.count)])
    return replace(graph, blocks=tuple(blocks))


def _last_uses(graph: Graph, numbers: set[int]) -> dict[tuple[int, int], dict[int, tuple[Ref, ...]]]:
    """By block and repetition: what dies after each op, named as the block names it."""
    ends: dict[tuple[int, int], dict[int, tuple[Ref, ...]]] = {}
    last: dict[Instance, tuple[int, int, int, Ref]] = {}

    def close(instance: Instance) -> None:
        index, repetition, position, ref = last.pop(instance)
        here = ends.setdefault((index, repetition), {})
        here[position] = (*here.get(position, ()), ref)

    for index, block in enumerate(graph.blocks):
        uses = [
            (position, ref, made)
            for position, op in enumerate(block.ops)
            for ref, made in _refs(op)
            if ref.storage in numbers
        ]
        for repetition, layer in enumerate(block.layers):
            for position, ref, made in uses:
                stacked = bool(graph.storages[ref.storage].stack)
                instance = ref.storage, (ref.layer if ref.absolute else layer + ref.layer) if stacked else None
                if made and instance in last:
                    close(instance)  # made again: the first one had died
                last[instance] = index, repetition, position, ref
    for instance in list(last):
        close(instance)
    return ends


def _refs(op: Op) -> Iterable[tuple[Ref, bool]]:
    """References of an op, and whether they make the storage."""
    for ref in op.allocates:
        yield ref, True
    for tensor in (*op.inputs.values(), *op.outputs):
        yield Ref(tensor.storage, tensor.layer, tensor.absolute), False


def _with_frees(block: Block, numbers: set[int], ends: Sequence[Mapping[int, tuple[Ref, ...]]]) -> Iterable[Block]:
    """The block with these frees; cut where its repetitions don't free the same."""
    start = 0
    for repetition in range(1, block.count + 1):
        if repetition < block.count and _same_frees(ends[repetition], ends[start]):
            continue
        ops = []
        for position, op in enumerate(block.ops):
            kept = tuple(ref for ref in op.frees if ref.storage not in numbers)
            frees = kept + tuple(sorted(ends[start].get(position, ())))
            ops.append(op if frees == op.frees else replace(op, frees=frees))
        yield replace(block, ops=tuple(ops), first=block.first + start * block.step, count=repetition - start)
        start = repetition


def _same_frees(a: Mapping[int, tuple[Ref, ...]], b: Mapping[int, tuple[Ref, ...]]) -> bool:
    return a.keys() == b.keys() and all(sorted(a[position]) == sorted(b[position]) for position in a)


def last_gradient_writes(graph: Graph) -> dict[int, dict[int, list[int]]]:
    """By block and position: the gradients that are complete after this op."""
    found: dict[int, dict[int, list[int]]] = {}
    placed: dict[int, list[tuple[Block, int]]] = {}
    for block in graph.blocks:
        here: dict[int, int] = {}
        for position, op in enumerate(block.ops):
            if op.phase not in ("backward", "recompute"):
                continue
            for tensor in (*op.inputs.values(), *op.outputs):
                if graph.storages[tensor.storage].role == "gradient":
                    here[tensor.storage] = position
        for number, position in here.items():
            if graph.storages[number].stack:
                placed.setdefault(number, []).append((block, position))
            else:
                placed[number] = [(block, position)]
    for number, places in placed.items():
        for block, position in places:
            found.setdefault(id(block), {}).setdefault(position, []).append(number)
    return found
