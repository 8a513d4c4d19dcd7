"""Small models in both implementations with the same weights, and batches for them."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from perfmodel.models.build import build
from perfmodel.models.dims import RopeScaling, TransformerDims

BATCH, SEQ = 3, 24

GPT2 = TransformerDims(
    family="decoder",
    vocab_size=97,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=8,
    intermediate_size=80,
    max_position_embeddings=40,
    hidden_act="gelu_new",
    norm="layernorm",
    norm_eps=1e-5,
    position_embedding="learned",
    projection="conv1d",
    attention_bias=True,
    mlp_bias=True,
    tie_word_embeddings=True,
)
LLAMA = TransformerDims(
    family="decoder",
    vocab_size=97,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=12,
    intermediate_size=80,
    max_position_embeddings=64,
    hidden_act="silu",
    gated_mlp=True,
    norm="rmsnorm",
    norm_eps=1e-5,
    position_embedding="rope",
)
BERT = TransformerDims(
    family="encoder",
    vocab_size=97,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=8,
    intermediate_size=80,
    max_position_embeddings=40,
    hidden_act="gelu",
    norm="layernorm",
    norm_eps=1e-12,
    position_embedding="learned",
    attention_bias=True,
    mlp_bias=True,
    tie_word_embeddings=True,
    type_vocab_size=2,
    pad_token_id=0,
)
DROPOUT = {"embd_pdrop": 0.1, "attn_pdrop": 0.2, "resid_pdrop": 0.3}
LLAMA_31 = dataclasses.replace(
    LLAMA,
    rope_theta=500.0,
    rope_scaling=RopeScaling(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16
    ),
)

#: dims, and whether the batch comes with an attention mask
CASES = {
    "gpt2": (GPT2, False),
    "gpt2-padded": (GPT2, True),
    "gpt2-untied": (dataclasses.replace(GPT2, tie_word_embeddings=False), False),
    "llama": (LLAMA, False),
    "llama-padded": (LLAMA, True),
    "llama-one-head-each": (dataclasses.replace(LLAMA, num_key_value_heads=4), False),
    "llama-one-head-for-all": (dataclasses.replace(LLAMA, num_key_value_heads=1, head_dim=8), False),
    "llama-wide-heads": (dataclasses.replace(LLAMA, head_dim=264), False),
    "llama-biases": (dataclasses.replace(LLAMA, attention_bias=True, mlp_bias=True, tie_word_embeddings=True), False),
    "llama-3.1": (LLAMA_31, False),
    "bert": (BERT, True),
    "bert-unpadded": (BERT, False),
    "bert-tanh": (dataclasses.replace(BERT, hidden_act="gelu_pytorch_tanh"), True),
}

# -- the two implementations with the same weights -------------------------------------

_GPT2_LAYER = {
    "ln_1": "attention_norm",
    "attn.c_attn": "attention.qkv_proj",
    "attn.c_proj": "attention.o_proj",
    "ln_2": "mlp_norm",
    "mlp.c_fc": "mlp.up_proj",
    "mlp.c_proj": "mlp.down_proj",
}
_LLAMA_LAYER = {
    "input_layernorm": "attention_norm",
    "self_attn": "attention",
    "post_attention_layernorm": "mlp_norm",
    "mlp": "mlp",
}
_BERT_LAYER = {
    "attention.self.query": "attention.q_proj",
    "attention.self.key": "attention.k_proj",
    "attention.self.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "mlp.up_proj",
    "output.dense": "mlp.down_proj",
    "output.LayerNorm": "mlp_norm",
}
_OTHERS = {
    "transformer.wte": "embed_tokens",
    "transformer.wpe": "embed_positions",
    "transformer.ln_f": "norm",
    "model.embed_tokens": "embed_tokens",
    "model.norm": "norm",
    "lm_head": "lm_head",
    "bert.embeddings.word_embeddings": "embeddings.tokens",
    "bert.embeddings.position_embeddings": "embeddings.places",
    "bert.embeddings.token_type_embeddings": "embeddings.types",
    "bert.embeddings.LayerNorm": "embeddings.norm",
    "cls.predictions.transform.dense": "head.dense",
    "cls.predictions.transform.LayerNorm": "head.norm",
    "cls.predictions.decoder": "head.decoder",
    # Tied to the decoder's bias.
    "cls.predictions": "head.decoder",
}
_LAYERS = {"transformer.h": _GPT2_LAYER, "model.layers": _LLAMA_LAYER, "bert.encoder.layer": _BERT_LAYER}


def our_name(name: str) -> str:
    """The reference module's name of a Hugging Face parameter."""
    for stack, layer in _LAYERS.items():
        if name.startswith(f"{stack}."):
            number, _, inner = name.removeprefix(f"{stack}.").partition(".")
            for theirs, ours in layer.items():
                if inner.startswith(f"{theirs}."):
                    return f"layers.{number}.{ours}.{inner.removeprefix(f'{theirs}.')}"
    path, _, leaf = name.rpartition(".")
    return f"{_OTHERS[path]}.{leaf}"


def pair(dims: TransformerDims, dtype: str = "float32", **options: Any) -> tuple[Any, Any]:
    """(reference, Hugging Face) with the same random weights."""
    torch.manual_seed(0)
    theirs, _ = build(dims, implementation="huggingface", dtype=dtype, device="cpu", **options)
    ours, _ = build(dims, implementation="reference", dtype=dtype, device="cpu", **options)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape))
    ours.load_state_dict({our_name(name): value for name, value in theirs.state_dict().items()}, strict=True)
    return ours, theirs


def batch(dims: TransformerDims, *, padded: bool, seq: int = SEQ) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, dims.vocab_size, (BATCH, seq), generator=generator)
    labels = torch.where(torch.rand(BATCH, seq, generator=generator) < 0.3, -100, ids)
    if not padded:
        return {"input_ids": ids, "labels": labels}
    mask = torch.ones(BATCH, seq, dtype=torch.int64)
    mask[1, seq - 5 :] = 0
    ids = ids * mask
    return {"input_ids": ids, "labels": torch.where(mask == 1, labels, -100), "attention_mask": mask}
