"""Dimensions of a residual network from Hugging Face's ResNetConfig. Without PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perfmodel.errors import UnsupportedError
from perfmodel.models.dims_resnet import EXPANSION, ResNetDims
from perfmodel.models.records import from_config, number_of_labels

__all__ = ["from_huggingface"]

#: What ResNetConfig supposes where a config.json doesn't say.
_DEFAULTS: dict[str, Any] = {"layer_type": "bottleneck", "depths": [3, 4, 6, 3], "num_labels": 2}


def from_huggingface(config: Mapping[str, Any]) -> ResNetDims:
    """Dimensions from the contents of a ResNet ``config.json``.

    Raises
    ------
    UnsupportedError
        If its widths don't double from stage to stage, or it halves the image elsewhere.

    Examples
    --------
    >>> from_huggingface({"model_type": "resnet", "layer_type": "basic", "depths": [2, 2, 2, 2],
    ...                   "hidden_sizes": [64, 128, 256, 512]}).parameters()
    11177538
    """
    values = {**_DEFAULTS, **number_of_labels(config), **config}
    width = values.get("embedding_size", 64)
    dims = from_config(ResNetDims, {**values, "block": values["layer_type"], "width": width})
    expected = {
        "hidden_sizes": [width * 2**stage * EXPANSION[dims.block] for stage in range(len(dims.depths))],
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
    }
    for name, value in expected.items():
        if values.get(name, value) != value:
            raise UnsupportedError(
                f"{name}={values[name]!r} isn't known here, where it is {value!r}; correct the config"
            )
    return dims
