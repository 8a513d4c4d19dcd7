"""A step on one device: what the host issues and what the device executes, op by op."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from perfmodel.breakdown import op_time, tables_by_op
from perfmodel.graph.ir import Graph
from perfmodel.hardware import Cluster
from perfmodel.parallel.plan import Plan
from perfmodel.parallel.program import Program
from perfmodel.parallel.stages import Stage
from perfmodel.prediction import Breakdown, OpTime
from perfmodel.runtimes import Runtime
from perfmodel.schedule.timed import TimedProgram
from perfmodel.timing import QueueTimes, two_queues
from perfmodel.timing.ops import OpEntry, OpTable, blocks_host
from perfmodel.timing.placement import PlacedPlan

__all__ = ["device_breakdown", "run_queues", "timed_device"]

Strings = npt.NDArray[np.str_]


def timed_device(step: Graph, graph: Graph, cluster: Cluster, software: Runtime) -> TimedProgram:
    """A step as the program of a single rank.

    Parameters
    ----------
    step : Graph
        As captured.
    graph : Graph
        As the runtime runs it.
    cluster : Cluster
        Of one device.
    software : Runtime
    """
    plan = Plan(dp=1)
    device = cluster.device
    return TimedProgram(
        program=Program(graph=graph, source=step, plan=plan, layouts={}),
        stages=(Stage(index=0, rank=0, layers=(), blocks=graph.blocks),),
        placed=PlacedPlan(plan, cluster),
        tables={device.name: OpTable(graph, device, software)},
        software=software,
    )


def run_queues(timed: TimedProgram) -> tuple[QueueTimes, Strings]:
    """Spell the folded step out as two queues: what the host issues and what the device executes.

    Returns
    -------
    QueueTimes
    phases : ndarray of str, shape [ops of a step]
    """
    (table,) = timed.tables.values()
    entries = [table.entry(c.op) for c in table.counted]
    order, start = [], 0
    for block in timed.program.graph.blocks:
        order.append(np.tile(np.arange(start, start + len(block.ops)), block.count))
        start += len(block.ops)
    sequence = np.concatenate(order)
    result = two_queues(
        np.array([entry.host for entry in entries])[sequence],
        np.array([entry.device for entry in entries])[sequence],
        np.array([blocks_host(entry.counted) for entry in entries])[sequence],
        start=timed.software.host.step,
        synchronous=not table.device.asynchronous,
    )
    return result, np.array([entry.counted.op.phase for entry in entries])[sequence]


def device_breakdown(timed: TimedProgram, queues: QueueTimes, phases: Strings) -> tuple[Breakdown, tuple[OpTime, ...]]:
    """Where the time of a device goes, and every stored op."""
    (table,) = timed.tables.values()
    entries: Sequence[OpEntry] = [table.entry(c.op) for c in table.counted]
    # Recompute lies inside backward, so each op gives its phase the time since the op before it was complete.
    spans = np.diff(queues.end, prepend=0.0)
    spans[-1] += queues.step_time - queues.end[-1]
    by_phase = {phase: float(spans[phases == phase].sum()) for phase in dict.fromkeys(phases.tolist())}
    ops = tuple(op_time(entry, entry.counted.times) for entry in entries)
    optimizer = sum(op.time * op.times for op in ops if op.phase in ("optimizer", "release"))
    time = {"compute": queues.device_busy - optimizer, "optimizer": optimizer, "host": queues.device_idle}
    breakdown = Breakdown(
        time={name: seconds for name, seconds in time.items() if seconds > 0},
        communication={},
        phase=by_phase,
        **tables_by_op(ops),
        device_busy=queues.device_busy,
        host_busy=queues.host_busy,
        device_idle=queues.device_idle,
    )
    return breakdown, ops
