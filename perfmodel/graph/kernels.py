"""Ops that run in one kernel: which loops fit together, and a greedy merge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

__all__ = ["Kernel", "Loops", "merged_kernels"]


class Loops(NamedTuple):
    """What a kernel iterates over.

    ``point``: ``rows`` elements, each on its own. ``row``: a reduction along
    contiguous rows of ``cols`` elements; element-wise work before, on and after a
    row fits in. ``column``: a reduction across rows, whose order of elements
    differs. ``scatter``: writes to computed places. ``library``: a kernel that isn't generated.
    """

    kind: Literal["point", "row", "column", "scatter", "library"]
    rows: int = 1
    cols: int = 1

    def fits(self, other: Loops) -> Loops | None:
        """Loops of a kernel that does the work of both, or ``None``."""
        if {self.kind, other.kind} & {"scatter", "library"}:
            return None
        if self == other:
            return self
        point, reduction = (self, other) if self.kind == "point" else (other, self)
        if point.kind != "point" or reduction.kind == "point":
            return None
        whole = reduction.rows * reduction.cols
        return reduction if point.rows == reduction.rows or (reduction.kind == "row" and point.rows == whole) else None


@dataclass(slots=True)
class Kernel:
    """Ops that run together.

    Attributes
    ----------
    loops : Loops
    ops : list of int
        Positions of its ops.
    reads, writes : set of int
        Values that its ops take from outside or from each other, and make.
    after : int
        Bit k is set if this kernel runs after kernel k.
    """

    loops: Loops
    ops: list[int] = field(default_factory=list)
    reads: set[int] = field(default_factory=set)
    writes: set[int] = field(default_factory=set)
    after: int = 0


def merged_kernels(
    ops: Iterable[int],
    loops: Mapping[int, Loops],
    reads: Mapping[int, set[int]],
    writes: Mapping[int, set[int]],
    regions: Mapping[int, object],
) -> list[Kernel]:
    """Kernels in which ops run, one for each op at first, merged greedily.

    An op joins the kernels that make what it reads, then kernels that read the
    same values are joined, those that share most first; never so that two kernels wait for each other.
    Kernels of two layers aren't joined for what they both read (rotary tables, say): that would make the
    results of all layers at once and keep them. Nor does an op join the kernel of another layer past a product,
    or a gradient that each layer adds to would be one sum at the end.

    Parameters
    ----------
    ops : iterable of int
        Positions, in order of execution.
    loops : mapping of int to Loops
    reads, writes : mapping of int to set of int
        Values by the position of the op.
    regions : mapping of int to object
        The layer that the op belongs to.
    """
    merge = _Merge(regions)
    for op in ops:
        merge.add(op, loops[op], reads[op], writes[op])
    merge.join_siblings()
    return list(merge.kernels.values())


class _Merge:
    def __init__(self, regions: Mapping[int, object]) -> None:
        self._regions = regions
        self._last_library = -1
        self.kernels: dict[int, Kernel] = {}
        self._count = 0
        self._maker: dict[int, int] = {}
        self._readers: dict[int, list[int]] = {}

    def add(self, op: int, loops: Loops, reads: set[int], writes: set[int]) -> None:
        number, self._count = self._count, self._count + 1
        kernel = self.kernels[number] = Kernel(loops, [op], set(reads), set(writes))
        makers = {self._maker[value] for value in reads if value in self._maker}
        for maker in makers:
            kernel.after |= self.kernels[maker].after | 1 << maker
        for value in writes:
            self._maker[value] = number
        for value in reads:
            self._readers.setdefault(value, []).append(number)
        for maker in sorted(makers, reverse=True):
            if self._is_near(maker, op) and self._join(maker, number):
                number = maker
        if loops.kind == "library":
            self._last_library = op

    def _is_near(self, maker: int, op: int) -> bool:
        """Whether a kernel has ops of the same layer, or has only just run."""
        ops = self.kernels[maker].ops
        return ops[-1] > self._last_library or any(self._regions[other] == self._regions[op] for other in ops)

    def join_siblings(self) -> None:
        region = {number: {self._regions[op] for op in kernel.ops} for number, kernel in self.kernels.items()}
        shared: dict[tuple[int, int], int] = {}
        for readers in self._readers.values():
            alive = sorted(set(readers))
            for i, a in enumerate(alive):
                for b in alive[i + 1 :]:
                    if region[a] & region[b]:
                        shared[a, b] = shared.get((a, b), 0) + 1
        joined: dict[int, int] = {}
        for pair in sorted(shared, key=lambda pair: (-shared[pair], pair)):
            a, b = sorted(_now(number, joined) for number in pair)
            if a != b and self._join(a, b):
                joined[b] = a

    def _join(self, a: int, b: int) -> bool:
        """Put kernel ``b`` into ``a`` if their loops fit and no third kernel has to run between them."""
        first, second = self.kernels[a], self.kernels[b]
        loops = first.loops.fits(second.loops)
        if loops is None or self._between(a, b) or self._between(b, a):
            return False
        first.loops = loops
        first.ops = sorted(first.ops + second.ops)
        first.reads |= second.reads
        first.writes |= second.writes
        both = 1 << a | 1 << b
        first.after = (first.after | second.after) & ~both
        self._maker.update(dict.fromkeys(second.writes, a))
        for value in second.reads:
            self._readers[value] = [a if number == b else number for number in self._readers[value]]
        del self.kernels[b]
        for kernel in self.kernels.values():
            if kernel is not first and kernel.after & both:
                kernel.after = (kernel.after | first.after | 1 << a) & ~(1 << b)
        return True

    def _between(self, early: int, late: int) -> bool:
        after = self.kernels[late].after
        return any(after >> number & 1 and kernel.after >> early & 1 for number, kernel in self.kernels.items())


def _now(number: int, joined: Mapping[int, int]) -> int:
    while number in joined:
        number = joined[number]
    return number
