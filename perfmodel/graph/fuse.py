"""The step as a compiler runs it: which operands reach memory, which kernels are launched.

What TorchInductor does (``torch/_inductor``), in four decisions:

1. Backward computes cheap forward results again instead of keeping them, where a
   minimum cut finds that this keeps fewer bytes (:mod:`perfmodel.graph.partition`).
2. An element-wise op is computed where its result is used, unless the result is
   needed in memory anyway or is made from too many operands.
3. What is left merges with makers and with readers of the same values, loops
   permitting (:mod:`perfmodel.graph.kernels`).
4. A kernel reads each value once, and writes what is used outside of it.

Matrix products, attention and convolutions stay kernels of their own. An op that
is computed in several kernels appears once in each; forward work that is done again
in backward has the phase ``recompute``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from perfmodel.errors import CaptureError
from perfmodel.graph.dataflow import Dataflow
from perfmodel.graph.depth import resized, stretches
from perfmodel.graph.emit import emit
from perfmodel.graph.fold import fold, unfold
from perfmodel.graph.ir import Block, Graph, Op, Storage, blocks_by_phase
from perfmodel.graph.micro_steps import split_micro_steps

__all__ = ["fuse"]

#: Layers that are alike are fused as this many groups of them, and as many layers more at
#: either end, where kernels differ because the layers next to them do.
_GROUPS, _MARGIN = 2, 2

_FUSED_PHASES = ("forward", "backward", "recompute")


def fuse(graph: Graph) -> Graph:
    """The graph with forward and backward fused as a compiler does; the optimizer stays as it is.

    Parameters
    ----------
    graph : Graph
        Flat or folded; a folded one comes back folded.

    Returns
    -------
    Graph
        Its ops have ``on_chip`` and ``launches``, its storages live from first to last use in memory.
    """
    steps = split_micro_steps(graph.blocks)
    fused: list[tuple[Block, ...]] = []
    for number, step in enumerate(steps):
        # A compiler sees one forward and its backward; a micro-step that is run again was compiled before.
        if number and step == steps[number - 1]:
            fused.append(fused[-1])
        else:
            fused.append(_fuse_core(replace(graph, blocks=step, first_optimizer=(), trace=None)).blocks)
    # Unfolding and folding give every storage its old number, so that the other blocks fit as they are.
    rest = tuple(block for block in graph.blocks if block.ops[0].phase not in _FUSED_PHASES)
    blocks = (*(block for step in fused for block in step), *rest)
    return replace(graph, blocks=blocks, storages=_with_roles(graph, blocks), trace=None)


def _with_roles(graph: Graph, blocks: Iterable[Block]) -> tuple[Storage, ...]:
    """Storages whose content is kept for backward are activations now, others no longer."""
    made = {ref.storage for block in blocks for op in block.ops if op.phase == "forward" for ref in op.allocates}
    freed = {ref.storage for block in blocks for op in block.ops if op.phase != "forward" for ref in op.frees}
    return tuple(
        replace(storage, role="activation" if number in made & freed else "temporary")
        if storage.role in ("activation", "temporary")
        else storage
        for number, storage in enumerate(graph.storages)
    )


def _fuse_core(graph: Graph) -> Graph:
    if not any(storage.stack for storage in graph.storages):
        return _fuse_flat(graph)
    try:
        small, removed = _few_layers(graph)
        fused = fold(_fuse_flat(unfold(small)))
        for stack, low, layers in reversed(removed):
            fused = resized(fused, stack, low, layers)
    except CaptureError:
        # Layers that are alike came out unlike each other: fuse every single one.
        return fold(_fuse_flat(unfold(graph)))
    return fused


def _few_layers(graph: Graph) -> tuple[Graph, list[tuple[str, int, int]]]:
    """The graph with few layers of each run of alike ones, and what was removed: stack, after which layer, how many."""
    removed: list[tuple[str, int, int]] = []
    for stack in graph.stacks:
        # From the last run to the first, so that numbers of layers before a run stay as they are.
        for alike in reversed(stretches(graph, stack)):
            first, last, period = alike.cuts[0], alike.cuts[-1] + 1, alike.period
            kept = _GROUPS * period + 2 * _MARGIN
            surplus = (last - first + 1 - kept) // period * period
            if surplus > 0:
                cut = first + (last - first - surplus) // 2
                graph = resized(graph, stack, cut, -surplus)
                removed.append((stack, cut, surplus))
    return graph, removed


def _fuse_flat(graph: Graph) -> Graph:
    ops = [part for block in graph.blocks for op in block.ops for part in _parts(op)]
    return replace(graph, blocks=blocks_by_phase(emit(Dataflow(graph, ops))))


def _parts(op: Op) -> Iterable[Op]:
    """A layer norm's backward as its two kernels: along rows for the input, across them for weight and bias."""
    mask = op.attrs.get("output_mask")
    if op.name not in ("aten.native_layer_norm_backward", "aten._fused_rms_norm_backward") or not mask:
        return (op,)
    for_input, *for_weights = mask
    if not for_input or not any(for_weights):
        return (op,)
    first = replace(
        op, outputs=op.outputs[:1], attrs={**op.attrs, "output_mask": [True, *(False for _ in for_weights)]}
    )
    second = replace(op, outputs=op.outputs[1:], attrs={**op.attrs, "output_mask": [False, *for_weights]})
    made = {op.outputs[0].storage}
    return (
        replace(first, allocates=tuple(ref for ref in op.allocates if ref.storage in made), frees=()),
        replace(second, allocates=tuple(ref for ref in op.allocates if ref.storage not in made)),
    )
