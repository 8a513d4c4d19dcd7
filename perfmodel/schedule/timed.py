"""Times of a program's stages on the devices of a cluster: what a step's task graph is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from perfmodel.errors import UnsupportedError
from perfmodel.hardware import Device
from perfmodel.parallel.program import Program
from perfmodel.parallel.stages import Stage
from perfmodel.runtimes import Runtime
from perfmodel.schedule.actions import Schedule
from perfmodel.schedule.pipeline import pipeline
from perfmodel.schedule.step import StepParts
from perfmodel.symbols import evaluate
from perfmodel.timing.ops import OpTable
from perfmodel.timing.parts import LayerTimes, StageWork
from perfmodel.timing.placement import PlacedPlan
from perfmodel.timing.stage import StageActions

__all__ = ["TimedProgram"]


@dataclass(frozen=True, kw_only=True)
class TimedProgram:
    """A program's stages on the devices that run them.

    Attributes
    ----------
    program : Program
    stages : tuple of Stage
    placed : PlacedPlan
    tables : mapping of str to OpTable
        Times of the ops, by device.
    software : Runtime
    """

    program: Program
    stages: tuple[Stage, ...]
    placed: PlacedPlan
    tables: Mapping[str, OpTable]
    software: Runtime

    @property
    def schedule(self) -> Schedule:
        """The pipeline's schedule; of a single rank, its micro-batches one after the other."""
        plan = self.program.plan
        if plan.pp == 1:
            return pipeline("1F1B", pp=1, micro_batches=plan.micro_batches)
        return pipeline(plan.schedule, pp=plan.pp, micro_batches=plan.micro_batches, stages_per_rank=plan.vpp)

    def parts(self, *, spelled: bool = False) -> StepParts:
        """What the step's task graph is made of.

        Parameters
        ----------
        spelled : bool
            Every module and collective by itself, which takes longer and gives the same times.
        """
        plan, graph = self.program.plan, self.program.graph
        actions = self._actions(spelled)
        rank_of = [stage.rank for stage in self.stages]
        forward, backward = np.zeros(len(self.stages)), np.zeros(len(self.stages))
        for k, after in enumerate(self.stages[1:]):
            if rank_of[k] != rank_of[k + 1]:
                sizes = (float(evaluate(size, graph.bindings)) for size in (after.receives, after.returns))
                to, back = sizes
                forward[k] = self.placed.transfer(rank_of[k], rank_of[k + 1], to) if to else 0.0
                backward[k] = self.placed.transfer(rank_of[k + 1], rank_of[k], back) if back else 0.0

        def work(stage: int, action: str, first: bool, last: bool) -> StageWork:
            return actions[stage].work(action, first=first, last=last)

        return StepParts(
            schedule=self.schedule,
            work=work,
            transfer_forward=forward,
            transfer_backward=backward,
            blocking="p2p" not in plan.overlap,
            start=self.software.host.step,
        )

    def table(self, stage: int) -> OpTable:
        """Times of the ops on the device that decides how long a stage takes."""
        return self._slowest(self.stages[stage], False, {})[0]

    def layer_times(self, stage: int) -> LayerTimes:
        """Seconds of all the model's layers on the devices of a stage, the slowest of them."""
        rank = self.stages[stage].rank
        timer = partial(self._collective, rank)
        found = [
            StageActions(self.program.graph, self.tables[device.name], timer).layer_times()
            for device in self.placed.devices(rank)
        ]
        return max(found, key=lambda each: sum(each.layers))

    def _actions(self, spelled: bool) -> list[StageActions]:
        known: dict[tuple[Any, ...], StageActions] = {}
        return [self._slowest(stage, spelled, known)[1] for stage in self.stages]

    def _slowest(
        self, stage: Stage, spelled: bool, known: dict[tuple[Any, ...], StageActions]
    ) -> tuple[OpTable, StageActions]:
        """The actions of a stage on the slowest of its devices; those of stages with the same ops are the same."""
        found: list[tuple[float, str, StageActions]] = []
        ops = tuple((tuple(map(id, block.ops)), block.count) for block in stage.blocks)
        for device in self.placed.devices(stage.rank):
            # Names of modules tell spelled-out stages apart.
            rank = stage.rank if self.placed.cluster.mixed else 0
            key = (device.name, rank, stage.index if spelled else 0, ops)
            if key not in known:
                timer = partial(self._collective, rank)
                known[key] = StageActions(stage.graph(self.program), self.tables[device.name], timer, spelled=spelled)
            actions = known[key]
            found.append((actions.work("F").time + actions.work("B").time, device.name, actions))
        _, name, actions = max(found, key=lambda each: each[0])
        return self.tables[name], actions

    def _collective(self, rank: int, op: str, kind: str, nbytes: float) -> float:
        return self.placed.time(op, kind, nbytes, rank)


def tables_of(program: Program, devices: Sequence[Device], software: Runtime) -> dict[str, OpTable]:
    """Times of a program's ops on each kind of device.

    Raises
    ------
    UnsupportedError
        If a device doesn't run the software, or has no rate for a type that an op computes in.
    """
    found = {}
    for device in devices:
        if software.like not in device.runtimes:
            raise UnsupportedError(
                f"{device.name} doesn't run {software.name!r}; its runtimes: {', '.join(device.runtimes)}"
            )
        found[device.name] = OpTable(program.graph, device, software)
    return found
