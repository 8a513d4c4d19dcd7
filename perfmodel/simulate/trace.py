"""Timelines as Chrome traces (the Trace Event Format, JSON object form, complete events)."""

from __future__ import annotations

import heapq
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from perfmodel.errors import FileError
from perfmodel.schedule.actions import Floats, Ints
from perfmodel.schedule.tasks import TaskGraph

__all__ = ["write_trace"]

_BLOCK = 4096
"""Events that are written at once."""


def write_trace(path: Path, tasks: TaskGraph, start: Floats, finish: Floats) -> None:
    """Write the trace beside ``path``, then move it there.

    Raises
    ------
    FileError
        The file can't be written.
    """
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write('{"displayTimeUnit":"ms","traceEvents":[\n')
            block: list[str] = []
            first = True
            for event in _events(tasks, start, finish):
                block.append(event)
                if len(block) == _BLOCK:
                    file.write(("" if first else ",\n") + ",\n".join(block))
                    block, first = [], False
            if block:
                file.write(("" if first else ",\n") + ",\n".join(block))
            file.write("\n]}\n")
        Path(temporary).replace(path)
    except OSError as error:
        raise FileError(f"{path}: can't write the trace ({error.strerror}); choose another path") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _events(tasks: TaskGraph, start: Floats, finish: Floats) -> Iterator[str]:
    # Whole nanoseconds, so that rounding can't make neighbours overlap.
    begin, end = (np.rint(times * 1e9).astype(np.int64) for times in (start, finish))
    names = [json.dumps(label)[1:-1] for label in tasks.labels]
    kinds = [json.dumps(kind) for kind in tasks.kinds]
    groups: dict[str, int] = {}
    threads: dict[int, int] = {}
    for position, resource in enumerate(tasks.resources):
        process = groups.setdefault(resource.group, len(groups))
        ids = np.flatnonzero(tasks.resource == position)
        ids = ids[np.lexsort((ids, end[ids], begin[ids]))]
        rows = _rows(begin[ids], end[ids]) if resource.discipline == "none" else [ids]
        if resource.discipline == "none":
            rows = [ids[row] for row in rows]
        if process not in threads:
            threads[process] = 0
            yield _name("process_name", process, 0, resource.group)
            yield _sort("process_sort_index", process, 0, process)
        for number, row in enumerate(rows):
            thread = threads[process]
            threads[process] += 1
            title = resource.stream if number == 0 else f"{resource.stream} ({number + 1})"
            yield _name("thread_name", process, thread, title)
            yield _sort("thread_sort_index", process, thread, thread)
            where = f'"pid":{process},"tid":{thread}'
            if tasks.path is not None:
                yield from _modules(tasks, tasks.path, row, begin, end, where)
            columns = (row, begin[row], end[row], tasks.label[row], tasks.index[row], tasks.kind[row])
            for task, at, until, label, index, kind in zip(*(column.tolist() for column in columns), strict=True):
                name = names[label] if index < 0 else f"{names[label]} #{index}"
                yield (
                    f'{{"ph":"X","name":"{name}","cat":{kinds[kind]},{where},"ts":{at / 1000:.3f},'
                    f'"dur":{(until - at) / 1000:.3f},"args":{{"task":{task}}}}}'
                )


def _modules(tasks: TaskGraph, path: Ints, row: Ints, begin: Ints, end: Ints, where: str) -> Iterator[str]:
    """Spans around consecutive tasks of the same module, outer modules first."""
    stack: list[tuple[str, int, int]] = []
    closed: list[tuple[int, int, str, int]] = []

    def close(depth: int) -> None:
        while len(stack) > depth:
            name, at, until = stack.pop()
            closed.append((at, len(stack), name, until))

    for task in row.tolist():
        position = int(path[task])
        parts = tasks.paths[position].split(".") if position >= 0 else []
        prefixes = [".".join(parts[: depth + 1]) for depth in range(len(parts))]
        shared = 0
        while shared < min(len(stack), len(prefixes)) and stack[shared][0] == prefixes[shared]:
            shared += 1
        close(shared)
        at, until = int(begin[task]), int(end[task])
        stack[:] = [(name, since, until) for name, since, _ in stack]
        stack.extend((prefix, at, until) for prefix in prefixes[shared:])
    close(0)
    # Of spans that begin together the outer one must come first in the file.
    for at, _, name, until in sorted(closed):
        yield (
            f'{{"ph":"X","name":{json.dumps(name)},"cat":"module",{where},"ts":{at / 1000:.3f},'
            f'"dur":{(until - at) / 1000:.3f}}}'
        )


def _rows(begin: Ints, end: Ints) -> list[Ints]:
    """Rows in which no two spans overlap; spans come in order of their begin."""
    free: list[tuple[int, int]] = []
    rows: list[list[int]] = []
    for position, (at, until) in enumerate(zip(begin.tolist(), end.tolist(), strict=True)):
        row = heapq.heappop(free)[1] if free and free[0][0] <= at else len(rows)
        if row == len(rows):
            rows.append([])
        rows[row].append(position)
        heapq.heappush(free, (until, row))
    return [np.array(row, dtype=np.int64) for row in rows] or [np.zeros(0, dtype=np.int64)]


def _name(event: str, process: int, thread: int, name: str) -> str:
    return f'{{"ph":"M","name":"{event}","pid":{process},"tid":{thread},"args":{{"name":{json.dumps(name)}}}}}'


def _sort(event: str, process: int, thread: int, position: int) -> str:
    return f'{{"ph":"M","name":"{event}","pid":{process},"tid":{thread},"args":{{"sort_index":{position}}}}}'
