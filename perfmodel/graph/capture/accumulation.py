"""Gradient accumulation: micro-steps that add up their gradients before one optimizer step.

The loop that is captured is that of a training script::

    for inputs in micro_batches:  # all of one shape
        loss = model(inputs) / accumulate
        loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

The first micro-step makes the gradients, each later one adds to them. Nothing else of a micro-step outlives
it, as where its body is a function: a loop that keeps the model's output until the next one replaces it holds
one output more at its peak.

The first two micro-steps are captured, and the second stands for those that follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from perfmodel.graph.capture.recorder import Call
from perfmodel.graph.fold import fold
from perfmodel.graph.ir import Graph
from perfmodel.graph.micro_steps import split_micro_steps

__all__ = ["MicroSteps", "repeat_micro_step"]

#: Micro-steps that are captured: the first differs from the second, which is like all others.
_CAPTURED = 2


class MicroSteps:
    """Which calls belong to which micro-step, and how many micro-steps need no capture.

    Parameters
    ----------
    wanted : int
        Micro-steps of an optimizer step.
    """

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self._ends: list[int] = []

    @property
    def captured(self) -> int:
        """How many have been captured."""
        return len(self._ends)

    @property
    def repeats(self) -> int:
        """How many more there are like the last captured one."""
        return self._wanted - self.captured

    @property
    def last(self) -> slice:
        """Calls of the last captured one."""
        return slice(self._ends[-2] if self.captured > 1 else 0, self._ends[-1])

    def end(self, calls: int) -> None:
        """A micro-step has been captured, and this is the number of calls so far."""
        self._ends.append(calls)

    def done(self, calls: Sequence[Call]) -> bool:
        """Whether those still to come are like the last one.

        A module that keeps something from one micro-step to the next frees what an earlier one made, so
        that no one stands for the others; then all of them are captured.
        """
        if self.captured < min(self._wanted, _CAPTURED):
            return False
        if self.captured == self._wanted:
            return True
        own = calls[self.last]
        made = sorted(index for call in own for index in call.allocates)
        return made == sorted(index for call in own for index in call.frees)


def repeat_micro_step(graph: Graph, micro_steps: MicroSteps) -> Graph:
    """The captured step with the micro-steps that weren't captured, folded; as it is where all were.

    Parameters
    ----------
    graph : Graph
        As captured.
    micro_steps : MicroSteps
    """
    repeats = micro_steps.repeats
    if not repeats:
        return graph
    calls = graph.trace
    last = micro_steps.last
    trace = (*calls[: last.stop], *calls[last] * repeats, *calls[last.stop :])
    folded = fold(graph)
    steps = split_micro_steps(folded.blocks)
    rest = folded.blocks[sum(map(len, steps)) :]
    repeated = (*(block for step in steps for block in step), *steps[-1] * repeats, *rest)
    return replace(folded, blocks=repeated, trace=trace)
