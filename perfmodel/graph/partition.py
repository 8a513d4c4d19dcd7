"""Which forward results a compiled step keeps for backward, and which it computes again.

A compiler that sees forward and backward together may keep any set of values from
which backward can be computed. The cheapest is a minimum cut: source, values,
sink (backward); a value's capacity is its size, an edge from an operand to a
result can't be cut. It's the formulation of PyTorch's partitioner
(``min_cut_rematerialization_partition`` in ``torch/_functorch/partitioners.py``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from itertools import pairwise

__all__ = ["minimum_cut"]

_SOURCE, _SINK = -1, -2


def minimum_cut(
    sizes: Mapping[int, int], operands: Mapping[int, Iterable[int]], fixed: Iterable[int], needed: Iterable[int]
) -> set[int]:
    """The cheapest values to keep.

    Parameters
    ----------
    sizes : mapping of int to int
        What keeping each value costs.
    operands : mapping of int to iterable of int
        The values from which each value can be computed again.
    fixed : iterable of int
        Values that can't be computed again.
    needed : iterable of int
        Values that backward uses.

    Returns
    -------
    set of int
        The kept values; of cuts that cost the same the one nearest to backward.

    Examples
    --------
    A product and its sine, of which backward uses the sine: the value of half the size is kept.

    >>> minimum_cut({1: 8, 2: 4}, {2: [1]}, fixed=[1], needed=[2])
    {2}
    >>> minimum_cut({1: 8, 2: 16, 3: 16}, {2: [1], 3: [1]}, fixed=[1], needed=[2, 3])
    {1}
    """
    # A value v is an edge from node 2v (in) to node 2v + 1 (out).
    unbounded = sum(sizes.values()) + 1
    flow = _Flow()
    for value, size in sizes.items():
        flow.edge(2 * value, 2 * value + 1, size)
        for operand in operands.get(value, ()):
            flow.edge(2 * operand + 1, 2 * value, unbounded)
    for value in fixed:
        flow.edge(_SOURCE, 2 * value, unbounded)
    for value in needed:
        flow.edge(2 * value + 1, _SINK, unbounded)
    flow.saturate(_SOURCE, _SINK)
    before_sink = flow.reaching(_SINK)
    return {value for value in sizes if 2 * value + 1 in before_sink and 2 * value not in before_sink}


class _Flow:
    """Maximum flow by shortest augmenting paths, a whole layer of them at a time (Dinic, 1970)."""

    def __init__(self) -> None:
        self._left: dict[int, dict[int, int]] = {}

    def edge(self, start: int, end: int, capacity: int) -> None:
        out = self._left.setdefault(start, {})
        out[end] = out.get(end, 0) + capacity
        self._left.setdefault(end, {}).setdefault(start, 0)

    def saturate(self, source: int, sink: int) -> None:
        while source in self._left and (levels := self._levels(source)) and sink in levels:
            ways = {node: list(ends) for node, ends in self._left.items()}
            while (path := self._path(source, sink, levels, ways)) is not None:
                amount = min(self._left[a][b] for a, b in path)
                for a, b in path:
                    self._left[a][b] -= amount
                    self._left[b][a] += amount

    def reaching(self, sink: int) -> set[int]:
        """Nodes from which the sink can still be reached."""
        found, queue = {sink}, deque([sink])
        while queue:
            node = queue.popleft()
            for before in self._left.get(node, ()):
                if before not in found and self._left[before][node] > 0:
                    found.add(before)
                    queue.append(before)
        return found

    def _levels(self, source: int) -> dict[int, int]:
        levels, queue = {source: 0}, deque([source])
        while queue:
            node = queue.popleft()
            for end, left in self._left[node].items():
                if left > 0 and end not in levels:
                    levels[end] = levels[node] + 1
                    queue.append(end)
        return levels

    def _path(
        self, source: int, sink: int, levels: Mapping[int, int], ways: dict[int, list[int]]
    ) -> list[tuple[int, int]] | None:
        nodes = [source]
        while nodes[-1] != sink:
            node = nodes[-1]
            while ways[node]:
                end = ways[node][-1]
                if self._left[node][end] > 0 and levels.get(end) == levels[node] + 1:
                    nodes.append(end)
                    break
                ways[node].pop()
            else:
                if len(nodes) == 1:
                    return None
                nodes.pop()
                ways[nodes[-1]].pop()
        return list(pairwise(nodes))
