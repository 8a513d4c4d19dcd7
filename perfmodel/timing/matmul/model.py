"""The time of matrix products on a device whose file has constants for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from perfmodel.errors import UnsupportedError
from perfmodel.hardware import Device
from perfmodel.hardware.kernels import KernelConstants
from perfmodel.ops.cost import MatmulShape
from perfmodel.timing.matmul.blocked import BlockConstants, packed_time, systolic_time
from perfmodel.timing.matmul.products import FORMATS, Machine, Products, machine_of, products_of
from perfmodel.timing.matmul.tiled import TileConstants, tiled_time
from perfmodel.timing.matmul.tiles import Menu, menu_named

__all__ = ["MatmulModel", "kernel_of", "matmul_time", "model_of"]

Floats = npt.NDArray[np.float64]

#: A type without constants of its own takes those of one with the same arithmetic and width.
_ALIKE = {"fp16": "bf16", "bf16": "fp16"}
_FAMILIES = {
    "grouped_matmul": ("grouped_matmul", "batched_matmul", "matmul"),
    "batched_matmul": ("batched_matmul", "matmul"),
}
_TILES = "tiles/"


@dataclass(frozen=True, slots=True, kw_only=True)
class MatmulModel:
    """A formula with what it needs of a device; its constants are given at each call, so that they can be fitted.

    Attributes
    ----------
    dtype : str
        A key of :data:`~perfmodel.timing.matmul.products.FORMATS`.
    machine : Machine
    menu : Menu, optional
        Of the tiled formula.
    array : tuple of int, optional
        Of the systolic one. Neither: the packed one.
    """

    dtype: str
    machine: Machine
    menu: Menu | None = None
    array: tuple[int, int, int] | None = None

    def time(self, products: Products, constants: Mapping[str, float], *, sustained: bool = False) -> Floats:
        """Seconds of each product.

        Constants that tell what a measurement adds (``gap``, ``floor``) are ignored: see :meth:`measured`.
        """
        form = FORMATS[self.dtype]
        if self.menu is not None:
            tile = TileConstants(**_only(TileConstants, constants))
            return tiled_time(products, form, self.machine, tile, self.menu, sustained=sustained)
        block = BlockConstants(**_only(BlockConstants, constants))
        if self.array is not None:
            return systolic_time(products, form, self.machine, block, self.array)
        return packed_time(products, form, self.machine, block)

    def measured(self, products: Products, constants: Mapping[str, float]) -> Floats:
        """Seconds that the fitted measurements would read.

        ``gap`` is what the host adds to one call that is waited for; ``floor`` is how often the host issues calls
        that aren't, so that no reading is shorter.
        """
        time = self.time(products, constants) + constants.get("gap", 0.0)
        return np.maximum(time, constants.get("floor", 0.0))


def model_of(device: Device, dtype: str, form: str) -> MatmulModel:
    """The formula of a name for a type of data on a device.

    Parameters
    ----------
    device : Device
    dtype : str
        A key of :data:`~perfmodel.timing.matmul.products.FORMATS`.
    form : str
        ``"tiles/MENU"``, ``"systolic"`` or ``"packed"``, as ``model:`` in a device's file says.

    Raises
    ------
    UnsupportedError
        If there is no such formula, or the device lacks what it needs.
    """
    machine = machine_of(device, dtype)
    if form.startswith(_TILES):
        vector = device.compute["vector"]
        for name, value in (("count", vector.count), ("clock", vector.clock)):
            if value is None:
                raise UnsupportedError(
                    f"{device.name} doesn't say the {name} of the units that tiles are spread over; "
                    f"add compute: vector: {name}: to its file"
                )
        return MatmulModel(dtype=dtype, machine=machine, menu=menu_named(form.removeprefix(_TILES)))
    if form == "systolic":
        array = device.compute["matrix"].tile
        if array is None:
            raise UnsupportedError(
                f"{device.name} doesn't say how large its array is; add compute: matrix: tile: to its file"
            )
        return MatmulModel(dtype=dtype, machine=machine, array=array)
    if form == "packed":
        return MatmulModel(dtype=dtype, machine=machine)
    raise UnsupportedError(
        f"{device.name} has a model {form[:40]!r} for matrix products; known: {_TILES}MENU, systolic, packed"
    )


def kernel_of(device: Device, family: str, dtype: str) -> KernelConstants | None:
    """The constants for products of a type: the family's own, else those of plain products; ``None``: neither."""
    for name in _FAMILIES.get(family, (family,)):
        for kind in (dtype, _ALIKE.get(dtype)):
            found = device.kernels.get(name, {}).get(kind) if kind is not None else None
            if found is not None:
                return found
    return None


def matmul_time(device: Device, family: str, dtype: str, shape: MatmulShape, *, sustained: bool = True) -> Any:
    """Seconds of products on a device, without the host; ``None`` where its file has no constants for them.

    Parameters
    ----------
    device : Device
    family : str
        ``"matmul"``, ``"batched_matmul"`` or ``"grouped_matmul"``.
    dtype : str
        A key of :data:`~perfmodel.timing.matmul.products.FORMATS`.
    shape : MatmulShape
        Its dimensions may be arrays of cases.
    sustained : bool
        Whether products follow each other, as in a step, so that the chip is at its power limit.

    Returns
    -------
    ndarray or None

    Raises
    ------
    UnsupportedError
        If the device's file names a formula that doesn't exist or that it can't feed.
    """
    found = kernel_of(device, family, dtype)
    if found is None:
        return None
    return model_of(device, dtype, found.model).time(products_of(shape), found.values, sustained=sustained)


def _only(kind: type[Any], constants: Mapping[str, float]) -> dict[str, float]:
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in constants.items() if name in names}
