"""The engines on graphs small enough to follow by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from perfmodel.errors import UnknownNameError, UnsupportedError
from perfmodel.schedule import StageTimes, TaskGraphBuilder, pipeline, pipeline_tasks
from perfmodel.simulate import Straggler, fair_rates, jitter, simulate


def test_auto_takes_the_engine_that_applies() -> None:
    build = TaskGraphBuilder()
    build.add(build.resource("gpu", group="rank 0", stream="compute"), 1.0, kind="work")
    assert simulate(build.build()).engine == "max-plus"
    assert simulate(build.build(), engine="event").engine == "event"
    queue = build.resource("nic", group="rank 0", stream="network", discipline="fifo")
    build.add(queue, 1.0, kind="work")
    assert simulate(build.build()).engine == "event"
    with pytest.raises(UnsupportedError, match=r"a queue that chooses \(nic\)"):
        simulate(build.build(), engine="max-plus")
    with pytest.raises(UnknownNameError, match="did you mean 'event'"):
        simulate(build.build(), engine="events")  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", ["max-plus", "event"])
def test_tasks_that_wait_for_each_other_are_named(engine: str) -> None:
    build = TaskGraphBuilder()
    a, b = (build.resource(name, group=name, stream="compute") for name in "ab")
    build.add(a, 1.0, kind="work", label="first", after=[1])
    build.add(b, 1.0, kind="work", label="second", after=[0])
    build.add(b, 1.0, kind="work", label="third")
    with pytest.raises(UnsupportedError, match="first waits for second waits for first"):
        simulate(build.build(), engine=engine)  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", ["max-plus", "event"])
def test_an_order_that_contradicts_a_dependency_is_refused(engine: str) -> None:
    build = TaskGraphBuilder()
    gpu = build.resource("gpu", group="rank 0", stream="compute")
    build.add(gpu, 1.0, kind="work", label="first", after=[1])
    build.add(gpu, 1.0, kind="work", label="second")
    with pytest.raises(UnsupportedError, match="change the order on a resource"):
        simulate(build.build(), engine=engine)  # type: ignore[arg-type]


def test_queues_choose_as_their_discipline_says() -> None:
    starts = {}
    for discipline in ("order", "fifo", "priority", "none"):
        build = TaskGraphBuilder()
        source = build.resource("source", group="x", stream="source", discipline="none")
        queue = build.resource("queue", group="x", stream="queue", discipline=discipline)  # type: ignore[arg-type]
        late, early, middle = (build.add(source, seconds, kind="arrive") for seconds in (3.0, 0.0, 1.0))
        ids = [
            build.add(queue, 5.0, kind="work", after=[late], priority=9.0),
            build.add(queue, 5.0, kind="work", after=[early]),
            build.add(queue, 5.0, kind="work", after=[middle], priority=1.0),
        ]
        starts[discipline] = simulate(build.build()).start[ids].tolist()
    assert starts == {
        "order": [3.0, 8.0, 13.0],
        "fifo": [10.0, 0.0, 5.0],
        "priority": [5.0, 0.0, 10.0],
        "none": [3.0, 0.0, 1.0],
    }


def test_transfers_share_a_link_fairly() -> None:
    build = TaskGraphBuilder()
    nic = build.resource("nic", group="rank 0", stream="network", discipline="none")
    wire, uplink = build.link("wire", 10.0), build.link("uplink", 4.0)
    build.add(nic, 0.0, kind="transfer", size=40.0, route=[wire])
    build.add(nic, 0.0, kind="transfer", size=8.0, route=[wire, uplink])
    build.add(nic, 1.0, kind="transfer", size=2.0, route=[uplink])
    # Until 1: 6 and 4 bytes/s. Then the uplink is shared, 2 each, which leaves 8 for the first; the third
    # ends at 2. Then 6 and 4 again: the second has 2 bytes left and ends at 2.5; the first, with
    # 40 - 6 - 8 - 3 = 23 left, has the wire for itself.
    assert simulate(build.build()).finish.tolist() == pytest.approx([4.8, 2.5, 2.0])


def test_rates_are_max_min_fair() -> None:
    # Three transfers share the first link; the fourth takes what one of them leaves on the last.
    routes = {0: [0, 1, 2], 1: [0], 2: [0, 1], 3: [2]}
    rates = fair_rates(routes, [1.0, 1.0, 1.0])
    assert rates == pytest.approx({0: 1 / 3, 1: 1 / 3, 2: 1 / 3, 3: 2 / 3})


def test_communication_slows_compute_down_while_it_runs() -> None:
    build = TaskGraphBuilder()
    gpu = build.resource("gpu", group="rank 0", stream="compute")
    nic = build.resource("nic", group="rank 0", stream="network")
    build.interfere(gpu, by=[nic], factor=1.25)
    build.add(gpu, 1.0, kind="forward")
    build.add(gpu, 4.0, kind="backward", after=[0])
    build.add(nic, 2.0, kind="all-reduce", after=[0])
    timeline = simulate(build.build())
    # From 1 to 3 the backward gets 2 / 1.25 = 1.6 s of its work done, then the other 2.4.
    assert timeline.finish.tolist() == pytest.approx([1.0, 5.4, 3.0])
    assert timeline.critical_path()[-1].stretched == pytest.approx(0.4)


def test_fsdp_prefetch_with_a_priority_queue() -> None:
    """Gathers run ahead of the layers that need them; the reduction of one layer yields to the next gather."""
    build = TaskGraphBuilder()
    gpu = build.resource("gpu", group="rank 0", stream="compute")
    nic = build.resource("nic", group="rank 0", stream="network", discipline="priority")
    gather = [build.add(nic, 2.0, kind="all-gather", priority=1.0)]
    layers = []
    for layer in range(3):
        layers.append(build.add(gpu, 3.0, kind="backward", after=[gather[layer]]))
        gather.append(build.add(nic, 2.0, kind="all-gather", priority=1.0, after=[gather[layer]]))
        build.add(nic, 1.0, kind="reduce-scatter", after=[layers[layer]])
    timeline = simulate(build.build())
    assert timeline.start[layers].tolist() == [2.0, 5.0, 8.0]
    assert timeline.exposed("all-gather") == {"rank 0": 2.0}
    assert timeline.exposed("reduce-scatter") == {"rank 0": 1.0}


def test_many_predecessors() -> None:
    for fan_in in (1, 2, 3, 7, 8, 9, 40):
        build = TaskGraphBuilder()
        queues = [build.resource(f"q{i}", group="x", stream=f"q{i}") for i in range(fan_in + 1)]
        sources = [build.add(queues[i], 1.0 + (i * 7) % 11, kind="work") for i in range(fan_in)]
        build.add(queues[-1], 1.0, kind="join", after=sources)
        tasks = build.build()
        expected = 2.0 + max((i * 7) % 11 for i in range(fan_in))
        assert simulate(tasks).makespan == simulate(tasks, engine="event").makespan == expected


def test_jitter_of_a_single_task_is_lognormal_with_mean_one() -> None:
    build = TaskGraphBuilder()
    build.add(build.resource("gpu", group="rank 0", stream="compute"), 2.0, kind="work")
    sigma = 0.3
    result = jitter(build.build(), sigma=sigma, scenarios=20_000, seed=1)
    logs = np.log(result.values / 2.0)
    error = sigma / math.sqrt(20_000)
    assert abs(logs.mean() + sigma**2 / 2) < 4 * error
    assert abs(logs.std() - sigma) < 4 * error
    assert abs(result.mean - 2.0) < 4 * 2.0 * error
    assert result.undisturbed == 2.0
    assert result.quantile(0.5) == pytest.approx(2.0 * math.exp(-(sigma**2) / 2), rel=4 * error * 1.3)


def test_jitter_is_repeatable_and_the_same_on_both_engines() -> None:
    tasks = pipeline_tasks(pipeline("1F1B", pp=3, micro_batches=5), StageTimes(forward=1.0, backward_input=2.0))
    first = jitter(tasks, sigma=0.1, scenarios=40, seed=7)
    assert np.array_equal(first.values, jitter(tasks, sigma=0.1, scenarios=40, seed=7).values)
    assert not np.array_equal(first.values, jitter(tasks, sigma=0.1, scenarios=40, seed=8).values)
    assert np.array_equal(first.values[:32], jitter(tasks, sigma=0.1, scenarios=32, seed=7).values)
    assert (first.values > 0).all() and first.quantile(0.9) > first.undisturbed


def test_jitter_of_some_tasks_only() -> None:
    tasks = pipeline_tasks(pipeline("GPipe", pp=2, micro_batches=2), StageTimes(forward=1.0, backward_input=2.0))
    still = jitter(tasks, sigma={"forward": 0.5, "rank 0 compute": 0.0, "rank 1 compute": 0.0}, scenarios=3, seed=0)
    assert still.values.tolist() == [9.0] * 3
    assert np.ptp(jitter(tasks, sigma={"forward": 0.5}, scenarios=9, seed=0).values) > 0
    with pytest.raises(UnknownNameError, match="did you mean 'forward'"):
        jitter(tasks, sigma={"forwards": 0.5}, scenarios=3, seed=0)


def test_a_straggler_slows_its_resource_down() -> None:
    tasks = pipeline_tasks(pipeline("GPipe", pp=2, micro_batches=3), StageTimes(forward=[1.0, 2.0], backward_input=0.0))
    one = jitter(tasks, sigma=0.0, scenarios=2, seed=0, straggler=Straggler(resources=["rank 1 compute"], factor=2.0))
    assert one.values.tolist() == [13.0, 13.0]
    either = Straggler(resources=["rank 0 compute", "rank 1 compute"], factor=2.0)
    drawn = jitter(tasks, sigma=0.0, scenarios=60, seed=0, straggler=either)
    assert set(drawn.values.tolist()) == {8.0, 13.0}
    with pytest.raises(UnknownNameError, match="did you mean 'rank 1 compute'"):
        jitter(tasks, sigma=0.0, scenarios=2, seed=0, straggler=Straggler(resources=["rank 1 computer"], factor=2.0))


def test_jitter_where_queues_choose() -> None:
    build = TaskGraphBuilder()
    queue = build.resource("nic", group="rank 0", stream="network", discipline="fifo")
    for _ in range(4):
        build.add(queue, 1.0, kind="transfer")
    result = jitter(build.build(), sigma=0.2, scenarios=50, seed=3)
    assert result.undisturbed == 4.0
    assert result.mean == pytest.approx(4.0, abs=4 * 2 * 0.2 / math.sqrt(50))
