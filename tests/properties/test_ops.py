"""A rule gives the same cost for numbers, for symbols put to those numbers, and for arrays."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfmodel.ops import Tensor
from perfmodel.symbols import evaluate, symbol
from tests.ops.calls import cost_of


def t(*shape: Any, dtype: str = "bfloat16", strides: Any = None) -> Tensor:
    return Tensor(shape=shape, dtype=dtype, strides=strides)


def calls(b: Any, s: Any) -> dict[str, tuple[dict[str, Tensor], list[Tensor], dict[str, Any]]]:
    """Calls of all families, of batch ``b`` and sequence ``s``."""
    rows, h = b * s, 8
    x, flat = t(b, s, h), t(rows, h)
    ids, stat = t(b, s, dtype="int64"), t(b, s, 1, dtype="float32")
    q, kv, lse = t(b, 4, s, h), t(b, 2, s + 3, h), t(b, 4, s, dtype="float32")
    scores = t(b * 4, s, s)
    image, result = t(b, 4, s, s), t(b, 6, s, s)
    return {
        "aten.mm": ({"self": flat, "mat2": t(h, 5, strides=(1, h))}, [t(rows, 5)], {}),
        "aten.addmm": ({"self": t(5), "mat1": flat, "mat2": t(h, 5)}, [t(rows, 5)], {}),
        "aten.bmm": ({"self": scores, "mat2": t(b * 4, s, h, strides=(0, h, 1))}, [t(b * 4, s, h)], {}),
        "aten.linear": ({"input": x, "weight": t(5, h)}, [t(b, s, 5)], {}),
        "aten.mv": ({"self": flat, "vec": t(h)}, [t(rows)], {}),
        "aten.convolution": (
            {"input": image, "weight": t(6, 2, 3, 3), "bias": t(6)}, [result], {"transposed": False, "groups": 2}
        ),
        "aten.convolution_backward": (
            {"grad_output": result, "input": image, "weight": t(6, 2, 3, 3)}, [image, t(6, 2, 3, 3)],
            {"transposed": False, "groups": 2, "output_mask": [True, True, False]},
        ),
        "perfmodel.attention": ({"query": q, "key": kv, "value": kv}, [q, lse], {"is_causal": True}),
        "perfmodel.attention_backward": (
            {"grad_out": q, "query": q, "key": kv, "value": kv, "out": q, "logsumexp": lse}, [q, kv, kv],
            {"is_causal": True, "dropout_p": 0.1},
        ),
        "aten.gelu": ({"self": x}, [x], {"approximate": "tanh"}),
        "aten.add_": ({"self": x, "other": t(b, s, h, strides=(0, h, 1))}, [x], {}),
        "aten.sum": ({"self": x}, [t(b, 1, h)], {"dim": [1], "keepdim": True}),
        "aten.mean": ({"self": x}, [t()], {}),
        "aten.cumsum": ({"self": x}, [x], {"dim": 1}),
        "aten.native_layer_norm": ({"input": x, "weight": t(h)}, [x, stat, stat], {"normalized_shape": [h]}),
        "aten.native_batch_norm": ({"input": image, "weight": t(4)}, [image, t(4), t(4)], {"training": True}),
        "aten.native_group_norm": (
            {"input": image}, [image, t(b, 2), t(b, 2)], {"N": b, "C": 4, "HxW": s * s, "group": 2}
        ),
        "aten._softmax": ({"self": scores}, [scores], {"dim": -1}),
        "aten.nll_loss_forward": ({"self": flat, "target": t(rows, dtype="int64")}, [t(), t()], {}),
        "aten.embedding": ({"weight": t(99, h), "indices": ids}, [x], {}),
        "aten.embedding_dense_backward": ({"grad_output": x, "indices": ids}, [t(99, h)], {}),
        "aten.index": ({"self": x, "indices.0": t(b, 1, dtype="int64"), "indices.1": t(s, dtype="int64")}, [x], {}),
        "aten.index_put_": ({"self": x, "indices.1": t(s, dtype="int64"), "values": x}, [x], {"accumulate": True}),
        "aten.scatter_add": ({"self": x, "index": ids, "src": x}, [x], {"dim": 0}),
        "aten.cat": ({"tensors.0": x, "tensors.1": x}, [t(b, 2 * s, h)], {"dim": 1}),
        "aten.constant_pad_nd": ({"self": ids}, [t(b, s + 1, dtype="int64")], {}),
        "aten.native_dropout": ({"input": x}, [x, t(b, s, h, dtype="bool")], {"p": 0.1, "train": True}),
        "aten._foreach_mul_": ({"self.0": x, "self.1": flat}, [], {"scalar": 2}),
        "aten._fused_sgd_": ({"self.0": x, "grads.0": x}, [], {}),
        "aten.avg_pool2d": ({"self": image}, [image], {"kernel_size": [2]}),
        "aten.view": ({"self": x}, [flat], {}),
    }  # fmt: skip


def numbers(cost: Any) -> dict[str, Any]:
    """The fields of a cost, its shape's too."""
    found: dict[str, Any] = {}
    for field in fields(cost):
        value = getattr(cost, field.name)
        if is_dataclass(value):
            found |= {f"shape.{name}": inner for name, inner in numbers(value).items()}
        else:
            found[field.name] = value
    return found


@pytest.mark.parametrize("name", calls(2, 3))
@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.tuples(st.integers(2, 64), st.integers(2, 512)), min_size=1, max_size=4))
def test_numbers_symbols_and_arrays_agree(name: str, sizes: list[tuple[int, int]]) -> None:
    def of(b: Any, s: Any) -> dict[str, Any]:
        inputs, outputs, attrs = calls(b, s)[name]
        return numbers(cost_of(name, inputs, outputs, **attrs))

    exact = [of(b, s) for b, s in sizes]
    symbolic = of(symbol("b"), symbol("s"))
    bs, ss = np.array([b for b, _ in sizes]), np.array([s for _, s in sizes])
    arrays = of(bs, ss)
    for key, value in symbolic.items():
        for i, (b, s) in enumerate(sizes):
            assert evaluate(value, {"b": b, "s": s}) == exact[i][key]
            array = arrays[key]
            assert (array[i] if isinstance(array, np.ndarray) else array) == exact[i][key]
