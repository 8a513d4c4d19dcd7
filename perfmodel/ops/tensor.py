"""What an op sees of its operands: shapes, types and layout. No data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from perfmodel.dtypes import item_size
from perfmodel.symbols import Dim, product

__all__ = ["OpCall", "Tensor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """An operand of an op.

    Parameters
    ----------
    shape : tuple of Dim
        Sizes; ints or symbolic.
    dtype : str
        PyTorch name without ``torch.``, e.g. ``"bfloat16"``.
    strides : tuple of Dim, optional
        Elements between neighbours along each dimension; ``None`` for a
        contiguous tensor. A stride of 0 is a broadcast dimension: it's read
        once however large it looks.
    storage : int
        Index into :attr:`perfmodel.graph.ir.Graph.storages`; -1 outside a graph.
    layer : int, optional
        In a repeated block: which layer's copy of the storage is meant. See
        :class:`perfmodel.graph.ir.Block`.
    absolute : bool
        Whether ``layer`` counts from the block's own layer (``False``) or names
        a layer (``True``).
    on_chip : bool
        Whether a fused kernel holds it in registers or caches: no byte of memory is touched.
    """

    shape: tuple[Dim, ...]
    dtype: str
    strides: tuple[Dim, ...] | None = None
    storage: int = -1
    layer: int = 0
    absolute: bool = False
    on_chip: bool = False

    @property
    def numel(self) -> Dim:
        """Number of elements, broadcast ones counted as often as they are seen."""
        return product(self.shape)

    @property
    def nbytes(self) -> Dim:
        """Bytes of memory that reading the whole tensor touches (broadcast dimensions once)."""
        if self.on_chip:
            return 0
        sizes = self.shape
        if self.strides is not None:
            sizes = tuple(
                size
                for size, stride in zip(self.shape, self.strides, strict=True)
                if not (isinstance(stride, int) and stride == 0)
            )
        return product(sizes) * item_size(self.dtype)


class OpCall(Protocol):
    """One call of an op; :class:`perfmodel.graph.ir.Op` is one.

    ``inputs`` maps the argument's name in the op's schema to a tensor, in schema
    order; the members of a tensor list ``xs`` are named ``xs.0``, ``xs.1``, ….
    Optional tensors that weren't given are absent. ``attrs`` holds the other
    arguments by schema name (JSON types and sizes; only those given or whose
    value differs from the schema's default).
    """

    @property
    def name(self) -> str:
        """Of the op, e.g. ``aten.mm``."""

    @property
    def inputs(self) -> Mapping[str, Tensor]:
        """Tensor arguments by schema name."""

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """Results, in order."""

    @property
    def attrs(self) -> Mapping[str, Any]:
        """Other arguments by schema name."""
