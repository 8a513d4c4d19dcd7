"""Which inputs a step takes."""

from __future__ import annotations

import dataclasses

import pytest

from perfmodel.errors import UnknownNameError
from perfmodel.models import catalogue
from perfmodel.models.inputs import batch_inputs

TOKENS = (("batch", "seq"), "int64")


def test_decoders_take_tokens_and_labels() -> None:
    assert batch_inputs(catalogue.get("llama-2-7b")) == {"input_ids": TOKENS, "labels": TOKENS}


def test_masked_models_take_an_attention_mask_too() -> None:
    inputs = batch_inputs(catalogue.get("bert-base-uncased"))
    assert inputs == {"input_ids": TOKENS, "labels": TOKENS, "attention_mask": TOKENS}


def test_unknown_task() -> None:
    entry = dataclasses.replace(catalogue.get("gpt2"), task="causal_lm")
    with pytest.raises(UnknownNameError, match="unknown task 'causal_lm'; did you mean 'causal-lm'"):
        batch_inputs(entry)
