"""Captures by name of models that aren't decoders: reference and Hugging Face agree, folded equals full."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import perfmodel as pm
from perfmodel.graph import content_hash, huggingface
from perfmodel.memory import memory_profile
from perfmodel.models import catalogue, closed_form_flops

TEXT = {"batch": 3, "seq_len": 48}
PAIR = {**TEXT, "target_seq_len": 32}


def capture(name: str, optimizer: str | None = "adamw", **options: Any) -> pm.Graph:
    return pm.capture(name, optimizer=optimizer, cache=False, **options)


@pytest.mark.skipif(not huggingface.available(), reason="transformers isn't installed")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("t5-small", {**PAIR, "layers": {"encoder.layers": 2, "decoder.layers": 1}}),
        ("flan-t5-small", {**PAIR, "layers": 1, "dtype": "bfloat16", "gradient_checkpointing": True}),
        ("whisper-tiny", {**TEXT, "layers": 2}),
        ("vit-base-patch16-224", {"batch": 3, "layers": 2}),
    ],
)
def test_reference_and_hugging_face_agree(name: str, options: dict[str, Any]) -> None:
    ours, theirs = (capture(name, implementation=where, **options) for where in ("reference", "huggingface"))
    for phase in ("forward", "backward", "recompute"):
        assert ours.flops(phase=phase, unit="matrix") == theirs.flops(phase=phase, unit="matrix")
    assert ours.parameters() == theirs.parameters()
    assert memory_profile(ours).peak == pytest.approx(memory_profile(theirs).peak, rel=0.01)
    assert ours.bytes() == pytest.approx(theirs.bytes(), rel=0.01)
    assert not ours.coverage.missing
    assert not theirs.coverage.missing


@pytest.mark.parametrize(
    ("name", "layers", "options"),
    [
        ("t5-small", {"encoder.layers": 1, "decoder.layers": 6}, PAIR),
        ("whisper-tiny", {"encoder.layers": 5, "decoder.layers": 5}, TEXT),
        ("vit-base-patch16-224", 5, {"batch": 3}),
        ("mamba2-130m", 5, TEXT),
        ("transformer-iwslt-de-en", {"transformer.encoder.layers": 1, "transformer.decoder.layers": 6}, PAIR),
        ("resnet-18", {"stages.2": 7}, {"batch": 3}),
    ],
)
def test_folded_equals_full(name: str, layers: Any, options: dict[str, Any]) -> None:
    graphs = [
        capture(name, "sgd", implementation="reference", layers=layers, folded=folded, **options)
        for folded in (True, False)
    ]
    assert content_hash(graphs[0]) == content_hash(graphs[1])
    few, full = (memory_profile(graph) for graph in graphs)
    np.testing.assert_array_equal(few.curve, full.curve)


@pytest.mark.parametrize(
    ("name", "options", "least", "most"),
    [
        # Attention's backward runs its first product again, which the formulas leave out; the first layer
        # of a net has no gradient to hand back, which they count.
        ("t5-small", {**PAIR, "layers": 1}, 0.95, 1.0),
        ("whisper-tiny", {**TEXT, "layers": 2}, 0.9, 1.0),
        ("vit-base-patch16-224", {"batch": 3, "layers": 2}, 0.97, 1.05),
        ("bert-large-pretraining", {"batch": 2, "seq_len": 512, "layers": 2}, 0.96, 1.0),
        ("resnet-18", {"batch": 3}, 1.0, 1.05),
        ("lstm-ptb-large", {"batch": 3, "seq_len": 5}, 1.0, 1.0001),
        ("dlrm-criteo-kaggle", {"batch": 64}, 1.0, 1.01),
        ("mamba-130m", {**TEXT, "layers": 2}, 0.99, 1.0001),
    ],
)
def test_closed_forms_are_near(name: str, options: dict[str, Any], least: float, most: float) -> None:
    graph = capture(name, None, implementation="reference", **options)
    formula = closed_form_flops(graph)
    assert formula is not None
    assert least <= formula / graph.flops(unit="matrix") <= most
    assert not graph.coverage.missing


def test_folded_equals_full_where_first_layers_outlive_a_recompute() -> None:
    layers = {"encoder.layers": 7, "decoder.layers": 1}
    graphs = [
        capture("flan-t5-small", None, layers=layers, folded=folded, gradient_checkpointing=True, **PAIR)
        for folded in (True, False)
    ]
    assert content_hash(graphs[0]) == content_hash(graphs[1])


def test_tables_of_a_recommender_get_no_gradient_and_no_state() -> None:
    graph = capture("dlrm-criteo-terabyte", "adamw", batch=64)
    dims = catalogue.get("dlrm-criteo-terabyte").dims
    peak = memory_profile(graph).peak
    assert peak < 1.01 * 4 * dims.parameters()
    assert graph.bytes() < 0.01 * 4 * dims.parameters()


def test_the_head_of_pretraining_sees_masked_positions_only() -> None:
    whole = capture("bert-large-uncased", None, batch=2, seq_len=512, layers=1, implementation="reference")
    masked = capture("bert-large-pretraining", None, batch=2, seq_len=512, layers=1)
    head = 6 * (1024**2 + 1024 * 30522) * 2 * (512 - 76)
    pooler = 6 * (1024**2 + 1024 * 2) * 2
    assert whole.flops(unit="matrix") - masked.flops(unit="matrix") == head - pooler
