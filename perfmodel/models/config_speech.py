"""Dimensions of a speech-to-text transformer as the keywords of WhisperConfig, and back. Without PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from perfmodel.models.dims_speech import SpeechDims
from perfmodel.models.records import from_config

__all__ = ["from_huggingface", "huggingface_config"]

#: What WhisperConfig supposes where a config.json doesn't say.
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 51865, "d_model": 384, "encoder_layers": 4, "encoder_attention_heads": 6, "encoder_ffn_dim": 1536,
    "decoder_layers": 4, "decoder_attention_heads": 6, "decoder_ffn_dim": 1536, "pad_token_id": 50256,
    "decoder_start_token_id": 50257,
}  # fmt: skip


def huggingface_config(dims: SpeechDims) -> dict[str, Any]:
    """Keywords of the Hugging Face config that makes this model, and its ``model_type``.

    Examples
    --------
    >>> from perfmodel.models import catalogue
    >>> huggingface_config(catalogue.get("whisper-large-v3").dims)["num_mel_bins"]
    128
    """
    return {"model_type": "whisper", **asdict(dims)}


def from_huggingface(config: Mapping[str, Any]) -> SpeechDims:
    """Dimensions from the contents of a Whisper ``config.json``.

    Examples
    --------
    >>> from_huggingface({"model_type": "whisper", "d_model": 512, "encoder_attention_heads": 8,
    ...                   "decoder_attention_heads": 8}).num_frames
    3000
    """
    return from_config(SpeechDims, {**_DEFAULTS, **config})
