"""Time of an op on a device: the slowest of its resources, and a fixed time for each kernel.

Legend, for one op: F_m, F_v flops for the matrix and the vector unit; D bytes read
and written; P_m, P_v the units' peaks for its type and ``rate`` the fraction of
them that a large op reaches; W_l, C_l bandwidth and capacity of memory level l and
``fraction`` the share of that bandwidth that a large op reaches; K kernels and
``latency`` the fixed seconds of one. Then::

    t_matrix = F_m / (P_m rate)
    t_vector = F_v / (P_v rate_vector)
    t_memory = min(C_l, D) / (W_l fraction)  for the nearest level l, and what
               exceeds it at the bandwidth of the next one, and so on
    time     = K latency + max(t_matrix, t_vector, t_memory)        lower bound
    serial   = K latency + t_matrix + t_vector + t_memory           upper bound

This is the roofline of Williams et al. (2009) with a second roof and a start-up
time. An op whose operands fit in a nearer level is served by it; of a larger one
the part that fits is, so that time grows steadily with size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from perfmodel.hardware import Device
from perfmodel.timing.work import OpWork

__all__ = ["BOUNDS", "OpTimes", "Rates", "op_times", "rates_of"]

Floats = npt.NDArray[np.float64]

#: What an op can be bound by.
BOUNDS = ("none", "matrix", "vector", "memory", "latency")

#: Families that run nothing on the device.
_NOTHING = ("view", "host")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What a device gives to each op; arrays of shape [ops], or [ops, …cases].

    Attributes
    ----------
    matrix, vector : ndarray
        FLOP/s that a large op reaches.
    bandwidth : tuple of ndarray
        Bytes/s that a large op reaches, by memory level from the farthest to the nearest.
    capacity : tuple of float or ndarray
        Bytes of each level.
    latency : ndarray
        Seconds of a kernel beside its work.
    """

    matrix: Floats
    vector: Floats
    bandwidth: tuple[Floats, ...]
    capacity: tuple[Floats | float, ...]
    latency: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class OpTimes:
    """Seconds of each op, shape [ops, …cases].

    Attributes
    ----------
    time : ndarray
        The lower bound, resources overlapping: the prediction.
    serial : ndarray
        The upper bound, one resource after the other.
    matrix, vector, memory, latency : ndarray
        The terms.
    bound : ndarray of str
        The largest term's name, ``none`` for an op that runs nothing.
    """

    time: Floats
    serial: Floats
    matrix: Floats
    vector: Floats
    memory: Floats
    latency: Floats
    bound: npt.NDArray[np.str_]


def rates_of(device: Device, work: OpWork) -> Rates:
    """What ``device`` gives to each op of ``work``.

    Raises
    ------
    UnsupportedError
        If the device has no rate for a type that an op computes in, or no
        constants for its family.
    """
    found = [
        _rates(
            device, str(family), str(dtype), uses_matrix=bool(np.any(matrix > 0)), uses_vector=bool(np.any(vector > 0))
        )
        for family, dtype, matrix, vector in zip(
            work.family, work.dtype, work.matrix_flops, work.vector_flops, strict=True
        )
    ]
    matrix, vector, fraction, latency = (np.array(column) for column in zip(*found, strict=True))
    return Rates(
        matrix=matrix,
        vector=vector,
        bandwidth=tuple(level.bandwidth * fraction for level in device.memory),
        capacity=tuple(level.capacity for level in device.memory),
        latency=latency,
    )


def op_times(work: OpWork, rates: Rates) -> OpTimes:
    """Time of each op.

    Parameters
    ----------
    work : OpWork
        Shape [ops, …cases].
    rates : Rates
        Shape [ops], or [ops, …cases] to vary the hardware; broadcast against ``work``.
    """
    columns = (work.matrix_flops, work.vector_flops, work.read, work.written, work.kernels)
    given = (rates.matrix, rates.vector, rates.latency, *rates.bandwidth, *(np.asarray(c) for c in rates.capacity))
    # Costs and rates may each have case axes that the others lack, so all of them are aligned by their first axis.
    axes = max(column.ndim for column in (*columns, *given))
    matrix_flops, vector_flops, read, written, kernels = (_with_axes(column, axes) for column in columns)
    matrix = matrix_flops / _with_axes(rates.matrix, axes)
    vector = vector_flops / _with_axes(rates.vector, axes)
    memory = _memory_time(read + written, rates, axes)
    latency = kernels * _with_axes(rates.latency, axes)
    slowest = np.maximum(np.maximum(matrix, vector), memory)
    terms = np.stack(np.broadcast_arrays(np.zeros_like(slowest), matrix, vector, memory, latency))
    return OpTimes(
        time=latency + slowest,
        serial=latency + matrix + vector + memory,
        matrix=terms[1],
        vector=terms[2],
        memory=terms[3],
        latency=terms[4],
        bound=np.array(BOUNDS)[np.argmax(terms, axis=0)],
    )


def _rates(
    device: Device, family: str, dtype: str, *, uses_matrix: bool, uses_vector: bool
) -> tuple[float, float, float, float]:
    if family in _NOTHING:
        return np.inf, np.inf, np.inf, 0.0
    constants, arithmetic = device.constants(family), device.constants("vector")
    matrix = device.peak("matrix", dtype) * constants.rate if uses_matrix else np.inf
    vector = device.peak("vector", dtype) * arithmetic.rate if uses_vector else np.inf
    return matrix, vector, constants.bandwidth, constants.latency


def _memory_time(size: Floats, rates: Rates, axes: int) -> Floats:
    """The nearest level serves what fits in it, the next one what exceeds it, and so on."""
    left, time = size, np.zeros(1)
    for bandwidth, capacity in zip(reversed(rates.bandwidth[1:]), reversed(rates.capacity[1:]), strict=True):
        served = np.minimum(left, _with_axes(np.asarray(capacity), axes))
        time = time + served / _with_axes(bandwidth, axes)
        left = left - served
    return time + left / _with_axes(rates.bandwidth[0], axes)


def _with_axes(values: Floats, axes: int) -> Floats:
    """Rates of shape [ops] as [ops, 1, …], to broadcast over cases."""
    if values.ndim == 0 or values.ndim >= axes:
        return values
    return values.reshape(values.shape + (1,) * (axes - values.ndim))
