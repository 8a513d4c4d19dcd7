"""Dimensions of an encoder-decoder as the keywords of Hugging Face's T5Config, and back. Without PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from perfmodel.models.dims_encoder_decoder import EncoderDecoderDims
from perfmodel.models.records import from_config

__all__ = ["from_huggingface", "huggingface_config"]

#: What T5Config supposes where a config.json doesn't say.
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8,
}  # fmt: skip


def huggingface_config(dims: EncoderDecoderDims) -> dict[str, Any]:
    """Keywords of the Hugging Face config that makes this model, and its ``model_type``.

    Examples
    --------
    >>> from perfmodel.models import catalogue
    >>> huggingface_config(catalogue.get("t5-small").dims)["feed_forward_proj"]
    'relu'
    """
    return {"model_type": "t5", **asdict(dims)}


def from_huggingface(config: Mapping[str, Any]) -> EncoderDecoderDims:
    """Dimensions from the contents of a T5 ``config.json``.

    Examples
    --------
    >>> from_huggingface({"model_type": "t5", "d_model": 768, "num_layers": 12, "num_heads": 12}).num_decoder_layers
    12
    """
    values = {**_DEFAULTS, **config}
    if values.get("num_decoder_layers") is None:
        values["num_decoder_layers"] = values["num_layers"]
    return from_config(EncoderDecoderDims, values)
