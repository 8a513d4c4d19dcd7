"""What must hold for any task graph and any pipeline, and between engines and the closed form."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from perfmodel.errors import UnsupportedError
from perfmodel.schedule import (
    SCHEDULES,
    StageTimes,
    TaskGraph,
    TaskGraphBuilder,
    has_closed_form,
    pipeline,
    pipeline_tasks,
    pipeline_time,
)
from perfmodel.simulate import Timeline, simulate

seconds = st.one_of(st.just(0.0), st.floats(1e-6, 1e3, allow_subnormal=False))


@st.composite
def graphs(draw: st.DrawFn, disciplines: tuple[str, ...] = ("order", "none")) -> TaskGraph:
    build = TaskGraphBuilder()
    for position in range(draw(st.integers(1, 4))):
        build.resource(
            f"r{position}", group=f"g{position % 2}", stream="compute", discipline=draw(st.sampled_from(disciplines))
        )
    resources = position + 1
    for task in range(draw(st.integers(1, 25))):
        after = draw(st.lists(st.integers(0, task - 1), unique=True, max_size=12)) if task else []
        build.add(
            draw(st.integers(0, resources - 1)),
            draw(seconds),
            kind="work",
            after=after,
            priority=draw(st.integers(0, 3)),
        )
    return build.build()


@st.composite
def shared_graphs(draw: st.DrawFn) -> TaskGraph:
    """Queues that choose, transfers that share, and compute that communication slows down."""
    build = TaskGraphBuilder()
    compute = [build.resource(f"c{i}", group=f"g{i}", stream="compute") for i in range(2)]
    network = build.resource("n", group="g0", stream="network", discipline=draw(st.sampled_from(["none", "fifo"])))
    links = [build.link(f"l{i}", draw(st.floats(0.5, 20))) for i in range(3)]
    if draw(st.booleans()):
        build.interfere(compute[0], by=[network], factor=draw(st.floats(1, 3)))
    for task in range(draw(st.integers(1, 20))):
        after = draw(st.lists(st.integers(0, task - 1), unique=True, max_size=3)) if task else []
        if draw(st.booleans()):
            route = draw(st.lists(st.sampled_from(links), unique=True, min_size=1))
            size = draw(st.floats(0.1, 100))
            build.add(network, draw(st.floats(0, 2)), kind="transfer", after=after, size=size, route=route)
        else:
            build.add(draw(st.sampled_from(compute)), draw(st.floats(0.01, 10)), kind="work", after=after)
    return build.build()


@st.composite
def pipelines(draw: st.DrawFn) -> TaskGraph:
    name = draw(st.sampled_from(SCHEDULES))
    pp, batches = draw(st.integers(1, 5)), draw(st.integers(1, 12))
    chunks = draw(st.integers(2, 3)) if name in ("Interleaved1F1B", "LoopedBFS", "InterleavedZeroBubble") else None
    try:
        schedule = pipeline(name, pp=pp, micro_batches=batches, stages_per_rank=chunks)
    except UnsupportedError:
        assume(False)
    shape = (schedule.stages, batches)
    draws = np.random.default_rng(draw(st.integers(0, 2**32)))
    times = {
        key: draws.uniform(0, 3, shape)
        for key in ("forward", "backward_input", "backward_weight", "transfer_forward", "transfer_backward")
    }
    if draw(st.booleans()):
        times |= {"reduction": draws.uniform(0, 3, schedule.stages), "optimizer": draws.uniform(0, 3, pp)}
    return pipeline_tasks(schedule, StageTimes(**times, blocking=draw(st.booleans())))


def holds(timeline: Timeline) -> None:
    tasks, start, finish = timeline.tasks, timeline.start, timeline.finish
    assert np.all(start >= 0)
    slack = 1e-9 * max(timeline.makespan, 1.0)
    assert np.all(finish - start >= tasks.duration - slack)
    for task in range(len(tasks)):
        assert np.all(finish[tasks.waits_for(task)] <= start[task])
    for position, resource in enumerate(tasks.resources):
        ids = np.flatnonzero(tasks.resource == position)
        if resource.discipline == "none":
            continue
        if resource.discipline != "order":
            ids = ids[np.lexsort((finish[ids], start[ids]))]
        assert np.all(finish[ids[:-1]] <= start[ids[1:]])
        assert tasks.duration[ids].sum() <= timeline.makespan + slack


def reference(tasks: TaskGraph) -> np.ndarray:
    """The definition, task by task until nothing changes: an independent and slow way to the same times."""
    finish = tasks.duration.copy()
    for _ in range(len(tasks) + 1):
        before = finish.copy()
        last: dict[int, float] = {}
        for task in range(len(tasks)):
            resource = int(tasks.resource[task])
            ready = max((finish[other] for other in tasks.waits_for(task)), default=0.0)
            if tasks.resources[resource].discipline == "order":
                ready = max(ready, last.get(resource, 0.0))
            finish[task] = ready + tasks.duration[task]
            last[resource] = finish[task]
        if np.array_equal(before, finish):
            return finish
    raise AssertionError("the graph has a circle")


@given(st.one_of(graphs(), pipelines()))
@settings(max_examples=120, deadline=None)
def test_both_engines_and_the_definition_agree(tasks: TaskGraph) -> None:
    plus, event = simulate(tasks, engine="max-plus"), simulate(tasks, engine="event")
    scale = 1e-9 * max(plus.makespan, 1.0)
    assert np.abs(plus.finish - event.finish).max() <= scale
    assert np.abs(plus.start - event.start).max() <= scale
    assert np.abs(plus.finish - reference(tasks)).max() <= scale
    holds(plus)
    holds(event)


@given(st.one_of(graphs(("order", "fifo", "priority", "none")), shared_graphs()))
@settings(max_examples=120, deadline=None)
def test_orders_and_dependencies_hold_where_queues_choose(tasks: TaskGraph) -> None:
    timeline = simulate(tasks, engine="event")
    holds(timeline)
    again = simulate(tasks, engine="event")
    assert np.array_equal(timeline.finish, again.finish)


@given(st.one_of(graphs(), pipelines()), st.data())
@settings(max_examples=60, deadline=None)
def test_a_longer_task_makes_nothing_earlier(tasks: TaskGraph, data: st.DataObject) -> None:
    before = simulate(tasks)
    longer = tasks.duration.copy()
    longer[data.draw(st.integers(0, len(tasks) - 1))] += data.draw(st.floats(0, 100))
    after = simulate(tasks.with_duration(longer))
    assert np.all(after.finish >= before.finish)


@given(st.one_of(graphs(), pipelines()))
@settings(max_examples=60, deadline=None)
def test_the_critical_path_fills_the_makespan(tasks: TaskGraph) -> None:
    timeline = simulate(tasks)
    path = timeline.critical_path()
    assert path[0].start == 0.0
    assert path[-1].finish == timeline.makespan
    assert all(a.finish == b.start for a, b in itertools.pairwise(path))


@given(graphs(), st.lists(st.floats(0.1, 10), min_size=1, max_size=40))
@settings(max_examples=40, deadline=None)
def test_scenarios_are_what_they_are_alone(tasks: TaskGraph, factors: list[float]) -> None:
    together = simulate(tasks.with_duration(np.outer(factors, tasks.duration)))
    for position, factor in enumerate(factors):
        alone = simulate(tasks.with_duration(factor * tasks.duration))
        assert np.array_equal(together.finish[position], alone.finish)


@given(shared_graphs())
@settings(max_examples=60, deadline=None)
def test_no_link_carries_more_than_its_bandwidth(tasks: TaskGraph) -> None:
    timeline = simulate(tasks)
    assert tasks.size is not None and tasks.routes is not None and tasks.route_offsets is not None
    user = np.repeat(np.arange(len(tasks)), np.diff(tasks.route_offsets))
    for position, link in enumerate(tasks.links):
        on_link = user[tasks.routes == position]
        if len(on_link):
            window = timeline.finish[on_link].max() - timeline.start[on_link].min()
            assert tasks.size[on_link].sum() <= link.bandwidth * window * (1 + 1e-9)


@st.composite
def regular(draw: st.DrawFn) -> tuple[str, dict[str, float]]:
    name = draw(st.sampled_from(SCHEDULES))
    if draw(st.booleans()) and name not in ("GPipe", "LoopedBFS", "1F1B", "Interleaved1F1B"):
        times = dict.fromkeys(("forward", "backward_input", "backward_weight"), draw(st.floats(0.1, 10)))
    else:
        times = {key: draw(st.floats(0.1, 10)) for key in ("forward", "backward_input", "backward_weight")}
    return name, {
        "pp": draw(st.integers(1, 6)),
        "micro_batches": draw(st.integers(1, 16)),
        "chunks": 1 if name in ("GPipe", "1F1B") else draw(st.integers(2, 4)),
        "p2p": draw(st.one_of(st.just(0.0), st.floats(0.01, 15))),
        **times,
    }


def simulated(name: str, plan: dict[str, float]) -> float:
    schedule = pipeline(
        name, pp=int(plan["pp"]), micro_batches=int(plan["micro_batches"]), stages_per_rank=int(plan["chunks"])
    )
    times = StageTimes(
        forward=plan["forward"],
        backward_input=plan["backward_input"],
        backward_weight=plan["backward_weight"],
        transfer_forward=plan["p2p"],
        transfer_backward=plan["p2p"],
    )
    return simulate(pipeline_tasks(schedule, times)).makespan


@given(regular())
@settings(max_examples=250, deadline=None)
def test_where_there_is_a_closed_form_it_is_exact(case: tuple[str, dict[str, float]]) -> None:
    name, plan = case
    if not has_closed_form(name, **plan):
        with pytest.raises(UnsupportedError, match="has no closed form"):
            pipeline_time(name, **plan)
        return
    assert float(pipeline_time(name, **plan)) == pytest.approx(simulated(name, plan), rel=1e-9)


@pytest.mark.parametrize(("name", "chunks"), [("GPipe", 1), ("1F1B", 1), ("LoopedBFS", 3), ("Interleaved1F1B", 3)])
def test_the_closed_form_is_exact_for_every_small_pipeline(name: str, chunks: int) -> None:
    times = {"chunks": chunks, "forward": 2.0, "backward_input": 3.0, "backward_weight": 1.0, "p2p": 0.75}
    checked = 0
    for pp in range(1, 7):
        for batches in range(1, 14):
            plan = {"pp": pp, "micro_batches": batches, **times}
            if has_closed_form(name, **plan):
                assert float(pipeline_time(name, **plan)) == pytest.approx(simulated(name, plan), rel=1e-12), plan
                checked += 1
    assert checked == (63 if name == "Interleaved1F1B" else 78)


def test_the_closed_form_is_the_textbooks_without_transfers() -> None:
    p, m, v, f, b = 4, 16, 3, 2.0, 5.0
    ideal = {"forward": f, "backward_input": b, "pp": p, "micro_batches": m}
    for name in ("GPipe", "1F1B"):
        assert pipeline_time(name, **ideal) == m * (f + b) + (p - 1) * (f + b)
    for name in ("Interleaved1F1B", "LoopedBFS"):
        assert pipeline_time(name, **ideal, chunks=v) == v * m * (f + b) + (p - 1) * (f + b)


def test_the_closed_form_broadcasts() -> None:
    pp, batches = np.array([2, 4, 8])[:, None], np.array([8, 16])
    times = pipeline_time("Interleaved1F1B", pp=pp, micro_batches=batches, chunks=2, forward=1.0, backward_input=2.0)
    assert times.shape == (3, 2)
    alone = pipeline_time("Interleaved1F1B", pp=8, micro_batches=16, chunks=2, forward=1.0, backward_input=2.0)
    assert times[2, 1] == alone


def test_every_regular_kind_is_reached() -> None:
    """The property above is no proof of a formula that never applies."""
    equal = {"forward": 1.0, "backward_input": 1.0, "backward_weight": 1.0, "pp": 4, "micro_batches": 8}
    for name in SCHEDULES:
        chunks = 1 if name in ("GPipe", "1F1B") else 2
        assert has_closed_form(name, chunks=chunks, **equal), name
        assert float(pipeline_time(name, chunks=chunks, **equal)) == simulated(
            name, {**equal, "chunks": chunks, "p2p": 0}
        )
