"""What the rules of all families share: bytes of operands, the type of arithmetic, rows and columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from perfmodel.dtypes import is_floating, item_size
from perfmodel.ops.tensor import OpCall, Tensor
from perfmodel.symbols import Dim, Expr, maximum, minimum, product

__all__ = [
    "arithmetic_dtype",
    "half",
    "is_complex",
    "is_in_place",
    "levels",
    "members",
    "nbytes",
    "numel",
    "promoted",
    "results",
    "row_and_column_sizes",
]


def nbytes(tensors: Iterable[Tensor]) -> Dim:
    """Bytes of some operands, each once."""
    total: Dim = 0
    for tensor in tensors:
        total = total + tensor.nbytes
    return total


def numel(tensors: Iterable[Tensor]) -> Dim:
    """Elements of some operands."""
    total: Dim = 0
    for tensor in tensors:
        total = total + tensor.numel
    return total


def members(call: OpCall, name: str) -> list[Tensor]:
    """The members of the tensor list ``name``."""
    start = name + "."
    return [tensor for key, tensor in call.inputs.items() if key.startswith(start)]


def is_in_place(call: OpCall) -> bool:
    """Whether the call overwrites its ``self`` (``add_``)."""
    return call.name[-1] == "_" and call.name[-2:] != "__"


def results(call: OpCall) -> tuple[Tensor, ...]:
    """The tensors that the call writes: its ``self`` where it works in place, else its outputs."""
    return (call.inputs["self"],) if is_in_place(call) else call.outputs


def is_complex(dtype: str) -> bool:
    """Whether ``dtype`` holds complex numbers."""
    return dtype.startswith("complex")


def promoted(tensors: Iterable[Tensor]) -> str:
    """The common type of some operands, by PyTorch's promotion.

    The category decides first (bool, integer, real, complex), then the size. A
    zero-dimensional tensor counts only where its category is the highest.

    >>> promoted([Tensor(shape=(2,), dtype="bfloat16"), Tensor(shape=(), dtype="float32")])
    'bfloat16'
    >>> promoted([Tensor(shape=(2,), dtype="float16"), Tensor(shape=(2,), dtype="bfloat16")])
    'float32'
    """
    best = ""
    best_key = (-1, False, 0)
    for tensor in tensors:
        dtype = tensor.dtype
        if dtype == best and tensor.shape:
            continue
        key = (_category(dtype), bool(tensor.shape), item_size(dtype))
        if best and key == best_key and dtype != best:
            # Of two 16-bit types neither holds the other.
            best = "float32" if is_floating(dtype) else best
        elif key > best_key:
            best, best_key = dtype, key
    return best


def _category(dtype: str) -> int:
    if is_floating(dtype):
        return 2
    if is_complex(dtype):
        return 3
    return 0 if dtype == "bool" else 1


def arithmetic_dtype(call: OpCall) -> str:
    """Type in which an element-wise op or a reduction computes.

    That of the result where it's a real or complex number (a scalar operand may
    have raised it), else that of the operands, as for comparisons.
    """
    for tensor in call.outputs:
        if _category(tensor.dtype) >= 2:
            return tensor.dtype
    return promoted(call.inputs.values() or call.outputs)


def row_and_column_sizes(shape: Sequence[Dim], dims: Any) -> tuple[Dim, Dim]:
    """Split a shape into the number of rows and the elements of each, which lie along ``dims``.

    Parameters
    ----------
    shape : sequence of Dim
    dims : int, sequence of int, or None
        Dimensions of a row; negative ones count from the end. ``None`` or none
        of them: all.

    Examples
    --------
    >>> row_and_column_sizes((2, 3, 5), -1), row_and_column_sizes((2, 3, 5), [0, 2]), row_and_column_sizes((2, 3), None)
    ((6, 5), (3, 10), (1, 6))
    """
    if isinstance(dims, int):
        dims = (dims,)
    if not dims:
        return 1, product(shape)
    rank = len(shape)
    chosen = {d % rank if rank else 0 for d in dims}
    rows: Dim = 1
    cols: Dim = 1
    for position, size in enumerate(shape):
        if position in chosen:
            cols = cols * size
        else:
            rows = rows * size
    return rows, cols


def half(amount: Dim) -> Dim:
    """Half of an even amount, exactly; of a symbolic one still a polynomial, whose sums stay short.

    >>> half(6)
    3
    """
    return amount / 2 if isinstance(amount, Expr) else amount // 2


#: The largest size whose logarithm is taken is two to this power.
_LARGEST_LEVEL = 40


def levels(size: Dim) -> Dim:
    """``log2(size)``, rounded up: levels of a tree over so many leaves, for numbers, symbols and arrays.

    >>> levels(1), levels(8), levels(9)
    (0, 3, 4)
    """
    total: Dim = 0
    for level in range(_LARGEST_LEVEL):
        total = total + minimum(1, maximum(0, size - 2**level))
    return total
