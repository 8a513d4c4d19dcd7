"""Schedules given as a table, in the text of torch.distributed.pipelining."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np

from perfmodel.errors import UnsupportedError
from perfmodel.schedule.actions import Action, ActionKind, Ints, Schedule
from perfmodel.schedule.build import StageTimes, pipeline_tasks
from perfmodel.schedule.order import chain, cross_edges, levels, waiting_circle

__all__ = ["check_schedule", "from_table"]

_ACTION = re.compile(r"(\d+)([FBIW])(\d+)")
_PAIR = re.compile(r"\((\d+)F(\d+);(\d+)B(\d+)\)OVERLAP_F_B")


def from_table(text: str, *, name: str = "table") -> Schedule:
    r"""Read a schedule: one line per rank, actions separated by commas, empty cells for idle steps.

    Parameters
    ----------
    text : str
        The content of such a CSV file; ``3F0`` is the forward of stage 3 for micro-batch 0.
    name : str
        What to call it, also in errors.

    Raises
    ------
    UnsupportedError
        An action can't be read, is missing, double or on a second rank, or the ranks would wait for each
        other for ever.

    Examples
    --------
    >>> schedule = from_table("0F0,0F1,,0B1,0B0\n,1F0,1F1,1B1,1B0", name="mine")
    >>> schedule.pp, schedule.micro_batches, schedule.stages
    (2, 2, 2)
    """
    rows = [row for row in text.strip("\n").splitlines() if row.strip(", \t")]
    ranks = [
        [_read(cell.strip(), f"{name}: rank {rank}, cell {column + 1}") for column, cell in enumerate(row.split(","))]
        for rank, row in enumerate(rows)
    ]
    actions = [[action for action in row if action is not None] for row in ranks]
    if not actions:
        raise UnsupportedError(f"{name}: the table has no actions; give one line of them per rank")
    stage_rank = _placement(name, actions)
    flat = [action for row in actions for action in row]
    batches = 1 + max(max(action.micro_batch, action.backward_micro_batch) for action in flat)
    if batches > len(flat):
        raise UnsupportedError(f"{name}: micro-batch {batches - 1} is one of {len(flat)} actions; number them from 0")
    most = max(Counter(stage_rank.tolist()).values())

    def column(field: str) -> Ints:
        return np.array([getattr(action, field) for action in flat], dtype=np.int64)

    schedule = Schedule(
        name=name,
        pp=len(actions),
        micro_batches=batches,
        stages_per_rank=most,
        stage_rank=stage_rank,
        offsets=np.concatenate([[0], np.cumsum([len(row) for row in actions])]),
        kind=column("kind"),
        stage=column("stage"),
        micro_batch=column("micro_batch"),
        backward_stage=column("backward_stage"),
        backward_micro_batch=column("backward_micro_batch"),
    )
    check_schedule(schedule)
    return schedule


def _read(cell: str, where: str) -> Action | None:
    if not cell:
        return None
    if match := _PAIR.fullmatch(cell):
        stage, batch, other, other_batch = map(int, match.groups())
        return Action(
            kind=ActionKind.FB,
            stage=stage,
            micro_batch=batch,
            backward_stage=other,
            backward_micro_batch=other_batch,
        )
    if match := _ACTION.fullmatch(cell):
        return Action(kind=ActionKind[match[2]], stage=int(match[1]), micro_batch=int(match[3]))
    raise UnsupportedError(
        f"{where}: {cell!r} isn't an action; write stage, kind (F, B, I or W) and micro-batch, e.g. 2F0, "
        "or (2F3;5B1)OVERLAP_F_B, and leave out communication"
    )


def _placement(name: str, actions: list[list[Action]]) -> Ints:
    places: dict[int, int] = {}
    for rank, row in enumerate(actions):
        for action in row:
            for stage in (action.stage, action.backward_stage):
                if stage >= 0 and places.setdefault(stage, rank) != rank:
                    raise UnsupportedError(
                        f"{name}: stage {stage} is on rank {places[stage]} and on rank {rank}; keep it on one"
                    )
    if max(places) >= len(places):
        absent = next(stage for stage in range(len(places)) if stage not in places)
        raise UnsupportedError(f"{name}: stage {absent} has no actions; number stages from 0 without gaps")
    return np.array([places[stage] for stage in range(len(places))], dtype=np.int64)


def check_schedule(schedule: Schedule) -> None:
    """Refuse a schedule that isn't complete or can't run.

    Every stage has one forward and one backward, whole or in its two parts, of every micro-batch;
    on its rank a forward comes before its backward and the input's gradient before the weights';
    and the ranks never wait for each other in a circle.

    Raises
    ------
    UnsupportedError
        Says which action is wrong.
    """
    pair = schedule.kind == ActionKind.FB
    single = ~pair
    shape = (schedule.stages, schedule.micro_batches)

    def cells(kind: ActionKind) -> tuple[Ints, Ints]:
        chosen = single & (schedule.kind == kind)
        stage, batch = schedule.stage[chosen], schedule.micro_batch[chosen]
        position = np.flatnonzero(chosen)
        if kind in (ActionKind.F, ActionKind.B):
            forward = kind is ActionKind.F
            stage = np.concatenate([stage, (schedule.stage if forward else schedule.backward_stage)[pair]])
            other = schedule.micro_batch if forward else schedule.backward_micro_batch
            batch = np.concatenate([batch, other[pair]])
            position = np.concatenate([position, np.flatnonzero(pair)])
        count, at = np.zeros(shape, dtype=np.int64), np.full(shape, -1)
        np.add.at(count, (stage, batch), 1)
        at[stage, batch] = position
        return count, at

    (forward, f_at), (full, b_at), (inputs, i_at), (weights, w_at) = map(cells, list(ActionKind)[:4])
    wrong = [
        (forward != 1, "{n} forwards", forward, "one"),
        (full + inputs != 1, "{n} backwards", full + inputs, "one, B or I"),
        (inputs != weights, "{n} weight gradients", weights, "as many W as I"),
    ]
    for mask, what, count, expected in wrong:
        if mask.any():
            stage, batch = (int(value) for value in np.argwhere(mask)[0])
            raise UnsupportedError(
                f"{schedule.name}: stage {stage} has {what.format(n=count[stage, batch])} of micro-batch {batch}; "
                f"it needs {expected}"
            )
    early = [
        (np.maximum(b_at, i_at) <= f_at, "backward", "forward"),
        ((w_at >= 0) & (w_at < i_at), "weight gradient", "input gradient"),
    ]
    for mask, late, first in early:
        if mask.any():
            stage, batch = (int(value) for value in np.argwhere(mask)[0])
            raise UnsupportedError(
                f"{schedule.name}: the {late} of stage {stage} and micro-batch {batch} comes before its {first}; "
                "swap them"
            )
    _check_progress(schedule)


def _check_progress(schedule: Schedule) -> None:
    tasks = pipeline_tasks(schedule, StageTimes(forward=1.0, backward_input=1.0))
    source, target = cross_edges(tasks)
    order, _ = levels(len(tasks), chain(tasks), source, target)
    if len(order) < len(tasks):
        stuck = np.setdiff1d(np.arange(len(tasks)), order)
        raise UnsupportedError(
            f"{schedule.name}: ranks wait for each other for ever: {waiting_circle(tasks, stuck)}; "
            "change a rank's order"
        )
