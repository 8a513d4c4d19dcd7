"""Small models in both implementations with the same weights, and batches for them."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from perfmodel.models.build import build
from perfmodel.models.config import huggingface_config
from perfmodel.models.dims import TransformerDims
from tests.models.tiny import (
    BERT,
    DECODERS,
    DEEPSEEK_DIRECT,
    DEEPSEEK_V3,
    GEMMA2,
    GEMMA3,
    GPT2,
    GPT_OSS,
    LLAMA,
    LLAMA_31,
    MISTRAL,
    MIXTRAL,
    OPT,
)

__all__ = ["BATCH", "BERT", "CASES", "DROPOUT", "GPT2", "LLAMA", "OTHER_OPS", "SEQ", "batch", "our_name", "pair"]

# Tensors this small run faster on one.
torch.set_num_threads(1)

BATCH, SEQ = 3, 24

DROPOUT = {"embd_pdrop": 0.1, "attn_pdrop": 0.2, "resid_pdrop": 0.3}

#: dims, and whether the batch comes with an attention mask
CASES = {
    **{name: (dims, False) for name, dims in DECODERS.items()},
    "gpt2-padded": (GPT2, True),
    "gpt2-untied": (dataclasses.replace(GPT2, tie_word_embeddings=False), False),
    "llama-padded": (LLAMA, True),
    "llama-one-head-each": (dataclasses.replace(LLAMA, num_key_value_heads=4), False),
    "llama-one-head-for-all": (dataclasses.replace(LLAMA, num_key_value_heads=1, head_dim=8), False),
    "llama-wide-heads": (dataclasses.replace(LLAMA, head_dim=264), False),
    "llama-biases": (dataclasses.replace(LLAMA, attention_bias=True, mlp_bias=True, tie_word_embeddings=True), False),
    "llama-3.1": (LLAMA_31, False),
    "mistral-padded": (MISTRAL, True),
    "mistral-wide-window": (dataclasses.replace(MISTRAL, sliding_window=SEQ + 1), False),
    "gemma2-padded": (GEMMA2, True),
    "gemma3-padded": (GEMMA3, True),
    "mixtral-window": (dataclasses.replace(MIXTRAL, sliding_window=8), False),
    "deepseek-v3-padded": (DEEPSEEK_V3, True),
    "deepseek-v3-direct-queries": (DEEPSEEK_DIRECT, False),
    "bert": (BERT, True),
    "bert-unpadded": (BERT, False),
    "bert-tanh": (dataclasses.replace(BERT, hidden_act="gelu_pytorch_tanh"), True),
}

#: What transformers writes in other elementwise ops: OPT's queries are scaled before
#: the product and its positions looked up for each sequence; gpt-oss's rotation has tables of half a head.
OTHER_OPS = (OPT, GPT_OSS)

# -- the two implementations with the same weights -------------------------------------

#: Hugging Face's names of parts of a layer, and ours; the first that fits counts.
_LAYER = {
    "gpt2": {
        "ln_1": "attention_norm",
        "attn.c_attn": "attention.qkv_proj",
        "attn.c_proj": "attention.o_proj",
        "ln_2": "mlp_norm",
        "mlp.c_fc": "mlp.up_proj",
        "mlp.c_proj": "mlp.down_proj",
    },
    "opt": {
        "self_attn.out_proj": "attention.o_proj",
        "self_attn_layer_norm": "attention_norm",
        "fc1": "mlp.up_proj",
        "fc2": "mlp.down_proj",
        "final_layer_norm": "mlp_norm",
    },
    "bert": {
        "attention.self.query": "attention.q_proj",
        "attention.self.key": "attention.k_proj",
        "attention.self.value": "attention.v_proj",
        "attention.output.dense": "attention.o_proj",
        "attention.output.LayerNorm": "attention_norm",
        "intermediate.dense": "mlp.up_proj",
        "output.dense": "mlp.down_proj",
        "output.LayerNorm": "mlp_norm",
    },
    "olmo2": {
        "post_attention_layernorm": "attention_output_norm",
        "post_feedforward_layernorm": "mlp_output_norm",
    },
    "gemma2": {
        "post_attention_layernorm": "attention_output_norm",
        "pre_feedforward_layernorm": "mlp_norm",
        "post_feedforward_layernorm": "mlp_output_norm",
    },
    "phi": {"self_attn.dense": "attention.o_proj", "mlp.fc1": "mlp.up_proj", "mlp.fc2": "mlp.down_proj"},
    "gpt_neox": {
        "attention.query_key_value": "attention.qkv_proj",
        "attention.dense": "attention.o_proj",
        "mlp.dense_h_to_4h": "mlp.up_proj",
        "mlp.dense_4h_to_h": "mlp.down_proj",
    },
    "mixtral": {"mlp.gate": "mlp.router"},
    "deepseek_v3": {
        "self_attn.q_a_layernorm": "attention.q_a_norm",
        "self_attn.kv_a_layernorm": "attention.kv_a_norm",
        "self_attn.kv_a_proj_with_mqa": "attention.kv_a_proj",
        "mlp.gate.e_score_correction_bias": "mlp.router.balance",
        "mlp.gate.weight": "mlp.router.weight",
        "mlp.shared_experts": "mlp.shared",
    },
}
_LAYER["gemma3_text"] = _LAYER["gemma2"]
_LAYER["qwen3_moe"] = _LAYER["mixtral"]
#: What Llama and most others are named by.
_COMMON = {
    "input_layernorm": "attention_norm",
    "self_attn": "attention",
    "post_attention_layernorm": "mlp_norm",
    "mlp": "mlp",
}
_OTHERS = {
    "transformer.wte": "embed_tokens",
    "transformer.wpe": "embed_positions",
    "transformer.ln_f": "norm",
    "model.embed_tokens": "embed_tokens",
    "model.norm": "norm",
    "model.final_layernorm": "norm",
    "model.decoder.embed_tokens": "embed_tokens",
    "model.decoder.embed_positions": "embed_positions",
    "model.decoder.final_layer_norm": "norm",
    "gpt_neox.embed_in": "embed_tokens",
    "gpt_neox.final_layer_norm": "norm",
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
_STACKS = ("transformer.h", "model.layers", "model.decoder.layers", "gpt_neox.layers", "bert.encoder.layer")


def our_name(dims: TransformerDims, name: str) -> str:
    """The reference module's name of a Hugging Face parameter or buffer."""
    own = _LAYER.get(huggingface_config(dims)["model_type"], {})
    parts = {**own, **{theirs: ours for theirs, ours in _COMMON.items() if theirs not in own}}
    for stack in _STACKS:
        if name.startswith(f"{stack}."):
            number, _, inner = name.removeprefix(f"{stack}.").partition(".")
            for theirs, ours in parts.items():
                if f"{inner}.".startswith(f"{theirs}."):
                    return f"layers.{number}.{ours}{inner.removeprefix(theirs)}"
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
    ours.load_state_dict({our_name(dims, name): value for name, value in theirs.state_dict().items()}, strict=True)
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
