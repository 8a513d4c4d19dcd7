"""The record of dimensions: checks, counts, other forms."""

from __future__ import annotations

import json
from typing import Any

import pytest

from perfmodel.errors import PerfModelError, UnknownNameError, UnsupportedError
from perfmodel.models import catalogue
from perfmodel.models.dims import TransformerDims
from perfmodel.models.families import dims_from_dict


def values(name: str = "llama-3.1-8b", **changes: Any) -> dict[str, Any]:
    return {**catalogue.get(name).dims.to_dict(), **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 0}, "hidden_size=0 must be a positive integer"),
        ({"hidden_size": 4096.0}, r"hidden_size=4096\.0 must be a positive integer"),
        ({"num_hidden_layers": True}, "num_hidden_layers=True must be a positive integer"),
        ({"vocab_size": -1}, "vocab_size=-1 must be a positive integer"),
        ({"intermediate_size": "14336"}, "intermediate_size='14336' must be a positive integer"),
        (
            {"num_key_value_heads": 5},
            "num_key_value_heads=5 doesn't divide num_attention_heads=32; give one of 1, 2, 4",
        ),
        ({"head_dim": 127}, "head_dim=127 is odd"),
        (
            {"head_dim": None, "num_attention_heads": 24, "num_key_value_heads": 8},
            "=24 doesn't divide hidden_size=4096",
        ),
        ({"norm_eps": float("nan")}, "norm_eps=nan must be a positive number"),
        ({"rope_theta": float("inf")}, "rope_theta=inf must be a positive number"),
        ({"attn_pdrop": 1.0}, r"attn_pdrop=1\.0 is no dropout probability"),
        ({"resid_pdrop": -0.1}, r"resid_pdrop=-0\.1 is no dropout probability"),
        ({"attention_bias": 1}, "attention_bias=1 is neither true nor false"),
        ({"pad_token_id": 128256}, "pad_token_id=128256 is no token; give one below vocab_size=128256"),
        ({"type_vocab_size": 2}, "a decoder with token types"),
        ({"type_vocab_size": -1}, "type_vocab_size=-1 must be an integer of 0 or more"),
        ({"position_embedding": "learned"}, "rope_scaling is given, but position_embedding isn't 'rope'"),
        ({"family": "encoder"}, "an encoder with rotary positions"),
        ({"projection": "conv1d"}, "conv1d projections are GPT-2's"),
        ({"rope_scaling": {"factor": 8.0}}, "rope_scaling lacks low_freq_factor"),
        ({"version": 2}, "dimensions of version 2; this perfmodel reads version 1"),
        ({"sliding_window": 0}, "sliding_window=0 must be a positive integer"),
        ({"full_attention_interval": 2}, "full_attention_interval is given, but no sliding_window"),
        ({"rope_local_base_freq": 1e4}, "rope_local_base_freq is for rotary positions with a sliding_window"),
        ({"partial_rotary_factor": 0.001}, "rotates no part of a head"),
        ({"partial_rotary_factor": 2.0}, "rotates no part of a head"),
        ({"partial_rotary_factor": 0.4}, r"partial_rotary_factor=0\.4 of head_dim=128 is 51"),
        ({"position_offset": 2}, "position_offset is of learned positions"),
        ({"block": "parallel", "norm_placement": "both"}, "a parallel block has norms at its input only"),
        ({"projection": "fused", "qk_norm": "head"}, "projection='fused' has neither qk_norm nor qkv_bias"),
        ({"projection": "fused_by_head"}, "'fused_by_head' has as many key-value heads as heads"),
        ({"attention_bias": True, "qkv_bias": True}, "attention_bias holds qkv_bias"),
        ({"attention_sinks": True, "attn_logit_softcapping": 50.0}, "both sinks and attn_logit_softcapping"),
        (
            {"family": "encoder", "position_embedding": "learned", "rope_scaling": None, "qk_norm": "head"},
            "an encoder with qk_norm isn't known; leave it out",
        ),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_scaling lacks original_max_position_embeddings"),
        ({"rope_scaling": {"rope_type": "linear", "factor": -2.0}}, r"rope_scaling\.factor=-2\.0 must be a positive"),
    ],
)
def test_what_makes_no_model_is_refused_with_its_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message) as error:
        TransformerDims.from_dict(values(**changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hiden_size": 1}, "unknown dimension 'hiden_size'; did you mean 'hidden_size'"),
        ({"hidden_act": "gelu_nev"}, "unknown hidden_act 'gelu_nev'; did you mean 'gelu_new'"),
        ({"norm": "batchnorm"}, "unknown norm 'batchnorm'.*choose from layernorm, rmsnorm"),
        ({"qk_norm": "heads"}, "unknown qk_norm 'heads'; did you mean 'head'"),
        ({"rope_scaling": {"rope_type": "yarm"}}, "unknown rope_scaling.rope_type 'yarm'; did you mean 'yarn'"),
        ({"moe": {"num_expert": 8}}, "unknown field of moe 'num_expert'; did you mean 'num_experts'"),
        ({"mla": {"kv_lora": 8}}, "unknown field of mla 'kv_lora'; did you mean 'kv_lora_rank'"),
        ({"rope_scaling": {"facter": 8.0}}, "unknown field of rope_scaling 'facter'; did you mean 'factor'"),
    ],
)
def test_unknown_names_get_a_suggestion(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        TransformerDims.from_dict(values(**changes))


@pytest.mark.parametrize("key", ["factor", "low_freq_factor", "original_max_position_embeddings"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), "8"])
def test_rope_scaling_takes_positive_numbers(key: str, value: Any) -> None:
    scaling = {**values()["rope_scaling"], key: value}
    with pytest.raises(UnsupportedError, match=f"rope_scaling.{key}"):
        TransformerDims.from_dict(values(rope_scaling=scaling))


def test_rope_scaling_needs_a_band_to_blend_in() -> None:
    scaling = {**values()["rope_scaling"], "high_freq_factor": 1.0}
    with pytest.raises(UnsupportedError, match=r"high_freq_factor=1\.0 must be above low_freq_factor=1\.0"):
        TransformerDims.from_dict(values(rope_scaling=scaling))


def test_missing_dimensions_are_listed() -> None:
    with pytest.raises(UnsupportedError, match="the dimensions lack vocab_size, norm; give them"):
        TransformerDims.from_dict({key: value for key, value in values().items() if key not in ("vocab_size", "norm")})


def test_hugging_face_defaults_of_heads() -> None:
    dims = TransformerDims.from_dict(values(num_key_value_heads=None, head_dim=None))
    assert (dims.num_key_value_heads, dims.head_dim) == (32, 128)


@pytest.mark.parametrize("name", catalogue.names())
def test_plain_values_come_back(name: str) -> None:
    dims = catalogue.get(name).dims
    assert dims_from_dict(json.loads(json.dumps(dims.to_dict()))) == dims


def test_with_depths_adds_whole_layers() -> None:
    dims = catalogue.get("llama-3.1-70b").dims
    counts = [dims.with_depths({"layers": n}).parameters() for n in (1, 2, 3)]
    assert counts[2] - counts[1] == counts[1] - counts[0] > 0
    assert dims.with_depths({"layers": 80}) == dims
    with pytest.raises(PerfModelError, match="num_hidden_layers=0"):
        dims.with_depths({"layers": 0})


def test_matmul_parameters_count_the_head_once_and_no_embedding() -> None:
    dims = catalogue.get("gpt2").dims
    # 12 H^2 a layer (4 for attention, 8 for the feed-forward) and the head.
    assert dims.matmul_parameters() == 12 * 12 * 768**2 + 50257 * 768
    tied = catalogue.get("llama-2-7b").dims
    assert tied.matmul_parameters() == 32 * (4 * 4096**2 + 3 * 4096 * 11008) + 32000 * 4096


MOE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 100}
MLA = {
    "kv_lora_rank": 64, "q_lora_rank": None, "qk_nope_head_dim": 24, "qk_rope_head_dim": 8, "v_head_dim": 16,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts": 0}, r"moe\.num_experts=0 must be a positive integer"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok=9 is more than num_experts=8"),
        ({"first_k_dense_replace": -1}, r"moe\.first_k_dense_replace=-1 must be an integer of 0 or more"),
        ({"n_group": 3, "router": "sigmoid"}, r"moe\.n_group=3 must divide num_experts=8"),
        ({"n_group": 2, "topk_group": 3, "router": "sigmoid"}, "at least topk_group=3"),
        ({"n_group": 8, "router": "sigmoid"}, "leaves a group of one expert"),
        ({"n_group": 2}, "groups and routed_scaling_factor are of moe.router='sigmoid'"),
        ({"swiglu_limit": 7.0}, "swiglu_limit and moe.swiglu_alpha come together"),
        ({"norm_topk_prob": 1}, r"moe\.norm_topk_prob=1 is neither true nor false"),
    ],
)
def test_what_makes_no_mixture_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        TransformerDims.from_dict(values(moe={**MOE, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mla": {**MLA, "qk_rope_head_dim": 7}}, r"mla\.qk_rope_head_dim=7 is odd"),
        ({"mla": {**MLA, "v_head_dim": 0}}, r"mla\.v_head_dim=0 must be a positive integer"),
        ({"mla": MLA, "num_key_value_heads": 8}, "latent attention has as many key-value heads as heads"),
        ({"mla": MLA, "qkv_bias": True}, "latent attention with qkv_bias isn't known"),
        ({"mla": MLA, "sliding_window": 4, "qk_norm": "head"}, "latent attention with qk_norm, sliding_window isn't"),
    ],
)
def test_what_makes_no_latent_attention_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        TransformerDims.from_dict(values(**{"num_key_value_heads": None, "head_dim": None, **changes}))


def test_only_a_tokens_own_experts_count_in_its_products() -> None:
    dims = catalogue.get("mixtral-8x7b").dims
    hidden, inner = 4096, 14336
    # Query and output; key and value of 8 heads of 128; the router; two of eight experts; the head.
    layer = 2 * hidden * 4096 + 2 * hidden * 1024 + hidden * 8 + 2 * 3 * hidden * inner
    assert dims.matmul_parameters() == 32 * layer + hidden * 32000
    assert dims.parameters() - dims.matmul_parameters() == (
        32 * (6 * 3 * hidden * inner + 2 * hidden) + hidden + 32000 * hidden
    )


def test_deepseek_activates_what_its_authors_say() -> None:
    """Of 671 billion parameters 36.7, of which 0.9 are the embedding's and 0.9 the head's (README_WEIGHTS.md)."""
    dims = catalogue.get("deepseek-v3").dims
    assert dims.matmul_parameters() == pytest.approx(36.7e9 - 0.9e9, rel=0.025)
    assert round(dims.parameters() / 1e9) == 671


def test_layers_differ_by_number() -> None:
    gemma, deepseek = catalogue.get("gemma-3-4b").dims, catalogue.get("deepseek-v3").dims
    assert [gemma.window(layer) for layer in range(12)] == 2 * [*5 * [1024], None]
    assert [deepseek.routes(layer) for layer in range(5)] == [False, False, False, True, True]
    assert [(s.prefix, s.period) for s in (*gemma.stacks, *deepseek.stacks)] == [(0, 6), (3, 1)]


def test_closed_form_of_latent_attention_has_two_widths() -> None:
    dims = catalogue.get("deepseek-v3").dims
    batch, seq = 2, 64
    flops = dims.closed_form_flops({"batch": batch, "seq": seq})
    # Scores of heads of 192, values of 128: forward 2 T 192 and 2 T 128 a token and head, and twice that backward.
    attention = 3 * 61 * 128 * 2 * seq * (192 + 128)
    assert flops == batch * seq * (6 * dims.matmul_parameters() + attention)
