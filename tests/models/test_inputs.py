"""Which inputs a step takes."""

from __future__ import annotations

from perfmodel.models import catalogue
from perfmodel.models.inputs import batch_inputs

TOKENS = (("batch", "seq"), "int64")


def test_decoders_take_tokens_and_labels() -> None:
    assert batch_inputs(catalogue.get("llama-2-7b").dims) == {"input_ids": TOKENS, "labels": TOKENS}


def test_masked_models_take_an_attention_mask_too() -> None:
    inputs = batch_inputs(catalogue.get("bert-base-uncased").dims)
    assert inputs == {"input_ids": TOKENS, "labels": TOKENS, "attention_mask": TOKENS}
