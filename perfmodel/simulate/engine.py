"""When everything happens: one function over both engines."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from perfmodel.errors import UnknownNameError, UnsupportedError
from perfmodel.schedule.tasks import TaskGraph
from perfmodel.simulate.event import run_events
from perfmodel.simulate.maxplus import Evaluator, compile_levels
from perfmodel.simulate.timeline import Timeline

__all__ = ["CHUNK", "Engine", "simulate"]

Engine = Literal["auto", "max-plus", "event"]
CHUNK = 32
"""Scenarios that max-plus evaluates at once: enough to hide NumPy's overhead per level, few enough for the cache."""


def simulate(tasks: TaskGraph, *, engine: Engine = "auto") -> Timeline:
    """Run the tasks.

    Parameters
    ----------
    tasks : TaskGraph
        Where durations have a scenario axis, so has the timeline.
    engine : {"auto", "max-plus", "event"}
        ``"max-plus"`` where every order is fixed and nothing is shared, ``"event"`` for any graph;
        ``"auto"`` takes the first where it applies. The timeline says which ran.

    Raises
    ------
    UnknownNameError
        There is no such engine.
    UnsupportedError
        Tasks wait for each other, or ``"max-plus"`` was asked for and doesn't apply.

    Examples
    --------
    >>> from perfmodel.schedule import StageTimes, pipeline, pipeline_tasks
    >>> times = StageTimes(forward=1.0, backward_input=1.0, backward_weight=1.0)
    >>> timeline = simulate(pipeline_tasks(pipeline("1F1B", pp=4, micro_batches=8), times))
    >>> timeline.engine, timeline.makespan
    ('max-plus', 33.0)
    """
    if engine not in get_args(Engine):
        raise UnknownNameError("engine", engine, get_args(Engine))
    fixed = tasks.has_fixed_order
    if engine == "max-plus" and not fixed:
        raise UnsupportedError(
            "max-plus needs fixed orders and nothing shared, and this graph has "
            f"{_why_not_fixed(tasks)}; use engine='event' or 'auto'"
        )
    duration = tasks.duration if tasks.duration.ndim == 2 else tasks.duration[None, :]
    start, finish = np.empty(duration.shape), np.empty(duration.shape)
    if engine == "event" or not fixed:
        for scenario, each in enumerate(duration):
            start[scenario], finish[scenario] = run_events(tasks, each)
        used: Literal["max-plus", "event"] = "event"
    else:
        compiled = compile_levels(tasks)
        for begin in range(0, len(duration), CHUNK):
            part = duration[begin : begin + CHUNK]
            evaluator = Evaluator(compiled, len(part)) if len(part) > 1 else Evaluator(compiled)
            evaluator.duration[...] = part[:, compiled.order].T if len(part) > 1 else part[0, compiled.order]
            evaluator.run()
            start[begin : begin + CHUNK, compiled.order] = evaluator.start.T
            finish[begin : begin + CHUNK, compiled.order] = evaluator.finish.T
        used = "max-plus"
    if tasks.duration.ndim == 1:
        start, finish = start[0], finish[0]
    return Timeline(tasks=tasks, start=start, finish=finish, engine=used)


def _why_not_fixed(tasks: TaskGraph) -> str:
    choosing = [resource.name for resource in tasks.resources if resource.discipline in ("fifo", "priority")]
    if choosing:
        return f"a queue that chooses ({choosing[0]})"
    return "interference" if tasks.interferences else "transfers that share links"
