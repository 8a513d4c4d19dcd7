"""Steps whose durations vary: makespans over Monte Carlo scenarios."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from perfmodel.errors import UnknownNameError, UnsupportedError
from perfmodel.schedule.actions import Floats, Ints
from perfmodel.schedule.tasks import TaskGraph
from perfmodel.simulate.engine import CHUNK
from perfmodel.simulate.event import run_events
from perfmodel.simulate.maxplus import Evaluator, Levels, compile_levels

__all__ = ["Makespans", "Straggler", "jitter"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Straggler:
    """One slow resource: in each scenario, one of ``resources``, drawn evenly, takes ``factor`` times as long."""

    resources: Sequence[str]
    factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Makespans:
    """Makespans of scenarios.

    Attributes
    ----------
    values : ndarray of float64, shape [scenarios]
        Seconds.
    undisturbed : float
        The makespan without jitter and stragglers.
    """

    values: Floats
    undisturbed: float

    def quantile(self, share: float | Sequence[float]) -> Floats:
        """The makespan that a share of the scenarios stays within."""
        return np.asarray(np.quantile(self.values, share), dtype=np.float64)

    @property
    def mean(self) -> float:
        """The mean makespan."""
        return float(self.values.mean())


def jitter(
    tasks: TaskGraph,
    *,
    sigma: float | Mapping[str, float],
    scenarios: int,
    seed: int,
    straggler: Straggler | None = None,
) -> Makespans:
    """Makespans when every duration is multiplied by a lognormal factor of mean 1.

    The factors of different tasks are independent; their logarithms have the standard deviation
    sigma. A factor's mean is 1, so the work stays the same and what grows is waiting.

    Parameters
    ----------
    tasks : TaskGraph
        Durations without a scenario axis.
    sigma : float, or mapping from kinds and names of resources
        For all tasks, or for some; a resource's goes before its tasks' kinds. Others don't vary.
    scenarios : int
    seed : int
        The same seed gives the same scenarios, and more scenarios begin with those of fewer
        where both are multiples of 32.
    straggler : Straggler, optional

    Raises
    ------
    UnknownNameError
        A name is neither a kind nor a resource.
    UnsupportedError
        A sigma or factor is negative, or there are no scenarios.

    Examples
    --------
    >>> from perfmodel.schedule import StageTimes, pipeline, pipeline_tasks
    >>> tasks = pipeline_tasks(pipeline("1F1B", pp=4, micro_batches=8), StageTimes(forward=1.0, backward_input=2.0))
    >>> result = jitter(tasks, sigma=0.1, scenarios=64, seed=0)
    >>> result.undisturbed, bool(result.quantile(0.1) > result.undisturbed)
    (33.0, True)
    """
    if tasks.duration.ndim != 1:
        raise UnsupportedError("jitter needs durations without a scenario axis; it makes its own scenarios")
    if scenarios < 1:
        raise UnsupportedError(f"jitter needs at least 1 scenario, not {scenarios}")
    spread = _sigmas(tasks, sigma)
    slow = None if straggler is None else _slow_resources(tasks, straggler)
    compiled = compile_levels(tasks) if tasks.has_fixed_order else None
    order = np.arange(len(tasks)) if compiled is None else compiled.order
    base, spread, resource = tasks.duration[order], spread[order], tasks.resource[order]
    values = np.empty(scenarios)
    starts = range(0, scenarios, CHUNK)
    evaluator = None
    for begin, stream in zip(starts, np.random.SeedSequence(seed).spawn(len(starts)), strict=True):
        width = min(CHUNK, scenarios - begin)
        if compiled is not None and (evaluator is None or evaluator.finish.shape[1] != width):
            evaluator = Evaluator(compiled, width, starts=False)
        duration = np.empty((len(tasks), width)) if evaluator is None else evaluator.duration
        draw = np.random.Generator(np.random.SFC64(stream))
        _vary(base, spread, draw, duration)
        if straggler is not None and slow is not None:
            for scenario, position in enumerate(slow[draw.integers(len(slow), size=width)].tolist()):
                duration[resource == position, scenario] *= straggler.factor
        if evaluator is None:
            for scenario in range(width):
                values[begin + scenario] = run_events(tasks, duration[:, scenario])[1].max(initial=0.0)
        else:
            evaluator.run()
            values[begin : begin + width] = evaluator.finish.max(axis=0, initial=0.0)
    return Makespans(values=values, undisturbed=_undisturbed(tasks, base, compiled))


def _sigmas(tasks: TaskGraph, sigma: float | Mapping[str, float]) -> Floats:
    given = {"sigma": sigma} if isinstance(sigma, (int, float)) else dict(sigma)
    for name, value in given.items():
        if not 0 <= value < math.inf:
            raise UnsupportedError(f"jitter of {name!r} needs a sigma of at least 0, not {value}")
    if isinstance(sigma, (int, float)):
        return np.full(len(tasks), float(sigma))
    result = np.zeros(len(tasks))
    resources = {resource.name: position for position, resource in enumerate(tasks.resources)}
    for name, value in sorted(given.items(), key=lambda item: item[0] in resources):
        if name in resources:
            result[tasks.resource == resources[name]] = value
        elif name in tasks.kinds:
            result[tasks.of_kind(name)] = value
        else:
            raise UnknownNameError("kind of task or resource", name, [*tasks.kinds, *resources])
    return result


def _slow_resources(tasks: TaskGraph, straggler: Straggler) -> Ints:
    if not straggler.factor >= 0 or not straggler.resources:
        raise UnsupportedError("a straggler needs at least one resource, and a factor of at least 0")
    return np.array([tasks.on_resource(name) for name in straggler.resources])


def _vary(base: Floats, spread: Floats, draw: np.random.Generator, duration: Floats) -> None:
    """Fill ``duration`` [tasks, scenarios] with ``base`` times random factors."""
    varies = np.flatnonzero(spread > 0)
    factors = _normals(draw, len(varies), duration.shape[1])
    some = spread[varies].astype(np.float32)[:, None]
    factors *= some
    factors -= some * some / 2
    np.exp(factors, out=factors)
    if len(varies) == len(base):
        np.multiply(factors, base[:, None], out=duration)
    else:
        duration[...] = base[:, None]
        duration[varies] *= factors


def _normals(draw: np.random.Generator, rows: int, columns: int) -> npt.NDArray[np.float32]:
    """Standard normal numbers by Box and Muller's method, in vector instructions throughout.

    NumPy's own generator of normals works number by number, and was most of the time of a run.
    Single precision is ample for a random factor; no number exceeds 5.8 (its probability is 1e-8).
    """
    half = (rows + 1) // 2
    radius, angle = (draw.random((half, columns), dtype=np.float32) for _ in range(2))
    np.subtract(1, radius, out=radius)  # in (0, 1], where the logarithm exists
    np.log(radius, out=radius)
    radius *= -2
    np.sqrt(radius, out=radius)
    angle *= np.float32(2 * math.pi)
    result = np.empty((2 * half, columns), dtype=np.float32)
    np.cos(angle, out=result[:half])
    np.sin(angle, out=result[half:])
    result[:half] *= radius
    result[half:] *= radius
    return result[:rows]


def _undisturbed(tasks: TaskGraph, base: Floats, compiled: Levels | None) -> float:
    if compiled is None:
        return float(run_events(tasks, tasks.duration)[1].max(initial=0.0))
    evaluator = Evaluator(compiled, starts=False)
    evaluator.duration[...] = base
    evaluator.run()
    return float(evaluator.finish.max(initial=0.0))
