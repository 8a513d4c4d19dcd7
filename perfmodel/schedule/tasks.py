"""The tasks of a step and what each waits for, as arrays.

A task occupies one resource (a rank's compute queue, a communication stream, a link …) for
its duration, after all its predecessors have ended. How a resource chooses among tasks that
are ready is its discipline:

========= =====================================================================
order     the order of the task ids; a task waits for the one before it
fifo      the one that has been ready longest; of several, the lowest id
priority  the one of the highest priority; of several, the lowest id
none      no choice: everything that is ready runs, side by side
========= =====================================================================

A task may also be a transfer: bytes along a route of links, after a latency (its
duration). Links share their bandwidth max-min fairly among the transfers on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from perfmodel.errors import UnknownNameError, UnsupportedError
from perfmodel.schedule.actions import Floats, Ints

__all__ = ["Discipline", "Interference", "Link", "Resource", "TaskGraph", "TaskGraphBuilder"]

Discipline = Literal["order", "fifo", "priority", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """What tasks occupy, and the lane of a timeline in which they are shown.

    Attributes
    ----------
    name : str
        Unique within a graph, e.g. ``"rank 3 compute"``.
    group : str
        What it belongs to, e.g. ``"rank 3"``: a process of the timeline.
    stream : str
        Its name within the group, e.g. ``"compute"``: a thread of the timeline.
    discipline : {"order", "fifo", "priority", "none"}
    """

    name: str
    group: str
    stream: str
    discipline: Discipline = "order"


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A link whose bandwidth (bytes/s) the transfers on it share."""

    name: str
    bandwidth: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Interference:
    """Tasks on ``resource`` take ``factor`` times as long while any task runs on one of ``by``.

    Several interferences that hold at once multiply. Factors are at least 1.
    """

    resource: int
    by: tuple[int, ...]
    factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskGraph:
    """Tasks as columns; a task's id is its position.

    Attributes
    ----------
    duration : ndarray of float64, shape [tasks] or [scenarios, tasks]
        Seconds; of a transfer, its latency.
    resource : ndarray of int64, shape [tasks]
        Positions in ``resources``.
    predecessor_offsets, predecessors : ndarray of int64, shapes [tasks + 1] and [edges]
        Task i waits for ``predecessors[predecessor_offsets[i]:predecessor_offsets[i + 1]]``.
    kind, label : ndarray of int64, shape [tasks]
        Positions in ``kinds`` (``"forward"``, ``"all-reduce"`` …) and ``labels`` (what a span is called).
    index : ndarray of int64, shape [tasks]
        Which of several with the same label, e.g. the micro-batch; -1 where there is one.
    path : ndarray of int64, shape [tasks], optional
        Positions in ``paths``, module paths such as ``"layers.3.mlp"``; -1 for none.
    priority : ndarray of float64, shape [tasks], optional
        Used by resources of that discipline; 0 where absent.
    size : ndarray of float64, shape [tasks], optional
        Bytes of transfers; 0 for other tasks.
    route_offsets, routes : ndarray of int64, optional
        The links of each transfer, as positions in ``links``, laid out like the predecessors.
    interferences : tuple of Interference
    """

    duration: Floats
    resource: Ints
    predecessor_offsets: Ints
    predecessors: Ints
    kind: Ints
    label: Ints
    index: Ints
    kinds: tuple[str, ...]
    labels: tuple[str, ...]
    resources: tuple[Resource, ...]
    path: Ints | None = None
    paths: tuple[str, ...] = ()
    priority: Floats | None = None
    size: Floats | None = None
    route_offsets: Ints | None = None
    routes: Ints | None = None
    links: tuple[Link, ...] = ()
    interferences: tuple[Interference, ...] = ()

    def __len__(self) -> int:
        return len(self.resource)

    @property
    def has_fixed_order(self) -> bool:
        """Whether durations alone say when everything happens: no queue to choose from, nothing shared."""
        shared = self.size is not None and bool(np.any(self.size > 0))
        return (
            not shared
            and not self.interferences
            and all(resource.discipline in ("order", "none") for resource in self.resources)
        )

    def name(self, task: int) -> str:
        """What a task is called.

        >>> from perfmodel.schedule import StageTimes, pipeline, pipeline_tasks
        >>> tasks = pipeline_tasks(pipeline("GPipe", pp=2, micro_batches=2), StageTimes(forward=1, backward_input=1))
        >>> tasks.name(3)
        'B stage 0 #1'
        """
        label, index = self.labels[self.label[task]], int(self.index[task])
        return label if index < 0 else f"{label} #{index}"

    def waits_for(self, task: int) -> Ints:
        """Ids of the tasks that must have ended before this one starts."""
        return self.predecessors[self.predecessor_offsets[task] : self.predecessor_offsets[task + 1]]

    def of_kind(self, kind: str) -> npt.NDArray[np.bool_]:
        """Which tasks are of a kind, shape [tasks].

        Raises
        ------
        UnknownNameError
            The graph has no such kind.
        """
        chosen: npt.NDArray[np.bool_] = self.kind == _position("kind of task", kind, self.kinds)
        return chosen

    def with_duration(self, duration: Floats) -> TaskGraph:
        """The same graph with other durations, shape [tasks] or [scenarios, tasks].

        Raises
        ------
        UnsupportedError
            The shape is another, or a duration is negative.
        """
        if duration.ndim not in (1, 2) or duration.shape[-1] != len(self):
            raise UnsupportedError(
                f"{len(self)} tasks need durations of shape [{len(self)}] or [scenarios, {len(self)}], "
                f"not {list(duration.shape)}"
            )
        if not np.all(duration >= 0):
            raise UnsupportedError(f"durations need to be at least 0, not {duration.min()}")
        return replace(self, duration=duration)

    def on_resource(self, name: str) -> int:
        """Position of a resource.

        Raises
        ------
        UnknownNameError
            The graph has no such resource.
        """
        return _position("resource", name, [resource.name for resource in self.resources])


def _position(what: str, name: str, names: Sequence[str]) -> int:
    if name not in names:
        raise UnknownNameError(what, name, names)
    return names.index(name)


@dataclass(slots=True)
class TaskGraphBuilder:
    """Make a graph task by task.

    Examples
    --------
    >>> build = TaskGraphBuilder()
    >>> compute = build.resource("gpu", group="rank 0", stream="compute")
    >>> network = build.resource("nic", group="rank 0", stream="network")
    >>> backward = build.add(compute, 2.0, kind="backward")
    >>> reduction = build.add(network, 1.0, kind="all-reduce", after=[backward])
    >>> graph = build.build()
    >>> len(graph), graph.waits_for(reduction).tolist()
    (2, [0])
    """

    _resources: list[Resource] = field(default_factory=list)
    _links: list[Link] = field(default_factory=list)
    _interferences: list[Interference] = field(default_factory=list)
    _tables: dict[str, dict[str, int]] = field(default_factory=lambda: {"kind": {}, "label": {}, "path": {}})
    _rows: list[tuple[int, float, int, int, int, int, float, float]] = field(default_factory=list)
    _after: list[tuple[int, ...]] = field(default_factory=list)
    _route: list[tuple[int, ...]] = field(default_factory=list)

    def resource(self, name: str, *, group: str, stream: str, discipline: Discipline = "order") -> int:
        """Add a resource and return its position.

        Raises
        ------
        UnsupportedError
            The name is taken.
        UnknownNameError
            There is no such discipline.
        """
        if any(other.name == name for other in self._resources):
            raise UnsupportedError(f"two resources are called {name!r}; give each its own name")
        if discipline not in get_args(Discipline):
            raise UnknownNameError("discipline", discipline, get_args(Discipline))
        self._resources.append(Resource(name=name, group=group, stream=stream, discipline=discipline))
        return len(self._resources) - 1

    def link(self, name: str, bandwidth: float) -> int:
        """Add a shared link of so many bytes/s and return its position.

        Raises
        ------
        UnsupportedError
            The bandwidth isn't positive.
        """
        if not bandwidth > 0:
            raise UnsupportedError(f"link {name!r} needs a bandwidth above 0 bytes/s, not {bandwidth}")
        self._links.append(Link(name=name, bandwidth=bandwidth))
        return len(self._links) - 1

    def interfere(self, resource: int, *, by: Iterable[int], factor: float) -> None:
        """Let tasks on a resource take ``factor`` times as long while a task runs on one of ``by``.

        Raises
        ------
        UnsupportedError
            The factor is below 1.
        """
        if not factor >= 1:
            raise UnsupportedError(f"an interference needs a factor of at least 1, not {factor}")
        self._interferences.append(Interference(resource=resource, by=tuple(by), factor=factor))

    def add(
        self,
        resource: int,
        duration: float,
        *,
        kind: str,
        after: Iterable[int] = (),
        label: str = "",
        index: int = -1,
        path: str = "",
        priority: float = 0.0,
        size: float = 0.0,
        route: Iterable[int] = (),
    ) -> int:
        """Add a task and return its id; the arguments are as in `TaskGraph`.

        Raises
        ------
        UnsupportedError
            The duration or size is negative, or bytes have no route.
        """
        task, links = len(self._rows), tuple(route)
        if not 0 <= resource < len(self._resources):
            raise UnsupportedError(f"task {task} ({kind}) is on resource {resource}, which hasn't been added")
        if not duration >= 0 or not size >= 0:
            raise UnsupportedError(
                f"task {task} ({kind}) needs a duration and size of at least 0, not {duration} and {size}"
            )
        if size > 0 and not links:
            raise UnsupportedError(f"task {task} ({kind}) has {size:g} bytes and no route; give the links they take")
        ids = [
            table.setdefault(text, len(table))
            for table, text in zip(self._tables.values(), (kind, label or kind, path), strict=True)
        ]
        self._rows.append((resource, duration, ids[0], ids[1], index, ids[2], priority, size))
        self._after.append(tuple(after))
        self._route.append(links)
        return task

    def build(self) -> TaskGraph:
        """The graph so far.

        Raises
        ------
        UnsupportedError
            A task waits for one that hasn't been added, or a route names a link that hasn't.
        """
        table = np.array(self._rows, dtype=np.float64).reshape(-1, 8)
        resource, kind, label, index, path = (table[:, c].astype(np.int64) for c in (0, 2, 3, 4, 5))
        offsets, predecessors = _ragged(self._after)
        _within(predecessors, len(self._rows), offsets, "waits for task", "add it")
        route_offsets, routes = _ragged(self._route)
        _within(routes, len(self._links), route_offsets, "goes over link", "add it with link()")
        names: Mapping[str, tuple[str, ...]] = {key: tuple(texts) for key, texts in self._tables.items()}
        empty = self._tables["path"].get("", -1)
        return TaskGraph(
            duration=table[:, 1].copy(),
            resource=resource,
            predecessor_offsets=offsets,
            predecessors=predecessors,
            kind=kind,
            label=label,
            index=index,
            kinds=names["kind"],
            labels=names["label"],
            resources=tuple(self._resources),
            path=np.where(path == empty, -1, path),
            paths=names["path"],
            priority=table[:, 6].copy(),
            size=table[:, 7].copy(),
            route_offsets=route_offsets,
            routes=routes,
            links=tuple(self._links),
            interferences=tuple(self._interferences),
        )


def _ragged(rows: Sequence[tuple[int, ...]]) -> tuple[Ints, Ints]:
    lengths = np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
    return offsets, np.fromiter((value for row in rows for value in row), dtype=np.int64, count=int(offsets[-1]))


def _within(values: Ints, limit: int, offsets: Ints, what: str, cure: str) -> None:
    wrong = np.flatnonzero((values < 0) | (values >= limit))
    if len(wrong):
        task = int(np.searchsorted(offsets, wrong[0], side="right")) - 1
        raise UnsupportedError(f"task {task} {what} {values[wrong[0]]}, which doesn't exist; {cure}")
