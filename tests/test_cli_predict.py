"""``perfmodel predict`` for plans on clusters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import perfmodel as pm
from perfmodel.cli import main
from perfmodel.graph.store import save_graph

PLAN = ["--tp", "2", "--pp", "2", "--global-batch", "32"]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> str:
    step = pm.capture(
        "gpt2", batch=1, seq_len=128, layers=4, optimizer="adamw", implementation="reference", cache=False
    )
    path = tmp_path_factory.mktemp("graphs") / "step.json"
    save_graph(step, path)
    return str(path)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["predict", *arguments])
    told = capsys.readouterr()
    return int(stop.value.code or 0), told.out, told.err


def test_a_plan_from_options(capsys: pytest.CaptureFixture[str], graph: str, tmp_path: Path) -> None:
    trace = tmp_path / "step.trace.json"
    code, out, err = run(
        capsys, graph, "--on", "dgx-h100", *PLAN, "--zero", "1", "--tokens", "1B", "--trace", str(trace)
    )
    assert (code, err) == (0, "")
    assert "on 1 × dgx-h100 (eager)" in out
    assert "tp 2, pp 2, dp 2, zero 1; 1F1B, 16 micro-batches of 1: 8 devices" in out
    assert "  time        compute" in out
    assert "% hidden)" in out
    assert "most of it" in out
    assert "training" in out
    assert json.loads(trace.read_text())["traceEvents"]


def test_a_plan_from_a_file_is_changed_by_options(
    capsys: pytest.CaptureFixture[str], graph: str, tmp_path: Path
) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text("schema: plan/1\ntp: 4\nglobal_batch: 32\n")
    code, out, _ = run(
        capsys, graph, "--on", "dgx-h100", "--plan", str(file), "--tp", "2", "--pp", "2", "--vpp", "2", "--json"
    )
    assert code == 0
    told = json.loads(out)
    plan = pm.Plan.from_dict(told["plan"])
    assert (plan.tp, plan.pp, plan.vpp, plan.dp, plan.schedule) == (2, 2, 2, 2, "Interleaved1F1B")
    assert told["devices"] == 8
    assert len(told["ranks"]) == 2
    assert sum(told["breakdown_s"]["time"].values()) == pytest.approx(told["step_time_s"])


def test_machines_are_compared(capsys: pytest.CaptureFixture[str], graph: str) -> None:
    code, out, _ = run(capsys, graph, "--on", "dgx-h100", "--on", "dgx-a100", "--nodes", "2", *PLAN, "--json")
    assert code == 0
    fast, slow = json.loads(out)
    assert fast["devices"] == slow["devices"] == 16
    assert fast["step_time_s"] < slow["step_time_s"]


@pytest.mark.parametrize("recompute", ["selective", "full", "2", "layers.*.mlp,layers.*.norm1"])
def test_recompute(capsys: pytest.CaptureFixture[str], graph: str, recompute: str) -> None:
    code, out, err = run(capsys, graph, "--on", "dgx-h100", "--tp", "2", "--recompute", recompute, "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert told["hardware_flops"] > told["model_flops"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--on", "dgx-h100"], "8 devices; give a plan"),
        (["--on", "h100", "--nodes", "2"], "is a device"),
        (["--on", "dgx-h100", "--tp", "5"], "tp 5 × pp 1 × cp 1 = 5 ranks don't divide the cluster's 8"),
        (["--on", "dgx-h100", *PLAN, "--batch", "4"], "give --micro-batch"),
        (["--on", "dgx-h100", *PLAN, "--largest-batch"], "of one device"),
        (["--on", "dgx-h100", *PLAN, "--schedule", "1F1b"], "did you mean '1F1B'"),
        (["--on", "dgx-h100", *PLAN, "--recompute", "al"], "chooses no op"),
        (["--on", "dgx-h100", "--on", "dgx-a100", *PLAN, "--trace", "x.json"], "one timeline"),
        (["--on", "dgx-h100", *PLAN, "--plan", "absent.yaml"], "absent.yaml"),
        (["--on", "dgx-h100", *PLAN, "--set", "memory.hbm.capacity=1GB"], "write e.g. device.memory"),
        (["--on", "dgx-h1000", *PLAN], "did you mean 'dgx-h100'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_two(
    capsys: pytest.CaptureFixture[str], graph: str, arguments: list[str], message: str
) -> None:
    code, out, err = run(capsys, graph, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_hardware_is_changed_by_path(capsys: pytest.CaptureFixture[str], graph: str) -> None:
    times = []
    for change in (
        [],
        ["--set", "device.memory.hbm.bandwidth=4TB/s"],
        ["--set", "node.interconnect.bandwidth=225GB/s"],
    ):
        code, out, err = run(capsys, graph, "--on", "dgx-h100", "--tp", "2", *change, "--json")
        assert (code, err) == (0, "")
        times.append(json.loads(out)["step_time_s"])
    assert times[1] < times[0] < times[2]
