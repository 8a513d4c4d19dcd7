"""What a matrix product is to its timing: sizes, bytes an element, and how it is met again."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from perfmodel.hardware import Device
from perfmodel.ops.cost import MatmulShape

__all__ = ["FORMATS", "Format", "Machine", "Products", "machine_of", "products_of"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How the elements of a product are stored.

    Attributes
    ----------
    peak : str
        The arithmetic, as devices name their peaks.
    operand, result : float
        Bytes of an element of the inputs and of the output.
    quantized_from : float
        Bytes of an element of ``x`` before it is quantized by a kernel of its own; 0: it isn't.
    """

    peak: str
    operand: float
    result: float
    quantized_from: float = 0.0


#: By the type of data as kernel constants are keyed (:data:`perfmodel.hardware.kernels.KERNEL_DTYPES`).
FORMATS: dict[str, Format] = {
    "fp64": Format(peak="fp64", operand=8, result=8),
    "fp32": Format(peak="fp32", operand=4, result=4),
    "tf32": Format(peak="tf32", operand=4, result=4),
    "bf16": Format(peak="bf16", operand=2, result=2),
    "fp16": Format(peak="fp16", operand=2, result=2),
    "int8": Format(peak="int8", operand=1, result=4),
    # Products of 8 and 4 bits yield 16; their activations come in 16 bits.
    "fp8": Format(peak="fp8", operand=1, result=2, quantized_from=2),
    "fp8_block": Format(peak="fp8", operand=1, result=2, quantized_from=2),
    "nvfp4": Format(peak="fp4", operand=0.5625, result=2, quantized_from=2),  # a scale of 8 bits for 16 elements
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What the formulas need of a device, SI.

    Attributes
    ----------
    units : float or ndarray
        Multiprocessors, cores: what works on one tile at a time. NaN where the device doesn't say.
    clock : float or ndarray
        Hz of a unit, alike.
    peak : float or ndarray
        FLOP/s of all of them.
    bandwidth : float or ndarray
        Bytes/s of the main memory.
    cache, cache_bandwidth : float or ndarray
        Bytes of the cache that operands may stay in; bytes/s of the nearest one.
    """

    units: Floats | float
    clock: Floats | float
    peak: Floats | float
    bandwidth: Floats | float
    cache: Floats | float
    cache_bandwidth: Floats | float


@dataclass(frozen=True, slots=True, kw_only=True)
class Products:
    """Products ``out[b, m, n] = x[b, m, k] @ w[b, k, n]``; arrays that broadcast.

    Attributes
    ----------
    b, m, n, k : ndarray
    uneven : ndarray or float
        Of a grouped product (b of them, one kernel): rows of its largest group, in units of the mean.
    copies : float, optional
        The product is repeated in turn on so many sets of operands, nothing in between, with one result: what
        stayed in the cache isn't read again. ``None``: everything comes from main memory.
    """

    b: Floats
    m: Floats
    n: Floats
    k: Floats
    uneven: Floats | float = 1.0
    copies: float | None = None

    def at(self, index: slice | npt.NDArray[np.bool_] | npt.NDArray[np.intp]) -> Products:
        """Some of them; all arrays must have one axis and the same length."""
        uneven = self.uneven if np.ndim(self.uneven) == 0 else np.asarray(self.uneven)[index]
        return replace(self, b=self.b[index], m=self.m[index], n=self.n[index], k=self.k[index], uneven=uneven)


def products_of(shape: MatmulShape) -> Products:
    """The products that an op's shape describes; its dimensions may be arrays of cases."""
    b, m, n, k, groups = (np.asarray(value, float) for value in (shape.b, shape.m, shape.n, shape.k, shape.groups))
    if np.all(groups == 1):
        return Products(b=b, m=m, n=n, k=k)
    if shape.x_transposed:  # the gradient of grouped weights: the groups share k between them
        return Products(b=b * groups, m=m, n=n, k=k / groups, uneven=1.0)
    return Products(b=b * groups, m=m / groups, n=n, k=k, uneven=shape.skew)


def machine_of(device: Device, dtype: str) -> Machine:
    """What the formulas need of ``device`` for a type of data (a key of :data:`FORMATS`).

    Raises
    ------
    UnsupportedError
        If the device has no such arithmetic.
    """
    vector = device.compute["vector"]
    near = device.memory[min(1, len(device.memory) - 1)]
    return Machine(
        units=math.nan if vector.count is None else float(vector.count),
        clock=math.nan if vector.clock is None else vector.clock,
        peak=device.peak("matrix", FORMATS[dtype].peak),
        bandwidth=device.main_memory.bandwidth,
        cache=near.capacity,
        cache_bandwidth=device.memory[-1].bandwidth,
    )
