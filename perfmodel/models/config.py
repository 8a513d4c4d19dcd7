"""Dimensions as the keywords of a Hugging Face config, without PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from perfmodel.errors import UnsupportedError
from perfmodel.models.dims import TransformerDims

__all__ = ["huggingface_config"]

#: What each Hugging Face class fixes; dimensions that differ can't be built from it.
_FIXED: dict[str, dict[str, object]] = {
    "gpt2": {
        "family": "decoder", "norm": "layernorm", "position_embedding": "learned", "projection": "conv1d",
        "pad_token_id": None,
    },
    "llama": {
        "family": "decoder", "norm": "rmsnorm", "position_embedding": "rope", "projection": "linear",
        "gated_mlp": True, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
    },
    "bert": {
        "family": "encoder", "norm": "layernorm", "position_embedding": "learned", "projection": "linear",
        "gated_mlp": False, "attention_bias": True, "mlp_bias": True,
    },
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
    _check(dims, model_type, _FIXED[model_type])
    shared = {name: getattr(dims, name) for name in _SHARED}
    match model_type:
        case "gpt2":
            _check(dims, model_type, {"head_dim": dims.hidden_size / dims.num_attention_heads})
            own = {
                "n_inner": dims.intermediate_size,
                "activation_function": dims.hidden_act,
                "layer_norm_epsilon": dims.norm_eps,
                "embd_pdrop": dims.embd_pdrop,
                "attn_pdrop": dims.attn_pdrop,
                "resid_pdrop": dims.resid_pdrop,
            }
        case "llama":
            own = {
                "num_key_value_heads": dims.num_key_value_heads,
                "head_dim": dims.head_dim,
                "intermediate_size": dims.intermediate_size,
                "hidden_act": dims.hidden_act,
                "rms_norm_eps": dims.norm_eps,
                "attention_bias": dims.attention_bias,
                "mlp_bias": dims.mlp_bias,
                "attention_dropout": dims.attn_pdrop,
                "rope_parameters": _rope_parameters(dims),
            }
        case _:
            _check(
                dims,
                model_type,
                {
                    "head_dim": dims.hidden_size / dims.num_attention_heads,
                    "num_key_value_heads": dims.num_attention_heads,
                    "resid_pdrop": dims.embd_pdrop,
                    "type_vocab_size": max(dims.type_vocab_size, 1),
                },
            )
            own = {
                "intermediate_size": dims.intermediate_size,
                "hidden_act": dims.hidden_act,
                "layer_norm_eps": dims.norm_eps,
                "type_vocab_size": dims.type_vocab_size,
                "hidden_dropout_prob": dims.resid_pdrop,
                "attention_probs_dropout_prob": dims.attn_pdrop,
            }
    return {"model_type": model_type, **shared, **own}


def _model_type(dims: TransformerDims) -> str:
    if dims.family == "encoder":
        return "bert"
    return "llama" if dims.position_embedding == "rope" else "gpt2"


def _rope_parameters(dims: TransformerDims) -> dict[str, Any]:
    if dims.rope_scaling is None:
        return {"rope_type": "default", "rope_theta": dims.rope_theta}
    return {"rope_type": "llama3", "rope_theta": dims.rope_theta, **asdict(dims.rope_scaling)}


def _check(dims: TransformerDims, model_type: str, needed: Mapping[str, object]) -> None:
    for name, value in needed.items():
        if getattr(dims, name) != value:
            shown = int(value) if isinstance(value, float) and value.is_integer() else value
            raise UnsupportedError(
                f"Hugging Face's {model_type} has {name}={shown!r}, these dimensions have {getattr(dims, name)!r}; "
                "build them with implementation='reference'"
            )
