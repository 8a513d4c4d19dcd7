"""The record of dimensions: checks, counts, other forms."""

from __future__ import annotations

import json
from typing import Any

import pytest

from perfmodel.errors import PerfModelError, UnknownNameError, UnsupportedError
from perfmodel.models import catalogue
from perfmodel.models.dims import TransformerDims


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
    assert TransformerDims.from_dict(json.loads(json.dumps(dims.to_dict()))) == dims


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
