"""Matrix flops against PyTorch's own FlopCounterMode, and against 6N + 12LHQT."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import perfmodel as pm
from perfmodel.graph import huggingface
from perfmodel.models import catalogue
from perfmodel.models.build import build
from tests.graph.modules import ConvNet, Gpt, Mlp, ids

IMPLEMENTATIONS = [
    pytest.param(
        "huggingface", marks=pytest.mark.skipif(not huggingface.available(), reason="transformers isn't installed")
    ),
    "reference",
]


def counted_by_torch(run: Callable[[], torch.Tensor]) -> tuple[int, int]:
    """Forward and backward flops of one step, attention as plain products (the MATH backend)."""
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            loss = run()
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    return forward.get_total_flops(), backward.get_total_flops()


def ours(graph: pm.Graph) -> tuple[int, int]:
    return tuple(graph.flops(phase=phase, recompute=False) for phase in ("forward", "backward"))  # type: ignore[return-value]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("name", "batch", "seq"),
    [("gpt2", 3, 100), ("llama-2-7b", 2, 60), ("llama-3.1-8b", 2, 60), ("bert-base-uncased", 3, 77)],
)
def test_models_equal_flop_counter_mode_exactly(name: str, batch: int, seq: int, implementation: str) -> None:
    layers = 3
    # transformers reads BERT's mask, so that one runs on real numbers.
    device = "cpu" if catalogue.get(name).task == "masked-lm" else "meta"
    model, _ = build(catalogue.get(name), implementation=implementation, layers={"layers": layers}, device=device)
    tokens = torch.ones(batch, seq, dtype=torch.long, device=device)
    inputs: dict[str, Any] = {"input_ids": tokens, "labels": tokens}
    if catalogue.get(name).task == "masked-lm":
        inputs["attention_mask"] = torch.ones_like(tokens).tril()
    with huggingface.traceable() if implementation == "huggingface" else contextlib.nullcontext():
        theirs = counted_by_torch(lambda: model(**inputs).loss)
    graph = pm.capture(
        name, batch=batch, seq_len=seq, optimizer="adamw", layers=layers, implementation=implementation, cache=False
    )
    assert ours(graph) == theirs
    assert min(theirs) > 0


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        pytest.param(Mlp(depth=3), (torch.randn(4, 16), torch.randn(4, 16)), id="mlp"),
        pytest.param(Gpt(dropout=0.1), (ids(), ids()), id="gpt"),
        pytest.param(ConvNet(), (torch.randn(4, 3, 16, 16), torch.zeros(4, dtype=torch.long)), id="convolutions"),
    ],
)
def test_ones_own_modules_equal_flop_counter_mode_exactly(
    model: torch.nn.Module, inputs: tuple[torch.Tensor, ...]
) -> None:
    assert ours(pm.capture(model, inputs, optimizer="sgd")) == counted_by_torch(lambda: model(*inputs))


def test_checkpointed_flops_count_the_recompute() -> None:
    model, tokens = Gpt(checkpointed=True), ids()
    forward, backward = counted_by_torch(lambda: model(tokens, tokens))
    graph = pm.capture(model, (tokens, tokens), optimizer=None)
    recompute = graph.flops(phase="recompute")
    assert graph.flops(phase="forward") == forward
    assert graph.flops(phase="backward", recompute=False) + recompute == backward
    assert recompute > 0


@pytest.mark.parametrize("name", ["gpt2", "gpt2-xl", "llama-2-7b", "llama-3.1-8b", "llama-3.1-70b"])
def test_closed_form_within_one_percent(name: str) -> None:
    graph = pm.capture(name, batch=2, seq_len=1024, optimizer=None, implementation="reference", cache=False)
    closed_form = pm.closed_form_flops(graph)
    assert closed_form is not None
    assert graph.flops(recompute=False) == pytest.approx(closed_form, rel=0.01)


@pytest.mark.parametrize("name", ["gpt2", "llama-3.1-8b", "bert-base-uncased"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_no_op_of_the_three_models_lacks_a_rule(name: str, implementation: str) -> None:
    ways = [("adamw", "neutral", False), ("adam", "cpu", True), ("sgd-momentum", "neutral", False)]
    for optimizer, dispatch, checkpointing in ways:
        graph = pm.capture(
            name,
            batch=2,
            seq_len=64,
            optimizer=optimizer,
            layers=2,
            implementation=implementation,
            dispatch=dispatch,
            gradient_checkpointing=checkpointing,
            cache=False,
        )
        assert not graph.coverage.missing
        assert (graph.coverage.ops, graph.coverage.bytes, graph.coverage.flop_counter) == (1, 1, 1)
