"""Which dimensions of a transformer go together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from perfmodel.errors import UnsupportedError

if TYPE_CHECKING:
    from perfmodel.models.dims import TransformerDims

__all__ = ["check_combination"]

#: What an encoder, which is BERT's, leaves at its default.
_OF_DECODERS = (
    "norm_placement", "block", "qkv_bias", "lm_head_bias", "scale_embeddings",
    "partial_rotary_factor", "rope_local_base_freq", "rope_in_float32", "sliding_window", "full_attention_interval",
    "qk_norm", "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping", "attention_sinks",
    "moe", "mla",
)  # fmt: skip


def check_combination(dims: TransformerDims) -> None:
    """Refuse dimensions that are right one by one and make no model together.

    Raises
    ------
    UnsupportedError
        The first clash, with its cure.
    """
    clash = next(_clashes(dims), None)
    if clash is not None:
        raise UnsupportedError(clash)


def _clashes(dims: TransformerDims) -> Iterator[str]:
    heads, groups = dims.num_attention_heads, dims.num_key_value_heads
    if heads % groups:
        divisors = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
        yield f"num_key_value_heads={groups} doesn't divide num_attention_heads={heads}; give one of {divisors}"
    pad = dims.pad_token_id
    if pad is not None and (isinstance(pad, bool) or not isinstance(pad, int) or not 0 <= pad < dims.vocab_size):
        yield f"pad_token_id={pad!r} is no token; give one below vocab_size={dims.vocab_size}, or none"
    yield from _positions(dims)
    if dims.family == "encoder":
        yield from _encoder(dims)
    elif dims.type_vocab_size:
        yield "a decoder with token types isn't known; set type_vocab_size=0"
    yield from _projections(dims)
    yield from _attention(dims)
    if dims.mla is not None:
        yield from _latent(dims)
    if dims.block != "sequential" and dims.norm_placement != "input":
        yield "a parallel block has norms at its input only; set norm_placement='input'"
    if dims.moe is not None and not dims.gated_mlp:
        yield "experts without a gate aren't known; set gated_mlp=true"


def _positions(dims: TransformerDims) -> Iterator[str]:
    rope = dims.position_embedding == "rope"
    if rope and dims.rotary_dim % 2:
        if dims.partial_rotary_factor == 1:
            yield f"head_dim={dims.head_dim} is odd, but rotary positions pair its halves; make it even"
        yield (
            f"partial_rotary_factor={dims.partial_rotary_factor} of head_dim={dims.head_dim} is {dims.rotary_dim}, "
            "but rotary positions pair dimensions; make it even"
        )
    if dims.partial_rotary_factor > 1 or (rope and not dims.rotary_dim):
        yield f"partial_rotary_factor={dims.partial_rotary_factor} rotates no part of a head; give 1 or less"
    if dims.rope_scaling is not None and not rope:
        yield "rope_scaling is given, but position_embedding isn't 'rope'; remove one of them"
    if dims.rope_local_base_freq is not None and (not rope or dims.full_attention_interval is None):
        yield "rope_local_base_freq is for rotary positions with a sliding_window in some layers; leave it out"
    if dims.position_offset and rope:
        yield "position_offset is of learned positions; set it to 0"


def _encoder(dims: TransformerDims) -> Iterator[str]:
    if dims.position_embedding != "learned":
        yield "an encoder with rotary positions isn't known; set position_embedding='learned'"
    if dims.projection != "linear":
        yield f"an encoder with {dims.projection} projections isn't known; set projection='linear'"
    if dims.position_offset and (dims.pad_token_id is None or dims.position_offset != dims.pad_token_id + 1):
        yield (
            f"position_offset={dims.position_offset} must be one more than pad_token_id={dims.pad_token_id} in an "
            "encoder, where padding has the position before the first; correct one of them"
        )
    defaults = {field.name: field.default for field in dataclasses.fields(dims)}
    changed = [name for name in _OF_DECODERS if getattr(dims, name) != defaults[name]]
    if changed:
        yield f"an encoder with {', '.join(changed)} isn't known; leave {'it' if len(changed) == 1 else 'them'} out"


def _projections(dims: TransformerDims) -> Iterator[str]:
    grouped = dims.num_key_value_heads != dims.num_attention_heads
    if dims.projection == "conv1d" and (
        dims.gated_mlp or grouped or not (dims.attention_bias and dims.mlp_bias) or dims.moe is not None
    ):
        yield (
            "conv1d projections are GPT-2's: with biases, no gate and as many key-value heads as heads; "
            "set projection='linear'"
        )
    if dims.projection == "fused_by_head" and grouped:
        yield "projection='fused_by_head' has as many key-value heads as heads; set projection='fused'"
    if dims.projection != "linear" and (dims.qk_norm is not None or dims.qkv_bias):
        yield f"projection={dims.projection!r} has neither qk_norm nor qkv_bias; set projection='linear'"
    if dims.attention_bias and dims.qkv_bias:
        yield "attention_bias holds qkv_bias; give one of them"


def _attention(dims: TransformerDims) -> Iterator[str]:
    if dims.full_attention_interval is not None and dims.sliding_window is None:
        yield "full_attention_interval is given, but no sliding_window; give both or none"
    if dims.attn_logit_softcapping is not None and dims.attention_sinks:
        yield "attention with both sinks and attn_logit_softcapping isn't known; leave one of them out"


def _latent(dims: TransformerDims) -> Iterator[str]:
    width = dims.mla.qk_head_dim if dims.mla is not None else dims.head_dim
    if dims.num_key_value_heads != dims.num_attention_heads or dims.head_dim != width:
        yield (
            f"latent attention has as many key-value heads as heads, of head_dim={width}; "
            "leave num_key_value_heads and head_dim out"
        )
    if dims.position_embedding != "rope" or dims.partial_rotary_factor != 1:
        yield "latent attention has rotary positions in its own part of a head; set position_embedding='rope'"
    others = {
        "projection": dims.projection != "linear",
        "attention_bias": dims.attention_bias,
        "qkv_bias": dims.qkv_bias,
        "qk_norm": dims.qk_norm is not None,
        "sliding_window": dims.sliding_window is not None,
        "attention_sinks": dims.attention_sinks,
        "attn_logit_softcapping": dims.attn_logit_softcapping is not None,
        "query_pre_attn_scalar": dims.query_pre_attn_scalar is not None,
    }
    given = [name for name, is_given in others.items() if is_given]
    if given:
        yield f"latent attention with {', '.join(given)} isn't known; leave {'it' if len(given) == 1 else 'them'} out"
