"""What an op costs: from the shapes of its operands to flops and bytes.

A rule is a pure function of one call's shapes (:class:`OpCall`) that returns an
:class:`OpCost`. Sizes are ints, symbols (:class:`perfmodel.symbols.Expr`) or NumPy
arrays. Rules are found by name; an op without one has no cost (``None``), which is
reported, never taken for zero.

>>> from types import SimpleNamespace
>>> a, b, c = (Tensor(shape=s, dtype="bfloat16") for s in ((64, 32), (32, 16), (64, 16)))
>>> c = cost(SimpleNamespace(name="aten.mm", inputs={"self": a, "mat2": b}, outputs=(c,), attrs={}))
>>> c.family, c.matrix_flops, c.read, c.written
('matmul', 65536, 5120, 2048)
"""

from perfmodel.ops import (  # noqa: F401  (importing a family registers its rules)
    attention,
    convolution,
    copy,
    elementwise,
    indexing,
    matmul,
    norm,
    optimizer,
    pooling,
    quantized,
    random,
    recurrent,
    reduction,
    sampling,
    scan,
    softmax,
    sorting,
    view,
)
from perfmodel.ops.cost import FAMILIES, AttentionShape, MatmulShape, OpCost, RecurrentShape
from perfmodel.ops.registry import CostRule, cost, has_rule, known_ops, register
from perfmodel.ops.tensor import OpCall, Tensor

__all__ = [
    "FAMILIES",
    "FLOP_COUNTER_OPS",
    "AttentionShape",
    "CostRule",
    "MatmulShape",
    "OpCall",
    "OpCost",
    "RecurrentShape",
    "Tensor",
    "cost",
    "has_rule",
    "known_ops",
    "register",
]

#: The ops that ``torch.utils.flop_counter`` has a formula for, and ours that stand for its attention ops.
FLOP_COUNTER_OPS = frozenset(
    (
        "aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm", "aten._scaled_mm",
        "aten.convolution", "aten._convolution", "aten.cudnn_convolution", "aten.convolution_overrideable",
        "aten._slow_conv2d_forward", "aten.convolution_backward",
        "aten._scaled_dot_product_efficient_attention", "aten._scaled_dot_product_flash_attention",
        "aten._scaled_dot_product_cudnn_attention", "aten._scaled_dot_product_efficient_attention_backward",
        "aten._scaled_dot_product_flash_attention_backward", "aten._scaled_dot_product_cudnn_attention_backward",
        "aten._flash_attention_forward", "aten._efficient_attention_forward",
        "aten._flash_attention_backward", "aten._efficient_attention_backward",
        "perfmodel.attention", "perfmodel.attention_backward", "perfmodel.attention_bias_backward",
    )
)  # fmt: skip
