"""Grouped products of any type, as PyTorch runs them on real tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

__all__ = ["grouped_products"]


@contextlib.contextmanager
def grouped_products() -> Iterator[None]:
    """While active, ``_grouped_mm`` takes what it takes on real tensors.

    PyTorch checks fake tensors for the fast kernel, which multiplies bfloat16 only;
    on real ones other types run, by another kernel. It needs PyTorch's Python dispatcher.
    """
    op = torch.ops.aten._grouped_mm.default
    kernels = dict(op.py_kernels)
    strict = kernels[torch._C.DispatchKey.Meta]

    def shapes(
        x: Any, weight: Any, offs: Any = None, bias: Any = None, out_dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        if x.dtype == weight.dtype == torch.bfloat16 or x.dtype != weight.dtype:
            return strict(x, weight, offs, bias, out_dtype)  # type: ignore[no-any-return]
        groups = [offs.shape[0]] if x.dim() == weight.dim() == 2 else [x.shape[0]] if weight.dim() == x.dim() else []
        made: torch.Tensor = x.new_empty([*groups, x.shape[-2], weight.shape[-1]], dtype=out_dtype or x.dtype)
        return made

    op.py_kernels[torch._C.DispatchKey.Meta] = shapes
    op._dispatch_cache.clear()
    try:
        yield
    finally:
        op.py_kernels.clear()
        op.py_kernels.update(kernels)
        op._dispatch_cache.clear()
