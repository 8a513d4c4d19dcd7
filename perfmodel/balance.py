"""``balance``: how many layers each pipeline stage takes, so that the slowest is as fast as can be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from perfmodel.errors import UnsupportedError
from perfmodel.graph.ir import Graph
from perfmodel.hardware import Cluster, Device, Node
from perfmodel.hardware.machine import as_cluster, load_machine
from perfmodel.parallel.plan import Plan
from perfmodel.predict import Machine, predict
from perfmodel.prediction import Prediction
from perfmodel.runtimes import Runtime

__all__ = ["balance", "uneven_cut"]

Floats = npt.NDArray[np.float64]

#: Stages that don't fit in memory give layers away so many times at most.
_ROUNDS = 8


def balance(step: Graph, machine: Machine, plan: Plan, *, runtime: Runtime | str | None = None) -> Plan:
    """The plan with ``stage_layers`` for which the slowest stage is as fast as can be, and all fit if they can.

    Stages differ by what precedes and follows the layers (embedding, loss), and on a mixed cluster by the devices
    that run them.

    Parameters
    ----------
    step, machine, runtime
        As for :func:`perfmodel.predict.predict`.
    plan : Plan
        With several stages; its own ``stage_layers`` are replaced.

    Raises
    ------
    UnsupportedError
        If the plan has one stage, or more than the model has layers.

    Examples
    --------
    >>> balance(step, cluster, Plan(pp=3, tp=8)).stage_layers  # doctest: +SKIP
    (44, 18, 18)
    """
    count = plan.pp * plan.vpp
    depth = max(step.stacks.values(), default=0)
    if count == 1:
        raise UnsupportedError("a plan of one stage has nothing to balance; set pp")
    if depth < count:
        raise UnsupportedError(f"pp {plan.pp} × vpp {plan.vpp} = {count} stages for {depth} layers; give fewer stages")
    cluster = as_cluster(machine if isinstance(machine, Device | Node | Cluster) else load_machine(machine))
    base, more = divmod(depth, count)
    even = replace(plan, stage_layers=tuple(base + (k < more) for k in range(count)))
    found = predict(step, cluster, even, runtime=runtime)
    times = [found.timed.layer_times(stage) for stage in range(count)]
    seconds = np.array([each.layers for each in times])
    extra = np.zeros(count)
    extra[0], extra[-1] = times[0].before, times[-1].after
    most = np.full(count, depth)
    for _ in range(_ROUNDS):
        sizes = uneven_cut(seconds, extra, most)
        found = predict(step, cluster, replace(plan, stage_layers=sizes), runtime=runtime)
        if found.fits:
            break
        tighter = _limits(found, sizes, most)
        if tighter.sum() < depth:
            break
        most = tighter
    return replace(plan, stage_layers=sizes)


def _limits(found: Prediction, sizes: Sequence[int], most: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The most layers that each stage of a rank that doesn't fit may have."""
    limits = most.copy()
    for rank in found.ranks:
        for stage in rank.activations if not rank.fits else ():
            limits[stage] = max(1, min(sizes[stage] - 1, int(sizes[stage] * rank.capacity / rank.peak)))
    return limits


def uneven_cut(seconds: Floats, extra: Floats, most: Sequence[int] | npt.NDArray[np.int64]) -> tuple[int, ...]:
    """Sizes of contiguous parts of which the slowest is as fast as can be.

    Parameters
    ----------
    seconds : ndarray of float64, shape [parts, layers]
        Of each layer, were it in that part.
    extra : ndarray of float64, shape [parts]
        Of each part beside its layers.
    most : sequence of int
        The most layers of each part, together at least as many as there are.

    Examples
    --------
    >>> uneven_cut(np.array([[1.0] * 8, [2.0] * 8]), np.array([0.0, 1.0]), [8, 8])
    (6, 2)
    """
    parts, layers = seconds.shape
    sums = np.concatenate([np.zeros((parts, 1)), np.cumsum(seconds, axis=1)], axis=1)
    # best[k]: the least possible time of the slowest part when the parts so far hold the first k layers.
    best = np.full(layers + 1, np.inf)
    best[0] = 0.0
    choices = np.zeros((parts, layers + 1), dtype=np.int64)
    for part in range(parts):
        after = np.full(layers + 1, np.inf)
        for end in range(1, layers + 1):
            begins = np.arange(max(0, end - int(most[part])), end)
            times = np.maximum(best[begins], extra[part] + sums[part, end] - sums[part, begins])
            choice = int(np.argmin(times))
            after[end], choices[part, end] = times[choice], begins[choice]
        best = after
    sizes: list[int] = []
    end = layers
    for part in reversed(range(parts)):
        begin = int(choices[part, end])
        sizes.append(end - begin)
        end = begin
    return tuple(reversed(sizes))
