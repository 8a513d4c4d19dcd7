"""A pipeline schedule: for each rank, which stage does what for which micro-batch, in order.

Names and the text of an action are those of torch.distributed.pipelining: ``3F0`` is the
forward of stage 3 for micro-batch 0, ``B`` a full backward, ``I`` the gradient of the
input, ``W`` that of the weights, and ``(3F5;4B1)OVERLAP_F_B`` a forward and a full
backward of two stages that run as one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

__all__ = ["Action", "ActionKind", "Floats", "Ints", "Schedule"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class ActionKind(IntEnum):
    """What a stage does for a micro-batch."""

    F = 0
    """Forward."""
    B = 1
    """Full backward."""
    I = 2  # noqa: E741 (the field's name)
    """Backward with respect to the input."""
    W = 3
    """Backward with respect to the weights."""
    FB = 4
    """A forward of one stage and a full backward of another, overlapped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One step of a rank.

    Attributes
    ----------
    kind : ActionKind
    stage, micro_batch : int
        Of the forward, for an overlapped pair.
    backward_stage, backward_micro_batch : int
        Of the backward of an overlapped pair; -1 for every other kind.

    Examples
    --------
    >>> str(Action(kind=ActionKind.I, stage=3, micro_batch=7))
    '3I7'
    """

    kind: ActionKind
    stage: int
    micro_batch: int
    backward_stage: int = -1
    backward_micro_batch: int = -1

    def __str__(self) -> str:
        if self.kind is ActionKind.FB:
            forward = f"{self.stage}F{self.micro_batch}"
            return f"({forward};{self.backward_stage}B{self.backward_micro_batch})OVERLAP_F_B"
        return f"{self.stage}{self.kind.name}{self.micro_batch}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The ordered actions of all ranks, as columns.

    Attributes
    ----------
    name : str
        As in torch.distributed.pipelining, or what the table was called.
    pp, micro_batches, stages_per_rank : int
        Ranks, micro-batches of a step, and stages that each rank holds.
    stage_rank : ndarray of int64, shape [stages]
        Which rank holds a stage.
    offsets : ndarray of int64, shape [pp + 1]
        Where each rank's actions begin in the columns.
    kind, stage, micro_batch, backward_stage, backward_micro_batch : ndarray of int64, shape [actions]
        The actions, rank after rank, as in `Action`.
    """

    name: str
    pp: int
    micro_batches: int
    stages_per_rank: int
    stage_rank: Ints
    offsets: Ints
    kind: Ints
    stage: Ints
    micro_batch: Ints
    backward_stage: Ints
    backward_micro_batch: Ints

    @property
    def stages(self) -> int:
        """How many stages the model is cut into."""
        return len(self.stage_rank)

    @property
    def action_rank(self) -> Ints:
        """The rank of each action, shape [actions]."""
        return np.repeat(np.arange(self.pp), np.diff(self.offsets))

    @property
    def splits_backward(self) -> bool:
        """Whether any backward is split into the gradients of input and weights."""
        return bool(np.any(self.kind == ActionKind.I))

    def actions(self, rank: int) -> list[Action]:
        """The actions of one rank, in order."""
        return list(self._actions(rank))

    def _actions(self, rank: int) -> Iterator[Action]:
        part = slice(int(self.offsets[rank]), int(self.offsets[rank + 1]))
        columns = (self.kind, self.stage, self.micro_batch, self.backward_stage, self.backward_micro_batch)
        for kind, stage, micro_batch, other, other_batch in zip(*(c[part].tolist() for c in columns), strict=True):
            yield Action(
                kind=ActionKind(kind),
                stage=stage,
                micro_batch=micro_batch,
                backward_stage=other,
                backward_micro_batch=other_batch,
            )

    def to_table(self) -> str:
        """The text that torch.distributed.pipelining reads and writes: one line per rank, commas between actions.

        >>> from perfmodel.schedule import pipeline
        >>> print(pipeline("1F1B", pp=2, micro_batches=3).to_table())
        0F0,0F1,0B0,0F2,0B1,0B2
        1F0,1B0,1F1,1B1,1F2,1B2
        """
        return "\n".join(",".join(str(action) for action in self._actions(rank)) for rank in range(self.pp))

    def activations(self, rank: int) -> Ints:
        """Micro-batches whose activations each stage of a rank holds during each of the rank's actions.

        A stage holds a micro-batch's activations from its forward to the end of its backward, which
        for a split backward is that of the weights.

        Returns
        -------
        ndarray of int64, shape [actions of the rank, stages of the rank]
            Stages in ascending order.
        """
        part = slice(int(self.offsets[rank]), int(self.offsets[rank + 1]))
        kind, stage, other = self.kind[part], self.stage[part], self.backward_stage[part]
        local = np.flatnonzero(self.stage_rank == rank)
        begins = ((kind == ActionKind.F) | (kind == ActionKind.FB))[:, None] & (stage[:, None] == local)
        ends = ((kind == ActionKind.B) | (kind == ActionKind.W))[:, None] & (stage[:, None] == local)
        ends |= (kind == ActionKind.FB)[:, None] & (other[:, None] == local)
        # What ends with an action is still held during it.
        counts: Ints = np.cumsum(begins.astype(np.int64), axis=0) - np.cumsum(ends.astype(np.int64), axis=0) + ends
        return counts

    def peak_activations(self, weight: npt.ArrayLike = 1.0) -> Floats:
        """The most that each rank holds at once, shape [pp].

        Parameters
        ----------
        weight : float, or array of shape [stages]
            What one micro-batch's activations of a stage count; 1 counts (stage, micro-batch) pairs, bytes give bytes.

        Examples
        --------
        >>> from perfmodel.schedule import pipeline
        >>> pipeline("1F1B", pp=4, micro_batches=8).peak_activations().tolist()
        [4.0, 3.0, 2.0, 1.0]
        """
        weights = np.broadcast_to(np.asarray(weight, dtype=np.float64), (self.stages,))
        peaks = [
            float((self.activations(rank) @ weights[self.stage_rank == rank]).max(initial=0.0))
            for rank in range(self.pp)
        ]
        return np.array(peaks)
