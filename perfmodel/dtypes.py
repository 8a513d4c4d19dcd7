"""Data types by their PyTorch names, without PyTorch."""

from __future__ import annotations

from perfmodel.errors import UnknownNameError, UnsupportedError

__all__ = ["ITEM_SIZE", "SHORT_NAME", "compute_name", "is_floating", "item_size"]

#: Bytes of one element, keyed by the PyTorch name without ``torch.``.
ITEM_SIZE: dict[str, int] = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "complex64": 8,
    "complex128": 16,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "bool": 1,
}

#: The name under which hardware files state a peak, keyed by the PyTorch name.
SHORT_NAME: dict[str, str] = {
    "float64": "fp64",
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "float8_e4m3fn": "fp8",
    "float8_e5m2": "fp8",
    "int8": "int8",
    "complex64": "fp32",
    "complex128": "fp64",
}


def item_size(dtype: str) -> int:
    """Bytes of one element of ``dtype``.

    >>> item_size("bfloat16")
    2

    Raises
    ------
    UnknownNameError
        If ``dtype`` isn't a PyTorch type name.
    """
    try:
        return ITEM_SIZE[dtype]
    except KeyError:
        raise UnknownNameError("dtype", dtype, ITEM_SIZE) from None


def is_floating(dtype: str) -> bool:
    """Whether ``dtype`` holds real numbers.

    >>> is_floating("int64"), is_floating("float16")
    (False, True)
    """
    return dtype.startswith(("float", "bfloat"))


def compute_name(dtype: str) -> str:
    """The hardware files' name of the arithmetic that ``dtype`` runs in.

    Integers and booleans of index arithmetic run on the vector unit at the
    rate of ``int32``.

    >>> compute_name("bfloat16"), compute_name("int64")
    ('bf16', 'int32')
    """
    if dtype in SHORT_NAME:
        return SHORT_NAME[dtype]
    if dtype in ITEM_SIZE:
        return "int32"
    raise UnsupportedError(f"dtype {dtype!r} has no compute rate; known: {', '.join(sorted(ITEM_SIZE))}")
