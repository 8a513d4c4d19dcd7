"""The file form of :mod:`perfmodel.hardware.kernels`: the section ``kernels:`` of devices."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from perfmodel.errors import UnitError, suggestion
from perfmodel.hardware.fields import Text
from perfmodel.hardware.kernels import (
    KERNEL_CONSTANTS,
    KERNEL_DTYPES,
    MAX_CONSTANTS,
    KernelConstants,
    KernelResidual,
)
from perfmodel.sourced import SourcedNumber, quantity
from perfmodel.units import parse_quantity
from perfmodel.yamlfile import FileModel, problem

__all__ = ["KernelFile", "check_kernels"]

_QUANTITY = {"description": "a number with its unit", "type": ["string", "number"]}


def _constant(value: Any) -> float:
    """A time if it has a unit, else a bare number or a percentage."""
    text = value.strip() if isinstance(value, str) else ""
    dimension = "s" if text.endswith("s") else "fraction" if text.endswith("%") else "number"
    try:
        return parse_quantity(value, dimension)
    except UnitError as error:
        raise problem(str(error)) from None


class SourcedConstant(SourcedNumber):
    """A constant of a kernel: a time, or a bare number."""

    value: Annotated[float, BeforeValidator(_constant)]


class KernelResidualFile(FileModel):
    """Held-out residuals of one range of predicted times."""

    below: Annotated[float, quantity("s"), WithJsonSchema(_QUANTITY)] | None = None
    low: float
    high: float
    count: int = Field(ge=1)

    def residual(self) -> KernelResidual:
        """The residual in SI."""
        return KernelResidual(below=self.below, low=self.low, high=self.high, count=self.count)


class KernelFile(FileModel):
    """Constants of one family of kernels for one type of data."""

    data: Text
    date: Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}(-[0-9]{2})?$")]
    model: str = ""
    constants: dict[str, SourcedConstant]
    residuals: list[KernelResidualFile] = Field(default_factory=list, max_length=16)

    @model_validator(mode="after")
    def _is_ordered(self) -> KernelFile:
        if not self.constants:
            raise problem("no constant is given; write at least one", "constants")
        fitted = [name for name, number in self.constants.items() if number.source == "fitted"]
        if len(fitted) > MAX_CONSTANTS:
            raise problem(f"{len(fitted)} constants are fitted; {MAX_CONSTANTS} at most", "constants")
        reached = 0.0
        for index, entry in enumerate(self.residuals):
            if entry.low > entry.high:
                raise problem("low is above high; exchange them", "residuals", index)
            if (entry.below is None) != (index == len(self.residuals) - 1):
                raise problem("every range but the last says below:, in growing order", "residuals", index)
            if entry.below is not None:
                if entry.below <= reached:
                    raise problem("ends below the range before it; list them by time", "residuals", index, "below")
                reached = entry.below
        return self

    def kernel(self) -> KernelConstants:
        """The constants in SI."""
        return KernelConstants(
            values={name: number.value for name, number in self.constants.items()},
            data=self.data,
            date=self.date,
            model=self.model,
            residuals=tuple(entry.residual() for entry in self.residuals),
        )


def check_kernels(kernels: dict[str, dict[str, KernelFile]]) -> None:
    """Refuse families, types and constants that aren't known, and values that no kernel has.

    Raises
    ------
    pydantic_core.PydanticCustomError
        Pointing at the entry.
    """
    for family, by_dtype in kernels.items():
        if family not in KERNEL_CONSTANTS:
            cure = suggestion(family, KERNEL_CONSTANTS) or f"known: {', '.join(KERNEL_CONSTANTS)}"
            raise problem(f"unknown family of kernels {family[:40]!r}; {cure}", "kernels", family)
        known = KERNEL_CONSTANTS[family]
        for dtype, entry in by_dtype.items():
            if dtype not in KERNEL_DTYPES:
                cure = suggestion(dtype, KERNEL_DTYPES) or f"known: {', '.join(KERNEL_DTYPES)}"
                raise problem(f"unknown type {dtype[:40]!r}; {cure}", "kernels", family, dtype)
            at = ("kernels", family, dtype, "constants")
            for name, number in entry.constants.items():
                if name not in known:
                    cure = suggestion(name, known) or f"known: {', '.join(known)}"
                    raise problem(f"unknown constant {name[:40]!r}; {cure}", *at, name)
                low, high = known[name]
                if not low <= number.value <= high:
                    raise problem(
                        f"{number.value:.4g} is outside {low:g} to {high:g}; check the unit and the factor of 1000",
                        *at,
                        name,
                    )
