"""The comparison with real runs, on models so small that only its sanity can be checked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cpu_baseline
import pytest
import torch
from real_step import PHASES, Case
from this_cpu import MICRO, BenchmarkSizes

import perfmodel as pm
from perfmodel.errors import PerfModelError

TINY = {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 16, "intermediate_size": 128, "vocab_size": 512}
CASES = (
    Case(
        name="decoder",
        dims=cpu_baseline.like("llama-3.1-8b", 2, **TINY, num_key_value_heads=2),
        optimizer="adamw",
        batch=4,
        seq_len=32,
    ),
    Case(
        name="encoder",
        dims=cpu_baseline.like("bert-base-uncased", 2, **TINY, num_key_value_heads=4),
        optimizer="adam",
        batch=4,
        seq_len=32,
    ),
)
SIZES = BenchmarkSizes(cache=8 * 2**20, buffer=64 * 2**20, product=256, calls=500)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    # Threads that wait for each other make times on a busy machine useless.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def device_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("device") / "this-cpu.yaml"


@pytest.fixture(scope="module")
def result(one_thread: None, device_file: Path) -> dict[str, Any]:
    # A machine that is busy at the wrong moment has a cache slower than its memory, which is refused.
    for attempt in range(4):
        try:
            made = cpu_baseline.baseline(CASES, SIZES, device_file, rounds=2, steps=2, warmup=2)
            break
        except PerfModelError:
            if attempt == 3:
                raise
    return json.loads(json.dumps(made))  # type: ignore[no-any-return]


def test_step_and_peak_are_predicted(result: dict[str, Any]) -> None:
    assert [model["model"] for model in result["models"]] == ["decoder", "encoder"]
    for model in result["models"]:
        measured = model["measured_s"]
        assert measured["count"] == 4
        assert measured["quartiles"][0] <= measured["median"] <= measured["quartiles"][1]
        assert 0.1 < model["predicted_s"] / measured["median"] < 10
        assert model["error"] == pytest.approx(model["predicted_s"] / measured["median"] - 1)
        assert model["memory"]["predicted_bytes"] == pytest.approx(model["memory"]["measured_bytes"], rel=0.005)
        assert model["missing"] == {}


def test_phases_and_classes_make_up_the_step(result: dict[str, Any]) -> None:
    for model in result["models"]:
        assert tuple(model["phases"]) == PHASES
        predicted = sum(times["predicted_s"] for times in model["phases"].values())
        assert predicted == pytest.approx(model["predicted_s"])
        assert all(times["measured_s"] > 0 for times in model["phases"].values())
        assert {"matmul", "elementwise", "softmax", "gather", "scatter"} <= set(model["op_classes"])
        # Every class that is predicted was seen to run.
        assert all(times["profiled_s"] > 0 for times in model["op_classes"].values())


def test_the_machine_is_a_device_whose_numbers_say_that_they_are_measured(
    result: dict[str, Any], device_file: Path
) -> None:
    device = pm.load_device(device_file)
    assert set(result["micro"]) == set(MICRO)
    assert device.peak("matrix", "float32") == pytest.approx(result["micro"]["product"]["median"], rel=1e-5)
    assert device.memory[0].bandwidth == pytest.approx(result["micro"]["main memory"]["median"], rel=1e-5)
    source = device.sources["compute.matrix.peak.fp32"]
    where = result["machine"]
    assert source.source == "measured"
    for told in (where["cpu"], where["torch"], where["date"], f"{where['threads']} threads"):
        assert told in source.title
    assert "this-cpu" not in pm.device_names()


def test_report_shows_each_model(result: dict[str, Any]) -> None:
    text = cpu_baseline.report(result)
    for header in ("step, measured [quartiles]", "predicted", "error", "peak memory", "phase", "op class"):
        assert header in text
    for name in ("decoder", "encoder", *PHASES, *MICRO):
        assert sum(line.startswith(name) or f"  {name} " in line for line in text.splitlines()) >= 1, name


def test_a_size_without_meaning_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cpu_baseline.main(["--cache", "32 mib"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
