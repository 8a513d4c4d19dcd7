"""The V-shaped schedules: rank r of p holds stages r and 2p - 1 - r, and works in phases.

A phase is a pattern of steps and how often it repeats. ``F0`` is a forward of the rank's
first stage, ``I1`` the input gradient of its second, ``W1`` that stage's oldest weight
gradient that is still due, ``W*`` the oldest of both, ``F0+B1`` an overlapped pair. Each
stage takes its micro-batches in order, separately for forwards, backwards and weight
gradients, so the patterns say all.

Sources: ZB-V, arXiv:2401.10241, section 6. DualPipe, arXiv:2412.19437, section 3.2.1, and its
V-shaped half, https://github.com/deepseek-ai/DualPipe.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from perfmodel.schedule.actions import ActionKind, Ints

__all__ = ["dual_pipe_v", "zero_bubble_v"]

Columns = tuple[Ints, Ints, Ints, Ints, Ints]
Phase = tuple[int, str]
Cell = tuple[int, int]
_NONE = (-1, -1)


def zero_bubble_v(pp: int, rank: int, micro_batches: int) -> Columns:
    """Actions of a rank: kind, stage, micro-batch, and stage and micro-batch of a pair's backward."""
    # The schedule is laid out for at least so many micro-batches as fill the pipeline; fewer leave gaps.
    laid_out = max(2 * pp - 1, micro_batches)
    started = 2 * pp - 1 - rank
    phases = [
        (2 * (pp - rank) - 1, "F0"),
        (rank, "F1 F0"),
        (pp - rank, "F1 I1 W1"),
        (laid_out - started, "F0 I0 W0 F1 I1 W1"),
        (pp - rank - 1, "I0 W0 F1 I1 W1"),
        (rank, "I0 I1"),
        (pp - rank, "I0 W0"),
        (rank, "W1"),
        (rank, "W0"),
    ]
    columns = _lay_out(phases, pp, rank)
    kept = columns[2] < micro_batches
    kind, stage, micro_batch, other, other_batch = (column[kept] for column in columns)
    return kind, stage, micro_batch, other, other_batch


def dual_pipe_v(pp: int, rank: int, micro_batches: int) -> Columns:
    """Actions of a rank: kind, stage, micro-batch, and stage and micro-batch of a pair's backward."""
    behind = pp - 1 - rank
    last = rank == pp - 1
    main = micro_batches - 2 * pp + rank + 1
    # In the second half of the draining, backwards are split, and their weight gradients fill what follows.
    full = (rank + 1) // 2
    turn = "B1 I0" if rank % 2 == 0 else "I1 I0"
    phases = [
        (2 * behind, "F0"),
        (rank + 1, "F0 F1"),
        (behind, "I1 W1 F1"),
        # The last rank has nothing to overlap its first backward with that would shorten the bubble.
        (1 if last else 0, "F0 B1 F1+B0"),
        (main - 1 if last else main, "F0+B1 F1+B0"),
        (behind, "B1 F1+B0"),
        (full, "B1 B0"),
        (1, turn),
        (rank - full, "I1 I0"),
        (behind, "W* I0"),
        (rank + 1, "W*"),
    ]
    return _lay_out(phases, pp, rank)


def _lay_out(phases: list[Phase], pp: int, rank: int) -> Columns:
    stages = {"0": rank, "1": 2 * pp - 1 - rank}
    done: Counter[str] = Counter()
    due: list[Cell] = []

    def forward(chunk: str) -> Cell:
        done["F" + chunk] += 1
        return stages[chunk], done["F" + chunk] - 1

    def backward(chunk: str) -> Cell:
        done["B" + chunk] += 1
        return stages[chunk], done["B" + chunk] - 1

    rows: list[tuple[int, int, int, int, int]] = []
    for repeats, pattern in phases:
        for step in pattern.split() * repeats:
            kind, chunk = ActionKind[step[0]], step[1]
            if "+" in step:
                rows.append((ActionKind.FB, *forward(chunk), *backward(step[-1])))
            elif kind is ActionKind.F:
                rows.append((kind, *forward(chunk), *_NONE))
            elif kind is ActionKind.W:
                cell = next(cell for cell in due if chunk == "*" or cell[0] == stages[chunk])
                due.remove(cell)
                rows.append((kind, *cell, *_NONE))
            else:
                cell = backward(chunk)
                rows.append((kind, *cell, *_NONE))
                if kind is ActionKind.I:
                    due.append(cell)
    kind_, stage, micro_batch, other, other_batch = np.array(rows, dtype=np.int64).T
    return kind_, stage, micro_batch, other, other_batch
