"""Matrix flops of decoders against FlopCounterMode, which knows all products but those of experts."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import perfmodel as pm
from perfmodel.models import catalogue
from perfmodel.models.build import build
from perfmodel.models.dims import TransformerDims

BATCH, SEQ = 2, 24


def experts_forward(dims: TransformerDims) -> int:
    """Of all layers: each token goes through k experts, whose three products of H x M take 2 H M each."""
    moe = dims.moe
    if moe is None:
        return 0
    layers = sum(dims.routes(index) for index in range(dims.num_hidden_layers))
    one = 3 * 2 * dims.hidden_size * moe.moe_intermediate_size
    return layers * BATCH * SEQ * moe.num_experts_per_tok * one


@pytest.mark.parametrize(
    ("name", "layers"),
    [("mixtral-8x7b", 2), ("deepseek-v3", 4), ("gpt-oss-20b", 2), ("gemma-2-2b", 2), ("phi-2", 2), ("phi-4", 2)],
)
def test_decoders_equal_flop_counter_mode_and_the_experts_products(name: str, layers: int) -> None:
    dims = catalogue.get(name).dims.with_depths({"layers": layers})
    assert isinstance(dims, TransformerDims)
    module, _ = build(dims, dtype="bfloat16")
    ids = torch.ones(BATCH, SEQ, dtype=torch.long, device="meta")
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            loss = module(ids, ids).loss
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    graph = pm.capture(
        name, batch=BATCH, seq_len=SEQ, layers=layers, optimizer=None, implementation="reference", cache=False
    )
    experts = experts_forward(dims)
    assert graph.flops(phase="forward", recompute=False) == forward.get_total_flops() + experts
    # Both operands of a product have a gradient.
    assert graph.flops(phase="backward", recompute=False) == backward.get_total_flops() + 2 * experts
    assert forward.get_total_flops() > 0
