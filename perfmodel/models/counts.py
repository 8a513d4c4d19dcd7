"""Parameters and model flops of decoders and encoders, written out as formulas.

Legend: V vocabulary, H hidden, L layers, A heads, K key-value heads, d head width,
F intermediate, P positions, T token types; E experts, k experts a token, M and S
intermediate of an expert and of the shared ones; for latent attention q and c the
ranks of queries and of keys and values, n and r the parts of a head without and with
rotary positions, v the width of a value head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perfmodel.models.dims import TransformerDims

__all__ = ["closed_form_flops", "matmul_parameters", "parameters"]


def parameters(dims: TransformerDims) -> int:
    """Trainable numbers, with the head, tied weights once; the formula is :meth:`TransformerDims.parameters`'s."""
    hidden, vocab = dims.hidden_size, dims.vocab_size
    norm = _norm(dims, hidden)
    total = vocab * hidden + dims.type_vocab_size * hidden + norm
    if dims.position_embedding == "learned":
        total += (dims.max_position_embeddings + dims.position_offset) * hidden
    layer = _attention_weights(dims) + _attention_vectors(dims) + _layer_norms(dims)
    for index in range(dims.num_hidden_layers):
        total += layer + (_expert_parameters(dims) if dims.routes(index) else _dense_mlp(dims, with_biases=True))
    if dims.family == "encoder":
        total += hidden * hidden + hidden + norm + vocab
    if dims.lm_head_bias:
        total += vocab
    return total if dims.tie_word_embeddings else total + vocab * hidden


def matmul_parameters(dims: TransformerDims) -> int:
    """Weights that a token meets in matrix products: the N of 6N."""
    layers = range(dims.num_hidden_layers)
    mlp = sum(_active_expert_weights(dims) if dims.routes(i) else _dense_mlp(dims) for i in layers)
    transform = dims.hidden_size**2 if dims.family == "encoder" else 0
    return dims.num_hidden_layers * _attention_weights(dims) + mlp + dims.vocab_size * dims.hidden_size + transform


def closed_form_flops(dims: TransformerDims, bindings: Mapping[str, int]) -> float:
    """``tokens * (6 N + 6 L A (d + v) T)``: 6N + 12LAdT where value heads are as wide as query heads."""
    batch, seq = bindings["batch"], bindings["seq"]
    value_width = dims.mla.v_head_dim if dims.mla is not None else dims.head_dim
    attention = 6 * dims.num_hidden_layers * dims.num_attention_heads * (dims.head_dim + value_width) * seq
    return float(batch * seq * (6 * matmul_parameters(dims) + attention))


def _norm(dims: TransformerDims, width: int) -> int:
    return 2 * width if dims.norm == "layernorm" else width


def _layer_norms(dims: TransformerDims) -> int:
    count = {"input": 2, "output": 2, "both": 4}[dims.norm_placement]
    return (1 if dims.block == "parallel_shared_norm" else count) * _norm(dims, dims.hidden_size)


def _attention_weights(dims: TransformerDims) -> int:
    """``H d (2A + 2K)``, or latent ``H q + q A (n + r) + H (c + r) + c A (n + v) + A v H``."""
    hidden, heads = dims.hidden_size, dims.num_attention_heads
    if dims.mla is None:
        return hidden * dims.head_dim * (2 * heads + 2 * dims.num_key_value_heads)
    mla = dims.mla
    query = heads * mla.qk_head_dim
    queries = hidden * query if mla.q_lora_rank is None else mla.q_lora_rank * (hidden + query)
    latent = hidden * (mla.kv_lora_rank + mla.qk_rope_head_dim)
    return (
        queries
        + latent
        + mla.kv_lora_rank * heads * (mla.qk_nope_head_dim + mla.v_head_dim)
        + heads * mla.v_head_dim * hidden
    )


def _attention_vectors(dims: TransformerDims) -> int:
    """Biases, norms of queries and keys, and sinks of one layer."""
    hidden, head = dims.hidden_size, dims.head_dim
    queries, keys = dims.num_attention_heads * head, dims.num_key_value_heads * head
    if dims.mla is not None:
        return (dims.mla.q_lora_rank or 0) + dims.mla.kv_lora_rank
    total = queries + 2 * keys if dims.attention_bias or dims.qkv_bias else 0
    total += hidden if dims.attention_bias else 0
    if dims.qk_norm == "head":
        total += 2 * _norm(dims, head)
    if dims.qk_norm == "projection":
        total += _norm(dims, queries) + _norm(dims, keys)
    return total + (dims.num_attention_heads if dims.attention_sinks else 0)


def _dense_mlp(dims: TransformerDims, *, with_biases: bool = False) -> int:
    """``2 H F``, gated ``3 H F``; with biases ``F + H``, gated ``2F + H`` more."""
    hidden, inner, products = dims.hidden_size, dims.intermediate_size, 3 if dims.gated_mlp else 2
    biases = (products - 1) * inner + hidden if with_biases and dims.mlp_bias else 0
    return products * hidden * inner + biases


def _expert_parameters(dims: TransformerDims) -> int:
    """``H E + 3 H (E M + S)``; with biases ``E (1 + 2M + H)`` more, of the shared block ``2S + H``."""
    assert dims.moe is not None  # routes() said so
    moe, hidden = dims.moe, dims.hidden_size
    biases = moe.num_experts * (1 + 2 * moe.moe_intermediate_size + hidden) if moe.bias else 0
    shared = moe.shared_expert_intermediate_size
    biases += 2 * shared + hidden if shared and dims.mlp_bias else 0
    return hidden * moe.num_experts + 3 * hidden * (moe.num_experts * moe.moe_intermediate_size + shared) + biases


def _active_expert_weights(dims: TransformerDims) -> int:
    """``H E + 3 H (k M + S)``."""
    assert dims.moe is not None
    moe, hidden = dims.moe, dims.hidden_size
    inner = moe.num_experts_per_tok * moe.moe_intermediate_size + moe.shared_expert_intermediate_size
    return hidden * moe.num_experts + 3 * hidden * inner
