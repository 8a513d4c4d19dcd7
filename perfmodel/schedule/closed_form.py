"""The time of a regular pipeline by formula, over arrays of plans.

Regular: all stages and micro-batches take the same time, and transfers run beside compute,
in order on their link. With p ranks, m micro-batches, v stages (chunks) per rank, F, I and W
the times of a stage, B = I + W, and c that of a transfer (0 where p = 1):

GPipe            p (F + B) + 2 (p - 1) c + (m - 1) (max(F, c) + max(B, c))
LoopedBFS        that, and (v - 1) (max(m max(F, c), p (F + c)) + max(m max(B, c), p (B + c)))
1F1B             (m + p - 1) (F + B) + 2 (m + p - 2 - ceil((m - 1) / p)) c          for c <= F + B
Interleaved1F1B  (p - 1) (F + B + 2 c) + (v m - (v - 1) R) (F + B)
                 + (v - 1) (max(R F, p (F + c)) + max(R B, p (B + c)))              for c <= min(F, B)
zero bubble      v m (F + I + W) + (p - 1) F, DualPipeV twice the last term         for F = I = W, c = 0

R is the number of micro-batches that a chunk takes before the next chunk's turn.

Where they come from. GPipe and LoopedBFS are flow shops whose machines are ranks and links: the
first item passes all of them, the others follow at the pace of the slowest; a chunk can't begin
before its first item is back. In 1F1B every path from the first forward to the last backward
that turns from forward to backward n times has the same compute, (m + p - 1)(F + B), and
2 (m + p - 1 - n) transfers; a turn gains at most p micro-batches, so at least
n = 1 + ceil((m - 1) / p) are needed, and the path with the fewest turns is the longest. In
Interleaved1F1B the warm-up is long enough that transfers delay a rank only at the turns from
chunk to chunk. With c = 0 these are the known (m + p - 1)(F + B) and v m (F + B) + (p - 1)(F + B).
Zero-bubble schedules are laid out for equal times; away from those their critical path changes
from case to case, and the simulation decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from perfmodel.errors import UnknownNameError, UnsupportedError
from perfmodel.schedule.actions import Floats
from perfmodel.schedule.pipeline import SCHEDULES

__all__ = ["has_closed_form", "pipeline_time"]

Bools = npt.NDArray[np.bool_]
_ONE_STAGE = ("GPipe", "1F1B")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plans:
    """All arguments, broadcast against each other."""

    p: Floats
    m: Floats
    v: Floats
    forward: Floats
    inputs: Floats
    weights: Floats
    transfer: Floats

    @property
    def backward(self) -> Floats:
        return self.inputs + self.weights

    @property
    def rounds(self) -> Floats:
        return np.maximum(1.0, self.m // self.p)


def pipeline_time(
    name: str,
    *,
    pp: npt.ArrayLike,
    micro_batches: npt.ArrayLike,
    chunks: npt.ArrayLike = 1,
    forward: npt.ArrayLike,
    backward_input: npt.ArrayLike,
    backward_weight: npt.ArrayLike = 0.0,
    p2p: npt.ArrayLike = 0.0,
) -> Floats:
    """Seconds of a pipeline, from its first forward to its last backward.

    Parameters
    ----------
    name : str
        One of `SCHEDULES`.
    pp, micro_batches, chunks : array_like of int
        Ranks, micro-batches, stages per rank.
    forward, backward_input, backward_weight : array_like
        Seconds of one stage and micro-batch.
    p2p : array_like
        Seconds of a transfer between stages on different ranks.

    Returns
    -------
    ndarray of float64, in the shape that the arguments broadcast to

    Raises
    ------
    UnknownNameError
        No schedule has that name.
    UnsupportedError
        For some of the plans there is no exact formula (`has_closed_form` says which).

    Examples
    --------
    >>> pipeline_time("1F1B", pp=[2, 4], micro_batches=8, forward=1.0, backward_input=2.0).tolist()
    [27.0, 33.0]
    """
    plans = _plans(name, pp, micro_batches, chunks, forward, backward_input, backward_weight, p2p)
    applies = _applies(name, plans)
    if not np.all(applies):
        at = np.unravel_index(int(np.argmin(applies)), applies.shape)
        raise UnsupportedError(
            f"{name} has no closed form for pp {plans.p[at]:g}, {plans.m[at]:g} micro-batches, {plans.v[at]:g} chunks, "
            f"forward {plans.forward[at]:g} s, backward {plans.inputs[at]:g} + {plans.weights[at]:g} s and "
            f"p2p {plans.transfer[at]:g} s: it needs {_condition(name)}; use simulate(pipeline_tasks(...))"
        )
    return _seconds(name, plans)


def has_closed_form(
    name: str,
    *,
    pp: npt.ArrayLike,
    micro_batches: npt.ArrayLike,
    chunks: npt.ArrayLike = 1,
    forward: npt.ArrayLike,
    backward_input: npt.ArrayLike,
    backward_weight: npt.ArrayLike = 0.0,
    p2p: npt.ArrayLike = 0.0,
) -> Bools:
    """For which plans `pipeline_time` is exact; the arguments are the same.

    Raises
    ------
    UnknownNameError
        No schedule has that name.

    Examples
    --------
    >>> plans = dict(pp=4, micro_batches=8, chunks=2, forward=1.0, backward_input=1.0, backward_weight=1.0)
    >>> has_closed_form("ZBVZeroBubble", p2p=[0.0, 0.1], **plans).tolist()
    [True, False]
    """
    return _applies(name, _plans(name, pp, micro_batches, chunks, forward, backward_input, backward_weight, p2p))


def _plans(name: str, *values: npt.ArrayLike) -> _Plans:
    if name not in SCHEDULES:
        raise UnknownNameError("pipeline schedule", name, SCHEDULES)
    p, m, v, forward, inputs, weights, transfer = np.broadcast_arrays(
        *(np.asarray(value, dtype=np.float64) for value in values)
    )
    return _Plans(
        p=p,
        m=m,
        v=v,
        forward=forward,
        inputs=inputs,
        weights=weights,
        transfer=np.where(p > 1, transfer, 0.0),
    )


def _applies(name: str, plans: _Plans) -> Bools:
    p, m, v, f, b, c = plans.p, plans.m, plans.v, plans.forward, plans.backward, plans.transfer
    exists = (p >= 1) & (m >= 1) & (v == 1 if name in _ONE_STAGE else v >= 2)
    if name in ("GPipe", "LoopedBFS"):
        return np.asarray(exists)
    if name == "1F1B":
        return np.asarray(exists & (c <= f + b))
    if name == "Interleaved1F1B":
        return np.asarray(exists & (m % plans.rounds == 0) & ((c <= np.minimum(f, b)) | (p == 1)))
    equal = (f == plans.inputs) & (f == plans.weights) & (c == 0)
    if name == "InterleavedZeroBubble":
        return np.asarray(exists & (m % plans.rounds == 0) & (equal & (m >= p) | (p == 1)))
    full = m >= (2 * p - 1 if name == "ZBVZeroBubble" else 2 * p)
    return np.asarray(exists & (v == 2) & full & (equal | (p == 1)))


def _condition(name: str) -> str:
    stages = "one chunk" if name in _ONE_STAGE else "at least two chunks"
    return {
        "GPipe": stages,
        "LoopedBFS": stages,
        "1F1B": f"{stages}, and a p2p no longer than forward and backward together",
        "Interleaved1F1B": f"{stages}, rounds of equal size, and a p2p no longer than a forward or a backward",
        "InterleavedZeroBubble": f"{stages}, rounds of equal size, as many micro-batches as ranks, "
        "equal times of forward and both parts of backward, and no p2p",
        "ZBVZeroBubble": "two chunks, 2 pp - 1 micro-batches, equal times of forward and both parts of backward, "
        "and no p2p",
        "DualPipeV": "two chunks, 2 pp micro-batches, equal times of forward and both parts of backward, and no p2p",
    }[name]


def _seconds(name: str, plans: _Plans) -> Floats:
    p, m, v, f, b, c = plans.p, plans.m, plans.v, plans.forward, plans.backward, plans.transfer
    if name in ("GPipe", "LoopedBFS"):
        slowest_f, slowest_b = np.maximum(f, c), np.maximum(b, c)
        turns = np.maximum(m * slowest_f, p * (f + c)) + np.maximum(m * slowest_b, p * (b + c))
        once = p * (f + b) + 2 * (p - 1) * c + (m - 1) * (slowest_f + slowest_b)
        return np.asarray(once + (v - 1) * turns)
    if name == "1F1B":
        transfers = np.where(p > 1, 2 * (m + p - 2 - np.ceil((m - 1) / p)), 0.0)
        return np.asarray((m + p - 1) * (f + b) + transfers * c)
    if name == "Interleaved1F1B":
        size = m // plans.rounds
        turns = np.maximum(size * f, p * (f + c)) + np.maximum(size * b, p * (b + c))
        return np.asarray((p - 1) * (f + b + 2 * c) + (v - 1) * turns + (v * m - (v - 1) * size) * (f + b))
    bubble = (p - 1) * f * (2 if name == "DualPipeV" else 1)
    return np.asarray(v * m * (f + b) + bubble)
