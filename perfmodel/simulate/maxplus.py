"""The max-plus engine: when every order is fixed, times follow by max and plus alone.

::

    start_i = max over predecessors j of finish_j          finish_i = start_i + duration_i

where the task before i on its resource is one of its predecessors. Tasks are laid out level by
level (those of a level wait only for earlier levels), so that a level is one contiguous slice,
and scenarios are the innermost axis. A level then costs a gather, a maximum and an addition,
whatever its width. Baccelli, Cohen, Olsder and Quadrat, "Synchronization and Linearity" (1992).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perfmodel.schedule.actions import Floats, Ints
from perfmodel.schedule.order import chain, cross_edges, cycle, levels
from perfmodel.schedule.tasks import TaskGraph

__all__ = ["Evaluator", "Levels", "compile_levels"]

_WIDE = 8
"""Above so many predecessors a task gets its own reduction instead of columns in the level's gather."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Level:
    begin: int
    end: int
    gather: Ints
    """Rows of the predecessors, ``columns`` of them one after the other, padded with row 0."""
    columns: int
    wide: tuple[tuple[int, Ints], ...]
    """Tasks with many predecessors: position in the level, and rows of the predecessors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """A task graph compiled for the engine: orders and dependencies, without durations.

    Row 0 of the engine's arrays stands for the begin of the step; row k is task ``order[k - 1]``.
    """

    order: Ints
    plan: tuple[_Level, ...]

    def __len__(self) -> int:
        return len(self.order)


class Evaluator:
    """Evaluate a compiled graph again and again in the same memory.

    Parameters
    ----------
    compiled : Levels
    scenarios : int, optional
        Scenarios evaluated at once; without it the arrays have no such axis.
    starts : bool
        Whether to keep when tasks start, too.

    Attributes
    ----------
    duration, finish, start : ndarray of float64, shape [tasks] or [tasks, scenarios]
        In the order of the levels. The caller fills ``duration``, `run` the other two. Without ``starts``,
        ``start`` is empty.
    """

    def __init__(self, compiled: Levels, scenarios: int | None = None, *, starts: bool = True) -> None:
        count = len(compiled)
        extra = () if scenarios is None else (scenarios,)
        rows = np.zeros((count + 1, *extra))
        self.duration: Floats = np.empty((count, *extra))
        self.finish: Floats = rows[1:]
        widest = max((level.end - level.begin for level in compiled.plan), default=0)
        self.start: Floats = np.empty((count if starts else 0, *extra))
        gathered = max((len(level.gather) for level in compiled.plan), default=0)
        buffer = np.empty((gathered, *extra))
        scratch = np.empty((widest, *extra))
        self._rows = rows
        self._steps = []
        for level in compiled.plan:
            size, begin, end = level.end - level.begin, level.begin, level.end
            ready = self.start[begin:end] if starts else scratch[:size]
            columns = [buffer[k * size : (k + 1) * size] for k in range(level.columns)]
            taken = buffer[: len(level.gather)]
            self._steps.append(
                (level.gather, taken, columns, ready, self.duration[begin:end], self.finish[begin:end], level.wide)
            )

    def run(self) -> None:
        """Fill ``finish`` (and ``start``) from ``duration``."""
        take, maximum, add = self._rows.take, np.maximum, np.add
        for gather, taken, columns, ready, duration, finish, wide in self._steps:
            take(gather, axis=0, out=taken, mode="clip")
            maximum(columns[0], columns[1], out=ready)
            for column in columns[2:]:
                maximum(ready, column, out=ready)
            for position, rows in wide:
                maximum(ready[position], self._rows[rows].max(axis=0), out=ready[position : position + 1])
            add(ready, duration, out=finish)


def compile_levels(tasks: TaskGraph) -> Levels:
    """Compile a graph whose orders are fixed.

    Raises
    ------
    UnsupportedError
        Tasks wait for each other.
    """
    count = len(tasks)
    before = chain(tasks)
    source, target = cross_edges(tasks)
    order, offsets = levels(count, before, source, target)
    if len(order) < count:
        raise cycle(tasks, np.setdiff1d(np.arange(count), order))
    row = np.empty(count + 1, dtype=np.int64)
    row[order] = np.arange(1, count + 1)
    row[count] = 0  # a task's -1 for "nothing before" finds this one
    by_target = np.argsort(target, kind="stable")
    fan_in = np.bincount(target, minlength=count)
    first = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(fan_in)])
    sources = row[source[by_target]]
    narrow = np.where(fan_in < _WIDE, fan_in, 0)
    # All columns of all tasks at once, in level order: the chain first, then the other predecessors.
    columns = 1 + max(1, int(narrow.max(initial=0)))
    table = np.zeros((columns, count), dtype=np.int64)
    table[0] = row[before[order]]
    if len(sources):
        for k in range(columns - 1):
            inside = k < narrow[order]
            table[k + 1, inside] = sources[first[order[inside]] + k]
    widest = np.maximum.reduceat(narrow[order], offsets[:-1]) if count else np.zeros(0, dtype=np.int64)
    wide_tasks = set(np.flatnonzero(fan_in >= _WIDE).tolist())
    plan = []
    for begin, end, needed in zip(offsets[:-1].tolist(), offsets[1:].tolist(), widest.tolist(), strict=True):
        used = 1 + max(1, needed)
        wide: tuple[tuple[int, Ints], ...] = ()
        if wide_tasks:
            wide = tuple(
                (position, sources[first[task] : first[task + 1]])
                for position, task in enumerate(order[begin:end].tolist())
                if task in wide_tasks
            )
        plan.append(_Level(begin=begin, end=end, gather=table[:used, begin:end].ravel(), columns=used, wide=wide))
    return Levels(order=order, plan=tuple(plan))
