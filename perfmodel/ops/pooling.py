"""Pooling and resampling of images.

A pooling kernel reads its input once, however its windows overlap (the caches hold
a window's neighbours), and takes a step for each element of each window.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from perfmodel.ops.common import nbytes
from perfmodel.ops.cost import OpCost
from perfmodel.ops.registry import CostRule, register
from perfmodel.ops.tensor import OpCall, Tensor
from perfmodel.symbols import Dim, product

__all__: list[str] = []


def _window(call: OpCall, dimensions: int) -> Dim:
    """Elements of a window; a kernel size given once counts for every dimension."""
    size: Any = call.attrs["kernel_size"]
    sizes: Sequence[Dim] = size if isinstance(size, (list, tuple)) else [size]
    return product(sizes) if len(sizes) == dimensions else product(list(sizes) * dimensions)


def _pool(call: OpCall, rows: Dim, cols: Dim) -> OpCost:
    return OpCost(
        family="reduction",
        dtype=call.inputs["self"].dtype,
        vector_flops=rows * cols,
        read=nbytes(call.inputs.values()),
        written=nbytes(call.outputs),
        rows=rows,
        cols=cols,
    )


@register("aten.max_pool2d_with_indices", "aten.avg_pool2d")
def _pool2d(call: OpCall) -> OpCost:
    """A comparison or sum for each element of each window."""
    return _pool(call, call.outputs[0].numel, _window(call, 2))


@register("aten.max_pool3d_with_indices", "aten.avg_pool3d")
def _pool3d(call: OpCall) -> OpCost:
    """As in two dimensions."""
    return _pool(call, call.outputs[0].numel, _window(call, 3))


def _trailing(tensor: Tensor, dimensions: int) -> Dim:
    return product(tensor.shape[-dimensions:])


def _adaptive(dimensions: int) -> CostRule:
    def rule(call: OpCall) -> OpCost:
        x, y = call.inputs["self"], call.outputs[0]
        return _pool(call, y.numel, -(-1 * _trailing(x, dimensions) // _trailing(y, dimensions)))

    return rule


register("aten._adaptive_avg_pool2d", "aten.adaptive_max_pool2d")(_adaptive(2))
register("aten._adaptive_avg_pool3d", "aten.adaptive_max_pool3d")(_adaptive(3))


@register(
    "aten.max_pool2d_with_indices_backward", "aten.max_pool3d_with_indices_backward",
    "aten.adaptive_max_pool2d_backward", "aten.adaptive_max_pool3d_backward",
)  # fmt: skip
def _max_pool_backward(call: OpCall) -> OpCost:
    """Zeros in the whole gradient, then each output's gradient added where its maximum was: two kernels."""
    grad, indices = call.inputs["grad_output"], call.inputs["indices"]
    return _scattered_sum(call, grad, indices.nbytes)


@register(
    "aten._upsample_bilinear2d_aa_backward", "aten._upsample_bicubic2d_aa_backward",
    "aten.upsample_linear1d_backward", "aten.upsample_bilinear2d_backward", "aten.upsample_trilinear3d_backward",
    "aten.upsample_bicubic2d_backward", "aten.reflection_pad1d_backward", "aten.reflection_pad2d_backward",
    "aten.reflection_pad3d_backward", "aten.replication_pad1d_backward", "aten.replication_pad2d_backward",
    "aten.replication_pad3d_backward", "aten.unfold_backward",
)  # fmt: skip
def _overlapping_backward(call: OpCall) -> OpCost:
    """Zeros in the whole gradient, then each output's gradient added to its sources: two kernels."""
    grad = call.inputs["grad_in" if "grad_in" in call.inputs else "grad_output"]
    return _scattered_sum(call, grad, 0, _TAPS.get(call.name, 1))


#: Products and sums for each resampled element: two for each input that it is made of.
_TAPS = {
    "aten.upsample_linear1d": 4,
    "aten.upsample_bilinear2d": 8,
    "aten.upsample_trilinear3d": 16,
    "aten.upsample_bicubic2d": 32,
    # Anti-aliased ones at the scale of one; a smaller image has proportionally more inputs for each output.
    "aten._upsample_bilinear2d_aa": 8,
    "aten._upsample_bicubic2d_aa": 32,
    "aten._upsample_bilinear2d_aa_backward": 8,
    "aten._upsample_bicubic2d_aa_backward": 32,
    "aten.upsample_linear1d_backward": 4,
    "aten.upsample_bilinear2d_backward": 8,
    "aten.upsample_trilinear3d_backward": 16,
    "aten.upsample_bicubic2d_backward": 32,
}


def _scattered_sum(call: OpCall, grad: Tensor, index_bytes: Dim, steps: int = 1) -> OpCost:
    result = call.outputs[0]
    return OpCost(
        family="scatter",
        dtype=grad.dtype,
        vector_flops=grad.numel * steps,
        read=2 * grad.nbytes + index_bytes,
        written=result.nbytes + grad.nbytes,
        rows=grad.numel,
        cols=1,
        kernels=2,
    )


@register("aten.avg_pool2d_backward", "aten.avg_pool3d_backward")
def _avg_pool_backward(call: OpCall) -> OpCost:
    """Each input's gradient sums those of the windows over it; the input's values aren't read."""
    grad = call.inputs["grad_output"]
    window = _window(call, 2 if call.name == "aten.avg_pool2d_backward" else 3)
    return OpCost(
        family="elementwise",
        dtype=grad.dtype,
        vector_flops=grad.numel * window,
        read=grad.nbytes,
        written=nbytes(call.outputs),
    )


@register("aten._adaptive_avg_pool2d_backward", "aten._adaptive_avg_pool3d_backward")
def _adaptive_avg_pool_backward(call: OpCall) -> OpCost:
    """A division and a sum for each input; the input's values aren't read."""
    grad, result = call.inputs["grad_output"], call.outputs[0]
    return OpCost(
        family="elementwise",
        dtype=grad.dtype,
        vector_flops=2 * result.numel,
        read=grad.nbytes,
        written=result.nbytes,
    )


@register(
    "aten.upsample_linear1d", "aten.upsample_bilinear2d", "aten.upsample_trilinear3d", "aten.upsample_bicubic2d",
    "aten._upsample_bilinear2d_aa", "aten._upsample_bicubic2d_aa",
)  # fmt: skip
def _interpolate(call: OpCall) -> OpCost:
    """A weighted sum of neighbours for each output."""
    y = call.outputs[0]
    return OpCost(
        family="elementwise",
        dtype=y.dtype,
        vector_flops=y.numel * _TAPS[call.name],
        read=nbytes(call.inputs.values()),
        written=y.nbytes,
    )


@register(
    "aten.upsample_nearest1d", "aten.upsample_nearest2d", "aten.upsample_nearest3d",
    "aten._upsample_nearest_exact1d", "aten._upsample_nearest_exact2d", "aten._upsample_nearest_exact3d",
)  # fmt: skip
def _nearest(call: OpCall) -> OpCost:
    """Copies of neighbours."""
    y = call.outputs[0]
    return OpCost(family="copy", dtype=y.dtype, read=nbytes(call.inputs.values()), written=y.nbytes)


@register(
    "aten.upsample_nearest1d_backward", "aten.upsample_nearest2d_backward", "aten.upsample_nearest3d_backward",
    "aten._upsample_nearest_exact1d_backward", "aten._upsample_nearest_exact2d_backward",
    "aten._upsample_nearest_exact3d_backward", "aten.col2im",
)  # fmt: skip
def _sum_of_copies(call: OpCall) -> OpCost:
    """Each input's gradient is the sum of its copies' gradients."""
    copies = next(iter(call.inputs.values()))
    return OpCost(
        family="elementwise",
        dtype=copies.dtype,
        vector_flops=copies.numel,
        read=copies.nbytes,
        written=nbytes(call.outputs),
    )
