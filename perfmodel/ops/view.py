"""Ops that launch no kernel: views, uninitialised memory, answers to the host."""

from __future__ import annotations

from perfmodel.ops.common import nbytes
from perfmodel.ops.cost import OpCost
from perfmodel.ops.registry import register
from perfmodel.ops.tensor import OpCall

__all__: list[str] = []


def _dtype(call: OpCall) -> str:
    """Of the first operand; a call without any (a release) computes in none, and any name will do."""
    for tensor in call.inputs.values():
        return tensor.dtype
    for tensor in call.outputs:
        return tensor.dtype
    return "uint8"


@register(
    "aten.view", "aten._unsafe_view", "aten.reshape", "aten._reshape_alias", "aten.t", "aten.t_", "aten.transpose",
    "aten.transpose_", "aten.permute", "aten.expand", "aten.slice", "aten.select", "aten.unsqueeze",
    "aten.unsqueeze_", "aten.squeeze", "aten.squeeze_", "aten.alias", "aten.detach", "aten.detach_",
    "aten.as_strided", "aten.as_strided_", "aten.split", "aten.split_with_sizes", "aten.unsafe_split",
    "aten.unsafe_split_with_sizes", "aten.chunk", "aten.unbind", "aten.view_as", "aten.unfold", "aten.diagonal",
    "aten.view_as_complex", "aten.view_as_real", "aten.real", "aten.imag", "aten.lift", "aten.lift_fresh",
    "aten._conj", "aten._neg_view", "aten.swapaxes", "aten.movedim", "aten.narrow", "aten.flatten",
    "aten.unflatten", "aten.expand_as", "aten._fw_primal", "aten._make_dual", "aten.set_",
)  # fmt: skip
def _view(call: OpCall) -> OpCost:
    """Another look at the same storage."""
    return OpCost(family="view", dtype=_dtype(call), kernels=0)


@register(
    "aten.empty", "aten.empty_like", "aten.empty_strided", "aten.empty_permuted", "aten.new_empty",
    "aten.new_empty_strided", "aten._efficientzerotensor",
)  # fmt: skip
def _uninitialised(call: OpCall) -> OpCost:
    """Memory from the allocator; nothing is written."""
    return OpCost(family="view", dtype=_dtype(call), kernels=0)


@register(
    "c10d.all_reduce_", "c10d.all_gather_into_tensor", "c10d.reduce_scatter_tensor", "c10d.all_to_all_single",
    "c10d.send_recv", "c10d.send", "c10d.recv",
)  # fmt: skip
def _communicated(call: OpCall) -> OpCost:
    """What the fabric moves is timed as a collective, not as an op of the device."""
    return OpCost(family="view", dtype=_dtype(call), kernels=0)


@register("perfmodel.release")
def _release(call: OpCall) -> OpCost:
    """Memory back to the allocator."""
    return OpCost(family="view", dtype=_dtype(call), kernels=0)


@register("aten._local_scalar_dense", "aten.item", "aten.is_nonzero", "aten.equal")
def _answer(call: OpCall) -> OpCost:
    """The host waits for the device and reads its answer."""
    return OpCost(family="host", dtype=_dtype(call), read=nbytes(call.inputs.values()), kernels=0)


@register("aten._assert_async")
def _assertion(call: OpCall) -> OpCost:
    """A kernel that looks at one truth value and stops the device if it's false; the host doesn't wait."""
    return OpCost(family="elementwise", dtype="bool", vector_flops=1, read=nbytes(call.inputs.values()))
