"""The micro-steps of a step: each a forward and its backward."""

from __future__ import annotations

from collections.abc import Iterable

from perfmodel.graph.ir import Block

__all__ = ["split_micro_steps"]

_PHASES = ("forward", "backward", "recompute")


def split_micro_steps(blocks: Iterable[Block]) -> list[tuple[Block, ...]]:
    """The blocks of forward and backward, one tuple a micro-step; others (optimizer, release) are left out.

    A forward that follows anything but forward begins a new one. Gradient
    accumulation has several; repeated ones are equal.
    """
    steps: list[list[Block]] = []
    before = ""
    for block in blocks:
        phase = block.ops[0].phase
        if phase in _PHASES:
            if not steps or (phase == "forward" and before != "forward"):
                steps.append([])
            steps[-1].append(block)
        before = phase
    return [tuple(step) for step in steps]
