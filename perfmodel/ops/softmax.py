"""Softmax and the negative log-likelihood of cross-entropy."""

from __future__ import annotations

from perfmodel.dtypes import item_size
from perfmodel.ops.common import nbytes, row_and_column_sizes
from perfmodel.ops.cost import OpCost
from perfmodel.ops.registry import register
from perfmodel.ops.tensor import OpCall, Tensor

__all__: list[str] = []


def _softmax_cost(call: OpCall, x: Tensor, steps: int) -> OpCost:
    # The softmax of attention runs along the last dimension, and is written so where scores are materialised.
    rows, cols = row_and_column_sizes(x.shape, call.attrs.get("dim", -1))
    return OpCost(
        family="softmax",
        dtype=call.outputs[0].dtype,
        vector_flops=x.numel * steps,
        read=nbytes(call.inputs.values()),
        written=nbytes(call.outputs),
        rows=rows,
        cols=cols,
    )


@register("aten._softmax", "aten._log_softmax")
def _softmax(call: OpCall) -> OpCost:
    """Maximum, subtraction, exponential, sum, and a division (softmax) or subtraction (its logarithm)."""
    return _softmax_cost(call, call.inputs["self"], 5)


@register("aten._safe_softmax")
def _safe_softmax(call: OpCall) -> OpCost:
    """A softmax whose fully masked rows are zero: a comparison and a selection more."""
    return _softmax_cost(call, call.inputs["self"], 7)


@register("aten._softmax_backward_data", "aten._log_softmax_backward_data")
def _softmax_backward(call: OpCall) -> OpCost:
    """``y (g - sum(g y))``; of the logarithm ``g - exp(y) sum(g)``: four steps each."""
    return _softmax_cost(call, call.inputs["output"], 4)


@register("aten.nll_loss_forward", "aten.nll_loss2d_forward")
def _nll_loss(call: OpCall) -> OpCost:
    """Reads each sample's own class only: ``-x[i, target[i]]``, a product with its weight, two sums."""
    x, target = call.inputs["self"], call.inputs["target"]
    samples = target.numel
    read = samples * item_size(x.dtype) + target.nbytes
    if "weight" in call.inputs:
        read = read + samples * item_size(x.dtype)
    return OpCost(
        family="gather",
        dtype=x.dtype,
        vector_flops=3 * samples,
        read=read,
        written=nbytes(call.outputs),
        rows=samples,
        cols=1,
    )


@register("aten.nll_loss_backward", "aten.nll_loss2d_backward")
def _nll_loss_backward(call: OpCall) -> OpCost:
    """Fills the gradient with zeros, then writes one element a sample."""
    x, target = call.inputs["self"], call.inputs["target"]
    samples = target.numel
    picked = samples * item_size(x.dtype)
    read = target.nbytes + call.inputs["grad_output"].nbytes
    if "total_weight" in call.inputs:
        read = read + call.inputs["total_weight"].nbytes
    if "weight" in call.inputs:
        read = read + picked
    return OpCost(
        family="scatter",
        dtype=x.dtype,
        vector_flops=2 * samples,
        read=read,
        written=nbytes(call.outputs) + picked,
        rows=samples,
        cols=1,
        kernels=2,
    )
