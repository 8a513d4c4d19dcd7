"""Fused scaled-dot-product attention.

Legend: ``b`` batch, ``h`` query heads, ``q`` and ``s`` lengths of queries and keys,
``d`` and ``dv`` dimensions of a query/key head and of a value head.

Forward is two products, ``Q K^T`` and ``P V``: ``2 b h q s (d + dv)`` flops. Backward
executes five: the scores again (fused kernels don't keep them), ``dV = P^T dO``,
``dP = dO V^T``, ``dQ = dS K``, ``dK = dS^T Q``: ``2 b h q s (3 d + 2 dv)`` flops
(Dao et al., FlashAttention, 2022, algorithm 4). All heads of a group share their
keys in memory, not in arithmetic.

Of a causal mask, aligned to the upper left corner as PyTorch's ``is_causal`` is,
query ``i`` sees ``min(i + 1, s)`` keys.
"""

from __future__ import annotations

from perfmodel.ops.common import half, nbytes
from perfmodel.ops.cost import AttentionShape, OpCost
from perfmodel.ops.registry import register
from perfmodel.ops.tensor import OpCall, Tensor
from perfmodel.symbols import Dim, minimum, product

__all__: list[str] = []

#: Vector steps for each visible score, forward: scale, maximum, subtraction, exponential, sum.
_FORWARD_STEPS = 5

#: Backward: scale, subtraction of the log-sum-exp, exponential; then dP - delta, times P, times scale.
_BACKWARD_STEPS = 6

#: A mask is added; dropout draws, compares and scales (its random numbers are left out).
_MASK_STEPS, _DROPOUT_STEPS = 1, 2

#: FlashAttention's backward: the row sums of dO * O, the main loop, the conversion of the accumulated dQ
#: (flash_bwd_launch_template.h).
_BACKWARD_KERNELS = 3


def _operand(call: OpCall, name: str, short: str) -> Tensor:
    tensor = call.inputs.get(name)
    return call.inputs[short] if tensor is None else tensor


def _shape(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> AttentionShape:
    *batch, heads, q_len, head_dim = q.shape
    return AttentionShape(
        b=product(batch),
        heads=heads,
        kv_heads=k.shape[-3],
        q_len=q_len,
        kv_len=k.shape[-2],
        head_dim=head_dim,
        v_head_dim=v.shape[-1],
        causal=causal,
    )


def _pairs(shape: AttentionShape) -> tuple[Dim, Dim]:
    """Query-key pairs of all heads, and twice those that a causal mask hides (an exact whole number)."""
    q, s = shape.q_len, shape.kv_len
    rows = shape.b * shape.heads
    if not shape.causal:
        return rows * q * s, 0
    corner = minimum(q, s)
    seen_twice = corner * corner + corner + 2 * (q - corner) * s
    return rows * q * s, rows * (2 * q * s - seen_twice)


def _steps(call: OpCall, steps: int) -> int:
    masked = "attn_mask" in call.inputs or "attn_bias" in call.inputs
    dropped = bool(call.attrs.get("dropout_p"))
    return steps + _MASK_STEPS * masked + _DROPOUT_STEPS * dropped


@register(
    "perfmodel.attention",
    "aten._scaled_dot_product_flash_attention",
    "aten._scaled_dot_product_flash_attention_for_cpu",
    "aten._scaled_dot_product_efficient_attention",
    "aten._scaled_dot_product_cudnn_attention",
    "aten._scaled_dot_product_fused_attention_overrideable",
)
def _attention(call: OpCall) -> OpCost:
    """Forward. It writes the output and each row's log-sum-exp; random state and debug outputs are left out."""
    q, k, v = _operand(call, "query", "q"), _operand(call, "key", "k"), _operand(call, "value", "v")
    shape = _shape(q, k, v, bool(call.attrs.get("is_causal", False)))
    pairs, hidden_twice = _pairs(shape)
    dims = shape.head_dim + shape.v_head_dim
    visible = half(2 * pairs - hidden_twice)
    return OpCost(
        family="attention",
        dtype=q.dtype,
        matrix_flops=2 * pairs * dims,
        # Each row of the output is divided by its sum.
        vector_flops=_steps(call, _FORWARD_STEPS) * visible + shape.b * shape.heads * shape.q_len * shape.v_head_dim,
        read=nbytes(call.inputs.values()),
        written=nbytes(call.outputs[:2]),
        masked=hidden_twice * dims,
        shape=shape,
    )


@register(
    "perfmodel.attention_backward",
    "aten._scaled_dot_product_flash_attention_backward",
    "aten._scaled_dot_product_flash_attention_for_cpu_backward",
    "aten._scaled_dot_product_efficient_attention_backward",
    "aten._scaled_dot_product_cudnn_attention_backward",
    "aten._scaled_dot_product_fused_attention_overrideable_backward",
)
def _attention_backward(call: OpCall) -> OpCost:
    """Backward, scores recomputed."""
    q, k, v = _operand(call, "query", "q"), _operand(call, "key", "k"), _operand(call, "value", "v")
    shape = _shape(q, k, v, bool(call.attrs.get("is_causal", False)))
    pairs, hidden_twice = _pairs(shape)
    d, dv = shape.head_dim, shape.v_head_dim
    dims = 3 * d + 2 * dv
    visible = half(2 * pairs - hidden_twice)
    return OpCost(
        family="attention_backward",
        dtype=q.dtype,
        matrix_flops=2 * pairs * dims,
        # Beside the scores: the row sums of dO * O.
        vector_flops=_steps(call, _BACKWARD_STEPS) * visible + 2 * shape.b * shape.heads * shape.q_len * dv,
        read=nbytes(call.inputs.values()),
        written=nbytes(call.outputs),
        masked=hidden_twice * dims,
        repeated=2 * pairs * d,
        repeated_masked=hidden_twice * d,
        shape=shape,
        kernels=_BACKWARD_KERNELS,
    )
