"""The event engine: for queues that choose, links that are shared, and work that slows down.

One heap of events keyed by (time, task) makes it deterministic. All events of one instant are
taken before any task starts, so a queue chooses among everything that is ready by then.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np

from perfmodel.schedule.actions import Floats
from perfmodel.schedule.order import cross_edges, cycle
from perfmodel.schedule.tasks import TaskGraph
from perfmodel.simulate.fairshare import fair_rates

__all__ = ["run_events"]


def run_events(tasks: TaskGraph, duration: Floats) -> tuple[Floats, Floats]:
    """Start and finish of every task.

    Parameters
    ----------
    tasks : TaskGraph
    duration : ndarray of float64, shape [tasks]
        Taken instead of the graph's.

    Raises
    ------
    UnsupportedError
        Tasks wait for each other.
    """
    run = _Run(tasks, duration)
    run.go()
    if run.open:
        raise cycle(tasks, np.flatnonzero(np.isnan(run.finish_times())))
    return np.array(run.start), run.finish_times()


class _Run:
    """The state of one run; every collection is indexed by task, resource or link position."""

    def __init__(self, tasks: TaskGraph, duration: Floats) -> None:
        count = len(tasks)
        source, target = cross_edges(tasks)
        self.resource: list[int] = tasks.resource.tolist()
        self.waits: list[int] = np.bincount(target, minlength=count).tolist()
        ends = np.cumsum(np.bincount(source, minlength=count)).tolist()
        self.after: list[int] = target[np.argsort(source, kind="stable")].tolist()
        self.after_ends: list[int] = [0, *ends]
        self.start = [float("nan")] * count
        self.finish = [float("nan")] * count
        self.open = count
        self.events: list[tuple[float, int, int]] = []
        self.version = [0] * count
        self.left: list[float] = duration.tolist()
        self.rate = [1.0] * count
        self.since = [0.0] * count
        self.queues = [_queue(tasks, position) for position in range(len(tasks.resources))]
        self.running: list[set[int]] = [set() for _ in tasks.resources]
        # Interference.
        self.slowed_by: dict[int, list[tuple[tuple[int, ...], float]]] = {}
        self.slows: dict[int, list[int]] = {}
        for interference in tasks.interferences:
            self.slowed_by.setdefault(interference.resource, []).append((interference.by, interference.factor))
            for other in interference.by:
                self.slows.setdefault(other, []).append(interference.resource)
        # Transfers.
        self.bytes: list[float] = [0.0] * count if tasks.size is None else tasks.size.tolist()
        self.bandwidth = [link.bandwidth for link in tasks.links]
        self.flows: list[set[int]] = [set() for _ in tasks.links]
        self.route_offsets: list[int] = [] if tasks.route_offsets is None else tasks.route_offsets.tolist()
        self.routes: list[int] = [] if tasks.routes is None else tasks.routes.tolist()

    def finish_times(self) -> Floats:
        return np.array(self.finish)

    def route(self, task: int) -> list[int]:
        return self.routes[self.route_offsets[task] : self.route_offsets[task + 1]]

    def go(self) -> None:
        touched = set()
        for task, waits in enumerate(self.waits):
            if waits == 0:
                touched.add(self.resource[task])
                self.queues[self.resource[task]].ready(0.0, task)
        self.dispatch(0.0, touched)
        while self.events:
            now = self.events[0][0]
            touched = set()
            changed: set[int] = set()
            while self.events and self.events[0][0] == now:
                _, task, version = heapq.heappop(self.events)
                if version == self.version[task]:
                    self.end_phase(now, task, touched, changed)
            self.dispatch(now, touched)
            if changed:
                self.share(now, changed)

    def end_phase(self, now: float, task: int, touched: set[int], changed: set[int]) -> None:
        flowing = self.bytes[task] < 0
        if self.bytes[task] > 0:  # the latency is over, the bytes begin
            self.left[task], self.bytes[task] = self.bytes[task], -1.0
            self.rate[task], self.since[task] = 0.0, now
            for link in self.route(task):
                self.flows[link].add(task)
                changed.add(link)
            return
        if flowing:
            for link in self.route(task):
                self.flows[link].discard(task)
                changed.add(link)
        self.finish[task] = now
        self.open -= 1
        resource = self.resource[task]
        self.running[resource].discard(task)
        touched.add(resource)
        for other in self.after[self.after_ends[task] : self.after_ends[task + 1]]:
            self.waits[other] -= 1
            if self.waits[other] == 0:
                touched.add(self.resource[other])
                self.queues[self.resource[other]].ready(now, other)

    def dispatch(self, now: float, touched: set[int]) -> None:
        slowed: set[int] = set()
        for resource in sorted(touched):
            for task in self.queues[resource].take(len(self.running[resource])):
                self.start[task] = self.since[task] = now
                self.running[resource].add(task)
                self.schedule(now, task, 1.0 if resource not in self.slowed_by else self.speed(resource))
            slowed.update(self.slows.get(resource, ()))
        for resource in sorted(slowed):
            speed = self.speed(resource)
            for task in sorted(self.running[resource]):
                if self.bytes[task] >= 0 and self.rate[task] != speed:
                    self.schedule(now, task, speed)

    def speed(self, resource: int) -> float:
        factor = 1.0
        for by, each in self.slowed_by[resource]:
            if any(self.running[other] for other in by):
                factor *= each
        return 1.0 / factor

    def schedule(self, now: float, task: int, rate: float) -> None:
        """Let a running task go on at another rate from now."""
        if now > self.since[task]:
            self.left[task] = max(self.left[task] - (now - self.since[task]) * self.rate[task], 0.0)
        self.since[task], self.rate[task] = now, rate
        self.version[task] += 1
        heapq.heappush(self.events, (now + self.left[task] / rate, task, self.version[task]))

    def share(self, now: float, changed: set[int]) -> None:
        """Share links anew among the transfers that a change reaches."""
        reached: dict[int, list[int]] = {}
        links = sorted(changed)
        seen = set(links)
        while links:
            for task in self.flows[links.pop()]:
                if task not in reached:
                    reached[task] = self.route(task)
                    links.extend(link for link in reached[task] if link not in seen)
                    seen.update(reached[task])
        for task, rate in sorted(fair_rates(dict(sorted(reached.items())), self.bandwidth).items()):
            if rate != self.rate[task]:
                self.schedule(now, task, rate)


class _Queue:
    """What waits for a resource; ``take`` gives the tasks to start now."""

    def __init__(self, key: Callable[[float, int], tuple[float, int]]) -> None:
        self.key = key
        self.heap: list[tuple[tuple[float, int], int]] = []

    def ready(self, now: float, task: int) -> None:
        heapq.heappush(self.heap, (self.key(now, task), task))

    def take(self, running: int) -> list[int]:
        return [] if running or not self.heap else [heapq.heappop(self.heap)[1]]


class _Ordered(_Queue):
    """Tasks start in the order of their ids, each once the one before has ended."""

    def __init__(self, ids: list[int]) -> None:
        super().__init__(lambda _, task: (0.0, task))
        self.ids = iter(ids)
        self.next = next(self.ids, -1)

    def take(self, running: int) -> list[int]:
        if running or not self.heap or self.heap[0][1] != self.next:
            return []
        self.next = next(self.ids, -1)
        return [heapq.heappop(self.heap)[1]]


class _Unlimited(_Queue):
    """Everything that is ready starts."""

    def __init__(self) -> None:
        super().__init__(lambda _, task: (0.0, task))

    def take(self, running: int) -> list[int]:
        del running
        tasks = sorted(task for _, task in self.heap)
        self.heap.clear()
        return tasks


def _queue(tasks: TaskGraph, position: int) -> _Queue:
    discipline = tasks.resources[position].discipline
    if discipline == "order":
        return _Ordered(np.flatnonzero(tasks.resource == position).tolist())
    if discipline == "none":
        return _Unlimited()
    if discipline == "fifo":
        return _Queue(lambda now, task: (now, task))
    priority = [0.0] * len(tasks) if tasks.priority is None else tasks.priority.tolist()
    return _Queue(lambda _, task: (-priority[task], task))
