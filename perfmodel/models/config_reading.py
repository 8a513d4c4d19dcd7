"""Decoders and BERT from the contents of a Hugging Face ``config.json``, without PyTorch and transformers.

The inverse of :func:`perfmodel.models.config.huggingface_config`. Configs of
transformers 4 and 5 are understood, which write rotary positions in other ways.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from perfmodel.errors import UnsupportedError
from perfmodel.models.config_rope import rope_dims
from perfmodel.models.dims import TransformerDims

__all__ = ["MODEL_TYPES", "from_huggingface"]

Config = Mapping[str, Any]

#: What each type of config supposes where a config.json doesn't say, in the config's own names.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "embd_pdrop": 0.1, "attn_pdrop": 0.1,
        "resid_pdrop": 0.1, "tie_word_embeddings": True,
    },
    "opt": {
        "activation_function": "relu", "dropout": 0.1, "attention_dropout": 0.0, "tie_word_embeddings": True,
        "pad_token_id": 1,
    },
    "bert": {
        "layer_norm_eps": 1e-12, "type_vocab_size": 2, "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1, "tie_word_embeddings": True, "pad_token_id": 0,
    },
    "roberta": {
        "layer_norm_eps": 1e-12, "type_vocab_size": 2, "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1, "tie_word_embeddings": True, "pad_token_id": 1, "hidden_act": "gelu",
    },
    "llama": {"rms_norm_eps": 1e-6},
    "mistral": {"rms_norm_eps": 1e-6, "sliding_window": 4096},
    "qwen2": {"rms_norm_eps": 1e-6},
    "qwen3": {"rms_norm_eps": 1e-6, "head_dim": 128},
    "olmo2": {"rms_norm_eps": 1e-5, "pad_token_id": 1},
    "gemma2": {
        "rms_norm_eps": 1e-6, "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True,
        "pad_token_id": 0, "head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 4096,
        "sliding_window_pattern": 2, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
    },
    "gemma3_text": {
        "rms_norm_eps": 1e-6, "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True,
        "pad_token_id": 0, "vocab_size": 262208, "max_position_embeddings": 131072, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 4096,
        "sliding_window_pattern": 6, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0,
    },
    "phi": {"layer_norm_eps": 1e-5, "partial_rotary_factor": 0.5, "hidden_act": "gelu_new"},
    "phi3": {"rms_norm_eps": 1e-5, "pad_token_id": 32000},
    "gpt_neox": {"layer_norm_eps": 1e-5, "rotary_pct": 0.25, "hidden_act": "gelu", "attention_bias": True},
    "mixtral": {"rms_norm_eps": 1e-5, "num_experts_per_tok": 2},
    "qwen3_moe": {"rms_norm_eps": 1e-6, "norm_topk_prob": False, "decoder_sparse_step": 1},
    "gpt_oss": {
        "rms_norm_eps": 1e-5, "attention_bias": True, "sliding_window_pattern": 2, "swiglu_limit": 7.0,
        "swiglu_alpha": 1.702, "rope_theta": 150000.0,
    },
    "deepseek_v3": {
        "rms_norm_eps": 1e-6, "rope_interleave": True, "norm_topk_prob": True, "n_group": 8, "topk_group": 4,
        "routed_scaling_factor": 2.5, "first_k_dense_replace": 3, "n_shared_experts": 1,
    },
}  # fmt: skip

#: The model types that are understood.
MODEL_TYPES = tuple(_DEFAULTS)

#: Names that mean the same in a config and in :class:`TransformerDims`.
_SAME = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "intermediate_size", "max_position_embeddings", "hidden_act", "tie_word_embeddings", "pad_token_id",
)  # fmt: skip
#: Other names of the same.
_RENAMED = {
    "n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings", "n_inner": "intermediate_size", "ffn_dim": "intermediate_size",
    "activation_function": "hidden_act", "hidden_activation": "hidden_act",
    "layer_norm_epsilon": "norm_eps", "layer_norm_eps": "norm_eps", "rms_norm_eps": "norm_eps",
    "attention_dropout": "attn_pdrop",
}  # fmt: skip


def from_huggingface(config: Config) -> TransformerDims:
    """Dimensions from the contents of a decoder's or BERT's ``config.json``.

    What only matters in generation or for loading weights is passed over, and so
    are modules that transformers doesn't train (DeepSeek's multi-token prediction).

    Raises
    ------
    UnsupportedError
        For a missing number, or a setting that the reference modules don't have; names it.

    Examples
    --------
    >>> from_huggingface({"model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32,
    ...     "num_attention_heads": 32, "intermediate_size": 11008, "max_position_embeddings": 4096}).parameters()
    6738415616
    """
    model_type = str(config["model_type"])
    values = {**_DEFAULTS[model_type], **config}
    shared = {name: values[name] for name in _SAME if values.get(name) is not None}
    shared.update({ours: values[theirs] for theirs, ours in _RENAMED.items() if values.get(theirs) is not None})
    return TransformerDims.from_dict({"family": "decoder", "hidden_act": "silu", **shared, **_READ[model_type](values)})


# -- one function a type: what TransformerDims has beside the shared names ---------------------


def _gpt2(config: Config) -> dict[str, Any]:
    _refuse(config, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    pdrops = {name: config[name] for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop")}
    inner = config.get("n_inner") or 4 * _needed(config, "n_embd", "hidden_size")
    return {**_GPT, **pdrops, "projection": "conv1d", "pad_token_id": None, "intermediate_size": inner}


def _opt(config: Config) -> dict[str, Any]:
    width = config.get("hidden_size")
    _refuse(config, do_layer_norm_before=True, word_embed_proj_dim=width, enable_bias=True, layerdrop=0.0)
    _refuse(config, _remove_final_layer_norm=False, layer_norm_elementwise_affine=True)
    return {**_GPT, "norm_eps": 1e-5, "position_offset": 2, "resid_pdrop": config["dropout"]}


def _bert(config: Config) -> dict[str, Any]:
    _refuse(config, position_embedding_type="absolute", is_decoder=False)
    return {
        **_GPT,
        "family": "encoder",
        "type_vocab_size": config["type_vocab_size"],
        "embd_pdrop": config["hidden_dropout_prob"],
        "resid_pdrop": config["hidden_dropout_prob"],
        "attn_pdrop": config["attention_probs_dropout_prob"],
    }


def _roberta(config: Config) -> dict[str, Any]:
    offset = config["pad_token_id"] + 1
    longest = config.get("max_position_embeddings", 0) - offset
    return {**_bert(config), "position_offset": offset, "max_position_embeddings": longest}


def _llama(config: Config) -> dict[str, Any]:
    biases = {name: bool(config.get(name)) for name in ("attention_bias", "mlp_bias")}
    return {**_GATED, **rope_dims(config), **biases}


def _mistral(config: Config) -> dict[str, Any]:
    return {**_GATED, **rope_dims(config), "sliding_window": config.get("sliding_window")}


def _qwen2(config: Config) -> dict[str, Any]:
    return {**_GATED, **rope_dims(config), **_switched_window(config), "qkv_bias": True}


def _qwen3(config: Config) -> dict[str, Any]:
    bias = bool(config.get("attention_bias"))
    return {**_GATED, **rope_dims(config), **_switched_window(config), "qk_norm": "head", "attention_bias": bias}


def _olmo2(config: Config) -> dict[str, Any]:
    return {
        **_GATED,
        **rope_dims(config),
        "norm": "rmsnorm_float32",
        "norm_placement": "output",
        "qk_norm": "projection",
        "rope_in_float32": True,
        "attention_bias": bool(config.get("attention_bias")),
    }


def _gemma2(config: Config) -> dict[str, Any]:
    caps = {name: config.get(name) for name in ("attn_logit_softcapping", "final_logit_softcapping")}
    _refuse(config, use_bidirectional_attention=False)
    return {
        **_GATED,
        **rope_dims(config),
        **caps,
        **_alternating_window(config),
        "norm": "rmsnorm_unit_offset",
        "norm_placement": "both",
        "scale_embeddings": True,
        "attention_bias": bool(config.get("attention_bias")),
        "query_pre_attn_scalar": config["query_pre_attn_scalar"],
    }


def _gemma3(config: Config) -> dict[str, Any]:
    return {**_gemma2(config), "qk_norm": "head"}


def _phi(config: Config) -> dict[str, Any]:
    _refuse(config, qk_layernorm=False)
    pdrops = {name: config.get(name, 0.0) for name in ("embd_pdrop", "resid_pdrop")}
    return {**_GPT, **rope_dims(config), **pdrops, "block": "parallel_shared_norm", "lm_head_bias": True}


def _phi3(config: Config) -> dict[str, Any]:
    own = {"sliding_window": config.get("sliding_window"), "resid_pdrop": config.get("resid_pdrop", 0.0)}
    return {**_GATED, **rope_dims(config), **own, "projection": "fused"}


def _gpt_neox(config: Config) -> dict[str, Any]:
    _refuse(config, attention_bias=True)
    dropout = config.get("hidden_dropout", 0.0)
    return {
        **_GPT,
        **rope_dims(config),
        "pad_token_id": None,
        "block": "parallel" if config.get("use_parallel_residual", True) else "sequential",
        "projection": "fused_by_head",
        "embd_pdrop": dropout,
        "resid_pdrop": dropout,
    }


def _mixtral(config: Config) -> dict[str, Any]:
    _refuse(config, router_jitter_noise=0.0)
    moe = {
        "num_experts": _needed(config, "num_local_experts", "num_experts"),
        "num_experts_per_tok": config["num_experts_per_tok"],
        "moe_intermediate_size": _needed(config, "intermediate_size"),
    }
    return {**_mistral(config), "moe": moe, **_no_balance(config)}


def _qwen3_moe(config: Config) -> dict[str, Any]:
    dense = list(config.get("mlp_only_layers") or ())
    if dense != list(range(len(dense))):
        raise UnsupportedError(f"mlp_only_layers={dense} aren't the first layers, which is all that is known here")
    moe = {
        "num_experts": _needed(config, "num_experts", "num_local_experts"),
        "num_experts_per_tok": _needed(config, "num_experts_per_tok"),
        "moe_intermediate_size": _needed(config, "moe_intermediate_size"),
        "norm_topk_prob": config["norm_topk_prob"],
        "decoder_sparse_step": config["decoder_sparse_step"],
        "first_k_dense_replace": len(dense),
        "float32_weights": False,
    }
    return {**_qwen3(config), "moe": moe, **_no_balance(config)}


def _gpt_oss(config: Config) -> dict[str, Any]:
    moe = {
        "num_experts": _needed(config, "num_local_experts", "num_experts"),
        "num_experts_per_tok": _needed(config, "num_experts_per_tok", "experts_per_token"),
        "moe_intermediate_size": _needed(config, "intermediate_size"),
        "router": "topk_softmax",
        "norm_topk_prob": False,
        "float32_weights": False,
        "bias": True,
        "swiglu_limit": config["swiglu_limit"],
        "swiglu_alpha": config["swiglu_alpha"],
    }
    own = {"norm": "rmsnorm_float32", "attention_bias": config["attention_bias"], "attention_sinks": True}
    return {**_GATED, **rope_dims(config), **_alternating_window(config), **own, "moe": moe, **_no_balance(config)}


def _deepseek_v3(config: Config) -> dict[str, Any]:
    _refuse(config, scoring_func="sigmoid", topk_method="noaux_tc", moe_layer_freq=1, attention_bias=False)
    width = _needed(config, "moe_intermediate_size")
    same = ("n_group", "topk_group", "norm_topk_prob", "routed_scaling_factor", "first_k_dense_replace")
    moe = {
        "num_experts": _needed(config, "n_routed_experts", "num_local_experts"),
        "num_experts_per_tok": _needed(config, "num_experts_per_tok"),
        "moe_intermediate_size": width,
        "shared_expert_intermediate_size": config["n_shared_experts"] * width,
        "router": "sigmoid",
        **{name: config[name] for name in same},
    }
    names = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    mla = {name: _needed(config, name) for name in names}
    mla.update(q_lora_rank=config.get("q_lora_rank"), rope_interleave=config["rope_interleave"])
    # In the config it's the width of the rotary part.
    return {**_GATED, **rope_dims(config), "head_dim": None, "moe": moe, "mla": mla, **_no_balance(config)}


_GPT = {
    "norm": "layernorm", "position_embedding": "learned", "attention_bias": True, "mlp_bias": True,
}  # fmt: skip
_GATED = {"norm": "rmsnorm", "gated_mlp": True}

_READ: dict[str, Callable[[Config], dict[str, Any]]] = {
    "gpt2": _gpt2, "opt": _opt, "bert": _bert, "roberta": _roberta, "llama": _llama, "mistral": _mistral,
    "qwen2": _qwen2, "qwen3": _qwen3, "olmo2": _olmo2, "gemma2": _gemma2, "gemma3_text": _gemma3, "phi": _phi,
    "phi3": _phi3, "gpt_neox": _gpt_neox, "mixtral": _mixtral, "qwen3_moe": _qwen3_moe, "gpt_oss": _gpt_oss,
    "deepseek_v3": _deepseek_v3,
}  # fmt: skip


def _switched_window(config: Config) -> dict[str, Any]:
    """Qwen's: off unless ``use_sliding_window``, and then for the layers from ``max_window_layers`` on."""
    if not config.get("use_sliding_window", False):
        return {"sliding_window": None}
    if config.get("layer_types") is None and config.get("max_window_layers"):
        raise UnsupportedError(
            "a sliding window from max_window_layers on isn't known here; set use_sliding_window=false"
        )
    return _alternating_window(config)


def _alternating_window(config: Config) -> dict[str, Any]:
    """The window, and which layers see beyond it."""
    types, window = config.get("layer_types"), config.get("sliding_window")
    if types is None:
        return {"sliding_window": window, "full_attention_interval": config.get("sliding_window_pattern")}
    full = [kind == "full_attention" for kind in types]
    if all(full):
        return {"sliding_window": None}
    if not any(full):
        # A period longer than the model can't be told from none, but where the type has one.
        longer = config.get("sliding_window_pattern")
        return {"sliding_window": window, "full_attention_interval": longer}
    interval = full.index(True) + 1
    if full != [(index + 1) % interval == 0 for index in range(len(full))]:
        raise UnsupportedError(
            "layer_types follow no pattern of one full_attention after every so many sliding_attention; "
            "correct the config"
        )
    return {"sliding_window": window, "full_attention_interval": interval}


def _needed(config: Config, *names: str) -> Any:
    for name in names:
        if config.get(name) is not None:
            return config[name]
    raise UnsupportedError(f"the config of a {config['model_type']} lacks {names[0]}; give it")


def _no_balance(config: Config) -> dict[str, Any]:
    if config.get("output_router_logits", False):
        raise UnsupportedError(
            "output_router_logits=true adds a loss that balances the experts, which isn't known here; set it to false"
        )
    return {}


def _refuse(config: Config, **known: Any) -> None:
    """Refuse a setting that is given and isn't the one value that is known."""
    for name, value in known.items():
        if config.get(name) not in (None, value):
            raise UnsupportedError(
                f"{name}={config[name]!r} of a {config['model_type']} isn't known here, where it is {value!r}; "
                "correct the config"
            )
