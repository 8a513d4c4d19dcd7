"""The task graph of a pipeline: its schedule, and how long each stage takes.

A forward waits for the forward of the stage before, a backward for the backward of the
stage after, in both cases through a transfer where the two stages are on different ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from perfmodel.errors import UnsupportedError
from perfmodel.schedule.actions import ActionKind, Floats, Ints, Schedule
from perfmodel.schedule.tasks import Resource, TaskGraph

__all__ = ["StageTimes", "pipeline_tasks"]

KINDS = (
    "forward",
    "backward",
    "backward input",
    "backward weight",
    "forward+backward",
    "transfer",
    "reduction",
    "optimizer",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTimes:
    """Seconds of one pipeline's parts.

    The first five are a number, or an array of shape [stages], [stages, micro-batches] or
    [scenarios, stages, micro-batches].

    Attributes
    ----------
    forward : array_like
    backward_input, backward_weight : array_like
        The two parts of a backward; a full backward takes their sum.
    transfer_forward, transfer_backward : array_like
        From a stage to the next, and its gradient from the next stage back to it; the entry of the last
        stage is unused. 0 leaves out the transfers, so that nothing waits in a queue for them.
    pair : float
        What an overlapped forward and backward take, as a fraction of their sum.
    reduction : array_like, optional
        Reducing a stage's gradients, after its last backward, on the rank's communication stream. A number,
        [stages] or [scenarios, stages].
    optimizer : array_like, optional
        A rank's optimizer, after its last action and reduction. A number, [pp] or [scenarios, pp].
    blocking : bool
        Whether a transfer holds up the rank that sends (as with a synchronous send) or runs beside its compute.
    """

    forward: npt.ArrayLike
    backward_input: npt.ArrayLike
    backward_weight: npt.ArrayLike = 0.0
    transfer_forward: npt.ArrayLike = 0.0
    transfer_backward: npt.ArrayLike = 0.0
    pair: float = 1.0
    reduction: npt.ArrayLike | None = None
    optimizer: npt.ArrayLike | None = None
    blocking: bool = False


def pipeline_tasks(schedule: Schedule, times: StageTimes) -> TaskGraph:
    """The task graph of a schedule, with all its orders fixed.

    Raises
    ------
    UnsupportedError
        Times don't have the shape they need, or are negative.

    Examples
    --------
    >>> from perfmodel.schedule import pipeline
    >>> times = StageTimes(forward=1.0, backward_input=1.0, backward_weight=1.0, transfer_forward=0.1)
    >>> len(pipeline_tasks(pipeline("1F1B", pp=4, micro_batches=8), times))
    88
    """
    forward, backward, weight = action_tables(schedule)
    parts = _Parts(
        [Resource(name=f"rank {r} compute", group=f"rank {r}", stream="compute") for r in range(schedule.pp)]
    )
    _add_actions(parts, schedule, times)
    # A forward waits for the stage before and a backward for the stage after. That a stage's backward follows
    # its forward, and a weight gradient the input's, is in the order of the rank already.
    _add_hops(parts, schedule, times, "activations", forward[:-1], forward[1:])
    _add_hops(parts, schedule, times, "gradients", backward[1:], backward[:-1])
    reductions = None
    if times.reduction is not None:
        reductions = _add_reductions(parts, schedule, times.reduction, np.maximum(backward, weight).max(axis=1))
    if times.optimizer is not None:
        _add_optimizer(parts, schedule, times.optimizer, reductions)
    return parts.build()


class _Parts:
    """Columns of tasks as they come, before sorting by resource gives them their ids."""

    def __init__(self, resources: list[Resource]) -> None:
        self.resources = resources
        self.labels: list[str] = []
        self.count = 0
        self.columns: list[tuple[Ints, Ints, Ints, Ints, Ints]] = []
        self.durations: list[Floats] = []
        self.edges: list[tuple[Ints, Ints]] = []

    def add(
        self, resource: Ints, key: Ints, duration: Floats, kind: int | Ints, labels: list[str], label: Ints, index: Ints
    ) -> Ints:
        """Add tasks and return their provisional ids.

        ``key`` orders tasks on the same resource: three times an action's position, and more for what follows it.
        """
        count = len(resource)
        kinds = np.broadcast_to(np.asarray(kind), (count,))
        self.columns.append((resource, key, kinds, len(self.labels) + label, index))
        self.durations.append(duration)
        self.labels += labels
        self.count += count
        return np.arange(self.count - count, self.count)

    def build(self) -> TaskGraph:
        resource, key, kind, label, index = (np.concatenate(column) for column in zip(*self.columns, strict=True))
        order = np.lexsort((key, resource))
        new = np.empty(self.count, dtype=np.int64)
        new[order] = np.arange(self.count)
        source, target = (new[np.concatenate(ends)] for ends in zip(*self.edges, strict=True))
        lead = np.broadcast_shapes(*(each.shape[:-1] for each in self.durations))
        durations = [np.broadcast_to(each, (*lead, each.shape[-1])) for each in self.durations]
        return TaskGraph(
            duration=np.concatenate(durations, axis=-1)[..., order],
            resource=resource[order],
            predecessor_offsets=np.concatenate([[0], np.cumsum(np.bincount(target, minlength=self.count))]),
            predecessors=source[np.argsort(target, kind="stable")],
            kind=kind[order],
            label=label[order],
            index=index[order],
            kinds=KINDS,
            labels=tuple(self.labels),
            resources=tuple(self.resources),
        )


def _add_actions(parts: _Parts, schedule: Schedule, times: StageTimes) -> None:
    stages = schedule.stages
    labels = [f"{kind.name} stage {stage}" for kind in list(ActionKind)[:4] for stage in range(stages)]
    label = schedule.kind * stages + schedule.stage
    pairs = schedule.kind == ActionKind.FB
    if pairs.any():
        both = np.stack([schedule.stage[pairs], schedule.backward_stage[pairs]])
        named, position = np.unique(both, axis=1, return_inverse=True)
        label[pairs] = len(labels) + position.ravel()
        labels += [f"F stage {a} + B stage {b}" for a, b in named.T.tolist()]
    position = np.arange(len(schedule.kind))
    duration = _action_times(schedule, times)
    parts.add(schedule.action_rank, 3 * position, duration, schedule.kind, labels, label, schedule.micro_batch)


def _add_hops(
    parts: _Parts, schedule: Schedule, times: StageTimes, what: str, producers: Ints, consumers: Ints
) -> None:
    """Dependencies between neighbour stages, [stages - 1, micro-batches], with transfers where ranks differ."""
    stages, batches, pp, rank_of = schedule.stages, schedule.micro_batches, schedule.pp, schedule.action_rank
    forwards = what == "activations"
    seconds = times.transfer_forward if forwards else times.transfer_backward
    each = _shaped(seconds, stages, batches, "transfer")[..., :-1, :]
    each = each.reshape(*each.shape[:-2], -1)
    source, target = producers.ravel(), consumers.ravel()
    crosses = (rank_of[source] != rank_of[target]) & bool(np.any(each))
    parts.edges.append((source[~crosses], target[~crosses]))
    source, target = source[crosses], target[crosses]
    if not len(source):
        return
    resource = rank_of[source]
    if not times.blocking:
        queue = np.zeros((pp, pp), dtype=np.int64)
        for a, b in sorted(set(zip(rank_of[source].tolist(), rank_of[target].tolist(), strict=True))):
            queue[a, b] = len(parts.resources)
            name = f"rank {a} to rank {b}, {what}"
            parts.resources.append(Resource(name=name, group=f"rank {a}", stream=f"{what} to rank {b}"))
        resource = queue[rank_of[source], rank_of[target]]
    ids = parts.add(
        resource,
        3 * source + (1 if forwards else 2),
        each[..., crosses],
        KINDS.index("transfer"),
        [f"{what} stage {s if forwards else s + 1} to stage {s + 1 if forwards else s}" for s in range(stages - 1)],
        np.repeat(np.arange(stages - 1), batches)[crosses],
        np.tile(np.arange(batches), stages - 1)[crosses],
    )
    parts.edges += [(source, ids), (ids, target)]


def _add_reductions(parts: _Parts, schedule: Schedule, seconds: npt.ArrayLike, last: Ints) -> Ints:
    stages, base = schedule.stages, len(parts.resources)
    parts.resources += [
        Resource(name=f"rank {rank} reduction", group=f"rank {rank}", stream="reduction") for rank in range(schedule.pp)
    ]
    ids = parts.add(
        base + schedule.stage_rank,
        3 * last,
        _per(seconds, stages, "reduction", "stages"),
        KINDS.index("reduction"),
        [f"reduction stage {stage}" for stage in range(stages)],
        np.arange(stages),
        np.full(stages, -1),
    )
    parts.edges.append((last, ids))
    return ids


def _add_optimizer(parts: _Parts, schedule: Schedule, seconds: npt.ArrayLike, reductions: Ints | None) -> None:
    pp = schedule.pp
    ids = parts.add(
        np.arange(pp),
        np.full(pp, 3 * len(schedule.kind)),
        _per(seconds, pp, "optimizer", "ranks"),
        KINDS.index("optimizer"),
        ["optimizer"],
        np.zeros(pp, dtype=np.int64),
        np.full(pp, -1),
    )
    if reductions is not None:
        parts.edges.append((reductions, ids[schedule.stage_rank]))


def action_tables(schedule: Schedule) -> tuple[Ints, Ints, Ints]:
    """Which action does the forward, the (input) backward and the weight gradient of each stage and micro-batch.

    Returns
    -------
    forward, backward, weight : ndarray of int64, shape [stages, micro-batches]
        Positions in the schedule's columns; -1 where there is none. A full backward is both of the last two.
    """
    shape = (schedule.stages, schedule.micro_batches)
    forward, backward, weight = (np.full(shape, -1, dtype=np.int64) for _ in range(3))
    kind, position = schedule.kind, np.arange(len(schedule.kind))

    def fill(table: Ints, chosen: npt.NDArray[np.bool_], stage: Ints, batch: Ints) -> None:
        table[stage[chosen], batch[chosen]] = position[chosen]

    pair = kind == ActionKind.FB
    fill(forward, (kind == ActionKind.F) | pair, schedule.stage, schedule.micro_batch)
    full = kind == ActionKind.B
    fill(backward, full | (kind == ActionKind.I), schedule.stage, schedule.micro_batch)
    fill(weight, full | (kind == ActionKind.W), schedule.stage, schedule.micro_batch)
    for table in (backward, weight):
        fill(table, pair, schedule.backward_stage, schedule.backward_micro_batch)
    return forward, backward, weight


def _action_times(schedule: Schedule, times: StageTimes) -> Floats:
    shape = (schedule.stages, schedule.micro_batches)
    forward, inputs, weights = (
        _shaped(value, *shape, what)
        for value, what in (
            (times.forward, "forward"),
            (times.backward_input, "backward_input"),
            (times.backward_weight, "backward_weight"),
        )
    )
    if not times.pair > 0:
        raise UnsupportedError(f"an overlapped pair needs a fraction above 0 of its parts' sum, not {times.pair}")
    at = (schedule.stage, schedule.micro_batch)
    backward = inputs + weights
    other = (np.maximum(schedule.backward_stage, 0), np.maximum(schedule.backward_micro_batch, 0))
    by_kind = [
        forward[..., *at],
        backward[..., *at],
        inputs[..., *at],
        weights[..., *at],
        times.pair * (forward[..., *at] + backward[..., *other]),
    ]
    lead = np.broadcast_shapes(*(value.shape for value in by_kind))
    result = np.empty(lead)
    for kind in ActionKind:
        chosen = schedule.kind == kind
        result[..., chosen] = by_kind[kind][..., chosen]
    return result


def _shaped(value: npt.ArrayLike, stages: int, batches: int, what: str) -> Floats:
    array = np.asarray(value, dtype=np.float64)
    full = array[:, None] if array.ndim == 1 else array
    lead = full.shape[:-2]
    try:
        result: Floats = np.broadcast_to(full, (*lead, stages, batches))
    except ValueError:
        lead = (0,) * 4
    if len(lead) > 1:
        raise UnsupportedError(
            f"times of {what} have the shape {list(array.shape)}; give a number, [{stages}] (stages), "
            f"[{stages}, {batches}] (stages, micro-batches), or that with scenarios in front"
        )
    _not_negative(array, what)
    return result


def _per(value: npt.ArrayLike, count: int, what: str, axis: str) -> Floats:
    array = np.asarray(value, dtype=np.float64)
    if array.ndim > 2 or (array.ndim and array.shape[-1] not in (1, count)):
        raise UnsupportedError(
            f"times of {what} have the shape {list(array.shape)}; give a number, [{count}] ({axis}), "
            "or that with scenarios in front"
        )
    _not_negative(array, what)
    result: Floats = np.broadcast_to(array, (*array.shape[:-1], count))
    return result


def _not_negative(array: Floats, what: str) -> None:
    if not np.all(array >= 0):
        raise UnsupportedError(f"times of {what} need to be at least 0, not {np.min(array)}")
