"""transformers' state-space models with the scans of the published kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import perfmodel as pm
from perfmodel.graph import huggingface
from perfmodel.graph.capture.published import published_scans

pytestmark = pytest.mark.skipif(not huggingface.available(), reason="transformers isn't installed")


def build(name: str) -> Any:
    from transformers.models.mamba import modeling_mamba
    from transformers.models.mamba2 import modeling_mamba2

    sizes = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 8, "use_cache": False}
    if name == "mamba":
        return modeling_mamba.MambaForCausalLM(modeling_mamba.MambaConfig(**sizes))
    heads = {"num_heads": 4, "head_dim": 8, "n_groups": 2, "chunk_size": 4}
    return modeling_mamba2.Mamba2ForCausalLM(modeling_mamba2.Mamba2Config(**sizes, **heads))


class Loss(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=tokens, labels=tokens).loss


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_our_scan_computes_what_transformers_does(name: str) -> None:
    torch.manual_seed(0)
    module, tokens = Loss(build(name)).train(), torch.randint(32, (2, 11))
    parameters = [p for p in module.parameters() if p.requires_grad]
    theirs = torch.autograd.grad(module(tokens), parameters)
    loss = module(tokens)
    with published_scans():
        ours = module(tokens)
        torch.testing.assert_close(ours, loss)
        for a, b in zip(torch.autograd.grad(ours, parameters), theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
    assert torch.equal(module(tokens), loss)


@pytest.mark.parametrize(("name", "scan"), [("mamba", "selective_scan"), ("mamba2", "ssd_scan")])
def test_a_layers_scan_is_one_op(name: str, scan: str) -> None:
    module = Loss(build(name)).train()
    graph = pm.capture(
        module, (torch.zeros(2, 8, dtype=torch.long),), optimizer=None, dynamic_shapes=({0: "batch", 1: "seq"},)
    )
    names = [op.name for op, _ in graph.ops()]
    assert names.count(f"perfmodel.{scan}") == names.count(f"perfmodel.{scan}_backward") == 2
    assert not graph.coverage.missing
    assert graph.at(seq=4096).depth == graph.depth
