"""Optimizers by name: what a step of theirs runs, holds and leaves behind."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest
import torch
from torch import nn

import perfmodel as pm
from perfmodel.errors import CaptureError, UnsupportedError
from perfmodel.graph import unfold
from perfmodel.graph.capture.optimizers import OPTIMIZERS, Lamb, Lion, make_optimizers
from perfmodel.runtimes import rewrite
from tests.graph.modules import Gpt, ids
from tests.oracles.real_memory import real_peaks


@functools.cache
def step_of(kind: str) -> pm.Graph:
    return pm.capture(Gpt(depth=3), (ids(), ids()), optimizer=kind)


class Several:
    """Optimizers that step together, as :func:`real_peaks` takes one."""

    def __init__(self, optimizers: list[torch.optim.Optimizer]) -> None:
        self._optimizers = optimizers

    @property
    def state(self) -> dict[Any, Any]:
        return {key: value for one in self._optimizers for key, value in one.state.items()}

    def step(self) -> None:
        for one in self._optimizers:
            one.step()

    def zero_grad(self) -> None:
        for one in self._optimizers:
            one.zero_grad()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_op_of_an_optimizer_has_a_rule(kind: str) -> None:
    graph = step_of(kind)
    assert graph.meta["optimizer"] == kind
    assert not graph.coverage.missing
    assert graph.bytes(phase="optimizer") > 0


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_peak_memory_is_that_of_a_real_step(kind: str) -> None:
    # Wide and short: weights, gradients and state are most of the memory.
    model, tokens = Gpt(width=64, depth=3), ids(1, 8)
    # oneDNN's products in bfloat16, which Muon runs, take scratch memory of their own.
    with torch.backends.mkldnn.flags(enabled=False):
        real = real_peaks(
            model,
            {"ids": tokens, "labels": tokens},
            lambda _: Several(make_optimizers(kind, model, list(model.parameters()))),
        )
    graph = pm.capture(model, kwargs={"ids": tokens, "labels": tokens}, optimizer=kind, dispatch="cpu")
    ours = [pm.memory_profile(graph, first_step=first).peak for first in (True, False)]
    # Copies that Muon's transposed products make in the kernel remain.
    assert ours == pytest.approx(real, rel=0.004 if kind == "muon" else 1e-4)


#: State in units of the weights' bytes, on a model of large matrices.
STATE = {"adam": 2, "adamw": 2, "sgd": 0, "sgd-momentum": 1, "adagrad": 1, "lamb": 2, "lion": 1, "rmsprop": 1}


@pytest.mark.parametrize("kind", STATE)
def test_state_is_a_multiple_of_the_weights(kind: str) -> None:
    graph = step_of(kind)
    state = [s for s in graph.storages if s.role == "optimizer" and not s.name.endswith(".step")]
    assert sum(int(s.nbytes) * s.count for s in state) == STATE[kind] * 4 * graph.parameters()


def test_adafactor_keeps_a_row_and_a_column_of_each_matrix() -> None:
    """Shazeer and Stern 2018, algorithm 4: ``n + m`` numbers for a matrix, ``n`` for a vector."""
    module = Gpt(depth=3)
    shapes = [parameter.shape for parameter in module.parameters()]
    expected = sum(sum(shape) if len(shape) == 2 else shape[0] for shape in shapes)
    state = [s for s in step_of("adafactor").storages if s.role == "optimizer" and not s.name.endswith(".step")]
    assert sum(int(s.nbytes) * s.count for s in state) == 4 * expected


def test_muon_takes_hidden_matrices_and_adamw_the_rest() -> None:
    module = Gpt(depth=3)
    muon, adamw = make_optimizers("muon", module, [])
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    hidden = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    rest = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert hidden | rest == set(names.values())
    assert {name.partition(".")[2].partition(".")[2] for name in hidden} == {
        "qkv.weight",
        "out.weight",
        "up.weight",
        "down.weight",
    }
    assert "embed.weight" in rest  # tied to the head


def test_muon_leaves_output_layers_to_adamw() -> None:
    class Untied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.positions = nn.Embedding(100, 8), nn.Embedding(16, 8)
            self.hidden, self.head = nn.Linear(8, 16), nn.Linear(16, 100)

    for module, expected in ((Untied(), {(16, 8)}), (nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), {(8, 4)})):
        muon = make_optimizers("muon", module, [])[0]
        assert {tuple(p.shape) for group in muon.param_groups for p in group["params"]} == expected


def test_muon_orthogonalises_by_fifteen_products() -> None:
    """Five Newton-Schulz iterations of ``X X^T``, ``(X X^T)^2`` and a product with ``X``, of shapes m x n with m <= n:
    ``2 m m n``, ``2 m m m`` and ``2 m m n`` flops, in bfloat16 (torch.optim.Muon).
    """
    graph = step_of("muon")
    shapes = [(32, 96), (32, 32), (32, 128), (32, 128)]  # qkv, out, up, down of each of three layers
    expected = 3 * 5 * sum(2 * m * m * n + 2 * m**3 + 2 * m * m * n for m, n in shapes)
    assert graph.flops(phase="optimizer") == graph.flops(phase="optimizer", dtype="bfloat16") == expected


# -- torch.optim has none --------------------------------------------------------------


def test_an_optimizers_products_are_executed_but_none_of_the_models() -> None:
    muon, plain = step_of("muon"), step_of("sgd")
    assert muon.flops(phase="optimizer") > 0 == plain.flops(phase="optimizer")
    assert muon.flops() == plain.flops() + muon.flops(phase="optimizer")
    assert muon.flops(recompute=False) == plain.flops(recompute=False) == plain.flops(recompute=False, dtype="float32")


def problem() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(5, 3, requires_grad=True), torch.randn(5, 3)


def test_lamb_is_the_papers_algorithm() -> None:
    weight, slope = problem()
    w, g = weight.detach().clone().double(), slope.double()
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    optimizer = Lamb([weight], lr=0.1, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.01)
    for step in range(1, 4):
        (weight * slope).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        m = 0.9 * m + 0.1 * g
        v = 0.99 * v + 0.01 * g * g
        u = (m / (1 - 0.9**step)) / ((v / (1 - 0.99**step)).sqrt() + 1e-6) + 0.01 * w
        w = w - 0.1 * w.norm() / u.norm() * u
    torch.testing.assert_close(weight.detach().double(), w, rtol=1e-5, atol=1e-6)


def test_lamb_moves_a_weight_of_zero() -> None:
    weight = torch.zeros(3, requires_grad=True)
    optimizer = Lamb([weight], lr=0.1, weight_decay=0.0)
    weight.sum().backward()
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((3,), -0.1), rtol=1e-4, atol=0)


def test_lion_is_the_papers_algorithm() -> None:
    weight, slope = problem()
    w, g = weight.detach().clone().double(), slope.double()
    m = torch.zeros_like(w)
    optimizer = Lion([weight], lr=0.1, betas=(0.9, 0.99), weight_decay=0.01)
    for _ in range(3):
        (weight * slope).sum().backward()
        optimizer.step(closure=None)
        optimizer.zero_grad()
        u = torch.sign(0.9 * m + 0.1 * g)
        w = w - 0.1 * (u + 0.01 * w)
        m = 0.99 * m + 0.01 * g
    torch.testing.assert_close(weight.detach().double(), w, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [Lamb, Lion])
def test_a_closure_is_evaluated_first(make: Any) -> None:
    weight = torch.ones(3, requires_grad=True)

    def closure() -> torch.Tensor:
        loss = (weight**2).sum()
        loss.backward()
        return loss

    assert make([weight], lr=0.1).step(closure).item() == 3
    assert not torch.equal(weight.detach(), torch.ones(3))


# -- given as a function ---------------------------------------------------------------


def test_several_optimizers_step_one_after_the_other() -> None:
    def make(parameters: list[nn.Parameter]) -> list[torch.optim.Optimizer]:
        matrices = [p for p in parameters if p.dim() == 2]
        return [torch.optim.SGD([p for p in parameters if p.dim() != 2], foreach=False), Lion(matrices)]

    graph = pm.capture(Gpt(depth=2), (ids(), ids()), optimizer=make)
    assert graph.meta["optimizer"] == "lion+sgd"
    state = [s for s in graph.storages if s.role == "optimizer"]
    assert all(s.name.endswith("weight.exp_avg") for s in state)
    both = pm.capture(
        Gpt(depth=1),
        (ids(), ids()),
        optimizer=lambda p: [
            torch.optim.Muon([q for q in p if q.dim() == 2]),
            torch.optim.AdamW([q for q in p if q.dim() != 2], foreach=False),
        ],
    )
    assert both.meta["optimizer"] == "muon"


@pytest.mark.parametrize("result", [[], "adamw", [1]])
def test_a_factory_that_makes_no_optimizer_is_refused(result: Any) -> None:
    with pytest.raises(CaptureError, match="or a list of them"):
        pm.capture(Gpt(depth=2), (ids(), ids()), optimizer=lambda _: result)


# -- merged by a runtime ---------------------------------------------------------------


def merged(kind: str, how: str, *, flat: bool = False) -> pm.Graph:
    runtime = dataclasses.replace(pm.load_runtime("eager"), optimizer=how, attention="as-captured")
    return rewrite(unfold(step_of(kind)) if flat else step_of(kind), runtime)


@pytest.mark.parametrize("kind", ["adafactor", "lamb", "lion"])
def test_optimizers_without_foreach_code_stay_as_captured(kind: str) -> None:
    assert merged(kind, "foreach") is step_of(kind)
    with pytest.raises(UnsupportedError, match="no fused kernel"):
        merged(kind, "fused")


def test_rmsprop_merged_is_its_foreach_code() -> None:
    ours = merged("rmsprop", "foreach")
    theirs = pm.capture(Gpt(depth=3), (ids(), ids()), optimizer=lambda p: torch.optim.RMSprop(p, foreach=True))
    assert ours.bytes(phase="optimizer") == pytest.approx(theirs.bytes(phase="optimizer"), rel=1e-4)
    assert pm.memory_profile(ours).peak == pm.memory_profile(theirs).peak


@pytest.mark.parametrize("how", ["foreach", "fused"])
@pytest.mark.parametrize("flat", [True, False], ids=["spelled-out", "folded"])
def test_of_muon_the_part_of_adamw_merges(how: str, flat: bool) -> None:
    captured, graph = step_of("muon"), merged("muon", how, flat=flat)
    assert graph.flops() == captured.flops()
    names = [op.name for op, _ in graph.ops() if op.phase == "optimizer"]
    assert any(name.startswith("aten._foreach_" if how == "foreach" else "aten._fused_adamw_") for name in names)
    assert "aten.addcdiv_" not in names
    assert "aten.addmm" in names
    for first in (True, False):
        profile = pm.memory_profile(graph, first_step=first)
        assert profile.curve[-1] == pm.memory_profile(captured, first_step=first).curve[-1]
        assert profile.curve.min() >= 0


def test_fused_adagrad_reads_three_tensors_and_writes_two() -> None:
    graph = merged("adagrad", "fused")
    assert graph.bytes(phase="optimizer") == pytest.approx(5 * 4 * graph.parameters(), rel=0.02)
