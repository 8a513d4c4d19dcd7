"""Copies, casts, fills and rearrangements: bytes only."""

from __future__ import annotations

from perfmodel.ops.common import nbytes, results
from perfmodel.ops.cost import OpCost
from perfmodel.ops.registry import register
from perfmodel.ops.tensor import OpCall
from perfmodel.symbols import Dim

__all__: list[str] = []


def _copy(call: OpCall, read: Dim, written: Dim, kernels: int = 1) -> OpCost:
    return OpCost(family="copy", dtype=results(call)[0].dtype, read=read, written=written, kernels=kernels)


@register(
    "aten.clone", "aten._to_copy", "aten.cat", "aten.stack", "aten.roll", "aten.flip", "aten.repeat",
    "aten.repeat_interleave", "aten.tril", "aten.tril_", "aten.triu", "aten.triu_", "aten._reshape_copy",
    "aten.expand_copy", "aten.view_copy", "aten.permute_copy", "aten.transpose_copy", "aten.slice_copy",
    "aten.select_copy", "aten.split_with_sizes_copy", "aten._chunk_cat", "aten.lift_fresh_copy",
    "aten.reflection_pad1d", "aten.reflection_pad2d", "aten.reflection_pad3d", "aten.replication_pad1d",
    "aten.replication_pad2d", "aten.replication_pad3d", "aten.pixel_shuffle", "aten.pixel_unshuffle",
    "aten.channel_shuffle", "aten.native_channel_shuffle", "aten.im2col", "aten.block_diag", "aten.diag_embed",
)  # fmt: skip
def _plain_copy(call: OpCall) -> OpCost:
    """Reads every operand once, writes every result once, in one kernel."""
    return _copy(call, nbytes(call.inputs.values()), nbytes(results(call)))


@register("aten.copy_")
def _overwrite(call: OpCall) -> OpCost:
    """Reads the source, writes ``self`` without reading it."""
    return _copy(call, call.inputs["src"].nbytes, call.inputs["self"].nbytes)


@register("aten.copy")
def _functional_copy(call: OpCall) -> OpCost:
    """The source in the shape of ``self``, whose content doesn't matter."""
    return _copy(call, call.inputs["src"].nbytes, nbytes(call.outputs))


@register(
    "aten.zeros", "aten.ones", "aten.full", "aten.zeros_like", "aten.ones_like", "aten.full_like", "aten.new_zeros",
    "aten.new_ones", "aten.new_full", "aten.zero_", "aten.fill_", "aten.fill", "aten.arange", "aten.linspace",
    "aten.logspace", "aten.eye", "aten.scalar_tensor", "aten.tril_indices", "aten.triu_indices", "aten.hann_window",
)  # fmt: skip
def _fill(call: OpCall) -> OpCost:
    """Writes only; what a tensor is filled like isn't read, a value that is a tensor is."""
    value = call.inputs.get("value")
    return _copy(call, 0 if value is None else value.nbytes, nbytes(results(call)))


@register("aten.constant_pad_nd", "aten.select_backward", "aten.slice_backward", "aten.diagonal_backward")
def _fill_and_copy(call: OpCall) -> OpCost:
    """Fills the whole result, then copies the operand into a part of it: two kernels."""
    source = nbytes(call.inputs.values())
    return _copy(call, source, nbytes(call.outputs) + source, kernels=2)


@register("aten.select_scatter", "aten.slice_scatter", "aten.diagonal_scatter", "aten.as_strided_scatter")
def _copy_and_overwrite(call: OpCall) -> OpCost:
    """Copies ``self``, then overwrites a part of the copy: two kernels."""
    source = call.inputs["src"].nbytes
    return _copy(call, nbytes(call.inputs.values()), nbytes(call.outputs) + source, kernels=2)
