"""The task graph of a pipeline, and graphs made task by task."""

from __future__ import annotations

import numpy as np
import pytest

from perfmodel.errors import UnknownNameError, UnsupportedError
from perfmodel.schedule import StageTimes, TaskGraph, TaskGraphBuilder, pipeline, pipeline_tasks
from perfmodel.simulate import simulate


def named(tasks: TaskGraph, name: str) -> int:
    (task,) = [task for task in range(len(tasks)) if tasks.name(task) == name]
    return task


def finish(tasks: TaskGraph, name: str) -> float:
    return float(simulate(tasks).finish[named(tasks, name)])


def test_count_of_the_large_graph_in_small() -> None:
    # pp v m forwards and backwards, and a transfer each for every stage but one: for pp 64, m 512, v 2
    # that is 131,072 + 130,048 = 261,120.
    for pp, m, v in [(4, 8, 2), (3, 6, 3)]:
        times = StageTimes(forward=1.0, backward_input=1.0, transfer_forward=0.1, transfer_backward=0.1)
        tasks = pipeline_tasks(pipeline("Interleaved1F1B", pp=pp, micro_batches=m, stages_per_rank=v), times)
        assert len(tasks) == 2 * pp * v * m + 2 * (pp * v - 1) * m
        assert tasks.of_kind("transfer").sum() == 2 * (pp * v - 1) * m


def test_stages_and_micro_batches_may_differ() -> None:
    schedule = pipeline("GPipe", pp=2, micro_batches=2)
    by_stage = pipeline_tasks(schedule, StageTimes(forward=[1.0, 5.0], backward_input=0.0))
    assert finish(by_stage, "F stage 1 #1") == 11.0
    by_batch = pipeline_tasks(schedule, StageTimes(forward=[[1.0, 2.0], [5.0, 7.0]], backward_input=0.0))
    assert finish(by_batch, "F stage 1 #1") == 13.0


def test_scenarios_go_in_front() -> None:
    schedule = pipeline("1F1B", pp=2, micro_batches=3)
    forward = np.array([1.0, 2.0, 4.0])[:, None, None]
    tasks = pipeline_tasks(schedule, StageTimes(forward=forward, backward_input=1.0, optimizer=[[1.0], [2.0], [3.0]]))
    timeline = simulate(tasks)
    singles = [
        simulate(pipeline_tasks(schedule, StageTimes(forward=f, backward_input=1.0, optimizer=o))).makespan
        for f, o in [(1.0, 1.0), (2.0, 2.0), (4.0, 3.0)]
    ]
    assert timeline.makespans.tolist() == singles
    assert timeline.scenario(1).makespan == singles[1]


def test_the_middle_of_a_v_needs_no_transfer() -> None:
    times = StageTimes(forward=1.0, backward_input=1.0, backward_weight=1.0, transfer_forward=0.5)
    tasks = pipeline_tasks(pipeline("ZBVZeroBubble", pp=2, micro_batches=4), times)
    assert tasks.of_kind("transfer").sum() == 2 * 4  # stages 0 to 1 and 2 to 3; 1 and 2 share a rank


def test_a_blocking_transfer_holds_its_sender() -> None:
    schedule = pipeline("GPipe", pp=2, micro_batches=2)
    beside = StageTimes(forward=1.0, backward_input=1.0, transfer_forward=0.5)
    blocking = StageTimes(forward=1.0, backward_input=1.0, transfer_forward=0.5, blocking=True)
    assert finish(pipeline_tasks(schedule, beside), "F stage 0 #1") == 2.0
    assert finish(pipeline_tasks(schedule, blocking), "F stage 0 #1") == 2.5


def test_reductions_overlap_with_the_backwards_that_follow() -> None:
    schedule = pipeline("LoopedBFS", pp=1, micro_batches=2, stages_per_rank=2)
    times = StageTimes(forward=1.0, backward_input=1.0, reduction=1.5, optimizer=2.0)
    tasks = pipeline_tasks(schedule, times)
    # 4 forwards, 2 backwards of stage 1; its reduction runs beside the backwards of stage 0.
    assert finish(tasks, "reduction stage 1") == 7.5
    assert finish(tasks, "reduction stage 0") == 9.5
    assert finish(tasks, "optimizer") == 11.5


def test_a_pair_may_take_less_than_its_parts() -> None:
    schedule = pipeline("DualPipeV", pp=2, micro_batches=4)
    alone = StageTimes(forward=1.0, backward_input=1.0, backward_weight=1.0)
    hidden = StageTimes(forward=1.0, backward_input=1.0, backward_weight=1.0, pair=0.8)
    pairs = pipeline_tasks(schedule, hidden).of_kind("forward+backward")
    assert pipeline_tasks(schedule, alone).duration[pairs].tolist() == [3.0] * int(pairs.sum())
    assert pipeline_tasks(schedule, hidden).duration[pairs] == pytest.approx(2.4)


@pytest.mark.parametrize(
    ("times", "part"),
    [
        (StageTimes(forward=[1.0, 2.0, 3.0], backward_input=1.0), "forward have the shape [3]"),
        (StageTimes(forward=1.0, backward_input=-1.0), "at least 0, not -1.0"),
        (StageTimes(forward=float("nan"), backward_input=1.0), "at least 0, not nan"),
        (StageTimes(forward=1.0, backward_input=1.0, optimizer=[1.0, 1.0, 1.0]), "optimizer have the shape [3]"),
        (StageTimes(forward=1.0, backward_input=1.0, pair=0.0), "above 0"),
    ],
)
def test_wrong_times_are_refused(times: StageTimes, part: str) -> None:
    with pytest.raises(UnsupportedError) as raised:
        pipeline_tasks(pipeline("1F1B", pp=2, micro_batches=4), times)
    assert part in str(raised.value)


def test_the_builder_refuses_what_cannot_be() -> None:
    build = TaskGraphBuilder()
    gpu = build.resource("gpu", group="rank 0", stream="compute")
    with pytest.raises(UnsupportedError, match="two resources are called 'gpu'"):
        build.resource("gpu", group="rank 1", stream="compute")
    with pytest.raises(UnknownNameError, match="did you mean 'fifo'"):
        build.resource("nic", group="rank 0", stream="network", discipline="fito")  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="resource 5"):
        build.add(5, 1.0, kind="compute")
    with pytest.raises(UnsupportedError, match="at least 0, not -1"):
        build.add(gpu, -1.0, kind="compute")
    with pytest.raises(UnsupportedError, match="no route"):
        build.add(gpu, 0.0, kind="transfer", size=8.0)
    with pytest.raises(UnsupportedError, match="bandwidth above 0"):
        build.link("wire", 0.0)
    with pytest.raises(UnsupportedError, match="factor of at least 1"):
        build.interfere(gpu, by=[gpu], factor=0.5)
    build.add(gpu, 1.0, kind="compute", after=[7])
    with pytest.raises(UnsupportedError, match="task 0 waits for task 7, which doesn't exist"):
        build.build()


def test_an_empty_graph() -> None:
    tasks = TaskGraphBuilder().build()
    for engine in ("max-plus", "event"):
        timeline = simulate(tasks, engine=engine)  # type: ignore[arg-type]
        assert timeline.makespan == 0.0
        assert timeline.critical_path() == []


def test_other_durations_have_the_right_shape() -> None:
    tasks = pipeline_tasks(pipeline("1F1B", pp=2, micro_batches=2), StageTimes(forward=1.0, backward_input=1.0))
    assert simulate(tasks.with_duration(2 * tasks.duration)).makespan == 2 * simulate(tasks).makespan
    with pytest.raises(UnsupportedError, match=r"not \[3\]"):
        tasks.with_duration(np.ones(3))
