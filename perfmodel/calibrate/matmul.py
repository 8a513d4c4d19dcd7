"""Fits of the constants of matrix products to measured ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from perfmodel.calibrate.robust import Constant, fit_constants, folds
from perfmodel.timing.matmul import FORMATS, MatmulModel, Products

__all__ = ["CONSTANTS", "MatmulRows", "cross_predicted", "fit_matmul", "nearest_rows", "one_efficiency", "roofline"]

Floats = npt.NDArray[np.float64]

#: Where the search for each constant begins, and its bounds.
CONSTANTS: Mapping[str, Constant] = {
    constant.name: constant
    for constant in (
        Constant(name="rate", starts=(0.8, 0.6), least=0.05, greatest=1.0),
        Constant(name="bandwidth", starts=(0.8,), least=0.05, greatest=1.0),
        Constant(name="cache", starts=(0.4, 0.8), least=0.02, greatest=1.0),
        Constant(name="launch", starts=(5e3, 2e4), least=1e2, greatest=1e6),
        Constant(name="throttle", starts=(0.2,), least=1e-3, greatest=2.0),
        Constant(name="store", starts=(0.4,), least=1e-3, greatest=1.0),
        Constant(name="fill", starts=(5e2, 3e3), least=1.0, greatest=1e5),
        Constant(name="split", starts=(1e3,), least=1.0, greatest=1e5),
        Constant(name="start", starts=(5e-6,), least=1e-7, greatest=1e-3),
        Constant(name="gap", starts=(3e-5,), least=1e-7, greatest=1e-3),
        Constant(name="floor", starts=(2e-5,), least=1e-7, greatest=1e-3),
    )
}
_FITTED_ROWS = 1000  # enough for six constants; more cost time and move nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class MatmulRows:
    """Measured products of one device and type, arrays of one axis; ``time`` in seconds."""

    products: Products
    time: Floats

    def at(self, index: npt.NDArray[np.bool_] | npt.NDArray[np.intp]) -> MatmulRows:
        """Some of them."""
        return MatmulRows(products=self.products.at(index), time=self.time[index])


def fit_matmul(
    model: MatmulModel, rows: MatmulRows, names: Sequence[str], fixed: Mapping[str, float], *, seed: int = 0
) -> dict[str, float]:
    """Constants of the named ones that fit the rows best, with those that are ``fixed``."""
    if rows.time.size > _FITTED_ROWS:
        rows = rows.at(np.random.default_rng(seed).permutation(rows.time.size)[:_FITTED_ROWS])
    found = fit_constants(
        lambda values: model.measured(rows.products, {**fixed, **values}),
        rows.time,
        [CONSTANTS[name] for name in names],
    )
    return {**fixed, **found}


def cross_predicted(
    model: MatmulModel,
    rows: MatmulRows,
    names: Sequence[str],
    fixed: Mapping[str, float],
    *,
    count: int = 2,
    seed: int = 0,
) -> Floats:
    """For each row the seconds that constants predict which were fitted on other weight shapes (n, k)."""
    fold = folds([rows.products.n, rows.products.k], count, seed)
    predicted = np.empty_like(rows.time)
    for one in range(count):
        constants = fit_matmul(model, rows.at(fold != one), names, fixed, seed=seed)
        predicted[fold == one] = model.measured(rows.products.at(fold == one), constants)
    return predicted


def roofline(model: MatmulModel, products: Products) -> Floats:
    """The plain roofline: peak and bandwidth as the datasheet has them, nothing else."""
    form, machine = FORMATS[model.dtype], model.machine
    b, m, n, k = products.b, products.m, products.n, products.k
    moved = b * (form.operand * (m * k + k * n) + form.result * m * n)
    return np.asarray(np.maximum(2 * b * m * n * k / machine.peak, moved / machine.bandwidth), float)


def one_efficiency(model: MatmulModel, fitted: MatmulRows, products: Products) -> Floats:
    """The roofline over one efficiency, the median of the fitted rows."""
    efficiency = float(np.median(roofline(model, fitted.products) / fitted.time))
    return roofline(model, products) / efficiency


def nearest_rows(fitted: MatmulRows, products: Products) -> Floats:
    """A table: the fitted row nearest in log(b, m, n, k), its time scaled by the flops."""
    table, wanted = _logs(fitted.products), _logs(products)
    time = np.empty(wanted.shape[0])
    for start in range(0, wanted.shape[0], 256):
        part = wanted[start : start + 256]
        nearest = np.argmin(np.sum(np.abs(part[:, None, :] - table[None]), axis=2), axis=1)
        scale = np.exp(part.sum(axis=1) - table[nearest].sum(axis=1))
        time[start : start + 256] = fitted.time[nearest] * scale
    return time


def _logs(products: Products) -> Floats:
    return np.log(np.stack([products.b, products.m, products.n, products.k], axis=1))
