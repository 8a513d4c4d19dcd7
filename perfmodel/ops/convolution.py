"""Convolutions as their implicit matrix products.

Legend: ``N`` batch, ``C`` input channels, ``K`` output channels, ``g`` groups, ``R``
filter positions, ``P`` positions that the filter is laid on (of the output, or of
the input where the convolution is transposed). A weight is ``[K, C/g, *filter]``
(``[C, K/g, *filter]`` where transposed), so forward is ``2 N P R`` times the product
of its first two sizes, as in ``torch.utils.flop_counter.conv_flop_count``; each of
the two products of backward is as large.
"""

from __future__ import annotations

from typing import Any

from perfmodel.ops.common import nbytes
from perfmodel.ops.cost import MatmulShape, OpCost
from perfmodel.ops.registry import register
from perfmodel.ops.tensor import OpCall, Tensor
from perfmodel.symbols import Dim, product

__all__: list[str] = []


def _first(call: OpCall, *names: str) -> Tensor:
    for name in names:
        if name in call.inputs:
            return call.inputs[name]
    raise KeyError(names[0])


def _positions(x: Tensor, y: Tensor, transposed: Any) -> Dim:
    """``N P``: how often the filter is laid on the signal."""
    return x.shape[0] * product((x if transposed else y).shape[2:])


def _forward(call: OpCall, transposed: bool) -> OpCost:
    x, weight, y = _first(call, "input", "self"), call.inputs["weight"], call.outputs[0]
    groups = call.attrs.get("groups", 1)
    positions = _positions(x, y, transposed)
    first, second, *window = weight.shape
    filter_size = product(window)
    if transposed:
        shape = MatmulShape(b=groups, m=positions, n=second * filter_size, k=first // groups)
    else:
        shape = MatmulShape(b=groups, m=positions, n=first // groups, k=second * filter_size, w_transposed=True)
    return OpCost(
        family="matmul",
        dtype=x.dtype,
        matrix_flops=2 * positions * filter_size * first * second,
        vector_flops=y.numel if "bias" in call.inputs else 0,
        read=nbytes(call.inputs.values()),
        written=y.nbytes,
        shape=shape,
    )


@register("aten.convolution", "aten._convolution", "aten.convolution_overrideable")
def _convolution(call: OpCall) -> OpCost:
    """Any convolution of the generic entry points."""
    return _forward(call, bool(call.attrs.get("transposed", False)))


@register(
    "aten.mkldnn_convolution", "aten.cudnn_convolution", "aten.miopen_convolution",
    "aten._slow_conv2d_forward", "aten._conv_depthwise2d", "aten.conv_depthwise3d",
)  # fmt: skip
def _backend_convolution(call: OpCall) -> OpCost:
    """A library's convolution, never transposed."""
    if call.name in ("aten._conv_depthwise2d", "aten.conv_depthwise3d"):
        return _depthwise(call)
    return _forward(call, False)


def _depthwise(call: OpCall) -> OpCost:
    """A filter for each channel: the weight is ``[K, 1, *filter]`` and the groups are the input's channels."""
    x, weight, y = call.inputs["self"], call.inputs["weight"], call.outputs[0]
    positions = _positions(x, y, False)
    filter_size = product(weight.shape[2:])
    channels = x.shape[1]
    return OpCost(
        family="matmul",
        dtype=x.dtype,
        matrix_flops=2 * positions * filter_size * weight.shape[0],
        vector_flops=y.numel if "bias" in call.inputs else 0,
        read=nbytes(call.inputs.values()),
        written=y.nbytes,
        shape=MatmulShape(b=channels, m=positions, n=weight.shape[0] // channels, k=filter_size, w_transposed=True),
    )


@register("aten.cudnn_convolution_transpose", "aten.miopen_convolution_transpose")
def _backend_transposed(call: OpCall) -> OpCost:
    """A library's transposed convolution."""
    return _forward(call, True)


@register("aten.convolution_backward", "aten.convolution_backward_overrideable")
def _backward(call: OpCall) -> OpCost:
    """Gradients of input, weight and bias, those that ``output_mask`` asks for.

    The gradient of the input needs the weight, that of the weight the input;
    both read the output's gradient. Each is one kernel.
    """
    grad, x, weight = call.inputs["grad_output"], call.inputs["input"], call.inputs["weight"]
    for_input, for_weight, for_bias = call.attrs["output_mask"]
    transposed = bool(call.attrs.get("transposed", False))
    groups = call.attrs.get("groups", 1)
    positions = _positions(x, grad, transposed)
    first, second, *window = weight.shape
    filter_size = product(window)
    products = int(for_input) + int(for_weight)
    read = grad.nbytes
    if for_input:
        read = read + weight.nbytes
    if for_weight:
        read = read + x.nbytes
    rows, columns = first // groups, second * filter_size
    if for_input:
        # A transposed convolution's input gradient is a plain convolution of the output's.
        n, k = (rows, columns) if transposed else (columns, rows)
        shape = MatmulShape(b=groups, m=positions, n=n, k=k)
    else:
        shape = MatmulShape(b=groups, m=rows, n=columns, k=positions, x_transposed=True)
    return OpCost(
        family="matmul",
        dtype=grad.dtype,
        matrix_flops=2 * products * positions * filter_size * first * second,
        vector_flops=grad.numel if for_bias else 0,
        read=read,
        written=nbytes(call.outputs),
        shape=shape if products else None,
        kernels=products + int(for_bias),
    )
