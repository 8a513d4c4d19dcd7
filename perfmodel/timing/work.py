"""Costs of many ops as columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from perfmodel.ops import OpCost

__all__ = ["OpWork", "executed_matrix_flops"]

Floats = npt.NDArray[np.float64]

#: Families whose kernels skip what a mask hides.
_SKIP_MASKED = ("attention", "attention_backward", "scan")


def executed_matrix_flops(cost: OpCost) -> Any:
    """Matrix flops that run: fused attention and chunked scans skip what a mask hides."""
    return cost.matrix_flops - cost.masked if cost.family in _SKIP_MASKED else cost.matrix_flops


@dataclass(frozen=True, slots=True, kw_only=True)
class OpWork:
    """What ops execute: one row an op, further axes are cases that broadcast.

    Attributes
    ----------
    family, dtype : ndarray of str, shape [ops]
    matrix_flops, vector_flops : ndarray of float64, shape [ops, …]
        Executed; what a kernel skips behind a mask is left out.
    read, written : ndarray of float64, shape [ops, …]
        Bytes.
    kernels : ndarray of float64, shape [ops, …]
        Kernels launched.
    """

    family: npt.NDArray[np.str_]
    dtype: npt.NDArray[np.str_]
    matrix_flops: Floats
    vector_flops: Floats
    read: Floats
    written: Floats
    kernels: Floats

    @classmethod
    def from_costs(cls, costs: Sequence[OpCost]) -> OpWork:
        """Columns from evaluated costs (numbers, or arrays of cases)."""
        matrix = [executed_matrix_flops(c) for c in costs]
        return cls(
            family=np.array([c.family for c in costs], dtype=np.str_),
            dtype=np.array([c.dtype for c in costs], dtype=np.str_),
            matrix_flops=_column(matrix),
            vector_flops=_column([c.vector_flops for c in costs]),
            read=_column([c.read for c in costs]),
            written=_column([c.written for c in costs]),
            kernels=_column([c.kernels for c in costs]),
        )


def _column(values: Sequence[Any]) -> Floats:
    """Ops along the first axis; cases, where some value has them, along the others."""
    shape = np.broadcast_shapes(*(np.shape(value) for value in values))
    column = np.empty((len(values), *shape))
    for row, value in enumerate(values):
        column[row] = value
    return column
