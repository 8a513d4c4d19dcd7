"""Reductions and scans: ``rows`` results, each of ``cols`` elements."""

from __future__ import annotations

from typing import Any

from perfmodel.ops.common import arithmetic_dtype, nbytes, results, row_and_column_sizes
from perfmodel.ops.cost import OpCost
from perfmodel.ops.registry import CostRule, register
from perfmodel.ops.tensor import OpCall
from perfmodel.symbols import Dim

__all__ = ["STEPS"]

#: Steps for each element that is read.
STEPS: dict[str, int] = {
    **dict.fromkeys(("all", "amax", "amin", "any", "argmax", "argmin", "max", "mean", "min", "prod", "sum"), 1),
    "aminmax": 2,
    "count_nonzero": 2,  # comparison, sum
    "nansum": 2,
    "norm": 2,  # square (or absolute value), sum
    "linalg_vector_norm": 2,
    "logsumexp": 4,  # maximum, subtraction, exponential, sum
    "std": 4,  # Welford: difference to the mean, update of the mean, product, sum
    "std_mean": 4,
    "var": 4,
    "var_mean": 4,
}

_SCAN_STEPS: dict[str, int] = {"cumsum": 1, "cumprod": 1, "logcumsumexp": 4}

#: Norms other than of order 0, 1, 2 and infinity: absolute value, power, sum.
_GENERAL_NORM_STEPS = 3
_SIMPLE_ORDERS = (0, 1, 2, "inf", "-inf", float("inf"), float("-inf"))


def _dims(call: OpCall) -> Any:
    dims = call.attrs.get("dim")
    return dims if isinstance(dims, (int, list, tuple)) and not isinstance(dims, bool) else None


def _reduction(op: str) -> CostRule:
    def rule(call: OpCall) -> OpCost:
        x = call.inputs["self"]
        elements = x.numel
        dims = _dims(call)
        if dims is None or dims == []:
            rows: Dim = call.outputs[0].numel
            cols = elements // rows if call.outputs[0].shape else elements
        else:
            rows, cols = row_and_column_sizes(x.shape, dims)
        steps = STEPS[op]
        if op in ("norm", "linalg_vector_norm"):
            order = call.attrs.get("ord", call.attrs.get("p", 2))
            steps = steps if order in _SIMPLE_ORDERS else _GENERAL_NORM_STEPS
        return OpCost(
            family="reduction",
            dtype=arithmetic_dtype(call),
            vector_flops=elements * steps,
            read=nbytes(call.inputs.values()),
            written=nbytes(call.outputs),
            rows=rows,
            cols=cols,
        )

    return rule


def _scan(op: str) -> CostRule:
    def rule(call: OpCall) -> OpCost:
        x = call.inputs["self"]
        rows, cols = row_and_column_sizes(x.shape, call.attrs["dim"])
        return OpCost(
            family="reduction",
            dtype=arithmetic_dtype(call),
            vector_flops=x.numel * _SCAN_STEPS[op],
            read=nbytes(call.inputs.values()),
            written=nbytes(results(call)),
            rows=rows,
            cols=cols,
        )

    return rule


for _op in STEPS:
    register(f"aten.{_op}")(_reduction(_op))
for _op in _SCAN_STEPS:
    register(f"aten.{_op}")(_scan(_op))
for _op in ("cumsum", "cumprod"):
    register(f"aten.{_op}_")(_scan(_op))
