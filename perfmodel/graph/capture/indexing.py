"""Plain indexing with symbolic sizes, as PyTorch does it with fixed ones.

``x[:, 0]`` takes no slice along the first dimension where sizes are numbers. Where
they are symbols PyTorch records one, whose backward copies the whole gradient.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

__all__ = ["plain_slices"]


@contextlib.contextmanager
def plain_slices() -> Iterator[None]:
    """While active, a slice that takes everything is no op, whatever the sizes are."""
    original = torch.Tensor.__getitem__

    def getitem(tensor: torch.Tensor, index: Any) -> Any:
        parts = index if isinstance(index, tuple) else (index,)
        basic = all(part is None or part is Ellipsis or type(part) in (int, slice) for part in parts)
        symbolic = any(isinstance(size, torch.SymInt) for size in tensor.shape)
        if symbolic and basic:
            return _select(tensor, parts)
        if symbolic and all(_is_index(part) or part == slice(None) for part in parts):
            return torch.ops.aten.index.Tensor(tensor, [part if _is_index(part) else None for part in parts])
        return original(tensor, index)

    torch.Tensor.__getitem__ = getitem  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch.Tensor.__getitem__ = original  # type: ignore[method-assign]


def _is_index(part: Any) -> bool:
    return isinstance(part, torch.Tensor) and part.dtype in (torch.int32, torch.int64)


def _select(tensor: torch.Tensor, parts: tuple[Any, ...]) -> torch.Tensor:
    """Index by numbers, slices, ``None`` and ``...`` one dimension at a time, full slices left out."""
    taken = sum(part is not None and part is not Ellipsis for part in parts)
    if taken > tensor.dim() or sum(part is Ellipsis for part in parts) > 1:
        raise IndexError(f"too many indices for tensor of dimension {tensor.dim()}")
    dim = 0
    result = tensor
    for part in parts:
        if part is Ellipsis:
            dim += tensor.dim() - taken
        elif part is None:
            result, dim = result.unsqueeze(dim), dim + 1
        elif isinstance(part, slice):
            if part.step not in (None, 1) or part.start not in (None, 0) or part.stop is not None:
                step = 1 if part.step is None else part.step
                result = torch.ops.aten.slice.Tensor(result, dim, part.start, part.stop, step)
            dim += 1
        else:
            result = result.select(dim, part)
    return result if result is not tensor else torch.ops.aten.alias.default(tensor)
