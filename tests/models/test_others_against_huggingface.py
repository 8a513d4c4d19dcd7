"""Encoder-decoders, speech and vision against Hugging Face's, on real tensors: same numbers, ops and memory."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.models.other_pairs import CASES, DROPPED, batch, our_name, pair  # noqa: E402
from tests.models.test_against_huggingface import step_of  # noqa: E402
from tests.models.test_memory_against_huggingface import Peak, saved_bytes  # noqa: E402


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> tuple[Any, bool]:
    return CASES[request.param]


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
def test_same_loss_and_gradients(case: tuple[Any, bool], checkpointing: bool) -> None:
    dims, padded = case
    ours, theirs = pair(dims, "float64", gradient_checkpointing=checkpointing)
    inputs = batch(dims, "float64", padded=padded)
    mine, other = ours(**inputs), theirs(**inputs)
    torch.testing.assert_close(mine.loss, other.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(mine.logits, other.logits, rtol=1e-9, atol=1e-10)
    mine.loss.backward()
    other.loss.backward()
    found = {name: p.grad for name, p in ours.named_parameters() if p.requires_grad}
    expected = {our_name(dims.family, name): p.grad for name, p in theirs.named_parameters() if p.requires_grad}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.abs().sum() > 0
        torch.testing.assert_close(
            found[name], gradient, rtol=1e-7, atol=1e-10, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("name", DROPPED)
def test_dropout_draws_the_same_numbers_in_the_same_order(name: str) -> None:
    dims = DROPPED[name]
    ours, theirs = pair(dims, "float64")
    inputs = batch(dims, "float64")
    losses = []
    for module in (ours, theirs):
        torch.manual_seed(7)
        losses.append(module(**inputs).loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    assert abs(losses[0] - ours.eval()(**inputs).loss.item()) > 1e-6


@pytest.mark.parametrize("name", ["t5", "flan-t5", "whisper", "vit"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_gives_the_same_bits(name: str, dtype: str) -> None:
    dims, _ = CASES[name]
    ours, theirs = pair(dims, dtype)
    inputs = batch(dims, dtype)
    assert torch.equal(ours(**inputs).loss, theirs(**inputs).loss)


@pytest.mark.parametrize(
    ("dtype", "checkpointing"), [("float32", False), ("bfloat16", True)], ids=["float32", "bfloat16-checkpointed"]
)
def test_same_ops(case: tuple[Any, bool], dtype: str, checkpointing: bool) -> None:
    dims, padded = case
    ours, theirs = pair(dims, dtype, gradient_checkpointing=checkpointing)
    inputs = batch(dims, dtype, padded=padded)
    mine, other = step_of(ours, inputs), step_of(theirs, inputs)
    assert sum(mine.product_flops.values()) > 0
    assert mine.product_flops == other.product_flops
    assert mine.floating() == other.floating()


@pytest.mark.parametrize("name", DROPPED)
def test_same_ops_with_dropout(name: str) -> None:
    dims = DROPPED[name]
    ours, theirs = pair(dims)
    inputs = batch(dims)
    mine: Counter[Any] = step_of(ours, inputs).floating()
    assert any(key[0].startswith("bernoulli") for key in mine)
    assert mine == step_of(theirs, inputs).floating()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_same_memory_saved_for_backward(case: tuple[Any, bool], dtype: str) -> None:
    dims, padded = case
    ours, theirs = pair(dims, dtype)
    inputs = batch(dims, dtype, padded=padded)
    (mine, _), (other, _) = saved_bytes(ours, inputs), saved_bytes(theirs, inputs)
    assert mine == pytest.approx(other, rel=0.01)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
def test_same_peak_memory(case: tuple[Any, bool], checkpointing: bool) -> None:
    dims, padded = case
    inputs = batch(dims, padded=padded)
    peaks = []
    for module in pair(dims, gradient_checkpointing=checkpointing):
        with Peak() as peak:
            output = module(**inputs)
            output.loss.backward()
        peaks.append(peak.peak)
        del output
    assert peaks[0] == pytest.approx(peaks[1], rel=0.01)
