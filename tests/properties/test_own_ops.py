"""Rules of our own ops give the same cost for numbers, for symbols put to those numbers, and for arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfmodel.ops import Tensor
from perfmodel.symbols import evaluate, symbol
from tests.ops.calls import cost_of
from tests.properties.test_ops import numbers, t


def calls(b: Any, s: Any) -> dict[str, tuple[dict[str, Tensor], list[Tensor], dict[str, Any]]]:
    """Calls of batch ``b`` and sequence ``s``."""
    rows, h = b * s, 8
    x, steps = t(b, s, 4, h), t(s, b, h)
    weights = {"weights.0": t(16, h), "weights.1": t(16, 4), "weights.2": t(16), "weights.3": t(16)}
    states = {"states.0": t(2, b, 4), "states.1": t(2, b, 4)}
    recurrent = {"has_biases": True, "bidirectional": True}
    ssd = {
        "x": x, "dt": t(b, s, 4), "A": t(4), "B": t(b, s, 2, 16), "C": t(b, s, 2, 16), "D": t(4), "z": x,
        "dt_bias": t(4),
    }  # fmt: skip
    selective = {"u": t(b, h, s), "delta": t(b, h, s), "A": t(h, 4), "B": t(b, 4, s), "C": t(b, 4, s)}
    q, kv, lse = t(b, 4, s, h), t(b, 2, s + 3, h), t(b, 4, s, dtype="float32")
    packed = {"query": t(rows, 4, h), "key": t(rows, 4, h), "value": t(rows, 4, h), "cum_seq_q": t(b + 1)}
    return {
        "aten._grouped_mm": ({"self": t(rows, h), "mat2": t(4, h, 6), "offs": t(4)}, [t(rows, 6)], {}),
        "perfmodel.lstm": (
            {"input": steps, **states, **weights}, [t(s, b, 8), t(2, b, 4), t(2, b, 4), t(2, s, b, 20)], recurrent
        ),
        "perfmodel.gru_backward": (
            {"grad_output": t(s, b, 8), "input": steps, "states.0": t(2, b, 4), **weights}, [steps, *weights.values()],
            {**recurrent, "for_weights": True},
        ),
        "perfmodel.ssd_scan": (ssd, [x], {"chunk_size": 16, "dt_softplus": True}),
        "perfmodel.ssd_scan_backward": ({"grad_out": x, **ssd}, list(ssd.values()), {"chunk_size": 16}),
        "perfmodel.selective_scan": (selective, [t(b, h, s)], {"delta_softplus": True}),
        "perfmodel.selective_scan_backward": ({"grad_out": t(b, h, s), **selective}, list(selective.values()), {}),
        "perfmodel.attention": (
            {"query": q, "key": kv, "value": kv}, [q, lse], {"is_causal": True, "window": 7, "visible": 0.3}
        ),
        "perfmodel.attention_backward": (
            {"grad_out": q, "query": q, "key": kv, "value": kv, "out": q, "logsumexp": lse}, [q, kv, kv], {"window": 7}
        ),
        "aten._flash_attention_forward": (
            packed, [t(rows, 4, h), t(4, rows)], {"max_q": s, "max_k": s, "is_causal": True, "window_size_left": 5}
        ),
        "aten.sort": ({"self": t(rows, dtype="int64")}, [t(rows), t(rows)], {}),
        "aten.topk": ({"self": t(rows, h)}, [t(rows, 2), t(rows, 2)], {"k": 2}),
        "aten.searchsorted": ({"sorted_sequence": t(s), "self": t(b, s)}, [t(b, s)], {}),
        "aten._fft_r2c": ({"self": t(b, s, dtype="float32")}, [t(b, s, dtype="complex64")], {"dim": [1]}),
        "aten.grid_sampler_2d": ({"input": t(b, 4, s, s), "grid": t(b, s, s, 2)}, [t(b, 4, s, s)], {}),
        "aten._trilinear": (
            {"i1": t(rows, h), "i2": t(6, h, h), "i3": t(rows, h)}, [t(rows, 6)],
            {"expand1": [1, 3], "expand2": [0], "expand3": [1, 2]},
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", calls(2, 3))
@settings(max_examples=10, deadline=None)
@given(sizes=st.lists(st.tuples(st.integers(2, 64), st.integers(2, 512)), min_size=1, max_size=4))
def test_numbers_symbols_and_arrays_agree(name: str, sizes: list[tuple[int, int]]) -> None:
    def of(b: Any, s: Any) -> dict[str, Any]:
        inputs, outputs, attrs = calls(b, s)[name]
        return numbers(cost_of(name, inputs, outputs, **attrs))

    exact = [of(b, s) for b, s in sizes]
    symbolic = of(symbol("b"), symbol("s"))
    arrays = of(np.array([b for b, _ in sizes]), np.array([s for _, s in sizes]))
    for key, value in symbolic.items():
        for i, (b, s) in enumerate(sizes):
            assert evaluate(value, {"b": b, "s": s}) == exact[i][key]
            array = arrays[key]
            assert (array[i] if isinstance(array, np.ndarray) else array) == exact[i][key]
