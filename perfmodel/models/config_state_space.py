"""Dimensions of a state-space model from Hugging Face's configs of Mamba and Mamba-2. Without PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perfmodel.errors import UnsupportedError
from perfmodel.models.dims_state_space import StateSpaceDims
from perfmodel.models.records import from_config

__all__ = ["from_huggingface"]

#: What MambaConfig and Mamba2Config suppose where a config.json doesn't say.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "mamba": {
        "scan": "selective", "vocab_size": 50280, "hidden_size": 768, "state_size": 16, "num_hidden_layers": 32,
        "tie_word_embeddings": True,
    },
    "mamba2": {
        "scan": "ssd", "vocab_size": 32768, "hidden_size": 4096, "state_size": 128, "num_hidden_layers": 64,
        "n_groups": 8, "tie_word_embeddings": False,
    },
}  # fmt: skip


def from_huggingface(config: Mapping[str, Any]) -> StateSpaceDims:
    """Dimensions from the contents of a Mamba or Mamba-2 ``config.json``.

    Raises
    ------
    UnsupportedError
        If it has another rank of the time step than a sixteenth of its width, or heads that don't fit its channels.

    Examples
    --------
    >>> from_huggingface({"model_type": "mamba", "hidden_size": 1024}).channels
    2048
    """
    dims = from_config(StateSpaceDims, {**_DEFAULTS[config["model_type"]], **config})
    made = {"time_step_rank": dims.time_step_rank, "hidden_act": "silu"}
    if dims.scan == "ssd":
        made = {"num_heads": dims.num_heads, "hidden_act": "silu"}
    for name, value in made.items():
        given = config.get(name)
        if given not in (None, "auto", value):
            raise UnsupportedError(f"{name}={given!r} isn't known here, where it is {value!r}; correct the config")
    return dims
