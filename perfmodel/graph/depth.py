"""Change the number of layers of a folded graph.

A model of 126 layers is captured from four: then two layers have a neighbour on
each side, and that these two fold is the proof that the layers between the first
and the last are alike. Where kinds of layers alternate, two groups of them take the
place of the two layers. What has been proven is a :class:`Stretch`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from perfmodel.errors import CaptureError
from perfmodel.graph.fold import refs_of, with_refs
from perfmodel.graph.ir import Block, Graph, Ref, Storage

__all__ = ["Stretch", "probe_depth", "resized", "stretches", "with_depth"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Layers of a stack that repeat with one period in every phase of the step.

    Attributes
    ----------
    first, last : int
        Both included.
    period : int
        After how many layers the same kind comes again.
    cuts : tuple of int
        Layers after which a multiple of ``period`` layers can be inserted.
    """

    first: int
    last: int
    period: int
    cuts: tuple[int, ...]


def probe_depth(depth: int, *, prefix: int = 0, period: int = 1) -> int:
    """How many layers to capture, so that :func:`with_depth` can tell of ``depth`` layers.

    Two groups of layers prove that groups are alike. The last layer differs from others of its
    kind, and so does the first of each kind, where backward frees what all layers of
    that kind use; so there is one layer more after the two groups, and one group before
    them. The last layer must be of the same kind as the model's.

    Parameters
    ----------
    depth : int
        Layers of the model.
    prefix : int
        Layers at the start that aren't like the rest.
    period : int
        After how many layers the pattern repeats.

    Examples
    --------
    >>> probe_depth(126), probe_depth(61, prefix=3), probe_depth(62, period=6), probe_depth(2)
    (4, 7, 20, 2)
    """
    least = 3 * period + 1
    return min(depth, prefix + least + (depth - prefix - least) % period)


def with_depth(graph: Graph, depths: Mapping[str, int]) -> Graph:
    """The folded graph with other numbers of layers.

    Layers are added to the last part of a stack that repeats.

    Parameters
    ----------
    graph : Graph
        Folded, captured with :func:`probe_depth` layers or more in each stack.
    depths : mapping of str to int
        The new number of layers, not less than the captured one, by path of
        the layer stack, e.g. ``{"model.layers": 126}``.

    Raises
    ------
    CaptureError
        If a stack is not in the graph, or is too short, or its layers don't
        repeat in a way that tells of more.
    """
    for stack, depth in depths.items():
        captured = graph.stacks.get(stack)
        if captured is None:
            raise CaptureError(f"{graph.name} has no layer stack {stack!r}; it has {', '.join(graph.stacks) or 'none'}")
        if depth == captured:
            continue
        if captured < probe_depth(depth) or depth < captured:
            raise CaptureError(
                f"{stack} was captured with {captured} layers; {depth} need a capture of {probe_depth(depth)}"
            )
        proven = [stretch for stretch in stretches(graph, stack) if (depth - captured) % stretch.period == 0]
        if not proven:
            raise CaptureError(
                f"{stack} was captured with {captured} layers, and they differ, or are too few to show after how many "
                f"they repeat, so {depth} layers can't be derived from them; capture the model with all its layers"
            )
        cuts = proven[-1].cuts
        graph = resized(graph, stack, cuts[(len(cuts) - 1) // 2], depth - captured)
    return graph


def stretches(graph: Graph, stack: str) -> list[Stretch]:
    """The parts of a stack whose layers provably repeat, from the first layer to the last.

    Between two layers more can be inserted if every block that holds one of them
    holds both, repeating; if together these blocks show all kinds of layers at
    least once; and if nothing outside of them uses one of these layers by its number.
    """
    uses = _Uses(graph, stack)
    found: dict[tuple[int, int, int], list[int]] = {}
    for cut in range(graph.stacks[stack] - 1):
        window = uses.window(cut)
        if window is not None:
            found.setdefault(window, []).append(cut)
    return [
        Stretch(first=first, last=last, period=period, cuts=tuple(cuts))
        for (first, last, period), cuts in found.items()
        if _is_even(graph, stack, range(first, last + 1), period)
    ]


def resized(graph: Graph, stack: str, cut: int, added: int) -> Graph:
    """The folded graph with ``added`` layers more (or fewer) after layer ``cut`` of a stack.

    Raises
    ------
    CaptureError
        If the layers there don't repeat, or not after a number that divides ``added``.
    """
    after = cut + 1 + max(0, -added)  # the layer that follows the inserted or removed ones
    stretch = next((s for s in stretches(graph, stack) if {cut, after - 1} <= set(s.cuts)), None)
    if stretch is None or added % stretch.period:
        raise CaptureError(
            f"the layers of {stack} around layer {cut} differ, so {graph.stacks[stack] + added} layers can't be "
            "derived from them; capture the model with all its layers"
        )
    first, period = stretch.first, stretch.period

    def moved(layer: int) -> int:
        return layer if layer <= cut else layer + added

    def place(ref: Ref) -> Ref:
        if ref.absolute and graph.storages[ref.storage].stack == stack:
            return Ref(ref.storage, moved(ref.layer), True)
        return ref

    def deeper(block: Block) -> Block:
        ops = tuple(with_refs(op, place, op.module) for op in block.ops)
        if block.stack != stack:
            return replace(block, ops=ops)
        more = added // abs(block.step) if cut in block.span and after in block.span else 0
        return replace(block, ops=ops, first=moved(block.first), count=block.count + more)

    def more_of(storage: Storage) -> Storage:
        if storage.stack != stack or storage.layers is None:
            return storage
        own = set(storage.layers)
        new = [n for n in range(cut + 1, cut + 1 + added) if first + (n - first) % period in own]
        old = [moved(n) for n in storage.layers if not cut < n < after]
        return replace(storage, layers=tuple(sorted(new + old)))

    return replace(
        graph,
        blocks=tuple(map(deeper, graph.blocks)),
        first_optimizer=tuple(map(deeper, graph.first_optimizer)),
        storages=tuple(map(more_of, graph.storages)),
        stacks={**graph.stacks, stack: graph.stacks[stack] + added},
        trace=None,
    )


class _Uses:
    """What the blocks of a graph say of the layers of one stack."""

    def __init__(self, graph: Graph, stack: str) -> None:
        blocks = (*graph.blocks, *graph.first_optimizer)
        self._spans = [(block.span, abs(block.step)) for block in blocks if block.stack == stack]
        # Layers that an op names, each with the layer that the op is in, or -1.
        self._named = {
            (ref.layer, block.first if block.stack == stack and block.count == 1 else -1)
            for block, ref in _refs(blocks)
            if ref.absolute and graph.storages[ref.storage].stack == stack
        }
        # Layers of two stacks that use each other one to one: then neither can grow by itself.
        self._paired = any(
            other not in ("", block.stack) and stack in (block.stack, other)
            for block, ref in _refs(blocks)
            if block.count > 1 and not ref.absolute
            for other in [graph.storages[ref.storage].stack]
        )

    def window(self, cut: int) -> tuple[int, int, int] | None:
        """First and last layer around a cut that blocks show repeating together, and after how many layers."""
        held = [(span, period) for span, period in self._spans if cut in span or cut + 1 in span]
        if self._paired or not held or any(cut not in span or cut + 1 not in span for span, _ in held):
            return None
        first, last = max(span[0] for span, _ in held), min(span[-1] for span, _ in held)
        period = math.lcm(*(period for _, period in held))
        for layer, user in self._named:
            if not first <= layer <= last:
                continue
            if user < 0:
                # Named from outside: no layer like others.
                first, last = (layer + 1, last) if layer <= cut else (first, layer - 1)
            elif (user <= cut) != (layer <= cut):
                return None
        return (first, last, period) if first <= cut < last and last - first + 1 >= period else None


def _refs(blocks: Iterable[Block]) -> Iterator[tuple[Block, Ref]]:
    for block in blocks:
        for op in block.ops:
            for ref in refs_of(op):
                yield block, ref


def _is_even(graph: Graph, stack: str, layers: range, period: int) -> bool:
    """Whether each storage of the stack is there, or isn't, every ``period`` of these layers."""
    for storage in graph.storages:
        if storage.stack == stack:
            own = set(storage.layers or ())
            if any((layer in own) != (layer + period in own) for layer in layers[:-period]):
                return False
    return True
