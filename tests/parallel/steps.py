"""Small steps to shard, captured once each."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

import perfmodel as pm
from perfmodel.models import decoder, encoder
from perfmodel.models.dims import TransformerDims

BATCH, SEQ = 2, 64
_SIZES = {
    "num_hidden_layers": 4, "num_attention_heads": 8, "head_dim": 16, "vocab_size": 512, "hidden_size": 128,
    "intermediate_size": 256, "max_position_embeddings": 128, "norm_eps": 1e-5,
}  # fmt: skip
_BIASED = {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "num_key_value_heads": 8}
_LLAMA = {
    "family": "decoder", "hidden_act": "silu", "norm": "rmsnorm", "position_embedding": "rope", "gated_mlp": True,
}  # fmt: skip
DIMS = {
    "llama": TransformerDims(**_LLAMA, num_key_value_heads=8, **_SIZES),
    "grouped": TransformerDims(**_LLAMA, num_key_value_heads=2, **_SIZES),
    "gpt2": TransformerDims(
        family="decoder", hidden_act="gelu_new", norm="layernorm", position_embedding="learned", projection="conv1d",
        resid_pdrop=0.1, **_BIASED, **_SIZES,
    ),
    "bert": TransformerDims(
        family="encoder", hidden_act="gelu", norm="layernorm", position_embedding="learned", type_vocab_size=2,
        **_BIASED, **_SIZES,
    ),
}  # fmt: skip


@cache
def step(name: str, *, optimizer: str | None = "adamw", checkpointing: bool = False, symbols: bool = True) -> pm.Graph:
    dims = DIMS[name]
    build = decoder.build if dims.family == "decoder" else encoder.build
    with torch.device("meta"):
        module = build(dims, gradient_checkpointing=checkpointing).to(torch.bfloat16)
    return captured(module, optimizer=optimizer, symbols=symbols)


@cache
def experts() -> pm.Graph:
    transformers = __import__("pytest").importorskip("transformers")
    config = transformers.MixtralConfig(
        vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=8, num_local_experts=8, num_experts_per_tok=2, max_position_embeddings=128,
        use_cache=False, experts_implementation="grouped_mm", attn_implementation="sdpa",
    )  # fmt: skip
    with torch.device("meta"):
        module = transformers.MixtralForCausalLM(config).to(torch.bfloat16)
    return captured(module, optimizer=None)


def captured(module: Any, *, optimizer: str | None, symbols: bool = True) -> pm.Graph:
    ids = torch.zeros(BATCH, SEQ, dtype=torch.int64, device="meta")
    axes = {0: "batch", 1: "seq"}
    return pm.capture(
        module, kwargs={"input_ids": ids, "labels": ids}, optimizer=optimizer,
        dynamic_shapes={"input_ids": axes, "labels": axes} if symbols else None,
    )  # fmt: skip
