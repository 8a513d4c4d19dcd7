"""Products on a systolic array and on the cores of a CPU.

Systolic (TPU): the array holds a block of weights of its own size and streams rows through it. Legend as in
:mod:`perfmodel.timing.matmul.tiled`; the array takes a_n x a_k weights and rows in units of a_m, so sizes are
padded to these (m', n', k'); columns are done in blocks of two arrays, N = 2 a_n, one being loaded while the other
computes (Jouppi et al., *In-datacenter performance analysis of a tensor processing unit*, 2017, section 2)::

    block = max(2 m' N k' / (P rate), e N (k' + m') / (W bandwidth))
    time  = start + e k' (m' + N) / (W bandwidth) + (n' / N) block + e m' N / (W bandwidth)

The rows and the first weights come before anything is computed, the last results leave after everything is.

Blocks (CPU): operands are packed into blocks that fit the caches before they are multiplied (Goto and van de
Geijn, *Anatomy of high-performance matrix multiplication*, 2008), and packing hides nothing::

    time = start + 2 b m n k / (P rate) + e b (m k + k n + m n) / (W bandwidth)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from perfmodel.timing.matmul.products import Format, Machine, Products

__all__ = ["BlockConstants", "packed_time", "systolic_time"]

Floats = npt.NDArray[np.float64]

_ARRAYS = 2  # blocks of weights at once: one computes, one loads


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockConstants:
    """Shares of the peak and of the bandwidth that a large product reaches; seconds of any product."""

    rate: float
    bandwidth: float
    start: float


def systolic_time(
    products: Products, form: Format, machine: Machine, constants: BlockConstants, array: tuple[int, int, int]
) -> Floats:
    """Seconds of each product on a systolic array that takes ``array`` = (a_m, a_n, a_k)."""
    m, n, k = (_padded(size, step) for size, step in zip((products.m, products.n, products.k), array, strict=True))
    far = machine.bandwidth * constants.bandwidth
    wide = float(_ARRAYS * array[1])
    block = np.maximum(
        2 * m * wide * k / (machine.peak * constants.rate), (form.operand * k + form.result * m) * wide / far
    )
    first, last = form.operand * k * (m + wide) / far, form.result * m * wide / far
    return np.asarray(constants.start + first + last + products.b * n / wide * block, float)


def packed_time(products: Products, form: Format, machine: Machine, constants: BlockConstants) -> Floats:
    """Seconds of each product on a CPU."""
    b, m, n, k = products.b, products.m, products.n, products.k
    arithmetic = 2 * b * m * n * k / (machine.peak * constants.rate)
    moved = b * (form.operand * (m * k + k * n) + form.result * m * n)
    return np.asarray(constants.start + arithmetic + moved / (machine.bandwidth * constants.bandwidth), float)


def _padded(size: Floats, step: int) -> Floats:
    return np.asarray(np.ceil(size / step) * step, float)
