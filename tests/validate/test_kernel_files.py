"""Constants of kernels put into device files."""

from __future__ import annotations

import numpy as np
import pytest

from perfmodel.yamlfile import parse_yaml
from validate.kernels.files import entry_text, put_entry, quantiles

FILE = 'schema: device/1\nname: own\n\ncitations:\n  old: {title: "kept"}\n'
CITATIONS = {"rows": '{title: "measured rows"}'}


def entry(rate: float) -> str:
    return entry_text(
        {"rate": rate, "gap": 1.25e-5, "store": 0.0},
        units={"gap": "us"},
        assumed={"store": "a reason"},
        cite="rows",
        data="a test",
        model="tiles/one",
        residuals=[(20e-6, -0.1, 0.2, 30), (None, -0.05, 0.1, 40)],
    )


def test_an_entry_is_added_replaced_and_leaves_the_others() -> None:
    text = put_entry(FILE, "matmul", "bf16", entry(0.8), CITATIONS)
    text = put_entry(text, "matmul", "fp16", entry(0.7), CITATIONS)
    text = put_entry(text, "softmax", "any", entry(0.6), CITATIONS)
    text = put_entry(text, "matmul", "bf16", entry(0.9), CITATIONS)
    plain = parse_yaml(text, "own.yaml").plain()
    rates = {
        (family, dtype): kernel["constants"]["rate"]["value"]
        for family, kinds in plain["kernels"].items()
        for dtype, kernel in kinds.items()
    }
    assert rates == {("matmul", "bf16"): 0.9, ("matmul", "fp16"): 0.7, ("softmax", "any"): 0.6}
    assert plain["kernels"]["matmul"]["bf16"]["constants"]["gap"]["value"] == "12.5 us"
    assert plain["citations"] == {"old": {"title": "kept"}, "rows": {"title": "measured rows"}}
    assert put_entry(text, "matmul", "bf16", entry(0.9), CITATIONS) == text


def test_quantiles_are_by_predicted_time() -> None:
    predicted = np.concatenate([np.full(100, 1e-5), np.full(100, 1e-3)])
    measured = predicted * np.concatenate([np.linspace(0.9, 1.1, 100), np.full(100, 2.0)])
    short, middle, long = quantiles(predicted, measured)
    assert short[0] == 20e-6
    assert np.exp(short[1]) == pytest.approx(0.91, abs=2e-3)
    assert (np.exp(long[1]), np.exp(long[2]), long[3]) == (pytest.approx(2.0), pytest.approx(2.0), 100)
    assert middle[3] == 200  # too few rows of its own: all of them
