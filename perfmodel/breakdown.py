"""Where a step's time goes: compute, communication that nothing hides, waiting."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from perfmodel.graph.paths import module_family
from perfmodel.parallel.program import is_collective
from perfmodel.parallel.stages import Stage
from perfmodel.prediction import Breakdown, OpTime
from perfmodel.schedule.actions import Floats
from perfmodel.schedule.step import COMPUTE, StepParts, busy_by_rank, works_of
from perfmodel.schedule.timed import TimedProgram
from perfmodel.simulate import Timeline
from perfmodel.timing.ops import OpEntry
from perfmodel.timing.parts import accumulation
from perfmodel.timing.work import executed_matrix_flops

__all__ = ["SHARES", "action_ends", "breakdown_of", "op_time", "rank_shares", "tables_by_op"]

#: What a rank's step is divided into.
SHARES = ("compute", "optimizer", "tp", "cp", "ep", "dp", "pp", "bubble", "host")

#: Kinds of groups by the dimension of the plan that they serve.
_DIMENSION = {"dp-cp": "dp", "shard": "dp", "replicate": "dp", "edp": "dp", "etp": "tp"}
_COMPUTE = ("forward", "backward", "recompute")


def rank_shares(parts: StepParts, timeline: Timeline) -> list[dict[str, float]]:
    """Seconds of a step by :data:`SHARES`, for each pipeline rank; each sums to the makespan.

    ``compute`` is forward, backward and recompute. Communication counts where the compute stands still for it:
    of what overlaps, only the part that doesn't fit. ``bubble`` is waiting for other stages, ``host`` for the
    host to issue ops.
    """
    tasks = timeline.tasks
    group = np.array([int(resource.group.removeprefix("rank ")) for resource in tasks.resources])
    stream = [resource.stream for resource in tasks.resources]
    transfers = tasks.kind == (tasks.kinds.index("transfer") if "transfer" in tasks.kinds else -1)
    found = []
    for rank, busy in enumerate(busy_by_rank(parts)):
        shares = dict.fromkeys(SHARES, 0.0)
        for kind, seconds in busy.items():
            shares[_share(kind)] += seconds
        own = [k for k, name in enumerate(stream) if group[k] == rank and name == COMPUTE]
        chain = np.flatnonzero(np.isin(tasks.resource, own))
        start, finish = timeline.start[chain], timeline.finish[chain]
        shares["pp"] += float((finish - start)[transfers[chain]].sum())
        waited = start - np.concatenate([[0.0], finish[:-1]])
        for place in np.flatnonzero(waited > 0).tolist():
            waits = tasks.waits_for(int(chain[place]))
            cause = int(waits[np.argmax(timeline.finish[waits])]) if len(waits) else -1
            resource = int(tasks.resource[cause])
            late = "bubble"
            if cause >= 0 and group[resource] == rank and stream[resource] != COMPUTE:
                late = _share(tasks.kinds[tasks.kind[cause]])
            shares[late] += float(waited[place])
        shares["bubble"] += timeline.makespan - float(finish[-1])
        found.append(shares)
    return found


def _share(kind: str) -> str:
    if kind in _COMPUTE:
        return "compute"
    return {**_DIMENSION, "release": "optimizer", "transfer": "bubble"}.get(kind, kind)


def breakdown_of(
    timed: TimedProgram, parts: StepParts, timeline: Timeline, shares: Mapping[str, float], rank: int
) -> tuple[Breakdown, tuple[OpTime, ...]]:
    """The breakdown of a pipeline rank's step, and its ops.

    Parameters
    ----------
    timed : TimedProgram
    parts : StepParts
        Of ``timed``.
    timeline : Timeline
        Of ``parts``.
    shares : mapping of str to float
        The rank's, from :func:`rank_shares`.
    rank : int
    """
    busy = busy_by_rank(parts)[rank]
    phase = {kind: seconds for kind, seconds in busy.items() if kind in (*_COMPUTE, "optimizer", "release")}
    ops = tuple(op for stage in timed.stages if stage.rank == rank for op in _stage_ops(timed, stage))
    streams: dict[str, float] = {}
    for number, resource in enumerate(timeline.tasks.resources):
        if resource.group == f"rank {rank}":
            streams[resource.stream] = float(timeline.tasks.duration[timeline.tasks.resource == number].sum())
    communication: dict[str, float] = {}
    for kind, seconds in [*busy.items(), *streams.items()]:
        name = "pp" if " to rank " in kind else _DIMENSION.get(kind, kind)
        if name in ("tp", "cp", "ep", "dp", "pp"):
            communication[name] = communication.get(name, 0.0) + seconds
    device_busy = shares["compute"] + shares["optimizer"]
    return (
        Breakdown(
            time={name: seconds for name, seconds in shares.items() if seconds > 0},
            communication={name: seconds for name, seconds in communication.items() if seconds > 0},
            phase={**phase, "waiting": timeline.makespan - device_busy},
            **tables_by_op(ops),
            device_busy=device_busy,
            host_busy=streams.get("host", 0.0),
            device_idle=shares["host"],
        ),
        ops,
    )


def action_ends(parts: StepParts, timeline: Timeline, rank: int) -> Floats:
    """When each action of a rank, and last its optimizer, was complete: seconds, shape [actions + 1]."""
    tasks, schedule = timeline.tasks, parts.schedule
    name = next(k for k, each in enumerate(tasks.resources) if each.group == f"rank {rank}" and each.stream == COMPUTE)
    sends = tasks.kinds.index("transfer") if "transfer" in tasks.kinds else -1
    chain = np.flatnonzero((tasks.resource == name) & (tasks.kind != sends))
    part = slice(int(schedule.offsets[rank]), int(schedule.offsets[rank + 1]))
    lengths = [sum(int(work.main.sum()) for work in works) for works in works_of(parts)[part]]
    ends = timeline.finish[chain][np.cumsum(lengths) - 1]
    return np.append(ends, timeline.finish[chain[-1]])


def _stage_ops(timed: TimedProgram, stage: Stage) -> Iterator[OpTime]:
    table, micro_batches = timed.table(stage.index), timed.program.plan.micro_batches
    for block in stage.blocks:
        for op in block.ops:
            if not is_collective(op):
                once = op.phase in ("optimizer", "release")
                yield op_time(table.entry(op), block.count * (1 if once else micro_batches))
            if op.phase in ("backward", "recompute") and micro_batches > 1:
                for extra in accumulation(op, timed.program.graph):
                    yield op_time(table.entry(extra), block.count * (micro_batches - 1))


def op_time(entry: OpEntry, times: int) -> OpTime:
    """An op that runs so often in a step."""
    op, _, cost, _ = entry.counted
    return OpTime(
        name=op.name,
        phase=op.phase,
        module=module_family(op.module),
        family="no rule" if cost is None else cost.family,
        times=times,
        time=entry.device,
        bound=entry.bound,
        matrix_flops=0.0 if cost is None else executed_matrix_flops(cost),
        vector_flops=0.0 if cost is None else float(cost.vector_flops),
        bytes=0.0 if cost is None else float(cost.read + cost.written),
    )


def tables_by_op(ops: Iterable[OpTime]) -> dict[str, dict[str, float]]:
    """Busy seconds by module, op class and bound."""
    found: dict[str, dict[str, float]] = {"module": {}, "op_class": {}, "bound": {}}
    for op in ops:
        seconds = op.time * op.times
        if seconds > 0:
            for table, key in (("module", op.module or "(root)"), ("op_class", op.family), ("bound", op.bound)):
                found[table][key] = found[table].get(key, 0.0) + seconds
    return {name: dict(sorted(table.items(), key=lambda item: -item[1])) for name, table in found.items()}
