"""Distributions of sequence lengths, against simulated data."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfmodel.errors import FileError, ShapeError
from perfmodel.models.lengths import Lengths

SHAPES = {
    "uniform": Lengths.uniform(5, 40),
    "lognormal": Lengths.lognormal(median=20, sigma=0.8, longest=200),
    "two": Lengths.from_histogram({3: 5, 90: 1}),
    "fixed": Lengths.from_samples([16]),
    "multiples": Lengths.from_histogram({12: 2, 36: 1, 60: 1}),
}


def draw(lengths: Lengths, size: Any, seed: int = 0) -> Any:
    return np.random.default_rng(seed).choice(lengths.values, size=size, p=lengths.weights)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("multiple", [1, 8])
def test_padding_against_batches(shape: str, multiple: int) -> None:
    lengths = SHAPES[shape]
    batches = draw(lengths, (40_000, 6))
    longest = -(-batches.max(1) // multiple) * multiple
    padded = lengths.padded(6, multiple=multiple)
    assert padded.length == pytest.approx(longest.mean(), rel=0.01)
    assert padded.useful == pytest.approx(batches.sum() / (longest.sum() * 6), rel=0.01)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seq_len", [1, 7, 64, 150])
def test_packing_a_stream_against_rows(shape: str, seq_len: int) -> None:
    lengths = SHAPES[shape]
    documents = draw(lengths, 60_000)
    owner = np.repeat(np.arange(len(documents)), documents)
    rows = owner[: len(owner) // seq_len * seq_len].reshape(-1, seq_len)
    same = seen = pieces = 0
    for row in rows[:6000]:
        _, sizes = np.unique(row, return_counts=True)
        seen += int((sizes * (sizes + 1) // 2).sum())
        same += int((sizes**2).sum())
        pieces += len(sizes)
    count = min(len(rows), 6000)
    packed = lengths.packed(seq_len)
    assert packed.documents == pytest.approx(pieces / count, rel=0.03)
    assert packed.visible == pytest.approx(seen / count / seq_len**2, rel=0.03)
    assert packed.visible_both_ways == pytest.approx(same / count / seq_len**2, rel=0.03)
    assert packed.useful == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_packing_whole_documents_against_rows(shape: str) -> None:
    lengths, seq_len = SHAPES[shape], 256
    rows: list[list[int]] = [[]]
    for length in draw(lengths, 30_000).tolist():
        if sum(rows[-1]) + length > seq_len:
            rows.append([])
        rows[-1].append(length)
    fill = sum(map(sum, rows)) / (seq_len * len(rows))
    packed = lengths.packed(seq_len, fill=fill)
    assert packed.documents == pytest.approx(np.mean([len(row) for row in rows]), rel=0.02)
    seen = np.mean([sum(n * (n + 1) / 2 for n in row) for row in rows]) / seq_len**2
    assert packed.visible == pytest.approx(seen, rel=0.03)
    assert packed.visible_both_ways == pytest.approx(2 * seen - fill / seq_len, rel=0.03)


def test_a_row_that_is_one_document() -> None:
    whole = Lengths.from_samples([128]).packed(128, fill=1.0)
    assert (whole.documents, whole.visible, whole.visible_both_ways) == (1, 129 / 256, 1)
    # One endless document: every row is the usual causal triangle.
    endless = Lengths.from_samples([10**9]).packed(128)
    assert endless.visible == pytest.approx(129 / 256)
    assert endless.visible_both_ways == pytest.approx(1)


@pytest.mark.parametrize("shape", SHAPES)
def test_long_rows_see_what_the_documents_see(shape: str) -> None:
    lengths, seq_len = SHAPES[shape], 200_000
    values = np.array(lengths.values, dtype=float)
    pairs = (values * (values + 1) / 2) @ np.array(lengths.weights)
    assert lengths.packed(seq_len).visible == pytest.approx(pairs / lengths.mean / seq_len, rel=0.01)


def test_buckets() -> None:
    lengths = Lengths.uniform(1, 100)
    buckets = lengths.buckets([25, 50, 100, 200])
    assert [each.length for each in buckets] == [25, 50, 100]
    assert [each.share for each in buckets] == pytest.approx([0.25, 0.25, 0.5])
    assert [each.useful for each in buckets] == pytest.approx([13 / 25, 38 / 50, 75.5 / 100])
    assert [each.length for each in lengths.buckets(4)] == [25, 50, 75, 100]
    total = sum(each.share * each.length * each.useful for each in lengths.buckets(7))
    assert total == pytest.approx(lengths.mean)


def test_lognormal_has_its_parameters() -> None:
    lengths = Lengths.lognormal(median=500, sigma=0.5, longest=20_000)
    assert lengths.quantile(0.5) == 500
    assert lengths.mean == pytest.approx(500 * math.exp(0.5**2 / 2), rel=1e-3)
    # One standard deviation above the median of the logarithm.
    assert lengths.quantile(0.8413447) == pytest.approx(500 * math.exp(0.5), abs=1)
    cut = lengths.truncated(600)
    assert (cut.longest, cut.quantile(0.5)) == (600, 500)
    assert cut.mean < lengths.mean
    narrow = Lengths.lognormal(median=500, sigma=0.5, longest=600, shortest=100)
    assert (narrow.values[0], narrow.longest) == (100, 600)


def test_bins_and_lengths_say_the_same() -> None:
    bins = Lengths.from_histogram([2, 6], [1, 3, 6])
    assert bins == Lengths.from_histogram({1: 1, 2: 1, 3: 2, 4: 2, 5: 2})
    assert Lengths.from_samples(np.array([3, 1, 3])) == Lengths.from_histogram({3: 2, 1: 1})
    assert Lengths.from_histogram({3: 2, 5: 0}) == Lengths.from_samples([3])


histograms = st.dictionaries(st.integers(1, 300), st.floats(0.01, 100), min_size=1, max_size=20)


@settings(max_examples=100, deadline=None)
@given(histograms, st.integers(1, 64), st.integers(1, 400))
def test_bounds_that_always_hold(histogram: dict[int, float], batch: int, seq_len: int) -> None:
    lengths = Lengths.from_histogram(histogram)
    one, padded = lengths.padded(1), lengths.padded(batch)
    assert one.length == pytest.approx(lengths.mean)
    assert one.useful == pytest.approx(1)
    assert lengths.mean * (1 - 1e-9) <= padded.length <= lengths.longest * (1 + 1e-9)
    assert lengths.padded(batch + 1).length >= padded.length * (1 - 1e-9)
    packed = lengths.packed(seq_len)
    triangle = (seq_len + 1) / 2 / seq_len
    assert 1 / seq_len <= packed.visible * (1 + 1e-9)
    assert packed.visible <= triangle * (1 + 1e-9)
    assert packed.visible <= packed.visible_both_ways <= 1 + 1e-9
    assert Lengths.from_dict(lengths.to_dict()) == lengths


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Lengths.from_samples([]), "at least one"),
        (lambda: Lengths.from_samples([0]), "positive integer"),
        (lambda: Lengths.from_samples(np.array([1.5])), "positive integer"),
        (lambda: Lengths.from_histogram({3: -1}), "positive integer with a count"),
        (lambda: Lengths.from_histogram([1, 2], [1, 5]), "3 edges"),
        (lambda: Lengths.from_histogram([1], [5, 5]), "ascend"),
        (lambda: Lengths.from_histogram({1: 1}, [1, 2]), "edges are for"),
        (lambda: Lengths.lognormal(median=5, sigma=0, longest=9), "positive"),
        (lambda: Lengths.uniform(5, 9).padded(0), "positive"),
        (lambda: Lengths.uniform(5, 9).buckets([4, 8]), "longest sequence, 9"),
        (lambda: Lengths.uniform(5, 9).buckets(0), "at least 1"),
        (lambda: Lengths.uniform(5, 9).packed(0), "at least 1"),
        (lambda: Lengths.uniform(5, 9).packed(8, fill=0.9), r"truncated\(8\)"),
        (lambda: Lengths.uniform(5, 9).packed(80, fill=1.2), "at most 1"),
        (lambda: Lengths.uniform(5, 9).quantile(1.1), "between 0 and 1"),
        (lambda: Lengths.uniform(5, 9).truncated(0), "at least 1"),
        (lambda: Lengths(values=(3, 2), weights=(0.5, 0.5)), "ascending"),
        (lambda: Lengths(values=(2, 3), weights=(0.5, 0.6)), "sum to 1"),
        (lambda: Lengths(values=(2,), weights=()), "one weight"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        make()


def test_another_version_is_refused() -> None:
    with pytest.raises(FileError, match="version"):
        Lengths.from_dict({"version": 0})
