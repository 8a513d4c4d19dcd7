"""Memory of each pipeline rank over a step, by component.

A rank holds its stages' parameters, their optimizer state and, once a backward has made them, their gradients
throughout; for every micro-batch between a stage's forward and the end of its backward that stage's activations;
and during an action what the action itself makes and frees. Which micro-batches are live when is the schedule's
(:meth:`perfmodel.schedule.actions.Schedule.activations`). Peers of other parallel dimensions hold the same.

Sizes are those of PyTorch's caching allocator, which hands out multiples of 512 bytes (``kMinBlockSize`` of
``c10/cuda/CUDACachingAllocator``). Not included: the driver's context, workspaces and buffers of libraries, and
fragmentation.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from perfmodel.graph.ir import RESIDENT_ROLES, Block, Graph, Op, Ref, Storage
from perfmodel.graph.paths import module_family
from perfmodel.parallel.program import Program, is_collective
from perfmodel.parallel.stages import Stage
from perfmodel.schedule.actions import ActionKind, Ints, Schedule
from perfmodel.symbols import evaluate

__all__ = ["COMPONENTS", "RankMemory", "rank_memories"]

Floats = npt.NDArray[np.float64]

#: What memory is for.
COMPONENTS = (
    "parameters",
    "gradients",
    "optimizer",
    "activations",
    "gathered parameters",
    "temporaries",
    "inputs and buffers",
)
_PARAMETERS, _GRADIENTS, _OPTIMIZER, _ACTIVATIONS, _GATHERED, _TEMPORARIES, _INPUTS = range(len(COMPONENTS))
_OF_ROLE = {
    "parameter": _PARAMETERS,
    "gradient": _GRADIENTS,
    "optimizer": _OPTIMIZER,
    "activation": _ACTIVATIONS,
    "temporary": _TEMPORARIES,
    "input": _INPUTS,
    "buffer": _INPUTS,
}

#: Bytes that PyTorch's caching allocator rounds up to.
BLOCK = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class RankMemory:
    """Memory of one pipeline rank over a step, in bytes.

    Attributes
    ----------
    rank : int
        Of the pipeline.
    peak : float
    at_peak : mapping of str to float
        By component (:data:`COMPONENTS`).
    action : str
        During which the peak is reached, as torch.distributed.pipelining writes it, e.g. ``"0B3"``.
    phase, module, op : str
        Of the op that reaches it.
    live : mapping of int to int
        Micro-batches whose activations each of the rank's stages holds then.
    activations : mapping of int to float
        Activations of one micro-batch, by stage.
    resident : float
        Parameters, optimizer state, inputs and buffers: held throughout.
    curve : ndarray of float64, shape [actions of the rank + 1]
        The most that is held during each action, the optimizer last.
    capacity : float
        Of the device.
    """

    rank: int
    peak: float
    at_peak: Mapping[str, float]
    action: str
    phase: str
    module: str
    op: str
    live: Mapping[int, int]
    activations: Mapping[int, float]
    resident: float
    curve: Floats
    capacity: float

    @property
    def fits(self) -> bool:
        """Whether the peak is within the capacity."""
        return self.peak <= self.capacity

    @property
    def largest(self) -> str:
        """The component that holds most at the peak."""
        return max(self.at_peak, key=lambda name: self.at_peak[name])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, without the curve."""
        return {
            "rank": self.rank,
            "peak": self.peak,
            "at_peak": dict(self.at_peak),
            "action": self.action,
            "phase": self.phase,
            "module": self.module,
            "op": self.op,
            "live_micro_batches": {str(stage): count for stage, count in self.live.items()},
            "activations_per_micro_batch": {str(stage): size for stage, size in self.activations.items()},
            "resident": self.resident,
            "capacity": self.capacity,
            "fits": self.fits,
        }


@dataclass(frozen=True, slots=True)
class _Phase:
    """What the ops of an action make and free, relative to its begin."""

    peak: Floats  # by component, where their sum is largest
    rest: Floats  # by component, at the end
    op: Op | None


@dataclass(frozen=True, slots=True)
class _StageMemory:
    resident: Floats
    forward: _Phase
    first_backward: _Phase
    backward: _Phase
    optimizer: _Phase
    outputs: Floats  # what the step's caller holds to its end, such as logits

    @property
    def activations(self) -> Floats:
        """What a forward leaves behind, by component."""
        return self.forward.rest

    @property
    def gradients(self) -> Floats:
        """What the first backward leaves behind beyond that."""
        return self.first_backward.rest + self.forward.rest


def rank_memories(
    program: Program, stages: Sequence[Stage], schedule: Schedule, capacities: Sequence[float]
) -> tuple[RankMemory, ...]:
    """Memory of each rank of a pipeline.

    Parameters
    ----------
    program : Program
    stages : sequence of Stage
        Of the program.
    schedule : Schedule
    capacities : sequence of float
        Bytes of each pipeline rank's device.
    """
    sizes = np.array([_rounded(storage, program.graph) for storage in program.graph.storages])
    component = np.array([_component(storage) for storage in program.graph.storages])
    known: dict[tuple[Any, ...], _StageMemory] = {}
    found = []
    for stage in stages:
        key = (stage.receives, stage.returns, *((tuple(map(id, b.ops)), b.count) for b in stage.blocks))
        if key not in known:
            known[key] = _StageMemories(program.graph, stage, sizes, component).run()
        found.append(known[key])
    return tuple(
        _rank(
            rank,
            schedule,
            {stage: found[stage] for stage in np.flatnonzero(schedule.stage_rank == rank).tolist()},
            capacities[rank],
        )
        for rank in range(schedule.pp)
    )


def _rounded(storage: Storage, graph: Graph) -> float:
    return float(-(-int(evaluate(storage.nbytes, graph.bindings)) // BLOCK) * BLOCK)


def _component(storage: Storage) -> int:
    name = storage.name
    if storage.role == "temporary" and name.endswith(":gathered"):
        return _GATHERED
    return _GRADIENTS if name.endswith(".grad:whole") else _OF_ROLE[storage.role]


# -- one stage ----------------------------------------------------------------------------


class _StageMemories:
    def __init__(self, graph: Graph, stage: Stage, sizes: Floats, component: Ints) -> None:
        self.graph = graph
        self.stage = stage
        self.sizes = sizes
        self.component = component
        self.blocks = stage.blocks
        self.made = {ref.storage for block in self.blocks for op in block.ops for ref in op.allocates}

    def run(self) -> _StageMemory:
        forward, backward, optimizer = (
            [block for block in self.blocks if block.ops[0].phase in phases]
            for phases in (("forward",), ("backward", "recompute"), ("optimizer", "release"))
        )
        received, sent, outputs = self._strangers(forward, backward, optimizer)
        ahead = self._phase(forward, begin=received[0], end=-sent[0])
        first = self._phase(backward, begin=received[1], end=-sent[1])
        again = self._phase(backward, begin=received[1], end=-sent[1], accumulate=True)
        return _StageMemory(self._resident(), ahead, first, again, self._phase(optimizer), outputs)

    def _resident(self) -> Floats:
        total = np.zeros(len(COMPONENTS))
        own = self._own_parameters()
        for number, storage in enumerate(self.graph.storages):
            if storage.role not in (*RESIDENT_ROLES, "optimizer") or number in self.made:
                continue
            if storage.layers is not None:
                copies = sum(stack == storage.stack and layer in storage.layers for stack, layer in self.stage.layers)
            else:
                name = storage.name.rpartition(".")[0] if storage.role == "optimizer" else storage.name
                copies = int(name in own)
            total[self.component[number]] += copies * self.sizes[number]
        return total

    def _own_parameters(self) -> set[str]:
        """Names of parameters, inputs and buffers outside the stacks that the stage uses."""
        used = {
            t.storage
            for block in self.blocks
            for op in block.ops
            if op.phase in ("forward", "backward", "recompute")
            for t in op.inputs.values()
            if t.storage >= 0
        }
        return {self.graph.storages[number].name for number in used}

    def _strangers(
        self, forward: Iterable[Block], backward: Iterable[Block], after: Iterable[Block]
    ) -> tuple[list[Floats], list[Floats], Floats]:
        """What other stages make and this one frees, by phase; what this one makes and doesn't free; outputs."""
        made: dict[tuple[int, int | None], int] = {}
        freed: dict[tuple[int, int | None], int] = {}
        first: dict[tuple[int, int | None], int] = {}
        for phase, blocks in enumerate((forward, backward)):
            for block in blocks:
                for layer in block.layers:
                    for op in block.ops:
                        for tensor in op.inputs.values():
                            if tensor.storage >= 0:
                                first.setdefault(
                                    self._instance(Ref(tensor.storage, tensor.layer, tensor.absolute), layer), phase
                                )
                        for ref in op.allocates:
                            made[self._instance(ref, layer)] = phase
                        for ref in op.frees:
                            freed[self._instance(ref, layer)] = phase
        received, sent = ([np.zeros(len(COMPONENTS)) for _ in range(2)] for _ in range(2))
        lasting = (*RESIDENT_ROLES, "optimizer", "gradient")
        for instance in freed:
            if instance not in made and self.graph.storages[instance[0]].role not in lasting:
                received[first.get(instance, 1)][self.component[instance[0]]] += self.sizes[instance[0]]
        # What the captured step holds to its end, such as the model's output, one of several micro-batches holds to
        # the end of its own backward.
        outputs = np.zeros(len(COMPONENTS))
        held = {
            self._instance(ref, layer)
            for block in after
            for layer in block.layers
            for op in block.ops
            for ref in op.frees
        }
        for instance, phase in made.items():
            if instance not in freed and self.graph.storages[instance[0]].role not in lasting:
                sent[1 if instance in held else phase][self.component[instance[0]]] += self.sizes[instance[0]]
                if instance in held:
                    outputs[self.component[instance[0]]] += self.sizes[instance[0]]
        return received, sent, outputs

    def _instance(self, ref: Ref, layer: int) -> tuple[int, int | None]:
        if not self.graph.storages[ref.storage].stack:
            return ref.storage, None
        return ref.storage, ref.layer if ref.absolute else layer + ref.layer

    def _phase(
        self,
        blocks: Sequence[Block],
        *,
        begin: Floats | None = None,
        end: Floats | None = None,
        accumulate: bool = False,
    ) -> _Phase:
        """The running sum over the ops; ``accumulate``: gradients are added to others, and freed at once."""
        nothing = np.zeros(len(COMPONENTS))
        begin, end = nothing if begin is None else begin, nothing if end is None else end
        spelled, ops = [], []
        for block in blocks:
            changes = np.array([change for op in block.ops for change in self._changes(op, accumulate)])
            spelled.append(np.tile(changes.reshape(-1, len(COMPONENTS)), (block.count, 1)))
            ops += list(block.ops) * block.count
        if not ops:
            return _Phase(np.maximum(begin, 0), begin + end, None)
        changes = np.concatenate(spelled)
        self._shift(changes, ops)
        changes[0] += begin
        curve = np.cumsum(changes, axis=0)
        sums = curve.sum(axis=1)
        where = int(np.argmax(sums))
        peak = curve[where] if sums[where] > 0 else np.zeros(len(COMPONENTS))
        return _Phase(peak, curve[-1] + end, ops[where // 2])

    def _changes(self, op: Op, accumulate: bool) -> tuple[Floats, Floats]:
        made, freed = np.zeros(len(COMPONENTS)), np.zeros(len(COMPONENTS))
        for ref in op.allocates:
            made[self.component[ref.storage]] += self.sizes[ref.storage]
            if accumulate and self.graph.storages[ref.storage].role == "gradient":
                freed[self.component[ref.storage]] -= self.sizes[ref.storage]
        for ref in op.frees:
            freed[self.component[ref.storage]] -= self.sizes[ref.storage]
        return made, freed

    def _shift(self, changes: Floats, ops: Sequence[Op]) -> None:
        """Gathers that overlap are made one unit ahead; what reductions that overlap read lives until the next one."""
        gathers: list[int] = []
        reductions: list[int] = []
        for position, op in enumerate(ops):
            if is_collective(op) and op.attrs["overlap"]:
                (gathers if op.name == "c10d.all_gather_into_tensor" else reductions).append(position)
        for before, here in itertools.pairwise(gathers):
            changes[2 * before] += changes[2 * here]
            changes[2 * here] = 0
        for here, after in reversed(list(itertools.pairwise(reductions))):
            changes[2 * after + 1] += changes[2 * here + 1]
            changes[2 * here + 1] = 0


# -- one rank -----------------------------------------------------------------------------


def _rank(rank: int, schedule: Schedule, memories: Mapping[int, _StageMemory], capacity: float) -> RankMemory:
    part = slice(int(schedule.offsets[rank]), int(schedule.offsets[rank + 1]))
    kind = schedule.kind[part]
    pair, own = kind == ActionKind.FB, np.array(list(memories))
    forward_of = schedule.stage[part]
    backward_of = np.where(pair, schedule.backward_stage[part], forward_of)
    forward = ((kind == ActionKind.F) | pair)[:, None] & (forward_of[:, None] == own)
    backward = ((kind == ActionKind.B) | (kind == ActionKind.I) | pair)[:, None] & (backward_of[:, None] == own)
    seen = np.maximum.accumulate(backward, axis=0)
    has_gradients = np.concatenate([np.zeros((1, len(own)), dtype=bool), seen[:-1]])
    counts = schedule.activations(rank)
    # A forward's own micro-batch isn't there before it.
    held = (counts - forward) @ np.array([memory.activations for memory in memories.values()])
    resident = np.sum([memory.resident for memory in memories.values()], axis=0)
    gradients = np.array([memory.gradients for memory in memories.values()])
    base = resident + held + has_gradients @ gradients

    phases: list[_Phase] = []
    for position in range(len(kind)):
        passed = [memories[int(own[k])].forward for k in np.flatnonzero(forward[position])]
        for k in np.flatnonzero(backward[position]).tolist():
            memory = memories[int(own[k])]
            back = memory.backward if has_gradients[position, k] else memory.first_backward
            passed.append(_after(passed[0], back) if passed else back)
        phases.append(max(passed, key=lambda each: float(each.peak.sum()), default=_NOTHING))
    # The optimizer's ops run stage by stage, when all gradients are there.
    phases.append(max((memory.optimizer for memory in memories.values()), key=lambda each: float(each.peak.sum())))
    final = resident + gradients.sum(axis=0)
    if schedule.micro_batches == 1:
        final = final + np.sum([memory.outputs for memory in memories.values()], axis=0)
    base = np.vstack([base, final])
    totals = base + np.array([phase.peak for phase in phases])
    where = int(np.argmax(totals.sum(axis=1)))
    acts = where < len(kind)
    op = phases[where].op
    return RankMemory(
        rank=rank,
        peak=float(totals[where].sum()),
        at_peak={name: float(size) for name, size in zip(COMPONENTS, totals[where], strict=True)},
        action=str(schedule.actions(rank)[where]) if acts else "optimizer",
        phase="" if op is None else op.phase,
        module="" if op is None else module_family(op.module),
        op="" if op is None else op.name,
        live=dict(zip(own.tolist(), counts[where].tolist(), strict=True)) if acts else {},
        activations={stage: float(memory.activations[_ACTIVATIONS]) for stage, memory in memories.items()},
        resident=float(resident.sum()),
        curve=totals.sum(axis=1),
        capacity=capacity,
    )


_NOTHING = _Phase(np.zeros(len(COMPONENTS)), np.zeros(len(COMPONENTS)), None)


def _after(before: _Phase, phase: _Phase) -> _Phase:
    return _Phase(before.rest + phase.peak, before.rest + phase.rest, phase.op)
