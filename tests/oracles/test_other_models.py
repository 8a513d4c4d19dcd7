"""Matrix flops of models that aren't decoders: against FlopCounterMode, or by hand where it has no formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import perfmodel as pm
from perfmodel.models import catalogue
from perfmodel.models.build import build
from perfmodel.models.inputs import batch_inputs
from tests.oracles.test_flops import counted_by_torch, ours

SIZES = {"batch": 3, "seq": 40, "target_seq": 28}


def capture(name: str, layers: Any = None) -> pm.Graph:
    used = {size for shape, _ in batch_inputs(catalogue.get(name).dims).values() for size in shape}
    lengths = {f"{size}_len": SIZES[size] for size in ("seq", "target_seq") if size in used}
    return pm.capture(name, batch=3, optimizer=None, layers=layers, implementation="reference", cache=False, **lengths)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("t5-small", 1),
        ("flan-t5-small", 1),
        ("whisper-tiny", 2),
        ("vit-base-patch16-224", 2),
        ("bert-large-pretraining", 2),
        ("resnet-18", None),
        ("resnet-50", {"stages.2": 2}),
        ("transformer-iwslt-de-en", 2),
        ("lenet-300-100", None),
        ("dlrm-criteo-kaggle", None),
    ],
)
def test_equal_to_flop_counter_mode(name: str, layers: Any) -> None:
    dims = catalogue.get(name).dims
    depths = layers if isinstance(layers, dict) else {stack.path: layers for stack in dims.stacks if layers}
    module, _ = build(dims, layers=depths)
    inputs = {
        key: torch.empty(
            [size if isinstance(size, int) else SIZES[size] for size in shape],
            dtype=getattr(torch, dtype),
            device="meta",
        )
        for key, (shape, dtype) in batch_inputs(dims).items()
    }
    theirs = counted_by_torch(lambda: module(**inputs).loss)
    assert ours(capture(name, layers)) == theirs
    assert min(theirs) > 0


def test_a_recurrent_model_by_hand() -> None:
    """Each of two layers multiplies input and state, both of 1500, by four gates of 1500, at each token.

    Backward has two products for each: with respect to the weights and to what they were
    multiplied by. The head does the same with 10,000 words.
    """
    tokens, hidden, words = 3 * 40, 1500, 10_000
    weights = 2 * 4 * hidden * (hidden + hidden) + hidden * words
    graph = capture("lstm-ptb-large")
    assert graph.flops(phase="forward", unit="matrix") == 2 * tokens * weights
    # The state before the first token is a constant, but its gradient comes out of the same kernel.
    assert graph.flops(phase="backward", unit="matrix") == 4 * tokens * weights


def test_projections_of_mamba_by_hand() -> None:
    """A layer of width 768 with 1536 channels, 16 states and a rank of 48: in 2 x 1536, B, C and step, step, out.

    The convolution multiplies each channel by four neighbours, and runs over three positions of padding more,
    whose results are thrown away. Scans do no matrix products.
    """
    hidden, channels, states, rank, words = 768, 1536, 16, 48, 50_280
    projections = hidden * 2 * channels + channels * (rank + 2 * states) + rank * channels + channels * hidden
    forward = 3 * 2 * (40 * (2 * projections + hidden * words) + (40 + 3) * 2 * 4 * channels)
    graph = capture("mamba-130m", 2)
    assert graph.flops(phase="forward", unit="matrix") == forward
    assert graph.flops(phase="backward", unit="matrix") == 2 * forward
