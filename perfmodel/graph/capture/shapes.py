"""Example inputs reduced to their shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from perfmodel.errors import CaptureError
from perfmodel.graph.capture.symbolic import SymbolTable

__all__ = ["Shapes"]


class Shapes:
    """Example inputs reduced to shapes, with names on the dimensions that vary."""

    def __init__(self, leaves: list[Any], spec: Any, dims: list[dict[int, str]]) -> None:
        self._leaves, self._spec, self._dims = leaves, spec, dims
        self.hints: dict[str, int] = {}
        for leaf, names in zip(leaves, dims, strict=True):
            for dim, name in names.items():
                if not isinstance(dim, int) or not isinstance(name, str) or not name.isidentifier():
                    raise CaptureError(
                        f"dynamic_shapes maps {dim!r} to {name!r}; it maps a dimension to a name, e.g. {{0: 'batch'}}"
                    )
                if not isinstance(leaf, torch.Tensor) or not 0 <= dim < leaf.dim():
                    raise CaptureError(f"dynamic_shapes names dimension {dim} of an input that has no such dimension")
                size = self.hints.setdefault(name, leaf.shape[dim])
                if size != leaf.shape[dim]:
                    raise CaptureError(
                        f"dynamic_shapes calls two sizes {name!r}: {size} and {leaf.shape[dim]}; "
                        "give them two names or equal sizes"
                    )

    @classmethod
    def of(cls, args: Sequence[Any], kwargs: Mapping[str, Any], dynamic_shapes: Any) -> Shapes:
        """The shapes of a call's arguments.

        Raises
        ------
        CaptureError
            If ``dynamic_shapes`` doesn't fit the arguments.
        """
        if not isinstance(args, (list, tuple)):
            raise CaptureError(f"args is a tuple of the call's arguments, not {type(args).__name__}; write args=(x,)")
        leaves, spec = pytree.tree_flatten((list(args), dict(kwargs)))
        if dynamic_shapes is None:
            return cls(leaves, spec, [{} for _ in leaves])
        by_position = list(dynamic_shapes) if isinstance(dynamic_shapes, (list, tuple)) else []
        by_name = dict(dynamic_shapes) if isinstance(dynamic_shapes, Mapping) else {}
        unknown = set(by_name) - set(kwargs)
        if unknown or len(by_position) > len(args):
            raise CaptureError(
                f"dynamic_shapes speaks of inputs that aren't there: {sorted(unknown) or len(by_position)}; "
                "it takes a tuple for args or a mapping by name for kwargs"
            )
        dims: list[dict[int, str]] = []
        for index, value in enumerate(args):
            count = len(pytree.tree_leaves(value))
            dims += [dict(by_position[index] or {}) if index < len(by_position) else {}] * count
        for key, value in kwargs.items():
            dims += [dict(by_name.get(key) or {})] * len(pytree.tree_leaves(value))
        return cls(leaves, spec, dims)

    def tensors(self, symbols: SymbolTable) -> tuple[list[Any], dict[str, Any]]:
        """Fake tensors of these shapes; call it under the fake mode."""
        made = [self._tensor(leaf, names, symbols) for leaf, names in zip(self._leaves, self._dims, strict=True)]
        args, kwargs = pytree.tree_unflatten(made, self._spec)
        return list(args), dict(kwargs)

    @staticmethod
    def _tensor(leaf: Any, names: dict[int, str], symbols: SymbolTable) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if not names:
            return torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype).requires_grad_(leaf.requires_grad)
        sizes = [symbols.sizes[names[dim]] if dim in names else size for dim, size in enumerate(leaf.shape)]
        return torch.empty(sizes, dtype=leaf.dtype).requires_grad_(leaf.requires_grad)
