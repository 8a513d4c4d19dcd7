"""The parts of fusing, on random graphs: the cheapest values to keep, kernels that can run one after the other."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from perfmodel.graph.kernels import Loops, merged_kernels
from perfmodel.graph.partition import minimum_cut

Edges = dict[int, list[int]]


@st.composite
def dags(draw: st.DrawFn, largest: int = 7) -> Edges:
    """What each value is made of: values of lower number."""
    size = draw(st.integers(1, largest))
    return {v: draw(st.lists(st.integers(0, v - 1), max_size=3, unique=True)) if v else [] for v in range(size)}


def suffices(kept: set[int], operands: Edges, fixed: set[int], needed: set[int]) -> bool:
    """Whether the needed values are kept or can be computed from kept ones."""

    def available(value: int) -> bool:
        return value in kept or (value not in fixed and all(available(operand) for operand in operands[value]))

    return all(available(value) for value in needed)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), operands=dags())
def test_the_minimum_cut_is_the_cheapest_of_all_subsets(data: st.DataObject, operands: Edges) -> None:
    values = list(operands)
    sizes = {v: data.draw(st.integers(0, 9)) for v in values}
    needed = set(data.draw(st.lists(st.sampled_from(values), max_size=4)))
    fixed = {v for v in values if not operands[v] or data.draw(st.booleans())}
    kept = minimum_cut(sizes, {v: operands[v] for v in values if v not in fixed}, fixed, needed)
    assert suffices(kept, operands, fixed, needed)
    subsets = itertools.chain.from_iterable(itertools.combinations(values, n) for n in range(len(values) + 1))
    best = min(sum(sizes[v] for v in subset) for subset in subsets if suffices(set(subset), operands, fixed, needed))
    assert sum(sizes[v] for v in kept) == best


LOOPS = [
    *(Loops("point", 64), Loops("point", 8), Loops("row", 8, 8), Loops("column", 8, 8)),
    *(Loops("scatter"), Loops("library")),
]


@settings(max_examples=150, deadline=None)
@given(data=st.data(), operands=dags(largest=14))
def test_kernels_hold_every_op_once_and_never_wait_for_each_other(data: st.DataObject, operands: Edges) -> None:
    ops = list(operands)
    loops = {op: data.draw(st.sampled_from(LOOPS)) for op in ops}
    kernels = merged_kernels(
        ops, loops, {op: set(operands[op]) for op in ops}, {op: {op} for op in ops}, dict.fromkeys(ops)
    )
    assert sorted(op for kernel in kernels for op in kernel.ops) == ops
    for kernel in kernels:
        alone = any(loops[op].kind in ("scatter", "library") for op in kernel.ops)
        assert len(kernel.ops) == 1 or not alone
        assert len({loops[op] for op in kernel.ops if loops[op].kind in ("row", "column")}) <= 1
    # Run whatever is ready until nothing is left.
    left, done = list(kernels), set[int]()
    while left:
        ready = [k for k in left if all(v in done or v in k.ops for op in k.ops for v in operands[op])]
        assert ready, "kernels wait for each other"
        done |= {op for kernel in ready for op in kernel.ops}
        left = [kernel for kernel in left if kernel not in ready]


def test_a_chain_of_alike_loops_is_one_kernel() -> None:
    loops = dict.fromkeys(range(5), Loops("point", 64))
    kernels = merged_kernels(
        range(5), loops, {op: {op - 1} for op in range(5)}, {op: {op} for op in range(5)}, dict.fromkeys(range(5))
    )
    assert [kernel.ops for kernel in kernels] == [[0, 1, 2, 3, 4]]
