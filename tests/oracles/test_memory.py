"""Peak memory against the profiler's memory events of a real CPU step, first and steady."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
import torch

import perfmodel as pm
from perfmodel.graph import huggingface, unfold
from perfmodel.models import catalogue
from perfmodel.models.build import build
from perfmodel.models.dims import TransformerDims
from perfmodel.runtimes import rewrite
from tests.graph.modules import Gpt, ids
from tests.oracles.real_memory import real_peaks

IMPLEMENTATIONS = [
    pytest.param(
        "huggingface", marks=pytest.mark.skipif(not huggingface.available(), reason="transformers isn't installed")
    ),
    "reference",
]


def tiny_dims(name: str, dropout: float) -> TransformerDims:
    """The catalogue's model, four layers of it, narrow."""
    narrow = {
        "hidden_size": 128,
        "num_attention_heads": 4,
        "head_dim": 32,
        "intermediate_size": 352,
        "vocab_size": 2000,
    }
    heads = {"num_key_value_heads": 2 if name.startswith("llama") else 4}
    drops = {"embd_pdrop": dropout, "attn_pdrop": dropout, "resid_pdrop": dropout}
    return dataclasses.replace(catalogue.get(name).dims, num_hidden_layers=4, **narrow, **heads, **drops)


def inputs_of(dims: TransformerDims) -> dict[str, torch.Tensor]:
    tokens = torch.randint(0, dims.vocab_size, (4, 48))
    inputs = {"input_ids": tokens, "labels": tokens.clone()}
    if dims.family == "encoder":
        # Padded at the end: transformers drops a mask that hides nothing.
        inputs["attention_mask"] = (torch.arange(48) < torch.tensor([[48], [40], [31], [5]])).long()
    return inputs


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("dropout", [0.0, 0.1], ids=["no-dropout", "dropout"])
@pytest.mark.parametrize("name", ["gpt2", "llama-3.1-8b", "bert-base-uncased"])
def test_peak_of_a_real_step(name: str, dropout: float, checkpointing: bool, implementation: str) -> None:
    if name.startswith("llama") and dropout:
        pytest.skip("Llama has no dropout")
    dims = tiny_dims(name, dropout)
    model, _ = build(dims, implementation=implementation, gradient_checkpointing=checkpointing, device="cpu")
    model.train()
    inputs = inputs_of(dims)
    real = real_peaks(model, inputs)
    with huggingface.traceable() if implementation == "huggingface" else contextlib.nullcontext():
        graph = pm.capture(model, kwargs=inputs, optimizer="adamw", dispatch="cpu")
    ours = [pm.memory_profile(graph, first_step=first).peak for first in (True, False)]
    assert ours == pytest.approx(real, rel=0.005)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_peak_of_a_module_of_ones_own(checkpointed: bool) -> None:
    model, tokens = Gpt(depth=4, dropout=0.1, checkpointed=checkpointed), ids()
    real = real_peaks(model, {"ids": tokens, "labels": tokens})
    graph = pm.capture(model, kwargs={"ids": tokens, "labels": tokens}, optimizer="adamw", dispatch="cpu")
    assert [pm.memory_profile(graph, first_step=first).peak for first in (True, False)] == pytest.approx(
        real, rel=0.005
    )


class Stack(torch.nn.Module):
    """Linear layers, most of whose memory is the optimizer's."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(512, 512) for _ in range(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x.pow(2).mean()


@pytest.mark.parametrize("kind", ["foreach", "fused"])
@pytest.mark.parametrize("folded", [True, False], ids=["folded", "spelled-out"])
def test_peak_with_the_optimizer_kernels_of_a_runtime(kind: str, folded: bool) -> None:
    model, x = Stack(), torch.randn(8, 512)
    real = real_peaks(model, {"x": x}, lambda p: torch.optim.AdamW(p, foreach=kind == "foreach", fused=kind == "fused"))
    graph = pm.capture(model, (x,), optimizer="adamw")
    runtime = dataclasses.replace(pm.load_runtime("eager"), optimizer=kind)
    ours = rewrite(graph if folded else unfold(graph), runtime)
    assert [pm.memory_profile(ours, first_step=first).peak for first in (True, False)] == pytest.approx(real, rel=0.005)
