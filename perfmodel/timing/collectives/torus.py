"""Collectives on a torus of direct links, after "How to Scale Your Model", part 3 (Austin et al., 2025).

Legend: V bytes of the whole gathered, scattered or reduced array; S bytes that one
rank sends in an all-to-all; X_i ranks along axis i, N of them in all; w bandwidth of
a link in one direction; T_min the latency of a hop. An axis that closes into a ring is
used in both directions, so W_i = 2w, and W_i = w for an open one, whose ends are far apart::

    all-gather, reduce-scatter   max( T_min sum_i h_i, V (N - 1)/N / sum_i W_i )
    all-reduce                   twice that
    all-to-all                   max( T_min sum_i h_i, max_i S X_i / (4 W_i) )
    h_i                          X_i // 2 hops on a ring, X_i - 1 on an open axis

Ranks that are d devices apart on an axis leave room for d - 1 groups between them. All of them
run at once, so each has W_i / d, and d hops from one rank to the next.

The book writes V / (W n_axes), i.e. leaves out (N - 1)/N; and bytes/4W for an all-to-all of an
array of V = N S bytes on one ring, which is N S/4W here. On an open axis half of it crosses the middle link.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["torus_time"]

Floats = npt.NDArray[np.float64]


def torus_time(
    op: str,
    nbytes: npt.ArrayLike,
    shape: tuple[int, ...],
    wraps: tuple[bool, ...],
    strides: tuple[int, ...] = (),
    *,
    bandwidth: float,
    hop: float,
) -> Floats:
    """Seconds of a collective over a box of a torus.

    Parameters
    ----------
    op : str
        A name of :data:`perfmodel.timing.collectives.OPS`.
    nbytes : array_like
        As nccl-tests counts them.
    shape : tuple of int
        Ranks along each axis.
    wraps : tuple of bool
        Which axes close into a ring.
    strides : tuple of int, optional
        How many devices apart the ranks are along each axis; neighbours if left out.
    bandwidth : float
        Bytes/s of a link in one direction.
    hop : float
        Seconds that a hop takes at least.

    Examples
    --------
    The book's all-gather of 34 MB over an open axis of four TPU v5e (560 us), and over a ring (377 us):

    >>> float(torus_time("all_gather", 33.55e6, (4,), (False,), bandwidth=4.5e10, hop=1e-6).round(6))
    0.000559
    >>> float(torus_time("all_gather", 33.55e6 * 4 / 3, (4,), (True,), bandwidth=4.5e10, hop=1e-6).round(6))
    0.000373
    """
    size = np.asarray(nbytes, float)
    apart = strides or (1,) * len(shape)
    axes = [(length, ring, far) for length, ring, far in zip(shape, wraps, apart, strict=True) if length > 1]
    if not axes:
        return np.zeros_like(size)
    ranks = float(np.prod([length for length, _, _ in axes]))
    lanes = [bandwidth * (2 if ring else 1) / far for _, ring, far in axes]
    latency = hop * sum(far * (length // 2 if ring else length - 1) for length, ring, far in axes)
    if op == "send_recv":
        return np.maximum(latency, size / bandwidth)
    if op == "all_to_all":
        busiest = max(length / (4 * lane) for (length, _, _), lane in zip(axes, lanes, strict=True))
        return np.maximum(latency, size * busiest)
    share = 1.0 if op == "broadcast" else (ranks - 1) / ranks
    once = np.maximum(latency, size * share / sum(lanes))
    return 2 * once if op == "all_reduce" else once
