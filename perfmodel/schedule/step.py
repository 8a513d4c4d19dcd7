"""The task graph of a whole step: a pipeline's schedule with every action spelled out as its parts.

A rank's actions follow each other in the schedule's order. The main parts of an action are a chain,
and the chain goes on from action to action; other parts run beside it, in order on their stream
(:class:`perfmodel.timing.parts.StageWork`). A stage's first part waits for the transfer from the
stage before, backward from the stage after. The optimizer waits for everything that its rank sends.

The host issues the actions in the same order, and runs ahead: an action's parts can't start before
the host is far enough ahead of the device not to hold it up within the action.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from perfmodel.schedule.actions import ActionKind, Floats, Ints, Schedule
from perfmodel.schedule.build import action_tables
from perfmodel.schedule.closed_form import has_closed_form, pipeline_time
from perfmodel.schedule.pipeline import SCHEDULES
from perfmodel.schedule.tasks import Resource, TaskGraph
from perfmodel.timing.parts import BEFORE, StageWork

__all__ = ["COMPUTE", "StepParts", "busy_by_rank", "regular_step", "step_tasks", "works_of"]

#: Parts of the main chain are on this stream, or on that of the group whose collective they wait for.
COMPUTE = "compute"

#: Parts of one action that are issued at the same place are told apart by so many bits.
_PART_BITS = 24

WorkOf = Callable[[int, str, bool, bool], StageWork]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepParts:
    """What a step is made of.

    Attributes
    ----------
    schedule : Schedule
    work : callable
        Stage, action, whether it's the stage's first and its last of the step, to the action's parts.
    transfer_forward, transfer_backward : ndarray of float64, shape [stages]
        Seconds from a stage to the next, and back to it.
    blocking : bool
        Whether a transfer holds up its sender.
    start : float
        Seconds that each host spends before it issues anything.
    """

    schedule: Schedule
    work: WorkOf
    transfer_forward: Floats
    transfer_backward: Floats
    blocking: bool = False
    start: float = 0.0


def step_tasks(parts: StepParts) -> TaskGraph:
    """The task graph of a step.

    Parameters
    ----------
    parts : StepParts

    Returns
    -------
    TaskGraph
        Groups are ``"rank 0"``, …: the ranks of one pipeline. Kinds are phases of compute, kinds of groups that
        communicate, ``"transfer"`` between stages, and ``"host"``.
    """
    return _Step(parts).run()


def works_of(parts: StepParts) -> list[tuple[StageWork, ...]]:
    """The work of every action of the schedule; of an overlapped pair the forward's and the backward's."""
    schedule, work = parts.schedule, parts.work
    tables = dict(zip("FBW", action_tables(schedule), strict=True))
    first = {name: table.min(axis=1).tolist() for name, table in tables.items()}
    last = {name: table.max(axis=1).tolist() for name, table in tables.items()}

    def of(position: int, name: str, stage: int) -> StageWork:
        table = "B" if name == "I" else name
        return work(stage, name, position == first[table][stage], position == last[table][stage])

    found: list[tuple[StageWork, ...]] = []
    columns = (schedule.kind, schedule.stage, schedule.backward_stage)
    for position, (kind, stage, other) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
        if kind == ActionKind.FB:
            found.append((of(position, "F", stage), of(position, "B", other)))
        else:
            found.append((of(position, ActionKind(kind).name, stage),))
    return found


def busy_by_rank(parts: StepParts) -> list[dict[str, float]]:
    """Seconds by kind of what each rank does one after the other, the optimizer included."""
    schedule = parts.schedule
    counts: dict[tuple[int, int], tuple[int, StageWork]] = {}
    for rank, works in zip(schedule.action_rank.tolist(), works_of(parts), strict=True):
        for work in works:
            times, _ = counts.get((rank, id(work)), (0, work))
            counts[rank, id(work)] = times + 1, work
    found: list[dict[str, float]] = [{} for _ in range(schedule.pp)]
    steps = [(rank, 1, parts.work(stage, "O", True, True)) for stage, rank in enumerate(schedule.stage_rank.tolist())]
    for rank, times, work in [*((rank, times, work) for (rank, _), (times, work) in counts.items()), *steps]:
        for kind, seconds in work.busy.items():
            found[rank][kind] = found[rank].get(kind, 0.0) + times * seconds
    return found


def regular_step(parts: StepParts) -> float | None:
    """Seconds of a step by formula, where all stages take the same time and nothing runs beside their compute.

    Within a per cent of the simulation: what only the first or the last micro-batch does is counted once, and
    the host, which must not be slower than the device, only before the first op.
    """
    schedule = parts.schedule
    stages = range(schedule.stages)
    split = schedule.splits_backward
    names = ("F", "I", "W") if split else ("F", "B")
    works = {name: [parts.work(stage, name, False, False) for stage in stages] for name in names}
    ends = [parts.work(stage, name, first, not first) for stage in stages for name in names for first in (True, False)]
    every = [work for known in works.values() for work in known]
    if not all(work.main.all() and work.host <= work.time for work in (*every, *ends)):
        return None
    times = {name: np.array([work.time for work in known]) for name, known in works.items()}
    hops = [parts.transfer_forward[:-1], parts.transfer_backward[:-1]]
    if any(np.ptp(each) > 1e-9 * np.max(each) for each in times.values()) or (
        schedule.pp > 1 and np.ptp(np.concatenate(hops)) > 0
    ):
        return None
    plan = {
        "pp": schedule.pp,
        "micro_batches": schedule.micro_batches,
        "chunks": schedule.stages_per_rank,
        "forward": float(times["F"][0]),
        "backward_input": float(times["I" if split else "B"][0]),
        "backward_weight": float(times["W"][0]) if split else 0.0,
        "p2p": float(parts.transfer_forward[0]) if schedule.pp > 1 else 0.0,
    }
    if schedule.name not in SCHEDULES or parts.blocking or not bool(has_closed_form(schedule.name, **plan)):
        return None
    optimizer = [0.0] * schedule.pp
    extra = [0.0] * schedule.pp
    for stage, rank in enumerate(schedule.stage_rank.tolist()):
        optimizer[rank] += parts.work(stage, "O", True, True).time
        for name in names:
            usual = parts.work(stage, name, False, False).time
            extra[rank] += sum(parts.work(stage, name, first, not first).time - usual for first in (True, False))
    lead = parts.start + works["F"][0].lead
    return lead + float(pipeline_time(schedule.name, **plan)) + float(np.add(optimizer, extra).max())


@dataclass(slots=True)
class _Table:
    """Columns of tasks as they come; sorting by resource gives the final ids."""

    names: dict[str, dict[str, int]] = field(default_factory=lambda: {"kind": {}, "label": {}, "path": {"": 0}})
    resources: dict[tuple[int, str], int] = field(default_factory=dict)
    columns: list[tuple[Ints, ...]] = field(default_factory=list)
    durations: list[Floats] = field(default_factory=list)
    edges: list[tuple[Ints, Ints]] = field(default_factory=list)
    count: int = 0

    def name(self, table: str, text: str) -> int:
        return self.names[table].setdefault(text, len(self.names[table]))

    def resource(self, rank: int, stream: str) -> int:
        return self.resources.setdefault((rank, stream), len(self.resources))

    def add(self, duration: Floats, *columns: Ints | int) -> Ints:
        """Tasks by duration, resource, two sorting keys, kind, label, index and path; returns their provisional ids."""
        count = len(duration)
        self.columns.append(tuple(np.broadcast_to(np.asarray(c, dtype=np.int64), (count,)) for c in columns))
        self.durations.append(duration)
        self.count += count
        return np.arange(self.count - count, self.count)

    def build(self) -> TaskGraph:
        resource, key, second, kind, label, index, path = (np.concatenate(c) for c in zip(*self.columns, strict=True))
        order = np.lexsort((second, key, resource))
        new = np.empty(self.count, dtype=np.int64)
        new[order] = np.arange(self.count)
        source, target = (new[np.concatenate(ends)] for ends in zip(*self.edges, strict=True))
        resources = tuple(
            Resource(name=f"rank {rank} {stream}", group=f"rank {rank}", stream=stream)
            for rank, stream in self.resources
        )
        return TaskGraph(
            duration=np.concatenate(self.durations)[order],
            resource=resource[order],
            predecessor_offsets=np.concatenate([[0], np.cumsum(np.bincount(target, minlength=self.count))]),
            predecessors=source[np.argsort(target, kind="stable")],
            kind=kind[order],
            label=label[order],
            index=index[order],
            kinds=tuple(self.names["kind"]),
            labels=tuple(self.names["label"]),
            resources=resources,
            path=path[order] - 1,
            paths=tuple(self.names["path"])[1:],
        )


class _Step:
    def __init__(self, parts: StepParts) -> None:
        self.parts = parts
        self.schedule = parts.schedule
        self.rank = self.schedule.action_rank
        self.table = _Table()
        count = len(self.schedule.kind)
        #: First and last main part of each action, and of the backward of an overlapped pair.
        self.entry, self.exit, self.backward_entry, self.backward_exit = (
            np.zeros(count, dtype=np.int64) for _ in range(4)
        )
        #: Parts that wait for what precedes an action: actions and parts.
        self.early: list[tuple[Ints, Ints]] = []
        #: The last part of each resource that runs beside the main chain: sorting keys and part.
        self.beside: dict[int, tuple[int, int, int]] = {}

    def run(self) -> TaskGraph:
        works = works_of(self.parts)
        self._add_actions(works)
        forward, backward, _ = action_tables(self.schedule)
        forwards, backwards = (self.entry, self.forward_exit), (self.backward_entry, self.backward_exit)
        self._add_hops("activations", self.parts.transfer_forward, forward[:-1], forward[1:], forwards)
        self._add_hops("gradients", self.parts.transfer_backward, backward[1:], backward[:-1], backwards)
        self._add_optimizers(works)
        return self.table.build()

    # -- actions --------------------------------------------------------------------

    def _add_actions(self, works: Sequence[tuple[StageWork, ...]]) -> None:
        """Actions of the same stages and parts at once."""
        self.forward_exit = np.zeros(len(works), dtype=np.int64)
        alike: dict[tuple[int, ...], list[int]] = {}
        stages = zip(self.schedule.stage.tolist(), self.schedule.backward_stage.tolist(), strict=True)
        for position, (work, (stage, other)) in enumerate(zip(works, stages, strict=True)):
            alike.setdefault((stage, other, *map(id, work)), []).append(position)
        for positions in alike.values():
            self._add_alike(works[positions[0]], np.array(positions, dtype=np.int64))
        follows = np.flatnonzero(self.rank[1:] == self.rank[:-1]) + 1
        self.table.edges.append((self.exit[follows - 1], self.entry[follows]))
        before = np.full(len(works), -1, dtype=np.int64)
        before[follows] = self.exit[follows - 1]
        for positions_, ids in self.early:
            known = before[positions_] >= 0
            self.table.edges.append((before[positions_][known], ids[known]))
        self._add_hosts(works)

    def _add_alike(self, works: tuple[StageWork, ...], positions: Ints) -> None:
        schedule, first = self.schedule, int(positions[0])
        names = ("F", "B") if len(works) == 2 else (ActionKind(int(schedule.kind[first])).name,)
        before: Ints | None = None
        shift = 0
        for number, (name, work) in enumerate(zip(names, works, strict=True)):
            other = number == 1
            stage = (schedule.backward_stage if other else schedule.stage)[first]
            batches = (schedule.backward_micro_batch if other else schedule.micro_batch)[positions]
            ids = self._add_work(
                work, int(self.rank[first]), positions, batches, f"{name} stage {stage}", shift, before
            )
            main = np.flatnonzero(work.main)
            entry, last = ids[:, main[0]], ids[:, main[-1]]
            if not other:
                self.entry[positions], self.forward_exit[positions] = entry, last
            self.backward_entry[positions], self.backward_exit[positions] = entry, last
            self.exit[positions] = before = last
            shift += int(work.issue.max()) + 1

    def _add_work(
        self, work: StageWork, rank: int, positions: Ints, batches: Ints, title: str, shift: int, before: Ints | None
    ) -> Ints:
        """Parts of one work for several actions, as ids of shape [actions, parts]."""
        table, count, parts = self.table, len(positions), len(work.duration)
        resource = np.array([table.resource(rank, stream) for stream in work.stream])
        kind = np.array([table.name("kind", kind) for kind in work.kind])
        path = np.array([table.name("path", path) for path in work.path])
        titles = [label if path else (title if main else f"{label} {title}")
                  for label, path, main in zip(work.label, work.path, work.main.tolist(), strict=True)]  # fmt: skip
        label = np.array([table.name("label", text) for text in titles])
        issue = ((work.issue + shift) << _PART_BITS) + np.arange(parts)
        ids = table.add(
            np.tile(work.duration, count),
            np.tile(resource, count),
            np.repeat(positions * 2, parts),
            np.tile(issue, count),
            np.tile(kind, count),
            np.tile(label, count),
            np.repeat(batches, parts),
            np.tile(path, count),
        ).reshape(count, parts)
        main = np.flatnonzero(work.main)
        table.edges.append((ids[:, main[:-1]].ravel(), ids[:, main[1:]].ravel()))
        if before is not None:
            table.edges.append((before, ids[:, main[0]]))
        inner = [(j, i) for i, after in enumerate(work.after) for j in after if j >= 0]
        if inner:
            source, target = np.array(inner).T
            table.edges.append((ids[:, source].ravel(), ids[:, target].ravel()))
        for part, after in enumerate(work.after):
            if BEFORE in after and before is not None:
                table.edges.append((before, ids[:, part]))
            elif BEFORE in after:
                self.early.append((positions, ids[:, part]))
        for part in np.flatnonzero(~work.main).tolist():
            end = (int(positions[-1]), int(issue[part]), int(ids[-1, part]))
            self.beside[int(resource[part])] = max(end, self.beside.get(int(resource[part]), (-1, -1, -1)))
        return ids

    # -- hosts ------------------------------------------------------------------------

    def _add_hosts(self, works: Sequence[tuple[StageWork, ...]]) -> None:
        """Two tasks for each action: until the device can begin, and the rest."""
        known: dict[tuple[int, ...], tuple[float, float]] = {}
        for work in works:
            key = tuple(map(id, work))
            if key not in known:
                known[key] = _host(work)
        pairs = np.array([known[tuple(map(id, work))] for work in works])
        if not pairs.any() and not self.parts.start:
            return
        begins = np.flatnonzero(np.concatenate([[True], self.rank[1:] != self.rank[:-1]]))
        lead = pairs[:, 0].copy()
        lead[begins] += self.parts.start
        positions = np.arange(len(works))
        self._add_host(self.rank, positions, lead, pairs[:, 1], self.entry, self.schedule.micro_batch)

    def _add_host(self, rank: Ints, key: Ints, lead: Floats, rest: Floats, entry: Ints, index: Ints) -> None:
        table = self.table
        resource = np.array([table.resource(r, "host") for r in range(self.schedule.pp)])[rank]
        kind, label = table.name("kind", "host"), table.name("label", "issue")
        ids = table.add(lead, resource, 2 * key, 0, kind, label, index, 0)
        table.add(rest, resource, 2 * key, 1, kind, label, index, 0)
        table.edges.append((ids, entry))

    # -- between stages -----------------------------------------------------------------

    def _add_hops(self, what: str, seconds: Floats, producers: Ints, consumers: Ints, ends: tuple[Ints, Ints]) -> None:
        """Dependencies between neighbour stages, [stages - 1, micro-batches], with transfers where ranks differ."""
        table, rank = self.table, self.rank
        entry, exit_ = ends
        forwards = what == "activations"
        stages, batches = producers.shape
        source, target = producers.ravel(), consumers.ravel()
        each = np.repeat(seconds[:-1], batches)
        crosses = (rank[source] != rank[target]) & (each > 0)
        table.edges.append((exit_[source[~crosses]], entry[target[~crosses]]))
        if not crosses.any():
            return
        source, target, each = source[crosses], target[crosses], each[crosses]
        pairs = list(zip(rank[source].tolist(), rank[target].tolist(), strict=True))
        streams = {
            (a, b): table.resource(a, COMPUTE if self.parts.blocking else f"{what} to rank {b}")
            for a, b in sorted(set(pairs))
        }
        numbers = np.repeat(np.arange(stages), batches)[crosses]
        labels = [
            table.name("label", f"{what} stage {s if forwards else s + 1} to stage {s + 1 if forwards else s}")
            for s in range(stages)
        ]
        ids = table.add(
            each,
            np.array([streams[pair] for pair in pairs]),
            2 * source + 1,
            0 if forwards else 1,
            table.name("kind", "transfer"),
            np.array(labels)[numbers],
            np.tile(np.arange(batches), stages)[crosses],
            0,
        )
        table.edges += [(exit_[source], ids), (ids, entry[target])]

    # -- the optimizer ------------------------------------------------------------------

    def _add_optimizers(self, works: Sequence[tuple[StageWork, ...]]) -> None:
        schedule, count = self.schedule, len(works)
        rank_of = {number: rank for (rank, _), number in self.table.resources.items()}
        sent: dict[int, list[int]] = {}
        for resource, (_, _, part) in self.beside.items():
            sent.setdefault(rank_of[resource], []).append(part)
        has_host = any(stream == "host" for _, stream in self.table.resources)
        for rank in range(schedule.pp):
            before = self.exit[int(schedule.offsets[rank + 1]) - 1]
            waits = sent.get(rank, [])
            for stage in np.flatnonzero(schedule.stage_rank == rank).tolist():
                work = self.parts.work(stage, "O", True, True)
                place = np.array([count + stage])
                ids = self._add_work(work, rank, place, np.array([-1]), "optimizer", 0, np.array([before]))[0]
                main = ids[np.flatnonzero(work.main)]
                self.table.edges.append((np.array(waits, dtype=np.int64), np.full(len(waits), main[0])))
                if has_host:
                    lead, rest = _host((work,))
                    self._add_host(
                        np.array([rank]), place, np.array([lead]), np.array([rest]), main[:1], np.array([-1])
                    )
                before, waits = main[-1], []


def _host(works: Sequence[StageWork]) -> tuple[float, float]:
    """Seconds that the host needs before the device can begin never to wait, and for the rest."""
    lead = total = done = 0.0
    for work in works:
        lead = max(lead, total + work.lead - done)
        total, done = total + work.host, done + work.time
    return min(lead, total), max(total - lead, 0.0)
