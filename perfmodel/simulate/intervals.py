"""Unions of intervals of time, as arrays of begins and ends."""

from __future__ import annotations

import numpy as np

from perfmodel.schedule.actions import Floats

__all__ = ["covered", "union", "without"]


def union(begin: Floats, end: Floats) -> tuple[Floats, Floats]:
    """The same time as disjoint intervals in ascending order.

    >>> union(np.array([4.0, 0.0, 1.0]), np.array([5.0, 2.0, 3.0]))
    (array([0., 4.]), array([3., 5.]))
    """
    order = np.argsort(begin, kind="stable")
    begin, reach = begin[order], np.maximum.accumulate(end[order])
    if not len(begin):
        return begin, reach
    fresh = np.concatenate([[True], begin[1:] > reach[:-1]])
    last = np.concatenate([np.flatnonzero(fresh)[1:] - 1, [len(begin) - 1]])
    return begin[fresh], reach[last]


def covered(begin: Floats, end: Floats) -> float:
    """Seconds in which at least one interval runs."""
    begin, end = union(begin, end)
    return float((end - begin).sum())


def without(begin: Floats, end: Floats, other_begin: Floats, other_end: Floats) -> float:
    """Seconds in which one of the first intervals runs and none of the others.

    >>> without(np.array([0.0]), np.array([10.0]), np.array([2.0, 9.0]), np.array([3.0, 12.0]))
    8.0
    """
    both = covered(np.concatenate([begin, other_begin]), np.concatenate([end, other_end]))
    return both - covered(other_begin, other_end)
