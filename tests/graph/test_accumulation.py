"""Gradient accumulation: many micro-steps from two that were captured."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import perfmodel as pm
from perfmodel.errors import CaptureError
from perfmodel.graph import fold, fuse, load_graph, save_graph, unfold
from perfmodel.graph.capture import accumulation, capture_module
from tests.graph.modules import TOKENS, Gpt, ids
from tests.oracles.real_memory import _allocations


def step(
    accumulate: int, *, module: nn.Module | None = None, autocast: str | None = None, dynamic_shapes: Any = None
) -> pm.Graph:
    return capture_module(
        module or Gpt(depth=3, dropout=0.1),
        (ids(), ids()),
        optimizer="sgd-momentum",
        dynamic_shapes=dynamic_shapes,
        accumulate=accumulate,
        autocast=autocast,
    )


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("autocast", [None, "bfloat16"])
def test_repeating_the_second_micro_step_is_capturing_all(
    checkpointed: bool, autocast: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Gpt(depth=3, dropout=0.1, checkpointed=checkpointed)
    repeated = step(4, module=model, autocast=autocast)
    monkeypatch.setattr(accumulation, "_CAPTURED", 4)
    captured = fold(step(4, module=model, autocast=autocast))
    assert len(repeated.storages) < 0.75 * len(captured.storages)
    for unit in ("matrix", "vector"):
        assert repeated.flops(unit) == captured.flops(unit)
    assert repeated.bytes() == captured.bytes()
    assert repeated.depth == captured.depth
    for first in (True, False):
        ours, theirs = (pm.memory_profile(graph, first_step=first) for graph in (repeated, captured))
        np.testing.assert_array_equal(ours.curve, theirs.curve)
        assert (ours.at_peak, ours.resident) == (theirs.at_peak, theirs.resident)
    for one, other in zip(unfold(repeated).ops(), unfold(captured).ops(), strict=True):
        assert (one[0].name, one[0].phase, one[0].module) == (other[0].name, other[0].phase, other[0].module)
    assert [node.target for node in repeated.fx.nodes if node.op == "call_function"] == [
        node.target for node in captured.fx.nodes if node.op == "call_function"
    ]


def test_one_micro_step_is_the_plain_step() -> None:
    one, plain = step(1), capture_module(Gpt(depth=3, dropout=0.1), (ids(), ids()), optimizer="sgd-momentum")
    assert one == plain


def test_what_a_later_micro_step_adds() -> None:
    one, two, three = (step(n) for n in (1, 2, 3))
    assert (two.flops(), three.flops()) == (2 * one.flops(), 3 * one.flops())
    trained = one.parameters()
    # It reads each new gradient and the sum, and writes the sum.
    adds = [op for op, _ in two.ops() if op.name == "aten.add_" and op.phase == "backward" and is_gradient(two, op)]
    assert sum(op.outputs[0].numel for op in adds) == trained
    division = [op for op, _ in two.ops() if op.name == "aten.div" and op.phase == "forward"]
    assert [op.attrs["other"] for op in division] == [2, 2]
    assert two.flops(phase="optimizer", unit="vector") == one.flops(phase="optimizer", unit="vector")


def is_gradient(graph: pm.Graph, op: object) -> bool:
    return graph.storages[op.inputs["self"].storage].role == "gradient"  # type: ignore[attr-defined]


def test_gradients_live_from_the_first_micro_step_to_the_release() -> None:
    graph = step(4)
    gradients = sum(int(s.nbytes) * s.count for s in graph.storages if s.role == "gradient")
    profile_ = pm.memory_profile(graph)
    # Between micro-steps only what is resident and the gradients are left.
    phases = [op.phase for block in graph.blocks for _ in range(block.count) for op in block.ops]
    after = [i for i, (a, b) in enumerate(itertools.pairwise(phases)) if a == "backward" and b == "forward"]
    assert len(after) == 3
    assert {profile_.curve[2 * i + 1] - profile_.resident for i in after} == {gradients}
    assert profile_.curve[-1] == profile_.resident


def test_many_micro_steps_keep_the_graph_small_and_holds_for_other_sizes(tmp_path: object) -> None:
    few, many = (step(n, dynamic_shapes=TOKENS) for n in (3, 64))
    assert len(many.storages) == len(few.storages)
    assert len({id(op) for op, _ in many.ops()}) == len({id(op) for op, _ in few.ops()})
    assert 3 * many.flops() == 64 * few.flops()
    assert 3 * many.at(batch=6).flops() == 64 * few.at(batch=6).flops() > 0
    path = f"{tmp_path}/graph.json"
    save_graph(many, path)
    assert load_graph(path) == many


def test_peak_memory_is_that_of_a_real_loop() -> None:
    model, tokens, labels = Gpt(depth=2), ids(4, 32), ids(4, 32)
    optimizer = torch.optim.AdamW(model.parameters())

    def micro_step() -> None:
        loss = model(tokens, labels) / 3
        loss.backward()

    resident = sum({p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}.values())
    resident += 2 * tokens.untyped_storage().nbytes()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        for _ in range(3):
            micro_step()
        optimizer.step()
        optimizer.zero_grad()
    live = peak = 0
    for _, size in sorted(_allocations(recorded)):
        live += size
        peak = max(peak, live)
    graph = capture_module(
        model, kwargs={"ids": tokens, "labels": labels}, optimizer="adamw", dispatch="cpu", accumulate=3
    )
    assert pm.memory_profile(graph, first_step=True).peak == pytest.approx(resident + peak, rel=1e-4)


def test_micro_steps_are_fused_one_by_one(tmp_path: object) -> None:
    one, two, three, many = (fuse(fold(step(n))) for n in (1, 2, 3, 6))
    assert many.bytes() - three.bytes() == 3 * (three.bytes() - two.bytes())
    # But for the division of its loss by the number of micro-steps, the first is the plain step.
    assert two.bytes() - one.bytes() == pytest.approx(three.bytes() - two.bytes(), rel=1e-5)
    # Beside the gradients that are there already a micro-step holds what the first one does.
    gradients = sum(int(s.nbytes) * s.count for s in one.storages if s.role == "gradient")
    peaks = [pm.memory_profile(graph).peak for graph in (one, two, many)]
    assert peaks[0] < peaks[1] == peaks[2] <= peaks[0] + gradients
    assert many.flops() == 6 * one.flops()
    path = f"{tmp_path}/graph.json"
    save_graph(step(6), path)
    assert fuse(load_graph(path)) == many


def test_a_prediction_counts_the_samples_of_all_micro_steps() -> None:
    one, four = (pm.predict(step(n, dynamic_shapes=TOKENS), "nvidia-h100-sxm-80gb", runtime="eager") for n in (1, 4))
    assert (one.micro_steps, four.micro_steps) == (1, 4)
    assert four.samples_per_second == pytest.approx(4 * 3 / four.step_time)
    assert four.tokens_per_second == pytest.approx(4 * 3 * 24 / four.step_time)
    assert four.train(samples=1200).steps == 100 == one.train(samples=300).steps
    assert four.model_flops == 4 * one.model_flops


def test_the_textbook_count_is_of_all_micro_steps_and_of_no_adapter() -> None:
    settings = {"batch": 1, "seq_len": 8, "layers": 1, "optimizer": None, "implementation": "reference"}
    one, three = (pm.capture("gpt2", **settings, accumulate=n, cache=False) for n in (1, 3))
    assert pm.closed_form_flops(three) == 3 * pm.closed_form_flops(one) > 0
    assert pm.closed_form_flops(pm.capture("gpt2", **settings, adapter=pm.LoRA(), cache=False)) is None


class Remembering(nn.Module):
    """Keeps its last activations."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.last: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        if self.last is not None:
            y = y + self.last
        self.last = y.detach()
        return y.sum()


def test_a_module_with_a_memory_is_captured_in_full() -> None:
    graph = capture_module(Remembering(), (torch.randn(4, 8),), optimizer="sgd", accumulate=5)
    forwards = [block for block in graph.blocks if block.ops[0].phase == "forward"]
    assert len({id(block) for block in forwards}) == len(forwards) == 5
    assert sum(op.name == "aten.add" for op, _ in graph.ops()) == 4


@pytest.mark.parametrize("wrong", [0, -1, True, 2.0])
def test_a_number_of_micro_steps_is_positive(wrong: int) -> None:
    with pytest.raises(CaptureError, match="accumulate"):
        step(wrong)
