"""Times of the ops of a graph: on the device, and on the host that issues them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from perfmodel.graph.count import Counted, count
from perfmodel.graph.ir import Block, Graph, Op
from perfmodel.hardware import Device
from perfmodel.parallel.program import is_collective
from perfmodel.runtimes import Runtime
from perfmodel.timing.device import OpTimes, op_times, rates_of
from perfmodel.timing.work import OpWork

__all__ = ["OpEntry", "OpTable", "TimedOps", "blocks_host", "host_cost", "time_ops"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedOps:
    """Ops with their times.

    Attributes
    ----------
    counted : tuple of Counted
    device, host : ndarray of float64, shape [ops]
        Seconds to execute an op once, and to issue it.
    times : OpTimes
        Of those ops that have a rule, in order.
    """

    counted: tuple[Counted, ...]
    device: Floats
    host: Floats
    times: OpTimes

    @property
    def bound(self) -> list[str]:
        """What limits each op; ``"no rule"`` for one without."""
        bounds = iter(self.times.bound.tolist())
        return ["no rule" if c.cost is None else next(bounds) for c in self.counted]


def time_ops(counted: Sequence[Counted], device: Device, software: Runtime) -> TimedOps:
    """Time ops on a device.

    Raises
    ------
    UnsupportedError
        If the device has no rate for a type that an op computes in.
    """
    work = OpWork.from_costs([c.cost for c in counted if c.cost is not None])
    times = op_times(work, rates_of(device, work))
    on_device = np.zeros(len(counted))
    on_device[[i for i, c in enumerate(counted) if c.cost is not None]] = times.time
    host = np.array([host_cost(c, software) for c in counted])
    return TimedOps(counted=tuple(counted), device=on_device, host=host, times=times)


def host_cost(counted: Counted, software: Runtime) -> float:
    """Seconds the host spends to issue an op."""
    cost = counted.cost
    if counted.op.name == "perfmodel.release" or not counted.op.launches:
        return 0.0
    if cost is not None and cost.family == "host":
        return software.host.sync if counted.op.phase != "optimizer" else software.host.view
    if cost is not None and cost.family == "view":
        return software.host.view
    kernels = 1 if cost is None else max(int(cost.kernels), 1)
    return software.host.op + (kernels - 1) * software.host.kernel


def blocks_host(counted: Counted) -> bool:
    """Whether the host waits for the op's answer."""
    return counted.op.name == "aten._local_scalar_dense" and counted.op.phase != "optimizer"


@dataclass(frozen=True, slots=True)
class OpEntry:
    """An op, its cost, its seconds on the device and to issue it, and what limits it."""

    counted: Counted
    device: float
    host: float
    bound: str


class OpTable:
    """Times of a graph's ops, and of others that are asked for, on one device.

    Parameters
    ----------
    graph : Graph
        Its collectives cost the host as any op does, and the device nothing here.
    device : Device
    software : Runtime

    Attributes
    ----------
    device : Device
    counted : tuple of Counted
        All ops of the graph that compute, with how often they run.
    """

    def __init__(self, graph: Graph, device: Device, software: Runtime) -> None:
        self._graph = graph
        self.device = device
        self._software = software
        self._alike: dict[tuple[object, ...], OpEntry] = {}
        computing = [replace(b, ops=tuple(op for op in b.ops if not is_collective(op))) for b in graph.blocks]
        entries = self._time([block for block in computing if block.ops])
        self.counted = tuple(entry.counted for entry in entries)
        self._known = {id(entry.counted.op): entry for entry in entries}

    def __call__(self, op: Op) -> tuple[float, float]:
        """Seconds of one call on the device, and to issue it."""
        if is_collective(op):
            return 0.0, self._software.host.op
        entry = self.entry(op)
        return entry.device, entry.host

    def entry(self, op: Op) -> OpEntry:
        """An op that computes, with its times."""
        known = self._known.get(id(op))
        if known is not None:
            return known
        key = (op.name, *((t.shape, t.dtype, t.strides) for t in op.inputs.values()))
        if key not in self._alike:
            (self._alike[key],) = self._time([Block(ops=(op,))])
        return self._alike[key]

    def _time(self, blocks: list[Block]) -> list[OpEntry]:
        timed = time_ops(list(count(replace(self._graph, blocks=tuple(blocks)))), self.device, self._software)
        columns = (timed.counted, timed.device.tolist(), timed.host.tolist(), timed.bound)
        return [OpEntry(*each) for each in zip(*columns, strict=True)]
