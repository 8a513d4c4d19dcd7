"""Rotary positions in a Hugging Face ``config.json``, as transformers 4 and 5 write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perfmodel.errors import UnsupportedError

__all__ = ["rope_dims"]

#: Keys of each kind of scaling that :mod:`perfmodel.models.dims_rope` knows.
_KEYS = {
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "linear": ("factor",),
    "yarn": (
        "factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate",
    ),
}  # fmt: skip


def rope_dims(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary fields of :class:`TransformerDims`.

    transformers 5 has them in ``rope_parameters``, for each kind of layer where these
    differ; transformers 4 in ``rope_theta``, ``rope_scaling`` and others.

    Raises
    ------
    UnsupportedError
        For a kind of scaling that isn't known.

    Examples
    --------
    >>> rope_dims({"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0}})["rope_scaling"]
    {'rope_type': 'linear', 'factor': 4.0}
    """
    parameters = config.get("rope_parameters") or {}
    local = config.get("rope_local_base_freq")
    if "full_attention" in parameters:
        local = parameters["sliding_attention"].get("rope_theta", local)
        parameters = parameters["full_attention"]
    scaling = parameters or config.get("rope_scaling") or {}
    theta = parameters.get("rope_theta", config.get("rope_theta", config.get("rotary_emb_base", 10000.0)))
    share = config.get("partial_rotary_factor", config.get("rotary_pct", 1.0))
    return {
        "position_embedding": "rope",
        "rope_theta": float(theta),
        "rope_scaling": _scaling(scaling),
        "partial_rotary_factor": parameters.get("partial_rotary_factor", share),
        "rope_local_base_freq": local,
    }


def _scaling(given: Mapping[str, Any]) -> dict[str, Any] | None:
    kind = given.get("rope_type", given.get("type", "default"))
    if kind == "default":
        return None
    if kind not in _KEYS:
        raise UnsupportedError(
            f"rotary positions scaled by {kind!r} aren't known here; take the scaling out of the config: "
            "it changes no count"
        )
    if given.get("attention_factor") is not None:
        raise UnsupportedError("attention_factor of rotary positions isn't known here; take it out of the config")
    return {"rope_type": kind, **{key: given[key] for key in _KEYS[kind] if given.get(key) is not None}}
