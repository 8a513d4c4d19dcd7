"""Dimensions as the keywords of a Hugging Face config, without PyTorch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from perfmodel.errors import UnsupportedError
from perfmodel.models.dims import TransformerDims

__all__ = ["huggingface_config"]

#: What a class doesn't have unless its entry says otherwise.
_PLAIN: dict[str, object] = {
    "family": "decoder", "position_embedding": "rope", "projection": "linear", "norm": "rmsnorm",
    "norm_placement": "input", "block": "sequential", "gated_mlp": True, "attention_bias": False, "mlp_bias": False,
    "qkv_bias": False, "lm_head_bias": False, "scale_embeddings": False, "position_offset": 0, "type_vocab_size": 0,
    "partial_rotary_factor": 1.0, "rope_local_base_freq": None, "rope_in_float32": False, "sliding_window": None,
    "full_attention_interval": None, "qk_norm": None, "query_pre_attn_scalar": None, "attn_logit_softcapping": None,
    "final_logit_softcapping": None, "attention_sinks": False, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
}  # fmt: skip
_GPT: dict[str, object] = {
    "position_embedding": "learned", "norm": "layernorm", "gated_mlp": False, "attention_bias": True, "mlp_bias": True,
}  # fmt: skip
_GEMMA: dict[str, object] = {"norm": "rmsnorm_unit_offset", "norm_placement": "both", "scale_embeddings": True}

#: What each Hugging Face class fixes in another way than :data:`_PLAIN`; dimensions that differ can't be built from it.
_FIXED: dict[str, dict[str, object]] = {
    "gpt2": {**_GPT, "projection": "conv1d", "pad_token_id": None},
    "opt": {**_GPT, "position_offset": 2},
    "bert": {**_GPT, "family": "encoder"},
    "roberta": {**_GPT, "family": "encoder", "hidden_act": "gelu"},
    "llama": {},
    "mistral": {},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": "head"},
    "olmo2": {
        "norm": "rmsnorm_float32", "norm_placement": "output", "qk_norm": "projection", "rope_in_float32": True,
    },
    "gemma2": _GEMMA,
    "gemma3_text": {**_GEMMA, "qk_norm": "head"},
    "phi": {
        **_GPT, "position_embedding": "rope", "block": "parallel_shared_norm", "lm_head_bias": True,
    },
    "phi3": {"projection": "fused"},
    "gpt_neox": {
        **_GPT, "position_embedding": "rope", "block": "parallel", "projection": "fused_by_head", "pad_token_id": None,
    },
    "mixtral": {},
    "qwen3_moe": {"qk_norm": "head"},
    "gpt_oss": {
        "norm": "rmsnorm_float32", "attention_bias": True, "attention_sinks": True, "full_attention_interval": 2,
    },
    "deepseek_v3": {},
}  # fmt: skip

#: What each class takes as it comes, besides :data:`_SHARED`.
_FREE: dict[str, tuple[str, ...]] = {
    "gpt2": ("embd_pdrop", "resid_pdrop"),
    "opt": ("resid_pdrop",),
    "bert": ("embd_pdrop", "resid_pdrop", "type_vocab_size"),
    "roberta": ("embd_pdrop", "resid_pdrop", "type_vocab_size", "position_offset"),
    "llama": ("attention_bias", "mlp_bias"),
    "mistral": ("sliding_window",),
    "qwen3": ("attention_bias",),
    "olmo2": ("attention_bias",),
    "gemma2": (
        "attention_bias", "sliding_window", "full_attention_interval", "query_pre_attn_scalar",
        "attn_logit_softcapping", "final_logit_softcapping",
    ),
    "gemma3_text": (
        "attention_bias", "sliding_window", "full_attention_interval", "query_pre_attn_scalar",
        "final_logit_softcapping", "rope_local_base_freq",
    ),
    "phi": ("embd_pdrop", "resid_pdrop", "partial_rotary_factor"),
    "phi3": ("resid_pdrop", "sliding_window", "partial_rotary_factor"),
    "gpt_neox": ("embd_pdrop", "resid_pdrop", "partial_rotary_factor"),
    "mixtral": ("sliding_window",),
    "qwen3_moe": ("attention_bias", "sliding_window"),
    "gpt_oss": ("sliding_window",),
}  # fmt: skip

_SHARED = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings",
    "tie_word_embeddings", "pad_token_id",
)  # fmt: skip


def huggingface_config(dims: TransformerDims) -> dict[str, Any]:
    """Keywords of the Hugging Face config that makes this model, and its ``model_type``.

    Raises
    ------
    UnsupportedError
        If no Hugging Face class known here runs these dimensions; says what is in the way.

    Examples
    --------
    >>> from perfmodel.models import catalogue
    >>> huggingface_config(catalogue.get("llama-3-8b").dims)["model_type"]
    'llama'
    """
    model_type = _model_type(dims)
    needed = {**_PLAIN, **_FIXED[model_type]}
    _check(dims, model_type, {name: value for name, value in needed.items() if name not in _FREE.get(model_type, ())})
    shared = {name: getattr(dims, name) for name in _SHARED}
    return {"model_type": model_type, **shared, **_OWN[model_type](dims)}


def _model_type(dims: TransformerDims) -> str:
    if dims.family == "encoder":
        return "roberta" if dims.position_offset else "bert"
    if dims.mla is not None:
        return "deepseek_v3"
    if dims.moe is not None:
        return "gpt_oss" if dims.attention_sinks else "mixtral" if dims.qk_norm is None else "qwen3_moe"
    if dims.position_embedding == "learned":
        return "opt" if dims.position_offset else "gpt2"
    if dims.block != "sequential":
        return "phi" if dims.block == "parallel_shared_norm" else "gpt_neox"
    if dims.scale_embeddings:
        return "gemma2" if dims.qk_norm is None else "gemma3_text"
    if dims.projection == "fused":
        return "phi3"
    if dims.qk_norm is not None:
        return "qwen3" if dims.qk_norm == "head" else "olmo2"
    return "qwen2" if dims.qkv_bias else "mistral" if dims.sliding_window is not None else "llama"


def _gpt2(dims: TransformerDims) -> dict[str, Any]:
    _check(dims, "gpt2", {"head_dim": dims.hidden_size / dims.num_attention_heads})
    return {
        "n_inner": dims.intermediate_size,
        "activation_function": dims.hidden_act,
        "layer_norm_epsilon": dims.norm_eps,
        "embd_pdrop": dims.embd_pdrop,
        "attn_pdrop": dims.attn_pdrop,
        "resid_pdrop": dims.resid_pdrop,
    }


def _opt(dims: TransformerDims) -> dict[str, Any]:
    _one_head_each(dims, "opt")
    _check(dims, "opt", {"norm_eps": 1e-5})
    return {
        "ffn_dim": dims.intermediate_size,
        "activation_function": dims.hidden_act,
        "word_embed_proj_dim": dims.hidden_size,
        "dropout": dims.resid_pdrop,
        "attention_dropout": dims.attn_pdrop,
    }


def _bert(dims: TransformerDims) -> dict[str, Any]:
    _one_head_each(dims, "bert")
    _check(dims, "bert", {"resid_pdrop": dims.embd_pdrop, "type_vocab_size": max(dims.type_vocab_size, 1)})
    return {
        "intermediate_size": dims.intermediate_size,
        "hidden_act": dims.hidden_act,
        "layer_norm_eps": dims.norm_eps,
        "type_vocab_size": dims.type_vocab_size,
        "hidden_dropout_prob": dims.resid_pdrop,
        "attention_probs_dropout_prob": dims.attn_pdrop,
    }


def _roberta(dims: TransformerDims) -> dict[str, Any]:
    return {**_bert(dims), "max_position_embeddings": dims.max_position_embeddings + dims.position_offset}


def _llama(dims: TransformerDims) -> dict[str, Any]:
    return {**_grouped(dims), "attention_bias": dims.attention_bias, "mlp_bias": dims.mlp_bias}


def _mistral(dims: TransformerDims) -> dict[str, Any]:
    return {**_grouped(dims), "sliding_window": dims.sliding_window}


def _qwen2(dims: TransformerDims) -> dict[str, Any]:
    return {key: value for key, value in _grouped(dims, own_head_dim="qwen2").items() if key != "head_dim"}


def _qwen3(dims: TransformerDims) -> dict[str, Any]:
    return {**_grouped(dims), "attention_bias": dims.attention_bias}


def _olmo2(dims: TransformerDims) -> dict[str, Any]:
    own = {key: value for key, value in _grouped(dims, own_head_dim="olmo2").items() if key != "head_dim"}
    return {**own, "attention_bias": dims.attention_bias}


def _gemma(dims: TransformerDims) -> dict[str, Any]:
    own = _grouped(dims)
    own["hidden_activation"] = own.pop("hidden_act")
    return {
        **own,
        "attention_bias": dims.attention_bias,
        "query_pre_attn_scalar": dims.query_pre_attn_scalar or dims.head_dim,
        "final_logit_softcapping": dims.final_logit_softcapping,
        "attn_logit_softcapping": dims.attn_logit_softcapping,
        "sliding_window": dims.sliding_window,
        "layer_types": _layer_types(dims),
    }


def _gemma2(dims: TransformerDims) -> dict[str, Any]:
    if dims.attn_logit_softcapping is None:
        raise UnsupportedError(
            "Hugging Face's gemma2 materialises attention scores, which these dimensions have no "
            "attn_logit_softcapping for; build them with implementation='reference'"
        )
    return _gemma(dims)


def _gemma3(dims: TransformerDims) -> dict[str, Any]:
    if dims.sliding_window is None or dims.full_attention_interval is None or dims.rope_local_base_freq is None:
        raise UnsupportedError(
            "Hugging Face's gemma3_text has sliding_window, full_attention_interval and rope_local_base_freq; "
            "build these dimensions with implementation='reference'"
        )
    rope = {
        "full_attention": _rope_parameters(dims),
        "sliding_attention": {"rope_type": "default", "rope_theta": dims.rope_local_base_freq},
    }
    return {**_gemma(dims), "rope_parameters": rope}


def _phi(dims: TransformerDims) -> dict[str, Any]:
    _check(dims, "phi", {"head_dim": dims.hidden_size / dims.num_attention_heads})
    return {
        "num_key_value_heads": dims.num_key_value_heads,
        "intermediate_size": dims.intermediate_size,
        "hidden_act": dims.hidden_act,
        "layer_norm_eps": dims.norm_eps,
        "embd_pdrop": dims.embd_pdrop,
        "resid_pdrop": dims.resid_pdrop,
        "attention_dropout": dims.attn_pdrop,
        "rope_parameters": _rope_parameters(dims),
    }


def _phi3(dims: TransformerDims) -> dict[str, Any]:
    own = {key: value for key, value in _grouped(dims, own_head_dim="phi3").items() if key != "head_dim"}
    return {**own, "resid_pdrop": dims.resid_pdrop, "sliding_window": dims.sliding_window}


def _gpt_neox(dims: TransformerDims) -> dict[str, Any]:
    _one_head_each(dims, "gpt_neox")
    _check(dims, "gpt_neox", {"resid_pdrop": dims.embd_pdrop})
    return {
        "intermediate_size": dims.intermediate_size,
        "hidden_act": dims.hidden_act,
        "layer_norm_eps": dims.norm_eps,
        "hidden_dropout": dims.resid_pdrop,
        "attention_dropout": dims.attn_pdrop,
        "rope_parameters": _rope_parameters(dims),
    }


def _mixtral(dims: TransformerDims) -> dict[str, Any]:
    moe = _experts(dims, "mixtral", {"router": "softmax", "norm_topk_prob": True, "float32_weights": True})
    return {
        **_mistral(dims),
        "intermediate_size": moe["moe_intermediate_size"],
        "num_local_experts": moe["num_experts"],
        "num_experts_per_tok": moe["num_experts_per_tok"],
    }


def _qwen3_moe(dims: TransformerDims) -> dict[str, Any]:
    free = ("norm_topk_prob", "decoder_sparse_step", "first_k_dense_replace")
    moe = _experts(dims, "qwen3_moe", {"router": "softmax", "float32_weights": False}, *free)
    sizes = ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob", "decoder_sparse_step")
    return {
        **_qwen3(dims),
        **{name: moe[name] for name in sizes},
        "mlp_only_layers": list(range(moe["first_k_dense_replace"])),
        "use_sliding_window": dims.sliding_window is not None,
        "sliding_window": dims.sliding_window,
    }


def _gpt_oss(dims: TransformerDims) -> dict[str, Any]:
    fixed = {"router": "topk_softmax", "bias": True}
    moe = _experts(dims, "gpt_oss", fixed, "swiglu_limit", "swiglu_alpha", "norm_topk_prob", "float32_weights")
    return {
        **_grouped(dims),
        "intermediate_size": moe["moe_intermediate_size"],
        "num_local_experts": moe["num_experts"],
        "num_experts_per_tok": moe["num_experts_per_tok"],
        "swiglu_limit": moe["swiglu_limit"],
        "swiglu_alpha": moe["swiglu_alpha"],
        "attention_bias": dims.attention_bias,
        "sliding_window": dims.sliding_window,
        "layer_types": _layer_types(dims),
    }


def _deepseek_v3(dims: TransformerDims) -> dict[str, Any]:
    free = ("norm_topk_prob", "n_group", "topk_group", "routed_scaling_factor", "first_k_dense_replace")
    fixed = {"router": "sigmoid", "float32_weights": True}
    moe = _experts(dims, "deepseek_v3", fixed, *free, "shared_expert_intermediate_size")
    assert dims.mla is not None  # _model_type() said so
    shared, left = divmod(moe["shared_expert_intermediate_size"], moe["moe_intermediate_size"])
    if left or not shared:
        raise UnsupportedError(
            "Hugging Face's deepseek_v3 has whole shared experts, and these dimensions have "
            f"moe.shared_expert_intermediate_size={moe['shared_expert_intermediate_size']}; "
            "build them with implementation='reference'"
        )
    own = {key: value for key, value in _grouped(dims).items() if key != "head_dim"}
    return {
        **own,
        **{field.name: getattr(dims.mla, field.name) for field in dataclasses.fields(dims.mla)},
        **{name: moe[name] for name in ("num_experts_per_tok", "moe_intermediate_size", *free)},
        "n_routed_experts": moe["num_experts"],
        "n_shared_experts": shared,
    }


_OWN: dict[str, Callable[[TransformerDims], dict[str, Any]]] = {
    "gpt2": _gpt2, "opt": _opt, "bert": _bert, "roberta": _roberta, "llama": _llama, "mistral": _mistral,
    "qwen2": _qwen2, "qwen3": _qwen3, "olmo2": _olmo2, "gemma2": _gemma2, "gemma3_text": _gemma3, "phi": _phi,
    "phi3": _phi3, "gpt_neox": _gpt_neox, "mixtral": _mixtral, "qwen3_moe": _qwen3_moe, "gpt_oss": _gpt_oss,
    "deepseek_v3": _deepseek_v3,
}  # fmt: skip


def _grouped(dims: TransformerDims, own_head_dim: str | None = None) -> dict[str, Any]:
    """What Llama and all that descend from it take; ``own_head_dim`` names a class that derives the head's width."""
    if own_head_dim is not None:
        _check(dims, own_head_dim, {"head_dim": dims.hidden_size / dims.num_attention_heads})
    return {
        "num_key_value_heads": dims.num_key_value_heads,
        "head_dim": dims.head_dim,
        "intermediate_size": dims.intermediate_size,
        "hidden_act": dims.hidden_act,
        "rms_norm_eps": dims.norm_eps,
        "attention_dropout": dims.attn_pdrop,
        "rope_parameters": _rope_parameters(dims),
    }


def _one_head_each(dims: TransformerDims, model_type: str) -> None:
    _check(
        dims,
        model_type,
        {"head_dim": dims.hidden_size / dims.num_attention_heads, "num_key_value_heads": dims.num_attention_heads},
    )


def _experts(dims: TransformerDims, model_type: str, fixed: Mapping[str, object], *free: str) -> dict[str, Any]:
    """The dimensions of the experts, checked against what the class has."""
    if dims.moe is None:
        raise UnsupportedError(
            f"Hugging Face's {model_type} has experts, these dimensions have none; "
            "build them with implementation='reference'"
        )
    sizes = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")
    for field in dataclasses.fields(dims.moe):
        if field.name not in (*sizes, *free):
            _refuse(
                model_type, f"moe.{field.name}", getattr(dims.moe, field.name), fixed.get(field.name, field.default)
            )
    return dataclasses.asdict(dims.moe)


def _layer_types(dims: TransformerDims) -> list[str]:
    layers = range(dims.num_hidden_layers)
    return ["full_attention" if dims.window(index) is None else "sliding_attention" for index in layers]


def _rope_parameters(dims: TransformerDims) -> dict[str, Any]:
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": dims.rope_theta}
    if dims.rope_scaling is not None:
        given = dataclasses.asdict(dims.rope_scaling)
        parameters.update({key: value for key, value in given.items() if value is not None})
    if dims.partial_rotary_factor != 1:
        parameters["partial_rotary_factor"] = dims.partial_rotary_factor
    return parameters


def _check(dims: TransformerDims, model_type: str, needed: Mapping[str, object]) -> None:
    for name, value in needed.items():
        _refuse(model_type, name, getattr(dims, name), value)


def _refuse(model_type: str, name: str, given: object, fixed: object) -> None:
    if given != fixed:
        shown = int(fixed) if isinstance(fixed, float) and fixed.is_integer() else fixed
        raise UnsupportedError(
            f"Hugging Face's {model_type} has {name}={shown!r}, these dimensions have {given!r}; "
            "build them with implementation='reference'"
        )
