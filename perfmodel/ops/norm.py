"""Normalisations.

A row is what shares a mean: the normalised dimensions of a layer norm, a group of a
group norm, a channel of a batch norm. Steps for each element, forward: mean 1,
variance 3, ``(x - mean) / std`` 2, scale and shift 1 each. Backward, with ``xhat =
(x - mean) / std`` and ``g`` the output's gradient times the scale: ``dx = (g - mean(g)
- xhat mean(g xhat)) / std``.
"""

from __future__ import annotations

from typing import Any

from perfmodel.ops.common import nbytes, results
from perfmodel.ops.cost import OpCost
from perfmodel.ops.registry import register
from perfmodel.ops.tensor import OpCall, Tensor
from perfmodel.symbols import Dim, product

__all__: list[str] = []

#: Mean 1, variance 3, normalisation 2.
_MOMENTS_AND_SCALING = 6

#: xhat 2, g 1, two sums 3, g - a - xhat b 3, 1 / std 1.
_LAYER_NORM_INPUT_STEPS = 10

#: dgamma += dy xhat, dbeta += dy.
_LAYER_NORM_WEIGHT_STEPS = 3


def _norm(
    call: OpCall, rows: Dim, cols: Dim, steps: int, kernels: int, also_written: tuple[Tensor, ...] = ()
) -> OpCost:
    return OpCost(
        family="norm",
        dtype=call.outputs[0].dtype,
        vector_flops=rows * cols * steps,
        read=nbytes(call.inputs.values()),
        written=nbytes(results(call)) + nbytes(also_written),
        rows=rows,
        cols=cols,
        kernels=kernels,
    )


def _layer_rows(x: Tensor, normalized_shape: Any) -> tuple[Dim, Dim]:
    split = len(x.shape) - len(normalized_shape)
    return product(x.shape[:split]), product(x.shape[split:])


def _given(call: OpCall, *names: str) -> int:
    return sum(name in call.inputs for name in names)


@register("aten.native_layer_norm")
def _layer_norm(call: OpCall) -> OpCost:
    """One kernel; writes the output and each row's mean and 1 / std."""
    rows, cols = _layer_rows(call.inputs["input"], call.attrs["normalized_shape"])
    return _norm(call, rows, cols, _MOMENTS_AND_SCALING + _given(call, "weight", "bias"), 1)


@register("aten.native_layer_norm_backward")
def _layer_norm_backward(call: OpCall) -> OpCost:
    """One kernel for the input's gradient and one for those of weight and bias, where they're asked for."""
    rows, cols = _layer_rows(call.inputs["input"], call.attrs["normalized_shape"])
    for_input, *for_weights = call.attrs["output_mask"]
    steps = _LAYER_NORM_INPUT_STEPS * bool(for_input) + _LAYER_NORM_WEIGHT_STEPS * any(for_weights)
    return _norm(call, rows, cols, steps, int(bool(for_input)) + int(any(for_weights)))


@register("aten._fused_rms_norm")
def _rms_norm(call: OpCall) -> OpCost:
    """Square and sum, then a product with 1 / rms and one with the weight."""
    rows, cols = _layer_rows(call.inputs["input"], call.attrs["normalized_shape"])
    return _norm(call, rows, cols, 3 + _given(call, "weight"), 1)


@register("aten._fused_rms_norm_backward")
def _rms_norm_backward(call: OpCall) -> OpCost:
    """As the layer norm's without means: ``dx = (g - xhat mean(g xhat)) / rms``; ``dgamma += dy xhat``."""
    rows, cols = _layer_rows(call.inputs["input"], call.attrs["normalized_shape"])
    for_input, for_weight = call.attrs["output_mask"]
    return _norm(call, rows, cols, 7 * bool(for_input) + 2 * bool(for_weight), int(for_input) + int(for_weight))


@register("aten.native_group_norm")
def _group_norm(call: OpCall) -> OpCost:
    """Moments 4, then ``a x + b`` with a and b of each channel: three kernels (``group_norm_kernel.cu``)."""
    rows = call.attrs["N"] * call.attrs["group"]
    cols = (call.attrs["C"] // call.attrs["group"]) * call.attrs["HxW"]
    return _norm(call, rows, cols, 6, 3)


@register("aten.native_group_norm_backward")
def _group_norm_backward(call: OpCall) -> OpCost:
    """Sums of dy x and dy 3, then ``a dy + b x + c``: five kernels (``group_norm_kernel.cu``)."""
    rows = call.attrs["N"] * call.attrs["group"]
    cols = (call.attrs["C"] // call.attrs["group"]) * call.attrs["HxW"]
    return _norm(call, rows, cols, 7, 5)


def _batch_norm(call: OpCall, training: bool) -> OpCost:
    x = call.inputs["self" if "self" in call.inputs else "input"]
    channels = x.shape[1]
    cols = x.shape[0] * product(x.shape[2:])
    steps = (_MOMENTS_AND_SCALING if training else 2) + _given(call, "weight", "bias")
    updated = (call.inputs[name] for name in ("running_mean", "running_var") if training and name in call.inputs)
    return _norm(call, channels, cols, steps, 2 if training else 1, tuple(updated))


@register(
    "aten.native_batch_norm", "aten._native_batch_norm_legit", "aten.cudnn_batch_norm", "aten.miopen_batch_norm"
)  # fmt: skip
def _batch_norm_either(call: OpCall) -> OpCost:
    """In training: statistics, then the transformation (two kernels), and the running statistics are updated."""
    return _batch_norm(call, bool(call.attrs["training"]))


@register("aten._batch_norm_with_update")
def _batch_norm_training(call: OpCall) -> OpCost:
    """Batch norm in training."""
    return _batch_norm(call, True)


@register("aten._batch_norm_no_update", "aten._native_batch_norm_legit_no_training")
def _batch_norm_inference(call: OpCall) -> OpCost:
    """Batch norm with given statistics."""
    return _batch_norm(call, False)


def _batch_norm_derivative(call: OpCall, training: bool) -> OpCost:
    """Sums of dy and dy xhat 5, dx 6 (its statistics constant: 1)."""
    x = call.inputs["input"]
    cols = x.shape[0] * product(x.shape[2:])
    return _norm(call, x.shape[1], cols, 5 + (6 if training else 1), 2)


@register("aten.native_batch_norm_backward")
def _batch_norm_backward(call: OpCall) -> OpCost:
    """One kernel for the sums, one for the input's gradient."""
    return _batch_norm_derivative(call, bool(call.attrs["train"]))


@register("aten.batch_norm_backward")
def _batch_norm_backward_update(call: OpCall) -> OpCost:
    """As :func:`_batch_norm_backward`; the schema calls its mode ``update``."""
    return _batch_norm_derivative(call, bool(call.attrs["update"]))


@register("aten.cudnn_batch_norm_backward", "aten.miopen_batch_norm_backward")
def _batch_norm_backward_training(call: OpCall) -> OpCost:
    """A library's backward, of training only."""
    return _batch_norm_derivative(call, True)


# -- weight norm ------------------------------------------------------------------------


@register("aten._weight_norm_interface")
def _weight_norm(call: OpCall) -> OpCost:
    """``g v / |v|`` with a norm for each slice of the first (or last) dimension: square, sum; division, product."""
    v, g = call.inputs["v"], call.inputs["g"]
    return _norm(call, g.numel, v.numel // g.numel, 4, 1)


@register("aten._weight_norm_interface_backward")
def _weight_norm_backward(call: OpCall) -> OpCost:
    """``dg = sum(dw v) / |v|`` and ``dv = g / |v| (dw - v dg / |v|)``: product, sum; product, difference, product."""
    v, g = call.inputs["saved_v"], call.inputs["saved_g"]
    return _norm(call, g.numel, v.numel // g.numel, 5, 1)


@register("aten.renorm", "aten.renorm_")
def _renorm(call: OpCall) -> OpCost:
    """Slices scaled down to a largest norm: square, sum, product; norms and scaling are kernels of their own."""
    x = call.inputs["self"]
    slices = x.shape[call.attrs["dim"]]
    return OpCost(
        family="norm",
        dtype=x.dtype,
        vector_flops=3 * x.numel,
        read=2 * x.nbytes,
        written=nbytes(results(call)),
        rows=slices,
        cols=x.numel // slices,
        kernels=2,
    )


# -- batch norm over several devices: its parts ------------------------------------------


@register("aten.batch_norm_stats")
def _batch_norm_stats(call: OpCall) -> OpCost:
    """Mean 1 and variance 3 of each channel."""
    x = call.inputs["input"]
    return _norm(call, x.shape[1], x.numel // x.shape[1], 4, 1)


@register("aten.batch_norm_gather_stats_with_counts")
def _batch_norm_gather(call: OpCall) -> OpCost:
    """The moments of all devices, combined by Welford's formula: 6 for each device and channel."""
    means = call.inputs["mean"]
    updated = tuple(call.inputs[name] for name in ("running_mean", "running_var") if name in call.inputs)
    return _norm(call, means.shape[1], means.shape[0], 6, 1, updated)


@register("aten.batch_norm_elemt")
def _batch_norm_elements(call: OpCall) -> OpCost:
    """``(x - mean) / std``, scale and shift."""
    x = call.inputs["input"]
    return _norm(call, x.shape[1], x.numel // x.shape[1], 2 + _given(call, "weight", "bias"), 1)


@register("aten.batch_norm_backward_reduce")
def _batch_norm_backward_sums(call: OpCall) -> OpCost:
    """Sums of dy and dy xhat of each channel: 5."""
    x = call.inputs["input"]
    return _norm(call, x.shape[1], x.numel // x.shape[1], 5, 1)


@register("aten.batch_norm_backward_elemt")
def _batch_norm_backward_elements(call: OpCall) -> OpCost:
    """The input's gradient from those sums: 6."""
    x = call.inputs["input"]
    return _norm(call, x.shape[1], x.numel // x.shape[1], 6, 1)
