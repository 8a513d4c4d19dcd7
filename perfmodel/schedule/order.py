"""Sort tasks into levels: each waits only for tasks of earlier levels."""

from __future__ import annotations

import numpy as np

from perfmodel.errors import UnsupportedError
from perfmodel.schedule.actions import Ints
from perfmodel.schedule.tasks import TaskGraph

__all__ = ["chain", "cross_edges", "cycle", "levels", "waiting_circle"]

_SHOWN = 8


def chain(tasks: TaskGraph) -> Ints:
    """For each task, the one before it on its resource where the resource keeps an order; else -1. Shape [tasks]."""
    count = len(tasks)
    ordered = np.array([resource.discipline == "order" for resource in tasks.resources], dtype=bool)
    before = np.full(count, -1, dtype=np.int64)
    if count == 0:
        return before
    by_resource = np.argsort(tasks.resource, kind="stable")
    resource = tasks.resource[by_resource]
    follows = (resource[1:] == resource[:-1]) & ordered[resource[1:]]
    before[by_resource[1:][follows]] = by_resource[:-1][follows]
    return before


def cross_edges(tasks: TaskGraph) -> tuple[Ints, Ints]:
    """Sources and targets of the edges that the order on a resource doesn't imply already."""
    target = np.repeat(np.arange(len(tasks)), np.diff(tasks.predecessor_offsets))
    source = tasks.predecessors
    ordered = np.array([resource.discipline == "order" for resource in tasks.resources], dtype=bool)
    same = tasks.resource[source] == tasks.resource[target]
    implied = same & (source < target) & ordered[tasks.resource[target]]
    return source[~implied], target[~implied]


def levels(count: int, before: Ints, source: Ints, target: Ints) -> tuple[Ints, Ints]:
    """Sort into levels by Kahn's algorithm, a level at a time.

    Parameters
    ----------
    count : int
        Tasks.
    before : ndarray of int64, shape [tasks]
        The predecessor of each task in a chain, or -1. No task has two successors in chains.
    source, target : ndarray of int64, shape [edges]
        All other edges.

    Returns
    -------
    order, offsets : ndarray of int64, shapes [sorted tasks] and [levels + 1]
        Task ids level by level, and where each level begins. Tasks on a cycle, and those after
        them, are missing.
    """
    waits = np.bincount(target, minlength=count) + (before >= 0)
    after = np.full(count, -1, dtype=np.int64)
    linked = np.flatnonzero(before >= 0)
    after[before[linked]] = linked
    targets = target[np.argsort(source, kind="stable")]
    fan_out = np.bincount(source, minlength=count)
    first = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(fan_out)])[:-1]
    # One column per successor while fan-outs are small; wide ones are expanded as ranges.
    narrow = int(fan_out.max(initial=0)) <= 2
    columns = (
        [np.where(fan_out > k, targets[np.minimum(first + k, len(targets) - 1)], -1) for k in range(2)]
        if (narrow and len(targets))
        else []
    )
    frontier = np.flatnonzero(waits == 0)
    parts, sizes = [frontier], [len(frontier)]
    while len(frontier):
        if columns:
            reached = np.concatenate([after[frontier], columns[0][frontier], columns[1][frontier]])
            reached = reached[reached >= 0]
        else:
            chained = after[frontier]
            reached = np.concatenate([chained[chained >= 0], _ranges(targets, first[frontier], fan_out[frontier])])
        np.subtract.at(waits, reached, 1)
        ready = reached[waits[reached] == 0]
        # A task that was reached twice is ready once; marking it also keeps it from a later level.
        waits[ready] = -1
        frontier = np.unique(ready)
        parts.append(frontier)
        sizes.append(len(frontier))
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes[:-1])])
    return np.concatenate(parts), offsets


def _ranges(values: Ints, first: Ints, length: Ints) -> Ints:
    total = int(length.sum())
    if total == 0:
        return np.zeros(0, dtype=np.int64)
    shift = np.repeat(first - np.cumsum(length) + length, length)
    return values[shift + np.arange(total)]


def cycle(tasks: TaskGraph, stuck: Ints) -> UnsupportedError:
    """The error for tasks that wait for each other, given those that never become ready."""
    circle = waiting_circle(tasks, stuck)
    return UnsupportedError(f"tasks wait for each other: {circle}; change the order on a resource or drop a dependency")


def waiting_circle(tasks: TaskGraph, stuck: Ints) -> str:
    """A circle of tasks that wait for each other, in words.

    Parameters
    ----------
    tasks : TaskGraph
    stuck : ndarray of int64
        Tasks that never become ready.
    """
    waiting, before = set(stuck.tolist()), chain(tasks)
    task = int(stuck[0])
    seen: list[int] = []
    while task not in seen:
        seen.append(task)
        candidates = [int(before[task]), *tasks.waits_for(task).tolist()]
        task = next(other for other in candidates if other in waiting)
    circle = seen[seen.index(task) :]
    shown = [tasks.name(other) for other in circle[:_SHOWN]]
    if len(circle) > _SHOWN:
        return " waits for ".join(shown) + f" … ({len(circle)} tasks in the circle)"
    return " waits for ".join([*shown, tasks.name(task)])
