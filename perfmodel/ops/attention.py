"""Fused scaled-dot-product attention.

Legend: ``b`` batch, ``h`` query heads, ``q`` and ``s`` lengths of queries and keys,
``d`` and ``dv`` dimensions of a query/key head and of a value head.

Forward is two products, ``Q K^T`` and ``P V``: ``2 b h q s (d + dv)`` flops. Backward
executes five: the scores again (fused kernels don't keep them), ``dV = P^T dO``,
``dP = dO V^T``, ``dQ = dS K``, ``dK = dS^T Q``: ``2 b h q s (3 d + 2 dv)`` flops
(Dao et al., FlashAttention, 2022, algorithm 4). All heads of a group share their
keys in memory, not in arithmetic.

What a kernel can skip, in pairs of a query and a key. ``T(q, s) = sum over i < q of
min(i + 1, s)`` pairs lie on and below the diagonal, which is aligned to the upper left
corner as PyTorch's ``is_causal`` is. A causal mask leaves those. A window of ``w``
keys hides ``T(q - w, s)`` pairs further to the left, and where attention isn't causal
``T(s - w, q)`` further to the right. Of packed documents a share of the pairs is
stated (:attr:`AttentionShape.visible`); the smaller count holds.
"""

from __future__ import annotations

from perfmodel.ops.common import half, nbytes
from perfmodel.ops.cost import AttentionShape, OpCost
from perfmodel.ops.registry import register
from perfmodel.ops.tensor import OpCall, Tensor
from perfmodel.symbols import Dim, maximum, minimum, product

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


#: The share of visible pairs is rounded to a millionth, so that counts stay whole numbers.
_MILLION = 1_000_000


def _shape(call: OpCall, q: Tensor, k: Tensor, v: Tensor) -> AttentionShape:
    *batch, heads, q_len, head_dim = q.shape
    return AttentionShape(
        b=product(batch),
        heads=heads,
        kv_heads=k.shape[-3],
        q_len=q_len,
        kv_len=k.shape[-2],
        head_dim=head_dim,
        v_head_dim=v.shape[-1],
        causal=bool(call.attrs.get("is_causal", False)),
        window=call.attrs.get("window"),
        visible=call.attrs.get("visible"),
    )


def _below_diagonal_twice(q: Dim, s: Dim) -> Dim:
    """``2 T(q, s)``, a whole number without a division."""
    corner = minimum(q, s)
    return corner * corner + corner + 2 * (q - corner) * s


def _pairs(shape: AttentionShape) -> tuple[Dim, Dim]:
    """Query-key pairs of all heads, and twice those that a kernel can skip (an exact whole number)."""
    q, s, window = shape.q_len, shape.kv_len, shape.window
    hidden: Dim = 2 * q * s - _below_diagonal_twice(q, s) if shape.causal else 0
    if window is not None:
        hidden = hidden + _below_diagonal_twice(maximum(q - window, 0), s)
        if not shape.causal:
            hidden = hidden + _below_diagonal_twice(maximum(s - window, 0), q)
    if shape.visible is not None:
        seen = (q * s * round(shape.visible * _MILLION) + _MILLION // 2) // _MILLION
        hidden = maximum(hidden, 2 * (q * s - seen))
    rows = shape.b * shape.heads
    return rows * q * s, rows * hidden


def _steps(call: OpCall, steps: int) -> int:
    masked = any(name in call.inputs for name in ("attn_mask", "attn_bias", "bias"))
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
    return _forward(call, _shape(call, q, k, v))


@register(
    "perfmodel.attention_backward",
    "perfmodel.attention_bias_backward",
    "aten._scaled_dot_product_flash_attention_backward",
    "aten._scaled_dot_product_flash_attention_for_cpu_backward",
    "aten._scaled_dot_product_efficient_attention_backward",
    "aten._scaled_dot_product_cudnn_attention_backward",
    "aten._scaled_dot_product_fused_attention_overrideable_backward",
)
def _attention_backward(call: OpCall) -> OpCost:
    """Backward, scores recomputed."""
    q, k, v = _operand(call, "query", "q"), _operand(call, "key", "k"), _operand(call, "value", "v")
    return _backward(call, _shape(call, q, k, v))


@register("aten._flash_attention_forward", "aten._efficient_attention_forward")
def _of_lengths(call: OpCall) -> OpCost:
    """Forward with heads behind positions, of one length or of several sequences in a row."""
    return _forward(call, _lengths_shape(call))


@register("aten._flash_attention_backward", "aten._efficient_attention_backward")
def _of_lengths_backward(call: OpCall) -> OpCost:
    """Backward of the same."""
    return _backward(call, _lengths_shape(call))


#: ``CustomMaskType`` of the efficient kernel: none, causal from the upper left corner, from the lower right.
_NO_MASK = 0


def _lengths_shape(call: OpCall) -> AttentionShape:
    """Of ``[batch, length, heads, dim]``, or ``[all positions, heads, dim]`` with cumulative lengths.

    Lengths are data, so each of several sequences counts as the longest, as in FlopCounterMode.
    """
    q, k, v = (call.inputs[name] for name in ("query", "key", "value"))
    flash = "is_causal" in call.attrs
    starts = call.inputs.get("cum_seq_q" if flash else "cu_seqlens_q")
    if starts is None:
        batch, q_len, kv_len = q.shape[0], q.shape[1], k.shape[1]
    else:
        longest = ("max_q", "max_k") if flash else ("max_seqlen_q", "max_seqlen_k")
        batch, (q_len, kv_len) = starts.shape[0] - 1, (call.attrs[name] for name in longest)
    left = call.attrs.get("window_size_left" if flash else "window_size")
    if isinstance(left, int) and left < 0:
        left = None  # no limit
    return AttentionShape(
        b=batch,
        heads=q.shape[-2],
        kv_heads=k.shape[-2],
        q_len=q_len,
        kv_len=kv_len,
        head_dim=q.shape[-1],
        v_head_dim=v.shape[-1],
        causal=bool(call.attrs["is_causal"] if flash else call.attrs["custom_mask_type"] != _NO_MASK),
        # The flash kernel counts the keys to the left of the query's own, the efficient one that as well.
        window=left + 1 if flash and left is not None else left,
    )


def _forward(call: OpCall, shape: AttentionShape) -> OpCost:
    pairs, hidden_twice = _pairs(shape)
    dims = shape.head_dim + shape.v_head_dim
    visible = half(2 * pairs - hidden_twice)
    return OpCost(
        family="attention",
        dtype=next(iter(call.inputs.values())).dtype,
        matrix_flops=2 * pairs * dims,
        # Each row of the output is divided by its sum.
        vector_flops=_steps(call, _FORWARD_STEPS) * visible + shape.b * shape.heads * shape.q_len * shape.v_head_dim,
        read=nbytes(call.inputs.values()),
        written=nbytes(call.outputs[:2]),
        masked=hidden_twice * dims,
        shape=shape,
    )


def _backward(call: OpCall, shape: AttentionShape) -> OpCost:
    pairs, hidden_twice = _pairs(shape)
    d, dv = shape.head_dim, shape.v_head_dim
    dims = 3 * d + 2 * dv
    visible = half(2 * pairs - hidden_twice)
    return OpCost(
        family="attention_backward",
        dtype=next(iter(call.inputs.values())).dtype,
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
