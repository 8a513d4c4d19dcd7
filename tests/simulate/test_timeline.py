"""What a timeline says, and the trace that it writes."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from perfmodel.errors import FileError, UnknownNameError, UnsupportedError
from perfmodel.schedule import StageTimes, TaskGraphBuilder, pipeline, pipeline_tasks
from perfmodel.simulate import Timeline, simulate


def two_ranks(**times: float) -> Timeline:
    schedule = pipeline("1F1B", pp=2, micro_batches=2)
    return simulate(pipeline_tasks(schedule, StageTimes(forward=1.0, backward_input=2.0, **times)))


def spans(path: Path) -> list[dict[str, object]]:
    return [event for event in json.loads(path.read_text())["traceEvents"] if event["ph"] == "X"]


def test_bubble_and_busy_share() -> None:
    timeline = two_ranks()
    assert timeline.makespan == 9.0
    assert timeline.bubble() == pytest.approx({"rank 0": 1 / 3, "rank 1": 1 / 3})
    assert timeline.busy() == pytest.approx({"rank 0 compute": 2 / 3, "rank 1 compute": 2 / 3})
    with pytest.raises(UnknownNameError, match="did you mean 'compute'"):
        timeline.bubble("computer")


def test_exposed_communication() -> None:
    build = TaskGraphBuilder()
    gpu = build.resource("gpu", group="rank 0", stream="compute")
    nic = build.resource("nic", group="rank 0", stream="network")
    other = build.resource("other gpu", group="rank 1", stream="compute")
    build.add(gpu, 2.0, kind="backward")
    build.add(nic, 3.0, kind="all-reduce")
    build.add(other, 9.0, kind="backward")
    build.add(nic, 1.0, kind="all-gather")
    timeline = simulate(build.build())
    assert timeline.exposed("all-reduce") == {"rank 0": 1.0, "rank 1": 0.0}
    assert timeline.exposed("all-gather") == {"rank 0": 1.0, "rank 1": 0.0}
    with pytest.raises(UnknownNameError, match="did you mean 'all-reduce'"):
        timeline.exposed("allreduce")


def test_a_blocking_transfer_is_exposed() -> None:
    timeline = two_ranks(transfer_forward=0.5, blocking=True)
    assert timeline.exposed("transfer")["rank 0"] == pytest.approx(1.0)


def test_the_critical_path_says_why() -> None:
    path = two_ranks().critical_path()
    # The last rank is never idle between its first forward and its last backward.
    assert [(step.name, step.waited_for) for step in path] == [
        ("F stage 0 #0", "begin"),
        ("F stage 1 #0", "dependency"),
        ("B stage 1 #0", "resource"),
        ("F stage 1 #1", "resource"),
        ("B stage 1 #1", "resource"),
        ("B stage 0 #1", "dependency"),
    ]
    assert path[0].start == 0.0
    assert path[-1].finish == 9.0
    assert all(step.stretched == 0.0 for step in path)
    assert all(a.finish == b.start for a, b in itertools.pairwise(path))


def test_a_critical_path_through_tasks_that_take_no_time() -> None:
    for discipline in ("order", "fifo"):
        build = TaskGraphBuilder()
        gpu = build.resource("gpu", group="rank 0", stream="compute", discipline=discipline)  # type: ignore[arg-type]
        nic = build.resource("nic", group="rank 0", stream="network")
        first = build.add(gpu, 1.0, kind="work", label="first")
        nothing = build.add(nic, 0.0, kind="work", label="nothing", after=[first])
        build.add(gpu, 0.0, kind="work", label="none", after=[nothing])
        build.add(gpu, 2.0, kind="work", label="last")
        path = simulate(build.build()).critical_path()
        assert path[0].waited_for == "begin"
        assert path[0].start == 0.0
        assert path[-1].finish == 3.0


def test_scenarios_are_chosen_first() -> None:
    timeline = two_ranks()
    tasks = timeline.tasks.with_duration(timeline.tasks.duration * [[1.0], [2.0]])
    both = simulate(tasks)
    assert both.makespans.tolist() == [9.0, 18.0]
    with pytest.raises(UnsupportedError, match="2 scenarios"):
        both.critical_path()
    assert both.scenario(1).bubble() == pytest.approx(timeline.bubble())


def test_the_trace_has_every_task_in_its_place(tmp_path: Path) -> None:
    timeline = two_ranks(transfer_forward=0.25, transfer_backward=0.25)
    file = tmp_path / "step.json"
    timeline.save(file)
    events = json.loads(file.read_text())["traceEvents"]
    processes = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert processes == {0: "rank 0", 1: "rank 1"}
    threads = [event["args"]["name"] for event in events if event["name"] == "thread_name"]
    assert threads == ["compute", "compute", "activations to rank 1", "gradients to rank 0"]
    drawn = spans(file)
    assert len(drawn) == len(timeline.tasks)
    for span in drawn:
        task = span["args"]["task"]
        assert span["name"] == timeline.tasks.name(task)
        assert span["ts"] == pytest.approx(timeline.start[task] * 1e6)
        assert span["ts"] + span["dur"] == pytest.approx(timeline.finish[task] * 1e6)
    assert [path.name for path in tmp_path.iterdir()] == ["step.json"]


def test_spans_nest_by_module(tmp_path: Path) -> None:
    build = TaskGraphBuilder()
    gpu = build.resource("gpu", group="rank 0", stream="compute")
    for name, path in [("qkv", "layers.0.attention"), ("up", "layers.0.mlp"), ("down", "layers.0.mlp"), ("step", "")]:
        build.add(gpu, 1e-6 / 3, kind="forward", label=name, path=path)
    build.add(gpu, 1e-6, kind="forward", label="qkv", path="layers.1.attention")
    simulate(build.build()).save(tmp_path / "step.json")
    drawn = spans(tmp_path / "step.json")
    modules = [span["name"] for span in drawn if span["cat"] == "module"]
    assert modules == [
        "layers",
        "layers.0",
        "layers.0.attention",
        "layers.0.mlp",
        "layers",
        "layers.1",
        "layers.1.attention",
    ]
    stack: list[int] = []
    ordered = sorted(drawn, key=lambda span: round(span["ts"] * 1000))  # stable, as viewers sort
    for span in ordered:
        begin = round(span["ts"] * 1000)
        end = begin + round(span["dur"] * 1000)
        while stack and stack[-1] <= begin:
            stack.pop()
        assert not stack or end <= stack[-1], span
        stack.append(end)


def test_what_overlaps_in_a_lane_gets_rows(tmp_path: Path) -> None:
    build = TaskGraphBuilder()
    wire = build.resource("wire", group="rank 0", stream="network", discipline="none")
    for seconds in (3.0, 2.0):
        build.add(wire, seconds, kind="transfer")
    build.add(wire, 1.0, kind="transfer", after=[1])
    simulate(build.build()).save(tmp_path / "step.json")
    assert [span["tid"] for span in sorted(spans(tmp_path / "step.json"), key=lambda s: s["args"]["task"])] == [1, 0, 0]


def test_a_failed_save_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(FileError, match="can't write the trace"):
        two_ranks().save(tmp_path / "taken")
    with pytest.raises(FileError, match="choose another path"):
        two_ranks().save(tmp_path / "absent" / "step.json")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_plain_data() -> None:
    timeline = two_ranks()
    data = json.loads(json.dumps(timeline.to_dict()))
    assert data["makespan"] == 9.0
    assert data["engine"] == "max-plus"
    assert data["tasks"]["finish"] == timeline.finish.tolist()
    assert data["resources"][1]["group"] == "rank 1"
