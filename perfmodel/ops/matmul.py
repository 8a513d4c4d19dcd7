"""Matrix products.

A product of ``[m, k]`` and ``[k, n]`` is ``2 m n k`` flops, a multiply-add counted
as two, as :mod:`torch.utils.flop_counter` counts it. A product with a vector
(``mv``, ``dot``) has no use for a matrix unit: it's a reduction on the vector unit.
"""

from __future__ import annotations

from perfmodel.ops.common import nbytes, numel, results
from perfmodel.ops.cost import MatmulShape, OpCost
from perfmodel.ops.registry import register
from perfmodel.ops.tensor import OpCall, Tensor
from perfmodel.symbols import Dim, product

__all__: list[str] = []


def _is_one(stride: Dim) -> bool:
    return isinstance(stride, int) and stride == 1


def _runs_along_rows(matrix: Tensor) -> bool:
    """Whether neighbours in memory are neighbours in a column (the last dimension is the slow one)."""
    strides = matrix.strides
    return strides is not None and not _is_one(strides[-1]) and _is_one(strides[-2])


def _product(call: OpCall, x: Tensor, w: Tensor, *, added: bool = False) -> OpCost:
    *batch, m, k = x.shape
    n = w.shape[-1]
    b = product(batch)
    elements = b * m * n
    written: Dim = 0
    for tensor in results(call):
        written = written + tensor.nbytes
    return OpCost(
        family="batched_matmul" if batch else "matmul",
        dtype=x.dtype,
        matrix_flops=2 * elements * k,
        vector_flops=elements if added else 0,
        read=nbytes(call.inputs.values()),
        written=written,
        shape=MatmulShape(b=b, m=m, n=n, k=k, x_transposed=_runs_along_rows(x), w_transposed=_runs_along_rows(w)),
    )


@register("aten.mm", "aten.bmm", "aten._scaled_mm", "aten._scaled_mm_v2", "aten._int_mm")
def _mm(call: OpCall) -> OpCost:
    """``[b,] m, k`` times ``[b,] k, n``; scales of ``_scaled_mm`` are applied by the same kernel."""
    return _product(call, call.inputs["self"], call.inputs["mat2"], added="bias" in call.inputs)


@register("aten.addmm", "aten.addmm_")
def _addmm(call: OpCall) -> OpCost:
    """``self + mat1 @ mat2``: the sum is one step an element in the product's epilogue."""
    return _product(call, call.inputs["mat1"], call.inputs["mat2"], added=True)


@register("aten.baddbmm", "aten.baddbmm_")
def _baddbmm(call: OpCall) -> OpCost:
    """``self + batch1 @ batch2``."""
    return _product(call, call.inputs["batch1"], call.inputs["batch2"], added=True)


@register("aten.addbmm", "aten.addbmm_")
def _addbmm(call: OpCall) -> OpCost:
    """``self`` and the sum of all products: one product whose reduction runs over the batch too."""
    x, w = call.inputs["batch1"], call.inputs["batch2"]
    b, m, k = x.shape
    n = w.shape[-1]
    return OpCost(
        family="matmul",
        dtype=x.dtype,
        matrix_flops=2 * b * m * n * k,
        vector_flops=m * n,
        read=nbytes(call.inputs.values()),
        written=nbytes(results(call)),
        shape=MatmulShape(b=1, m=m, n=n, k=b * k),
    )


@register("aten._grouped_mm", "aten._scaled_grouped_mm")
def _grouped_mm(call: OpCall) -> OpCost:
    """Products of many groups in one kernel, those of routed experts.

    Each row of ``[rows, k]`` belongs to one of the ``[groups, k, n]`` weights, so all
    of them make ``2 rows k n`` flops, however many rows a group has, and every
    weight is read. Backward for the rows is of the same form. Backward for the
    weights is ``[k, rows] [rows, n]``, whose rows belong to a group each:
    ``[groups, k, n]`` results, as many flops. ``attrs["skew"]`` is the largest group's
    share in units of the balanced one, where somebody states it.
    """
    x, w, y = call.inputs["self"], call.inputs["mat2"], call.outputs[0]
    (m, k), n = x.shape[-2:], w.shape[-1]
    batched = len(x.shape) == 3 and len(w.shape) == 3
    stacked = next((t for t in (x, w, y) if len(t.shape) == 3), None)
    groups: Dim = 1 if stacked is None else stacked.shape[0]
    return OpCost(
        family="batched_matmul",
        dtype=x.dtype,
        matrix_flops=2 * m * n * k * (groups if batched else 1),
        vector_flops=y.numel if "bias" in call.inputs else 0,
        read=nbytes(call.inputs.values()),
        written=nbytes(call.outputs),
        shape=MatmulShape(
            b=groups if batched else 1,
            m=m,
            n=n,
            k=k,
            x_transposed=_runs_along_rows(x),
            w_transposed=_runs_along_rows(w),
            groups=1 if batched else groups,
            skew=call.attrs.get("skew", 1.0),
        ),
    )


@register("aten.linear")
def _linear(call: OpCall) -> OpCost:
    """``input[..., k] @ weight[n, k].T``: one product, all leading dimensions are rows."""
    x, weight = call.inputs["input"], call.inputs["weight"]
    n, k = weight.shape
    m = product(x.shape[:-1])
    return OpCost(
        family="matmul",
        dtype=x.dtype,
        matrix_flops=2 * m * n * k,
        vector_flops=m * n if "bias" in call.inputs else 0,
        read=nbytes(call.inputs.values()),
        written=nbytes(call.outputs),
        shape=MatmulShape(b=1, m=m, n=n, k=k, w_transposed=not _runs_along_rows(weight)),
    )


@register("aten.mv", "aten.addmv", "aten.addmv_")
def _mv(call: OpCall) -> OpCost:
    """``m`` dot products of length ``k``."""
    matrix = call.inputs["mat" if "mat" in call.inputs else "self"]
    m, k = matrix.shape
    return OpCost(
        family="reduction",
        dtype=matrix.dtype,
        vector_flops=2 * m * k + (m if "mat" in call.inputs else 0),
        read=nbytes(call.inputs.values()),
        written=nbytes(results(call)),
        rows=m,
        cols=k,
    )


@register("aten.dot", "aten.vdot")
def _dot(call: OpCall) -> OpCost:
    """A multiplication and an addition for each pair."""
    length = call.inputs["self"].numel
    return OpCost(
        family="reduction",
        dtype=call.inputs["self"].dtype,
        vector_flops=2 * length,
        read=nbytes(call.inputs.values()),
        written=nbytes(call.outputs),
        rows=1,
        cols=length,
    )


@register("aten.addr", "aten.addr_")
def _addr(call: OpCall) -> OpCost:
    """``self + vec1 vec2^T``: a multiplication and an addition for each element."""
    written = results(call)
    return OpCost(
        family="elementwise",
        dtype=call.inputs["self"].dtype,
        vector_flops=2 * numel(written),
        read=nbytes(call.inputs.values()),
        written=nbytes(written),
    )
