"""Robust least squares on logarithms: what all fits of constants to measured times use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Constant", "fit_constants", "folds", "mape"]

Floats = npt.NDArray[np.float64]

_ROBUST = 0.05  # relative error beyond which a row counts linearly, not squared
_NUDGE = 3e-3  # of a constant, for slopes: tiles and waves make the loss uneven on smaller scales


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """A positive constant to fit: where the search begins, possibly at several places, and its bounds."""

    name: str
    starts: tuple[float, ...]
    least: float
    greatest: float


def fit_constants(
    predict: Callable[[Mapping[str, float]], Floats],
    measured: Floats,
    constants: Sequence[Constant],
    *,
    steps: int = 30,
) -> dict[str, float]:
    """Constants that make the mean robust logarithmic error of predictions least.

    Levenberg-Marquardt with the pseudo-Huber loss from the first start of each constant; then again from there,
    with each further start of each constant in turn.

    Parameters
    ----------
    predict : callable
        Constants by name -> seconds, shape [rows].
    measured : ndarray, shape [rows]
        Seconds.
    constants : sequence of Constant
    steps : int
        Greatest number of steps of one search.
    """
    target = np.log(measured)
    names = [constant.name for constant in constants]
    low = np.log([constant.least for constant in constants])
    high = np.log([constant.greatest for constant in constants])

    def residuals(logs: Floats) -> Floats:
        return np.asarray(np.log(predict(dict(zip(names, np.exp(logs).tolist(), strict=True)))) - target, float)

    def search(start: Floats) -> tuple[float, Floats]:
        return _least_squares(residuals, np.clip(start, low, high), low, high, steps)

    loss, best = search(np.log([constant.starts[0] for constant in constants]))
    for index, constant in enumerate(constants):
        for other in constant.starts[1:]:
            start = best.copy()
            start[index] = np.log(other)
            found = search(start)
            if found[0] < loss:
                loss, best = found
    return dict(zip(names, np.exp(best).tolist(), strict=True))


def _least_squares(
    residuals: Callable[[Floats], Floats], start: Floats, low: Floats, high: Floats, steps: int
) -> tuple[float, Floats]:
    at = start
    error = residuals(at)
    loss, damping = _loss(error), 1e-2
    for _ in range(steps):
        jacobian = np.empty((error.size, at.size))
        for index in range(at.size):
            nudge = _NUDGE if at[index] + _NUDGE <= high[index] else -_NUDGE
            nearby = at.copy()
            nearby[index] += nudge
            jacobian[:, index] = (residuals(nearby) - error) / nudge
        weight = 1 / np.sqrt(1 + (error / _ROBUST) ** 2)
        hessian = (jacobian * weight[:, None]).T @ jacobian
        slope = (jacobian * weight[:, None]).T @ error
        for _ in range(12):
            step = np.linalg.solve(hessian + damping * np.diag(np.diag(hessian) + 1e-6), -slope)
            tried = np.clip(at + np.clip(step, -1.0, 1.0), low, high)
            tried_error = residuals(tried)
            tried_loss = _loss(tried_error)
            if tried_loss < loss:
                break
            damping *= 4
        else:
            break
        gained = loss - tried_loss
        at, error, loss, damping = tried, tried_error, tried_loss, damping / 8
        if gained < 1e-5 * max(loss, 1e-12):
            break
    return loss, at


def _loss(error: Floats) -> float:
    return float(np.sum(_ROBUST**2 * (np.sqrt(1 + (error / _ROBUST) ** 2) - 1)))


def folds(keys: Sequence[Floats], count: int, seed: int) -> npt.NDArray[np.intp]:
    """A fold for each row, drawn by a seed; rows that agree in all ``keys`` are in the same one.

    >>> import numpy as np
    >>> n, k = np.array([1.0, 1.0, 2.0, 3.0]), np.array([4.0, 4.0, 4.0, 4.0])
    >>> drawn = folds([n, k], 2, seed=0)
    >>> bool(drawn[0] == drawn[1]), sorted(set(drawn.tolist()))
    (True, [0, 1])
    """
    _, group = np.unique(np.stack(keys, axis=1), axis=0, return_inverse=True)
    order = np.random.default_rng(seed).permutation(int(group.max()) + 1)
    return np.asarray(order[group.ravel()] % count)


def mape(predicted: Floats, measured: Floats) -> float:
    """Mean absolute percentage error.

    >>> import numpy as np
    >>> round(mape(np.array([1.1, 0.8]), np.array([1.0, 1.0])), 6)
    15.0
    """
    return float(100 * np.mean(np.abs(predicted / measured - 1)))
