"""Order and counts: sort, top-k, histograms, look-up in sorted values.

A sort on a GPU moves keys and positions once for each digit of the key, eight bits at
a time (Adinets and Merrill, Onesweep: a faster least significant digit radix sort for
GPUs, 2022), after one look at all keys. A selection looks at the keys once for each
two bits (``RADIX_BITS`` of ``aten/src/ATen/native/cuda/SortingRadixSelect.cuh``), which
a row's caches serve, so it reads them once from memory.
"""

from __future__ import annotations

from perfmodel.dtypes import item_size
from perfmodel.ops.common import levels, nbytes, row_and_column_sizes
from perfmodel.ops.cost import OpCost
from perfmodel.ops.registry import register
from perfmodel.ops.tensor import OpCall
from perfmodel.symbols import Dim

__all__: list[str] = []

_DIGIT_BITS, _SELECTION_BITS, _BYTE = 8, 2, 8

#: Of a key and digit: digit, count, place.
_SORT_STEPS = 3

#: Of a key and two bits: mask, comparison, count.
_SELECTION_STEPS = 3

#: A selection's results are ordered by a sort of their own in shared memory.
_SELECTION_KERNELS = 2

_POSITION_SIZE = 8  # int64

#: Of an element in a histogram: subtraction, product, rounding, count.
_BIN_STEPS = 4


def _rows(call: OpCall, last: int = -1) -> tuple[Dim, Dim]:
    return row_and_column_sizes(call.inputs["self"].shape, call.attrs.get("dim", last))


@register("aten.sort", "aten.argsort", "aten.msort")
def _sort(call: OpCall) -> OpCost:
    """Radix sort of keys with their positions: a histogram, then a pass for each byte of the key."""
    keys = call.inputs["self"]
    rows, cols = _rows(call)
    passes = max(1, item_size(keys.dtype) * _BYTE // _DIGIT_BITS)
    moved = keys.numel * (item_size(keys.dtype) + _POSITION_SIZE)
    return OpCost(
        family="scatter",
        dtype=keys.dtype,
        vector_flops=_SORT_STEPS * passes * keys.numel,
        read=keys.nbytes + passes * moved,
        written=passes * moved,
        rows=rows,
        cols=cols,
        kernels=1 + passes,
    )


@register("aten.topk", "aten.kthvalue", "aten.median", "aten.nanmedian", "aten.mode")
def _selection(call: OpCall) -> OpCost:
    """Radix selection in each row, then the selected elements in order."""
    keys = call.inputs["self"]
    rows, cols = _rows(call)
    looks = item_size(keys.dtype) * _BYTE // _SELECTION_BITS
    return OpCost(
        family="reduction",
        dtype=keys.dtype,
        vector_flops=_SELECTION_STEPS * looks * keys.numel,
        read=keys.nbytes,
        written=nbytes(call.outputs),
        rows=rows,
        cols=cols,
        kernels=_SELECTION_KERNELS,
    )


@register("aten.cummax", "aten.cummin")
def _running_extreme(call: OpCall) -> OpCost:
    """A comparison and the selection of value and position."""
    x = call.inputs["self"]
    rows, cols = _rows(call)
    return OpCost(
        family="reduction",
        dtype=x.dtype,
        vector_flops=3 * x.numel,
        read=x.nbytes,
        written=nbytes(call.outputs),
        rows=rows,
        cols=cols,
    )


@register("aten.histc", "aten.bincount")
def _histogram(call: OpCall) -> OpCost:
    """Zeros in all bins, then a count for each element."""
    x, bins = call.inputs["self"], call.outputs[0]
    return OpCost(
        family="scatter",
        dtype=x.dtype,
        vector_flops=_BIN_STEPS * x.numel,
        read=nbytes(call.inputs.values()),
        written=2 * bins.nbytes,
        rows=x.numel,
        cols=1,
        kernels=2,
    )


@register("aten.searchsorted", "aten.bucketize")
def _search(call: OpCall) -> OpCost:
    """Bisection: a comparison for each value and level of the table, which stays in caches."""
    values = call.inputs.get("self")
    count = call.outputs[0].numel
    table = call.inputs["sorted_sequence" if "sorted_sequence" in call.inputs else "boundaries"]
    return OpCost(
        family="gather",
        dtype=table.dtype if values is None else values.dtype,
        vector_flops=levels(table.shape[-1]) * count,
        read=nbytes(call.inputs.values()),
        written=nbytes(call.outputs),
        rows=count,
        cols=1,
    )
