"""Reads and writes at positions that an index tensor names.

A gather reads the rows that it takes, not the table that they lie in; a scatter
writes the rows that it hits, and reads them too where it adds to them. Which rows
those are, and whether they repeat, depends on the data: each is counted once for
each time that the index names it.
"""

from __future__ import annotations

from collections.abc import Sequence

from perfmodel.dtypes import item_size
from perfmodel.ops.common import is_in_place, members, nbytes, row_and_column_sizes
from perfmodel.ops.cost import OpCost
from perfmodel.ops.registry import register
from perfmodel.ops.tensor import OpCall, Tensor
from perfmodel.symbols import Dim, product

__all__: list[str] = []


def _gather(dtype: str, *, rows: Dim, cols: Dim, index_bytes: Dim, written: Dim, flops: Dim = 0) -> OpCost:
    return OpCost(
        family="gather",
        dtype=dtype,
        vector_flops=flops,
        read=rows * cols * item_size(dtype) + index_bytes,
        written=written,
        rows=rows,
        cols=cols,
    )


def _scatter(
    call: OpCall, table: Tensor, *, rows: Dim, cols: Dim, operands: Dim, accumulates: bool, steps: int = 1
) -> OpCost:
    """Rows of ``table`` overwritten or added to; out of place after a copy of the whole table."""
    touched = rows * cols * item_size(table.dtype)
    copied: Dim = 0 if is_in_place(call) else table.nbytes
    return OpCost(
        family="scatter",
        dtype=table.dtype,
        vector_flops=rows * cols * steps if accumulates else 0,
        read=operands + copied + (touched if accumulates else 0),
        written=copied + touched,
        rows=rows,
        cols=cols,
        kernels=1 if is_in_place(call) else 2,
    )


@register("aten.embedding")
def _embedding(call: OpCall) -> OpCost:
    """A row of the weight for each index."""
    weight, indices = call.inputs["weight"], call.inputs["indices"]
    return _gather(
        weight.dtype,
        rows=indices.numel,
        cols=product(weight.shape[1:]),
        index_bytes=indices.nbytes,
        written=nbytes(call.outputs),
    )


@register("aten.embedding_dense_backward")
def _embedding_backward(call: OpCall) -> OpCost:
    """Zeros in the whole table, then a row added for each index.

    On a GPU the indices are sorted first (``Embedding.cu``); that traffic, a few
    words an index, is left out.
    """
    grad, indices, table = call.inputs["grad_output"], call.inputs["indices"], call.outputs[0]
    rows, cols = indices.numel, product(table.shape[1:])
    touched = rows * cols * item_size(table.dtype)
    return OpCost(
        family="scatter",
        dtype=table.dtype,
        vector_flops=rows * cols,
        read=grad.nbytes + indices.nbytes + touched,
        written=table.nbytes + touched,
        rows=rows,
        cols=cols,
        kernels=2,
    )


@register("aten._embedding_bag", "aten._embedding_bag_forward_only")
def _embedding_bag(call: OpCall) -> OpCost:
    """The rows of a bag, summed."""
    weight, indices = call.inputs["weight"], call.inputs["indices"]
    rows, cols = indices.numel, weight.shape[1]
    others = nbytes(tensor for name, tensor in call.inputs.items() if name != "weight")
    return _gather(
        weight.dtype, rows=rows, cols=cols, index_bytes=others, written=nbytes(call.outputs), flops=rows * cols
    )


@register("aten._embedding_bag_backward", "aten._embedding_bag_dense_backward")
def _embedding_bag_backward(call: OpCall) -> OpCost:
    """Zeros in the whole table, then the gradient of its bag added to each row."""
    indices, table = call.inputs["indices"], call.outputs[0]
    rows, cols = indices.numel, table.shape[1]
    touched = rows * cols * item_size(table.dtype)
    return OpCost(
        family="scatter",
        dtype=table.dtype,
        vector_flops=rows * cols,
        read=nbytes(call.inputs.values()) + touched,
        written=table.nbytes + touched,
        rows=rows,
        cols=cols,
        kernels=2,
    )


@register("aten._embedding_bag_sparse_backward")
def _embedding_bag_sparse_backward(call: OpCall) -> OpCost:
    """The gradient of its bag for each index, as values of a sparse gradient: no table is touched."""
    grad, indices = call.inputs["grad"], call.inputs["indices"]
    rows, cols = indices.numel, grad.shape[1]
    return _gather(
        grad.dtype,
        rows=rows,
        cols=cols,
        index_bytes=indices.nbytes + call.inputs["offset2bag"].nbytes,
        written=rows * cols * item_size(grad.dtype),
        flops=rows * cols,
    )


@register("aten._embedding_bag_per_sample_weights_backward")
def _embedding_bag_weights_backward(call: OpCall) -> OpCost:
    """For each index the product of its row and the gradient of its bag, which are both read."""
    weight, indices, grad = call.inputs["weight"], call.inputs["indices"], call.inputs["grad"]
    rows, cols = indices.numel, weight.shape[1]
    return _gather(
        weight.dtype,
        rows=rows,
        cols=cols,
        index_bytes=grad.nbytes + indices.nbytes + call.inputs["offset2bag"].nbytes,
        written=nbytes(call.outputs),
        flops=2 * rows * cols,
    )


@register("aten.embedding_renorm_")
def _embedding_renorm(call: OpCall) -> OpCost:
    """The rows that the indices name, scaled down to a largest norm: square, sum, product."""
    table, indices = call.inputs["self"], call.inputs["indices"]
    rows, cols = indices.numel, table.shape[1]
    operands = indices.nbytes
    return _scatter(call, table, rows=rows, cols=cols, operands=operands, accumulates=True, steps=3)


@register("aten.index_select")
def _index_select(call: OpCall) -> OpCost:
    """Slices of one dimension."""
    x, index = call.inputs["self"], call.inputs["index"]
    rest, _ = row_and_column_sizes(x.shape, call.attrs["dim"])
    return _gather(x.dtype, rows=index.numel, cols=rest, index_bytes=index.nbytes, written=nbytes(call.outputs))


@register("aten.gather", "aten.take")
def _gather_elements(call: OpCall) -> OpCost:
    """One element for each index."""
    x, index = call.inputs["self"], call.inputs["index"]
    return _gather(x.dtype, rows=index.numel, cols=1, index_bytes=index.nbytes, written=nbytes(call.outputs))


@register("aten.masked_select")
def _masked_select(call: OpCall) -> OpCost:
    """Reads all, writes what the mask selects: as much as its output holds."""
    result = call.outputs[0]
    return OpCost(
        family="gather",
        dtype=result.dtype,
        read=nbytes(call.inputs.values()),
        written=result.nbytes,
        rows=result.numel,
        cols=1,
    )


def _broadcast_numel(indices: Sequence[Tensor]) -> Dim:
    """Elements of index tensors broadcast against each other."""
    rank = max(len(index.shape) for index in indices)
    total: Dim = 1
    for position in range(1, rank + 1):
        sizes = [index.shape[-position] for index in indices if len(index.shape) >= position]
        wide = [size for size in sizes if not (isinstance(size, int) and size == 1)]
        total = total * (wide[0] if wide else 1)
    return total


def _indexed(call: OpCall, table: Tensor) -> tuple[Dim, Dim] | None:
    """Rows and columns that ``indices`` name in a table; ``None`` for a boolean mask, whose hits are data."""
    indices = members(call, "indices")
    if any(index.dtype in ("bool", "uint8") for index in indices):
        return None
    taken = {int(name.partition(".")[2]) for name in call.inputs if name.startswith("indices.")}
    cols = product(size for position, size in enumerate(table.shape) if position not in taken)
    return _broadcast_numel(indices), cols


@register("aten.index", "aten._unsafe_index")
def _index(call: OpCall) -> OpCost:
    """``self[indices]``; of a mask the output tells how many elements it hits."""
    x = call.inputs["self"]
    rows, cols = _indexed(call, x) or (call.outputs[0].numel, 1)
    return _gather(
        x.dtype, rows=rows, cols=cols, index_bytes=nbytes(members(call, "indices")), written=nbytes(call.outputs)
    )


@register("aten.index_put_", "aten.index_put", "aten._index_put_impl_", "aten._unsafe_index_put")
def _index_put(call: OpCall) -> OpCost:
    """``self[indices] = values`` or ``+=``. A mask may hit everything: the upper bound is counted."""
    table = call.inputs["self"]
    rows, cols = _indexed(call, table) or (table.numel, 1)
    operands = nbytes(members(call, "indices")) + call.inputs["values"].nbytes
    return _scatter(
        call, table, rows=rows, cols=cols, operands=operands, accumulates=bool(call.attrs.get("accumulate", False))
    )


def _scatter_elements(call: OpCall, accumulates: bool) -> OpCost:
    table, index = call.inputs["self"], call.inputs["index"]
    operands = index.nbytes
    if "src" in call.inputs:
        operands = operands + index.numel * item_size(call.inputs["src"].dtype)
    return _scatter(call, table, rows=index.numel, cols=1, operands=operands, accumulates=accumulates)


@register("aten.scatter", "aten.scatter_")
def _scatter_plain(call: OpCall) -> OpCost:
    """One element for each index; with ``reduce`` it's combined with what is there."""
    return _scatter_elements(call, "reduce" in call.attrs)


@register("aten.scatter_add", "aten.scatter_add_", "aten.scatter_reduce", "aten.scatter_reduce_")
def _scatter_add(call: OpCall) -> OpCost:
    """One element combined for each index."""
    return _scatter_elements(call, True)


def _index_rows(call: OpCall, source: str, accumulates: bool) -> OpCost:
    table, index = call.inputs["self"], call.inputs["index"]
    rest, _ = row_and_column_sizes(table.shape, call.attrs["dim"])
    operands = index.nbytes
    if source in call.inputs:
        operands = operands + call.inputs[source].nbytes
    return _scatter(call, table, rows=index.numel, cols=rest, operands=operands, accumulates=accumulates)


@register("aten.index_add", "aten.index_add_", "aten.index_reduce", "aten.index_reduce_")
def _index_add(call: OpCall) -> OpCost:
    """Slices added to, or otherwise combined with, one dimension's positions."""
    return _index_rows(call, "source", True)


@register("aten.index_copy", "aten.index_copy_")
def _index_copy(call: OpCall) -> OpCost:
    """Slices written to one dimension's positions."""
    return _index_rows(call, "source", False)


@register("aten.index_fill", "aten.index_fill_")
def _index_fill(call: OpCall) -> OpCost:
    """A value written to one dimension's positions."""
    return _index_rows(call, "value", False)


@register("aten.masked_scatter", "aten.masked_scatter_")
def _masked_scatter(call: OpCall) -> OpCost:
    """Elements of the source in the mask's positions; a mask may hit everything: the upper bound is counted."""
    table = call.inputs["self"]
    operands = call.inputs["mask"].nbytes + call.inputs["source"].nbytes
    return _scatter(call, table, rows=table.numel, cols=1, operands=operands, accumulates=False)


@register("aten.put", "aten.put_")
def _put(call: OpCall) -> OpCost:
    """One element for each index of the flattened tensor."""
    table, index = call.inputs["self"], call.inputs["index"]
    operands = index.nbytes + call.inputs["source"].nbytes
    accumulates = bool(call.attrs.get("accumulate", False))
    return _scatter(call, table, rows=index.numel, cols=1, operands=operands, accumulates=accumulates)


@register("aten._unsafe_masked_index")
def _masked_index(call: OpCall) -> OpCost:
    """``self[indices]``, a constant where the mask is false: the upper bound is counted."""
    x, y = call.inputs["self"], call.outputs[0]
    others = nbytes(members(call, "indices")) + call.inputs["mask"].nbytes
    return _gather(x.dtype, rows=y.numel, cols=1, index_bytes=others, written=y.nbytes)


@register("aten._unsafe_masked_index_put_accumulate")
def _masked_index_put(call: OpCall) -> OpCost:
    """``self[indices] += values`` where the mask is true: the upper bound is counted."""
    values = call.inputs["values"]
    operands = nbytes(members(call, "indices")) + call.inputs["mask"].nbytes + values.nbytes
    return _scatter(call, call.inputs["self"], rows=values.numel, cols=1, operands=operands, accumulates=True)
