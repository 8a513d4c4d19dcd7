"""When each task ran, and what that says: critical path, bubbles, exposed communication."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from perfmodel.errors import UnknownNameError, UnsupportedError
from perfmodel.schedule.actions import Floats
from perfmodel.schedule.tasks import TaskGraph
from perfmodel.simulate.intervals import covered, without
from perfmodel.simulate.trace import write_trace

__all__ = ["CriticalStep", "Timeline"]

VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticalStep:
    """A task of the critical path.

    Attributes
    ----------
    task : int
    name, resource : str
    start, finish : float
        Seconds.
    waited_for : {"begin", "dependency", "resource"}
        Why it didn't start earlier: nothing was before it, the step before it on the path is one of its
        predecessors, or that step held its resource.
    stretched : float
        Seconds by which sharing and interference made it longer than alone.
    """

    task: int
    name: str
    resource: str
    start: float
    finish: float
    waited_for: Literal["begin", "dependency", "resource"]
    stretched: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """What an engine made of a task graph.

    Attributes
    ----------
    tasks : TaskGraph
    start, finish : ndarray of float64, shape [tasks] or [scenarios, tasks]
        Seconds.
    engine : {"max-plus", "event"}
        Which engine ran.
    """

    tasks: TaskGraph
    start: Floats
    finish: Floats
    engine: Literal["max-plus", "event"]

    @property
    def makespan(self) -> float:
        """Seconds from the begin to the end of the last task."""
        return float(self._single().finish.max(initial=0.0))

    @property
    def makespans(self) -> Floats:
        """The makespan of each scenario, shape [scenarios]; of one where there is no such axis."""
        return np.asarray(np.atleast_2d(self.finish).max(axis=1, initial=0.0))

    def scenario(self, position: int) -> Timeline:
        """The timeline of one scenario."""
        duration = self.tasks.duration
        return Timeline(
            tasks=self.tasks.with_duration(duration[position] if duration.ndim == 2 else duration),
            start=np.atleast_2d(self.start)[position],
            finish=np.atleast_2d(self.finish)[position],
            engine=self.engine,
        )

    def _single(self) -> Timeline:
        if self.start.ndim > 1:
            raise UnsupportedError(f"this timeline has {len(self.start)} scenarios; choose one with .scenario(i)")
        return self

    def busy(self) -> dict[str, float]:
        """The share of the makespan in which each resource has a task."""
        self._single()
        makespan, shares = self.makespan, {}
        for tasks, resource in zip(self._by_resource(), self.tasks.resources, strict=True):
            shares[resource.name] = covered(self.start[tasks], self.finish[tasks]) / makespan if makespan else 0.0
        return shares

    def bubble(self, stream: str = "compute") -> dict[str, float]:
        """The share of the makespan in which a stream of each group is idle.

        Raises
        ------
        UnknownNameError
            No resource has such a stream.
        """
        groups = {
            resource.group: name
            for resource, name in ((each, each.name) for each in self.tasks.resources)
            if resource.stream == stream
        }
        if not groups:
            raise UnknownNameError("stream", stream, {resource.stream for resource in self.tasks.resources})
        busy = self.busy()
        return {group: 1.0 - busy[name] for group, name in groups.items()}

    def exposed(self, kind: str, stream: str = "compute") -> dict[str, float]:
        """Seconds in which each group runs tasks of a kind and its compute stream has nothing else to do.

        Raises
        ------
        UnknownNameError
            The graph has no such kind.
        """
        self._single()
        chosen = self.tasks.of_kind(kind)
        inside: dict[str, list[np.ndarray[Any, Any]]] = {}
        beside: dict[str, list[np.ndarray[Any, Any]]] = {}
        for tasks, resource in zip(self._by_resource(), self.tasks.resources, strict=True):
            inside.setdefault(resource.group, []).append(tasks[chosen[tasks]])
            beside.setdefault(resource.group, [])
            if resource.stream == stream:
                beside[resource.group].append(tasks[~chosen[tasks]])
        empty = np.zeros(0, dtype=np.int64)
        result = {}
        for group, parts in inside.items():
            ours, others = np.concatenate(parts), np.concatenate([empty, *beside[group]])
            result[group] = without(self.start[ours], self.finish[ours], self.start[others], self.finish[others])
        return result

    def _by_resource(self) -> list[np.ndarray[Any, Any]]:
        order = np.argsort(self.tasks.resource, kind="stable")
        cuts = np.searchsorted(self.tasks.resource[order], np.arange(1, len(self.tasks.resources)))
        return np.split(order, cuts) if self.tasks.resources else []

    def critical_path(self) -> list[CriticalStep]:
        """The chain of tasks that decides the makespan, first to last, each with what it waited for."""
        if len(self._single().tasks) == 0:
            return []
        by_resource = self._by_resource()
        previous: dict[int, dict[int, int]] = {}

        def held(task: int) -> list[int]:
            """The task that left the resource when this one started."""
            resource = int(self.tasks.resource[task])
            discipline = self.tasks.resources[resource].discipline
            if discipline == "none":
                return []
            if resource not in previous:
                ids = by_resource[resource]
                if discipline != "order":
                    ids = ids[np.lexsort((self.finish[ids], self.start[ids]))]
                listed = ids.tolist()
                previous[resource] = dict(zip(listed[1:], listed[:-1], strict=True))
            before = previous[resource].get(task, -1)
            return [before] if before >= 0 and self.finish[before] == self.start[task] else []

        steps: list[CriticalStep] = []
        seen: set[int] = set()
        task = int(np.argmax(self.finish))
        while task >= 0:
            seen.add(task)
            waits = self.tasks.waits_for(task)
            # Tasks that take no time can hold each other at one instant; a path passes each once.
            needed = [each for each in waits[self.finish[waits] == self.start[task]].tolist() if each not in seen]
            holders = [each for each in held(task) if each not in seen]
            why: Literal["begin", "dependency", "resource"] = "begin"
            if needed or holders:
                why = "dependency" if needed else "resource"
            steps.append(self._step(task, why))
            task = [*needed, *holders, -1][0]
        return steps[::-1]

    def _step(self, task: int, why: Literal["begin", "dependency", "resource"]) -> CriticalStep:
        start, finish = float(self.start[task]), float(self.finish[task])
        return CriticalStep(
            task=task,
            name=self.tasks.name(task),
            resource=self.tasks.resources[self.tasks.resource[task]].name,
            start=start,
            finish=finish,
            waited_for=why,
            stretched=finish - start - float(self.tasks.duration[task]),
        )

    def save(self, path: str | Path) -> None:
        """Write a Chrome trace, which https://ui.perfetto.dev and chrome://tracing open.

        Groups are processes, streams threads. Spans nest by module path where tasks have one. The file
        appears whole or not at all.

        Raises
        ------
        FileError
            The file can't be written.
        """
        self._single()
        write_trace(Path(path), self.tasks, self.start, self.finish)

    def to_dict(self) -> dict[str, Any]:
        """The timeline as plain data: columns of tasks, and the tables that they point into."""
        self._single()
        tasks = self.tasks
        return {
            "version": VERSION,
            "engine": self.engine,
            "makespan": self.makespan,
            "resources": [
                {"name": each.name, "group": each.group, "stream": each.stream, "discipline": each.discipline}
                for each in tasks.resources
            ],
            "kinds": list(tasks.kinds),
            "labels": list(tasks.labels),
            "tasks": {
                "resource": tasks.resource.tolist(),
                "kind": tasks.kind.tolist(),
                "label": tasks.label.tolist(),
                "index": tasks.index.tolist(),
                "start": self.start.tolist(),
                "finish": self.finish.tolist(),
            },
        }
