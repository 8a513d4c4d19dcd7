"""Steps of random pipelines: formula against simulation, spelled out against together, bounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfmodel.schedule import StageTimes, pipeline, pipeline_tasks
from perfmodel.schedule.step import StepParts, busy_by_rank, regular_step, step_tasks
from perfmodel.simulate import simulate
from perfmodel.timing.parts import BEFORE, StageWork

seconds = st.floats(0.01, 10.0)


def work(kind: str, *durations: float, host: float = 0.0, lead: float = 0.0) -> StageWork:
    """Parts of compute one after the other."""
    count = len(durations)
    return StageWork(
        main=np.ones(count, dtype=bool),
        stream=("compute",) * count,
        kind=(kind,) * count,
        label=(kind,) * count,
        path=("",) * count,
        duration=np.array(durations),
        issue=np.arange(count),
        after=((),) * count,
        busy={kind: float(sum(durations))},
        host=host,
        lead=lead,
    )


def with_beside(main: StageWork, duration: float, after: int) -> StageWork:
    """The same with a reduction beside it, once part ``after`` has ended."""
    count = len(main.duration)
    return StageWork(
        main=np.append(main.main, False),
        stream=(*main.stream, "dp"),
        kind=(*main.kind, "dp"),
        label=(*main.label, "all_reduce"),
        path=(*main.path, ""),
        duration=np.append(main.duration, duration),
        issue=np.append(main.issue, count),
        after=(*main.after, (after,)),
        busy=main.busy,
        host=main.host,
        lead=main.lead,
    )


shapes = st.tuples(
    st.sampled_from([("1F1B", 1), ("GPipe", 1), ("Interleaved1F1B", 2), ("LoopedBFS", 2)]),
    st.integers(1, 6),
    st.integers(1, 4),
)


def parts_of(
    shape: tuple[tuple[str, int], int, int], works: dict[str, StageWork], last: StageWork, transfer: float, start: float
) -> StepParts:
    (name, chunks), pp, rounds = shape
    schedule = pipeline(name, pp=pp, micro_batches=pp * rounds, stages_per_rank=chunks)
    hops = np.full(schedule.stages, transfer)

    def of(_stage: int, action: str, _first: bool, is_last: bool) -> StageWork:
        return last if action == "B" and is_last else works[action]

    return StepParts(schedule=schedule, work=of, transfer_forward=hops, transfer_backward=hops, start=start)


@settings(max_examples=60, deadline=None)
@given(shapes, seconds, seconds, st.floats(0.0, 0.01), seconds, st.floats(0.1, 1.0), st.floats(0.0, 1.0))
def test_the_formula_is_within_a_per_cent_of_the_simulation(
    shape: tuple[tuple[str, int], int, int],
    forward: float,
    backward: float,
    transfer: float,
    optimizer: float,
    speed: float,
    start: float,
) -> None:
    works = {
        "F": work("forward", forward, host=speed * forward, lead=0.01 * forward),
        "B": work("backward", backward / 2, backward / 2, host=speed * backward, lead=0.01 * backward),
        "O": work("optimizer", optimizer, host=speed * optimizer),
    }
    parts = parts_of(shape, works, works["B"], transfer, start)
    told = regular_step(parts)
    assert told is not None
    assert told == pytest.approx(simulate(step_tasks(parts)).makespan, rel=0.01)


@settings(max_examples=40, deadline=None)
@given(shapes, seconds, seconds, st.floats(0.0, 2.0))
def test_without_parts_it_is_the_pipeline(
    shape: tuple[tuple[str, int], int, int], forward: float, backward: float, transfer: float
) -> None:
    works = {"F": work("forward", forward), "B": work("backward", backward), "O": work("optimizer", 0.0)}
    parts = parts_of(shape, works, works["B"], transfer, 0.0)
    times = StageTimes(forward=forward, backward_input=backward, transfer_forward=transfer, transfer_backward=transfer)
    expected = simulate(pipeline_tasks(parts.schedule, times)).makespan
    assert simulate(step_tasks(parts)).makespan == pytest.approx(expected, rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(shapes, st.lists(seconds, min_size=2, max_size=5), seconds, st.integers(BEFORE, 1), seconds)
def test_what_runs_beside_the_compute(
    shape: tuple[tuple[str, int], int, int], backward: list[float], reduction: float, after: int, optimizer: float
) -> None:
    works = {"F": work("forward", 1.0), "B": work("backward", *backward), "O": work("optimizer", optimizer)}
    last = with_beside(works["B"], reduction, after)
    parts = parts_of(shape, works, last, 0.0, 0.0)
    assert regular_step(parts) is None
    tasks = step_tasks(parts)
    timeline = simulate(tasks)
    without = simulate(step_tasks(parts_of(shape, works, works["B"], 0.0, 0.0))).makespan
    chunks = parts.schedule.stages_per_rank
    # It costs nothing at best, all of itself at worst; and the optimizer waits for it.
    assert without - 1e-9 <= timeline.makespan <= without + chunks * reduction + 1e-9
    for rank, busy in enumerate(busy_by_rank(parts)):
        assert timeline.makespan >= sum(busy.values()) - 1e-9
        sent = [k for k, each in enumerate(tasks.resources) if each.name == f"rank {rank} dp"]
        ended = timeline.finish[np.isin(tasks.resource, sent)].max()
        kind = tasks.kinds.index("optimizer")
        mine = [k for k, each in enumerate(tasks.resources) if each.name == f"rank {rank} compute"]
        begun = timeline.start[np.isin(tasks.resource, mine) & (tasks.kind == kind)].min()
        assert begun >= ended - 1e-9


@settings(max_examples=30, deadline=None)
@given(seconds, seconds, st.floats(1.0, 5.0), st.integers(1, 6))
def test_a_slow_host_decides(forward: float, backward: float, factor: float, batches: int) -> None:
    works = {
        "F": work("forward", forward, host=factor * forward, lead=factor * forward),
        "B": work("backward", backward, host=factor * backward, lead=factor * backward),
        "O": work("optimizer", 1.0, host=factor, lead=factor),
    }
    parts = parts_of((("1F1B", 1), 1, batches), works, works["B"], 0.0, 0.5)
    host, device = 0.5, 0.0
    for duration in (*(forward, backward) * batches, 1.0):
        host += factor * duration
        device = max(host, device) + duration
    assert simulate(step_tasks(parts)).makespan == pytest.approx(device)
