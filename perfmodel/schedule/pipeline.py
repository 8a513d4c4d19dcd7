"""The pipeline schedules of torch.distributed.pipelining, generated.

Every schedule is a rule for one rank r of p that holds v stages (chunks) and sees m
micro-batches. Two families cover all seven:

*One forward, one backward.* A rank walks its forwards in one order and its backwards in
another, w forwards ahead: forward q has the key 3q, backward j the key 3(w + j) + 1, and
where the backward is split the weight gradient k has the key 3(w + d + k) + 2, d steps
later. Sorting by key gives the order.

==================== ============================== ======= =========================================
schedule              w                              d       source
==================== ============================== ======= =========================================
1F1B                  p - 1 - r                              PipeDream-flush, arXiv:2006.09503
Interleaved1F1B       (v - 1) R + 2 (p - 1 - r)              Megatron-LM, arXiv:2104.04473, section 2.2
InterleavedZeroBubble (v - 1) R + p - 1 - r          r       Zero bubble (ZB-H1), arXiv:2401.10241
GPipe                 m                                      GPipe, arXiv:1811.06965
LoopedBFS             v m                                    Breadth-first, arXiv:2211.05953
==================== ============================== ======= =========================================

R is the number of micro-batches that a chunk takes before the next chunk's turn, p where
m is a multiple of p. LoopedBFS alone walks its backwards from the last micro-batch to the first.

*V-shaped.* A rank holds stages r and 2p - 1 - r and goes through phases, each a pattern
that repeats (`perfmodel.schedule.vshape`).
"""

from __future__ import annotations

import numpy as np

from perfmodel.errors import UnknownNameError, UnsupportedError
from perfmodel.schedule.actions import ActionKind, Ints, Schedule
from perfmodel.schedule.vshape import dual_pipe_v, zero_bubble_v

__all__ = ["SCHEDULES", "V_SHAPED", "pipeline", "round_size"]

SCHEDULES = ("GPipe", "1F1B", "Interleaved1F1B", "LoopedBFS", "InterleavedZeroBubble", "ZBVZeroBubble", "DualPipeV")
V_SHAPED = ("ZBVZeroBubble", "DualPipeV")
_ONE_STAGE = ("GPipe", "1F1B")


def pipeline(name: str, *, pp: int, micro_batches: int, stages_per_rank: int | None = None) -> Schedule:
    """The order in which each rank of a pipeline works.

    Parameters
    ----------
    name : str
        One of `SCHEDULES`.
    pp : int
        Ranks of the pipeline.
    micro_batches : int
        Micro-batches of a step.
    stages_per_rank : int, optional
        Default 1 for GPipe and 1F1B, else 2.

    Raises
    ------
    UnknownNameError
        No schedule has that name.
    UnsupportedError
        The schedule doesn't exist for these numbers.

    Examples
    --------
    >>> schedule = pipeline("ZBVZeroBubble", pp=2, micro_batches=4)
    >>> print(schedule.to_table().splitlines()[1])
    1F0,2F0,1F1,2F1,2I0,2W0,1F2,1I0,1W0,2F2,2I1,2W1,1F3,1I1,1W1,2F3,2I2,2W2,1I2,2I3,1I3,1W2,2W3,1W3
    """
    if name not in SCHEDULES:
        cure = f"known are {', '.join(SCHEDULES)}, and from_table() takes any other as a table"
        raise UnknownNameError("pipeline schedule", name, SCHEDULES, cure=cure)
    stages_per_rank = stages_per_rank or (1 if name in _ONE_STAGE else 2)
    _check(name, pp, micro_batches, stages_per_rank)
    if name in V_SHAPED:
        return _v_shaped(name, pp, micro_batches)
    return _looped(name, pp, micro_batches, stages_per_rank)


def round_size(name: str, pp: int, micro_batches: int) -> int:
    """How many micro-batches a chunk takes before the next chunk's turn, in a depth-first schedule.

    The rule is PyTorch's: as many rounds as micro-batches have whole pipelines, of equal size.

    Raises
    ------
    UnsupportedError
        The rounds aren't of equal size.
    """
    rounds = max(1, micro_batches // pp)
    if micro_batches % rounds:
        near = rounds * max(1, micro_batches // rounds)
        raise UnsupportedError(
            f"{name} with pp {pp} takes micro-batches in {rounds} equal rounds, which {micro_batches} don't make; "
            f"take {near} or {near + rounds}"
        )
    return micro_batches // rounds


def _check(name: str, pp: int, micro_batches: int, stages_per_rank: int) -> None:
    for what, value in (("pp", pp), ("micro_batches", micro_batches), ("stages_per_rank", stages_per_rank)):
        if value < 1:
            raise UnsupportedError(f"{name} needs {what} of at least 1, not {value}")
    if name in _ONE_STAGE and stages_per_rank != 1:
        other = "LoopedBFS" if name == "GPipe" else "Interleaved1F1B"
        raise UnsupportedError(f"{name} holds one stage per rank, not {stages_per_rank}; use {other}")
    if name in V_SHAPED and stages_per_rank != 2:
        raise UnsupportedError(f"{name} holds exactly two stages per rank, not {stages_per_rank}")
    if name not in _ONE_STAGE and stages_per_rank < 2:
        other = "GPipe" if name == "LoopedBFS" else "1F1B"
        raise UnsupportedError(f"{name} holds at least two stages per rank, not {stages_per_rank}; use {other}")
    if name == "DualPipeV" and micro_batches < 2 * pp:
        raise UnsupportedError(
            f"DualPipeV needs at least as many micro-batches as stages ({2 * pp}), not {micro_batches}; "
            "use ZBVZeroBubble, or more micro-batches"
        )


def _looped(name: str, pp: int, micro_batches: int, chunks: int) -> Schedule:
    """Stage s on rank s mod pp."""
    count = chunks * micro_batches
    rank = np.arange(pp)[:, None]
    step = np.arange(count)[None, :]
    depth_first = name in ("Interleaved1F1B", "InterleavedZeroBubble")
    size = round_size(name, pp, micro_batches) if depth_first else micro_batches
    chunk = step // size % chunks
    micro_batch = step // (size * chunks) * size + step % size
    ahead = {
        "GPipe": count + 0 * rank,
        "LoopedBFS": count + 0 * rank,
        "1F1B": pp - 1 - rank,
        "Interleaved1F1B": (chunks - 1) * size + 2 * (pp - 1 - rank),
        "InterleavedZeroBubble": (chunks - 1) * size + pp - 1 - rank,
    }[name]
    ahead = np.minimum(ahead, count)
    backward_batch = micro_batches - 1 - micro_batch if name == "LoopedBFS" else micro_batch
    forward_stage, backward_stage = chunk * pp + rank, (chunks - 1 - chunk) * pp + rank
    split = name == "InterleavedZeroBubble"
    columns = [
        (ActionKind.F, 3 * step + 0 * rank, forward_stage, micro_batch),
        (ActionKind.I if split else ActionKind.B, 3 * (ahead + step) + 1, backward_stage, backward_batch),
    ]
    if split:
        columns.append((ActionKind.W, 3 * (ahead + rank + step) + 2, backward_stage, backward_batch))
    keys = np.concatenate([key for _, key, _, _ in columns], axis=1)
    order = np.argsort(keys, axis=1)
    kinds = np.concatenate([np.full((pp, count), kind) for kind, *_ in columns], axis=1)
    stages = np.concatenate([stage for _, _, stage, _ in columns], axis=1)
    batches = np.concatenate([np.broadcast_to(batch, (pp, count)) for *_, batch in columns], axis=1)
    none = np.full(kinds.size, -1)
    return Schedule(
        name=name,
        pp=pp,
        micro_batches=micro_batches,
        stages_per_rank=chunks,
        stage_rank=np.arange(pp * chunks) % pp,
        offsets=np.arange(pp + 1) * kinds.shape[1],
        kind=np.take_along_axis(kinds, order, axis=1).ravel(),
        stage=np.take_along_axis(stages, order, axis=1).ravel(),
        micro_batch=np.take_along_axis(batches, order, axis=1).ravel(),
        backward_stage=none,
        backward_micro_batch=none,
    )


def _v_shaped(name: str, pp: int, micro_batches: int) -> Schedule:
    """Stages r and 2 pp - 1 - r on rank r."""
    make = zero_bubble_v if name == "ZBVZeroBubble" else dual_pipe_v
    ranks = [make(pp, rank, micro_batches) for rank in range(pp)]
    lengths: Ints = np.array([len(kind) for kind, *_ in ranks])
    kind, stage, micro_batch, other, other_batch = (np.concatenate(column) for column in zip(*ranks, strict=True))
    return Schedule(
        name=name,
        pp=pp,
        micro_batches=micro_batches,
        stages_per_rank=2,
        stage_rank=np.concatenate([np.arange(pp), np.arange(pp)[::-1]]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        kind=kind,
        stage=stage,
        micro_batch=micro_batch,
        backward_stage=other,
        backward_micro_batch=other_batch,
    )
