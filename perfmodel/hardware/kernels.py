"""Constants of single kernels, as the rest of the library sees them: plain SI floats, frozen.

They belong to a device, a family of kernels and a type of data. What they mean is said by the formulas
that use them, e.g. :mod:`perfmodel.timing.matmul`. Most are fractions of what the device's file states
elsewhere, so that a file which is based on another inherits them with their meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["ANY_DTYPE", "KERNEL_CONSTANTS", "KERNEL_DTYPES", "MAX_CONSTANTS", "KernelConstants", "KernelResidual"]

#: No more constants of a family are fitted for one device and one type.
MAX_CONSTANTS = 6

#: The type of a family's constants that hold for every type.
ANY_DTYPE = "any"

#: Types of data that constants are keyed by: those of the arithmetic, and two ways to scale 8 and 4 bits.
KERNEL_DTYPES = ("fp64", "fp32", "tf32", "bf16", "fp16", "fp8", "fp8_block", "nvfp4", "mxfp4", "int8", ANY_DTYPE)

_TIME = (0.0, 1e-2)  # s
_FRACTION = (1e-3, 1.0)
_SHARE = (0.0, 1.0)

_CLOCKS = (0.0, 1e6)

_MATMUL = {
    "rate": _FRACTION,
    "bandwidth": _FRACTION,
    "cache": _FRACTION,
    "launch": _CLOCKS,
    "throttle": (0.0, 4.0),
    "store": _SHARE,
    "fill": _CLOCKS,
    "split": _CLOCKS,
    "start": _TIME,
    "gap": _TIME,
    "floor": _TIME,
}

#: By family the names of its constants, each with the least and the greatest value that is plausible, in SI.
KERNEL_CONSTANTS: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "matmul": _MATMUL,
    "batched_matmul": _MATMUL,
    "grouped_matmul": _MATMUL,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelResidual:
    """Quantiles of ``log(measured / predicted)`` on rows that the constants weren't fitted on.

    Attributes
    ----------
    below : float or None
        For kernels that are predicted to take fewer seconds; ``None``: for all longer ones.
    low, high : float
        Between them lie 90 % of the rows.
    count : int
        How many rows.
    """

    below: float | None
    low: float
    high: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelConstants:
    """The constants of one family of kernels for one type of data, and how far off they are.

    Attributes
    ----------
    values : mapping of str to float
        In SI, keyed as :data:`KERNEL_CONSTANTS` says.
    data, date : str
        What was fitted, and when.
    model : str
        Which formula the constants belong to, where a family has several.
    residuals : tuple of KernelResidual
        By predicted time.
    """

    values: Mapping[str, float]
    data: str
    date: str
    model: str = ""
    residuals: tuple[KernelResidual, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "values": dict(self.values),
            "data": self.data,
            "date": self.date,
            "model": self.model,
            "residuals": [
                {"below": entry.below, "low": entry.low, "high": entry.high, "count": entry.count}
                for entry in self.residuals
            ],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> KernelConstants:
        """Inverse of :meth:`to_dict`."""
        return cls(
            values=dict(data["values"]),
            data=data["data"],
            date=data["date"],
            model=data["model"],
            residuals=tuple(KernelResidual(**entry) for entry in data["residuals"]),
        )
