"""Recompute that a plan asks for: forward ops again in backward, and what they keep dropped after forward.

A graph that was captured with activation checkpoints has its recompute already; a plan that asks
for more contradicts it. What is run again is what PyTorch's checkpoint runs again: the ops that
lead to a tensor which backward needs, no others (its early stop).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from perfmodel.errors import CaptureError, UnsupportedError
from perfmodel.graph.depth import resized, stretches, with_depth
from perfmodel.graph.fold import fold, refs_of, unfold, with_refs
from perfmodel.graph.ir import Graph, Op, Ref, Storage, blocks_by_phase
from perfmodel.graph.paths import layer_of
from perfmodel.parallel.patterns import matches

__all__ = ["with_recompute"]

#: Attention's core, in one op: what ``selective`` repeats.
_CORE = ("perfmodel.attention", "perfmodel.attention_backward", "perfmodel.attention_bias_backward")


def with_recompute(graph: Graph, recompute: str | int | tuple[str, ...]) -> Graph:
    """The graph with forward work done again in backward.

    Parameters
    ----------
    graph : Graph
        The whole step.
    recompute : str, int or tuple of str
        See :class:`perfmodel.parallel.plan.Plan`.

    Raises
    ------
    UnsupportedError
        If the graph recomputes already, or nothing of it is chosen.
    """
    if recompute == "none":
        return graph
    if any(op.phase == "recompute" for op, _ in graph.ops()):
        raise UnsupportedError(
            f"{graph.name} was captured with activation checkpoints, and the plan asks for recompute={recompute!r}; "
            "capture it without, or leave recompute out"
        )
    small, depths = _shortened(graph, recompute if isinstance(recompute, int) else 1)
    rewritten = _rewritten(small, recompute)
    if not depths:
        return rewritten
    try:
        return with_depth(rewritten, depths)
    except CaptureError:
        # The layers no longer fold as they did; then all of them are written out.
        return _rewritten(graph, recompute)


def _shortened(graph: Graph, every: int) -> tuple[Graph, dict[str, int]]:
    """The graph with fewer layers where they provably repeat, and the depths of the stacks that lost some."""
    depths: dict[str, int] = {}
    for stack, depth in graph.stacks.items():
        for stretch in stretches(graph, stack):
            period = math.lcm(stretch.period, every)
            # Two groups on each side of the cut stay, so that the rest can be derived again.
            low = stretch.first + 2 * period
            spare = (stretch.cuts[-1] - 2 * period - low) // period * period
            if spare > 0 and low in stretch.cuts and low + spare in stretch.cuts:
                graph = resized(graph, stack, low, -spare)
                depths[stack] = depth
                break
    return graph, depths


def _rewritten(graph: Graph, recompute: str | int | tuple[str, ...]) -> Graph:
    flat = unfold(graph)
    steps = [op for block in flat.blocks for op in block.ops]
    chosen = _regions(steps, graph.stacks, recompute)
    if not chosen:
        raise UnsupportedError(
            f"recompute={recompute!r} chooses no op of {graph.name}; its layers are {', '.join(graph.stacks) or 'none'}"
        )
    storages = list(flat.storages)
    inserts: dict[int, list[Op]] = {}
    dropped: set[int] = set()
    extended: set[int] = set()
    reads = _backward_reads(steps)
    for region in chosen:
        plan = _repeat(steps, region, reads, storages)
        if plan is None:
            continue
        inserts.setdefault(plan.at, []).extend(plan.ops)
        dropped |= plan.dropped
        extended |= plan.inputs
    if not inserts:
        raise UnsupportedError(f"recompute={recompute!r} frees nothing: what it chooses keeps no tensor for backward")
    ops = _second_lives(_freed_again(steps, inserts, dropped, extended), storages)
    return fold(replace(flat, blocks=blocks_by_phase(ops), storages=tuple(storages), trace=None))


@dataclass(frozen=True, slots=True)
class _Region:
    """Ops of one layer that are checkpointed together: positions in forward, and a test for its backward ops."""

    forward: tuple[int, ...]
    backward: frozenset[int]


@dataclass(frozen=True, slots=True)
class _Repetition:
    """Ops to insert before position ``at``; what is dropped in between; what must live until then."""

    at: int
    ops: tuple[Op, ...]
    dropped: frozenset[int]
    inputs: frozenset[int]


def _regions(steps: Sequence[Op], stacks: Iterable[str], recompute: str | int | tuple[str, ...]) -> list[_Region]:
    every = recompute if isinstance(recompute, int) else 1
    choose: Callable[[Op], bool] = lambda _op: True  # noqa: E731
    if recompute == "selective":
        choose = lambda op: op.name in _CORE  # noqa: E731
    elif isinstance(recompute, tuple):
        choose = lambda op: any(matches(op.module, pattern) for pattern in recompute)  # noqa: E731
    names = list(stacks)
    forward: dict[tuple[str, int], list[int]] = {}
    backward: dict[tuple[str, int], list[int]] = {}
    for position, op in enumerate(steps):
        stack, layer = layer_of(op.module, names)
        if not stack or layer % every or not choose(op):
            continue
        if op.phase in ("forward", "backward"):
            (forward if op.phase == "forward" else backward).setdefault((stack, layer), []).append(position)
    return [_Region(tuple(found), frozenset(backward.get(key, ()))) for key, found in forward.items()]


def _backward_reads(steps: Sequence[Op]) -> dict[int, list[int]]:
    """Positions in backward that read each storage."""
    found: dict[int, list[int]] = {}
    for position, op in enumerate(steps):
        if op.phase == "backward":
            for tensor in op.inputs.values():
                found.setdefault(tensor.storage, []).append(position)
    return found


def _repeat(
    steps: Sequence[Op], region: _Region, reads: dict[int, list[int]], storages: list[Storage]
) -> _Repetition | None:
    made = {ref.storage for position in region.forward for ref in steps[position].allocates}
    # What others read in backward is kept for them; the rest is made again for the region's own backward.
    needed = {s for s in made if reads.get(s) and all(p in region.backward for p in reads[s])}
    kept = {s for s in made if reads.get(s)} - needed
    if not needed:
        return None
    wanted, again = set(needed), []
    for position in reversed(region.forward):
        op = steps[position]
        results = {t.storage for t in op.outputs} | {ref.storage for ref in op.allocates}
        if results & wanted:
            again.append(position)
            wanted |= {t.storage for t in op.inputs.values() if t.storage in made and t.storage not in kept}
    again.reverse()
    ops = [steps[position] for position in again]
    copies = _copies(ops, kept, storages)
    ops = [_with_storages(op, copies) for op in ops]
    born = {ref.storage for op in ops for ref in op.allocates}
    last = {t.storage: k for k, op in enumerate(ops) for t in (*op.inputs.values(), *op.outputs)}
    ends: dict[int, list[Ref]] = {}
    for storage in born - needed:
        ends.setdefault(last[storage], []).append(Ref(storage))
    ops = [replace(op, phase="recompute", frees=tuple(ends.get(k, ()))) for k, op in enumerate(ops)]
    inputs = {t.storage for op in ops for t in op.inputs.values()} - born
    at = min(p for s in needed for p in reads[s])
    return _Repetition(at, tuple(ops), frozenset(needed), frozenset(inputs))


def _copies(ops: Sequence[Op], kept: set[int], storages: list[Storage]) -> dict[int, int]:
    """Storages for results that are made again although the first ones are still there."""
    found: dict[int, int] = {}
    for op in ops:
        for ref in op.allocates:
            if ref.storage in kept and ref.storage not in found:
                source = storages[ref.storage]
                found[ref.storage] = len(storages)
                storages.append(replace(source, name=f"{source.name}:again", role="temporary"))
    return found


def _with_storages(op: Op, numbers: dict[int, int]) -> Op:
    """The op with the storages that it writes replaced."""
    if not any(ref.storage in numbers for ref in op.allocates):
        return op
    outputs = tuple(replace(t, storage=numbers.get(t.storage, t.storage)) for t in op.outputs)
    allocates = tuple(Ref(numbers.get(ref.storage, ref.storage)) for ref in op.allocates)
    return replace(op, outputs=outputs, allocates=allocates)


def _freed_again(steps: Sequence[Op], inserts: dict[int, list[Op]], dropped: set[int], extended: set[int]) -> list[Op]:
    """All ops in order. Dropped storages die after forward; inputs of what is repeated live until it has run."""
    ops: list[Op] = []
    for position, op in enumerate(steps):
        ops += inserts.get(position, ())
        ops.append(op)
    forward_end: dict[int, int] = {}
    last: dict[int, int] = {}
    freed: set[int] = set()
    for position, op in enumerate(ops):
        freed |= {ref.storage for ref in op.frees}
        for tensor in (*op.inputs.values(), *op.outputs):
            if tensor.storage in dropped and op.phase == "forward":
                forward_end[tensor.storage] = position
            if tensor.storage in extended:
                last[tensor.storage] = position
    early = _freed_too_early(ops, last, freed)
    ends: dict[int, list[Ref]] = {}
    for storage, position in forward_end.items():
        ends.setdefault(position, []).append(Ref(storage))
    for storage in early:
        ends.setdefault(last[storage], []).append(Ref(storage))
    for position, op in enumerate(ops):
        frees = tuple(ref for ref in op.frees if ref.storage not in early) + tuple(ends.get(position, ()))
        if frees != op.frees:
            ops[position] = replace(op, frees=frees)
    return ops


def _second_lives(ops: Sequence[Op], storages: list[Storage]) -> list[Op]:
    """What backward makes again is in storages of its own, so that each has one life."""
    forward, again = (
        {ref.storage for op in ops if op.phase == phase for ref in op.allocates} for phase in ("forward", "recompute")
    )
    copies: dict[int, int] = {}
    for number in sorted(forward & again):
        source = storages[number] = replace(storages[number], role="temporary")
        copies[number] = len(storages)
        storages.append(replace(source, name=f"{source.name}:again"))

    def place(ref: Ref) -> Ref:
        return ref._replace(storage=copies.get(ref.storage, ref.storage))

    def touches(op: Op) -> bool:
        return any(ref.storage in copies for ref in refs_of(op))

    return [with_refs(op, place, op.module) if op.phase != "forward" and touches(op) else op for op in ops]


def _freed_too_early(ops: Sequence[Op], last: dict[int, int], freed: set[int]) -> set[int]:
    """Storages that a repeated op reads after they have been freed."""
    return {
        ref.storage
        for position, op in enumerate(ops)
        for ref in op.frees
        if ref.storage in freed and position < last.get(ref.storage, -1)
    }
