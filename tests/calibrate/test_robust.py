"""The fit that all kernels share."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from perfmodel.calibrate.robust import Constant, fit_constants, folds

SIZES = np.logspace(3, 9, 200)
START = Constant(name="start", starts=(1e-5,), least=1e-8, greatest=1e-2)
RATE = Constant(name="rate", starts=(1e9, 1e12), least=1e6, greatest=1e15)


def line(values: Mapping[str, float]) -> np.ndarray:
    return values["start"] + SIZES / values["rate"]


def test_constants_are_found_again() -> None:
    found = fit_constants(line, line({"start": 3e-6, "rate": 4e11}), [START, RATE])
    assert found == {"start": pytest.approx(3e-6, rel=1e-3), "rate": pytest.approx(4e11, rel=1e-3)}


def test_a_few_wild_rows_move_little() -> None:
    time = line({"start": 3e-6, "rate": 4e11})
    time[::20] *= 5
    found = fit_constants(line, time, [START, RATE])
    assert found == {"start": pytest.approx(3e-6, rel=0.05), "rate": pytest.approx(4e11, rel=0.05)}


def test_bounds_hold() -> None:
    tight = Constant(name="rate", starts=(1e11,), least=1e10, greatest=2e11)
    assert fit_constants(line, line({"start": 3e-6, "rate": 4e11}), [START, tight])["rate"] <= 2e11 * (1 + 1e-9)


def test_folds_keep_equal_keys_together_and_follow_the_seed() -> None:
    draw = np.random.default_rng(1)
    n, k = draw.integers(1, 9, 500).astype(float), draw.integers(1, 9, 500).astype(float)
    fold = folds([n, k], 2, seed=0)
    pairs = {(a, b, c) for a, b, c in zip(n, k, fold, strict=True)}
    assert len(pairs) == len({(a, b) for a, b, _ in pairs})
    assert np.array_equal(fold, folds([n, k], 2, seed=0))
    assert not np.array_equal(fold, folds([n, k], 2, seed=1))
