"""Predictions: what they add up to, what they refuse, which way they move."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import perfmodel as pm
from perfmodel.errors import CoverageError, UnsupportedError
from perfmodel.graph.count import count
from tests.graph.modules import TOKENS, Gpt, ids


@pytest.fixture(scope="module")
def step() -> pm.Graph:
    return pm.capture(
        "gpt2", batch=8, seq_len=256, optimizer="adamw", layers=3, implementation="reference", cache=False
    )


def with_memory(device: pm.Device, factor: float) -> pm.Device:
    main, *nearer = device.memory
    return replace(device, memory=(replace(main, bandwidth=main.bandwidth * factor), *nearer))


@pytest.mark.parametrize("device", pm.device_names())
def test_every_device_and_runtime(step: pm.Graph, device: str) -> None:
    for runtime in pm.load_device(device).runtimes:
        p = pm.predict(step, device, runtime=runtime)
        b = p.breakdown
        assert p.step_time > 0
        assert p.interval is None
        assert 0 < p.mfu <= p.hfu < 1
        assert sum(b.phase.values()) == pytest.approx(p.step_time)
        for table in (b.module, b.op_class, b.bound):
            assert sum(table.values()) == pytest.approx(b.device_busy)
        assert b.device_busy + b.device_idle == pytest.approx(p.step_time)
        assert p.tokens_per_second == pytest.approx(8 * 256 / p.step_time)
        assert p.memory.peak == pytest.approx(sum(p.memory.at_peak.values()))
        assert any("no interval" in note for note in p.notes)
        times, sizes = p.memory_curve
        assert (np.diff(times) >= 0).all()
        assert times[-1] <= p.step_time
        assert sizes.max() == p.memory.peak
        told = json.loads(json.dumps(p.to_dict()))
        assert max(told["memory_curve"]["bytes"]) == p.memory.peak
        assert len(told["memory_curve"]["time_s"]) <= 500


def test_a_small_model_is_bound_by_the_host_and_a_replayed_graph_is_not() -> None:
    tiny = pm.capture("gpt2", batch=2, seq_len=16, optimizer="adamw", layers=2, implementation="reference", cache=False)
    eager, replay = (pm.predict(tiny, "h100", runtime=name) for name in ("eager", "graph-replay"))
    assert eager.breakdown.device_idle > 0.2 * eager.step_time
    assert replay.breakdown.device_idle < 0.2 * replay.step_time
    assert replay.step_time < eager.step_time


def test_mfu_counts_the_models_flops_and_hfu_the_executed_ones() -> None:
    plain, checkpointed = (
        pm.capture(Gpt(checkpointed=flag), (ids(), ids()), optimizer="adamw", dynamic_shapes=TOKENS)
        for flag in (False, True)
    )
    a, b = (pm.predict(graph, "h100", runtime="eager") for graph in (plain, checkpointed))
    assert a.model_flops == b.model_flops == plain.flops(recompute=False)
    assert b.hardware_flops == checkpointed.flops()
    assert b.hardware_flops > a.hardware_flops
    assert b.mfu * b.step_time == pytest.approx(a.mfu * a.step_time)
    peak = pm.load_device("h100").peak("matrix", "float32")
    assert a.mfu == pytest.approx(a.model_flops / a.step_time / peak)


def test_does_not_fit_is_a_result(step: pm.Graph) -> None:
    device = pm.load_device("h100")
    main = replace(device.main_memory, capacity=1e9)
    p = pm.predict(step, replace(device, memory=(main, *device.memory[1:])), runtime="eager")
    assert not p.fits
    assert p.step_time > 0


def test_largest_batch_is_the_last_that_fits(step: pm.Graph) -> None:
    for capacity in (3e9, 20e9, 80e9):
        best = pm.largest_batch(step, capacity)
        assert pm.memory_profile(step.at(batch=best)).peak <= capacity < pm.memory_profile(step.at(batch=best + 1)).peak
    assert pm.largest_batch(step, 1e6) == 0
    one = pm.capture("gpt2", batch=1, seq_len=64, optimizer=None, layers=1, implementation="reference", cache=False)
    with pytest.raises(UnsupportedError, match="no larger one"):
        pm.largest_batch(one, 1e9)
    fixed = pm.capture(Gpt(), (ids(), ids()), optimizer=None)
    with pytest.raises(UnsupportedError, match="fixed batch"):
        pm.largest_batch(fixed, 1e9)


@pytest.mark.parametrize("runtime", ["eager", "graph-replay"])
def test_more_bandwidth_is_never_slower(step: pm.Graph, runtime: str) -> None:
    device = pm.load_device("a100-80g")
    times = [pm.predict(step, with_memory(device, f), runtime=runtime).step_time for f in (0.25, 0.5, 1, 2, 4)]
    assert times == sorted(times, reverse=True)
    assert times[0] > times[-1]


def test_time_grows_with_batch_and_sequence(step: pm.Graph) -> None:
    times = [pm.predict(step.at(batch=b), "h100", runtime="eager").step_time for b in (2, 4, 8, 16, 64)]
    assert times == sorted(times)
    times = [pm.predict(step.at(seq=s), "h100", runtime="eager").step_time for s in (64, 128, 256, 512, 1024)]
    assert times == sorted(times)


def test_training_time(step: pm.Graph) -> None:
    p = pm.predict(step, "h100", runtime="eager")
    by_tokens = p.train(tokens=1e9)
    assert by_tokens.steps == np.ceil(1e9 / (8 * 256))
    assert by_tokens.time == pytest.approx(by_tokens.steps * p.step_time)
    assert p.train(samples=1000, epochs=3).steps == 375
    assert p.train(samples=1000).samples == 1000
    assert p.train(steps=7).tokens == 7 * 8 * 256
    bad: list[dict[str, float]] = [
        {},
        {"tokens": 1, "steps": 1},
        {"epochs": 2},
        {"tokens": -1},
        {"steps": float("nan")},
    ]
    for amount in bad:
        with pytest.raises(UnsupportedError):
            p.train(**amount)


@torch.library.custom_op("perfmodel_test::odd", mutates_args=())
def odd(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


odd.register_fake(torch.empty_like)
odd.register_autograd(lambda _ctx, grad: grad)


class Odd(nn.Module):
    """Uses an op that has no rule."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return odd(self.linear(x)).sum()  # type: ignore[no-any-return]


def test_an_op_without_a_rule_is_a_gap_and_in_strict_mode_an_error() -> None:
    graph = pm.capture(Odd(), (torch.randn(4, 8),), optimizer="sgd")
    missing = graph.coverage.missing
    assert missing == {"perfmodel_test.odd": 1}
    assert graph.coverage.ops < 1
    assert graph.coverage.bytes < 1
    p = pm.predict(graph, "h100", runtime="eager")
    assert any("perfmodel_test.odd" in note for note in p.notes)
    with pytest.raises(CoverageError, match=r"perfmodel_test\.odd"):
        pm.predict(graph, "h100", runtime="eager", strict=True)


def test_a_type_the_device_lacks_is_refused() -> None:
    step = pm.capture(
        "llama-3.1-8b", batch=2, seq_len=64, optimizer=None, layers=1, implementation="reference", cache=False
    )
    with pytest.raises(UnsupportedError, match="no bf16"):
        pm.predict(step, "nvidia-v100-sxm-32gb", runtime="eager")


def test_unknown_runtimes_of_a_device(step: pm.Graph) -> None:
    with pytest.raises(UnsupportedError, match="its runtimes"):
        pm.predict(step, "amd-epyc-9654", runtime="eager")


def test_the_ops_of_a_prediction_are_those_of_the_graph(step: pm.Graph) -> None:
    p = pm.predict(step, "h100", runtime=replace(pm.load_runtime("eager"), optimizer="as-captured"))
    assert len(p.ops) == len(list(count(step)))
    assert sum(op.time * op.times for op in p.ops) == pytest.approx(p.breakdown.device_busy)
    visible = p.hardware_flops - (step.flops() - step.flops(causal="half"))
    assert sum(op.matrix_flops * op.times for op in p.ops) == visible
