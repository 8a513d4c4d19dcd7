"""Dimensions of a vision transformer as the keywords of Hugging Face's ViTConfig, and back. Without PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from perfmodel.models.dims_vision import VisionDims
from perfmodel.models.records import from_config, number_of_labels

__all__ = ["from_huggingface", "huggingface_config"]

#: What ViTConfig supposes where a config.json doesn't say.
_DEFAULTS: dict[str, Any] = {
    "image_size": 224, "patch_size": 16, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 3072, "num_labels": 2,
}  # fmt: skip


def huggingface_config(dims: VisionDims) -> dict[str, Any]:
    """Keywords of the Hugging Face config that makes this model, and its ``model_type``.

    Examples
    --------
    >>> from perfmodel.models import catalogue
    >>> huggingface_config(catalogue.get("vit-base-patch16-224").dims)["patch_size"]
    16
    """
    return {"model_type": "vit", **asdict(dims)}


def from_huggingface(config: Mapping[str, Any]) -> VisionDims:
    """Dimensions from the contents of a ViT ``config.json``, which lists its classes in ``id2label``.

    Examples
    --------
    >>> from_huggingface({"model_type": "vit", "id2label": {"0": "cat", "1": "dog", "2": "cow"}}).num_labels
    3
    """
    return from_config(VisionDims, {**_DEFAULTS, **number_of_labels(config), **config})
