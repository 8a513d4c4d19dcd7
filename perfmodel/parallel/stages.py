"""Cut a program into pipeline stages: by number, by cost, or as given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from perfmodel.errors import UnsupportedError
from perfmodel.graph.ir import RESIDENT_ROLES, Block, Graph, Op, Ref
from perfmodel.ops import Tensor
from perfmodel.parallel.balance import balanced
from perfmodel.parallel.program import Program, is_collective
from perfmodel.symbols import Dim

__all__ = ["Stage", "stages"]

_V_SHAPED = ("ZBVZeroBubble", "DualPipeV")
Layer = tuple[str, int]
Instance = tuple[int, int | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A pipeline stage.

    Attributes
    ----------
    index : int
        Its place in the order in which a micro-batch passes the stages.
    rank : int
        The pipeline rank that runs it.
    layers : tuple of (stack, layer)
    blocks : tuple of Block
        Its part of the program: forward, backward, optimizer, release.
    receives, returns : Dim
        Bytes that it gets from the stage before it forward, and sends back to it backward.
    shared : tuple of str
        Parameters that it shares with another stage (a tied embedding), whose gradients the two add up each step.
    """

    index: int
    rank: int
    layers: tuple[Layer, ...]
    blocks: tuple[Block, ...]
    receives: Dim = 0
    returns: Dim = 0
    shared: tuple[str, ...] = ()

    def graph(self, program: Program) -> Graph:
        """The stage's ops as a graph of its own."""
        return replace(program.graph, blocks=self.blocks)


def stages(program: Program, *, weights: Sequence[float] | None = None) -> tuple[Stage, ...]:
    """The ``pp * vpp`` stages of a program.

    Parameters
    ----------
    program : Program
    weights : sequence of float, optional
        Cost of each layer in the order in which they run, of what comes before the first added to it and
        what comes after the last to that: layers are then cut so that the most expensive stage is as cheap as
        can be. Otherwise the plan's ``stage_layers`` hold, or all stages have the same number of layers.

    Raises
    ------
    UnsupportedError
        If there are fewer layers than stages, or layers and stages don't go together.
    """
    plan, graph = program.plan, program.graph
    layers = _layers(graph)
    count = plan.pp * plan.vpp
    if len(layers) < count and plan.stage_layers is None:
        raise UnsupportedError(
            f"pp {plan.pp} × vpp {plan.vpp} = {count} stages for {len(layers)} layers; give fewer stages"
        )
    if weights is not None:
        if len(weights) != len(layers):
            raise UnsupportedError(f"{len(weights)} weights for {len(layers)} layers; give one for each layer")
        sizes = balanced(weights, count)
    elif plan.stage_layers is not None:
        sizes = plan.stage_layers
    else:
        sizes = (len(layers) // count,) * count
    if sum(sizes) != len(layers):
        raise UnsupportedError(f"stages of {', '.join(map(str, sizes))} layers for {len(layers)}; give stage_layers")
    stage_of: dict[Layer, int] = {}
    position = 0
    for index, size in enumerate(sizes):
        stage_of.update(dict.fromkeys(layers[position : position + size], index))
        position += size
    return _Cut(program, stage_of, count).run()


def _layers(graph: Graph) -> list[Layer]:
    """Layers of all stacks in the order in which they run forward."""
    found: dict[Layer, None] = {}
    for block in graph.blocks:
        if block.stack and block.ops[0].phase == "forward":
            found.update(dict.fromkeys((block.stack, layer) for layer in _covered(block)))
    return list(found)


def _last_of_stacks(graph: Graph, phase: str) -> int:
    """Position of the last block of layers in a phase."""
    phases = ("forward",) if phase == "forward" else ("backward", "recompute")
    return max((k for k, b in enumerate(graph.blocks) if b.stack and b.ops[0].phase in phases), default=-1)


def _covered(block: Block) -> Iterator[int]:
    """Layers of a block in the order in which they run."""
    width, sign = abs(block.step), 1 if block.step > 0 else -1
    for first in block.layers:
        yield from (first + sign * k for k in range(width))


class _Cut:
    def __init__(self, program: Program, stage_of: dict[Layer, int], count: int) -> None:
        self.program = program
        self.graph = program.graph
        self.stage_of = stage_of
        self.last = count - 1
        self.count = count
        self.pieces: list[list[Block]] = [[] for _ in range(count)]
        self.numbers = {storage.name: number for number, storage in enumerate(self.graph.storages)}
        self.owner = self._owners_of_parameters()
        self.moved: list[tuple[list[Op], list[Op]]] = []

    def run(self) -> tuple[Stage, ...]:
        current = 0
        last_forward, last_backward = _last_of_stacks(self.graph, "forward"), _last_of_stacks(self.graph, "backward")
        for position, block in enumerate(self.graph.blocks):
            phase = block.ops[0].phase
            if phase in ("optimizer", "release"):
                self._by_parameter(block)
            elif block.stack:
                for stage, part in self._split(block):
                    self.pieces[stage].append(part)
                    current = stage
            else:
                # What comes before all layers is with the first stage, what comes after them with the last.
                if phase == "forward" and position > last_forward:
                    current = self.last
                elif phase != "forward" and position > last_backward:
                    current = 0
                self.pieces[current].append(block)
        self._move_members()
        return self._connected()

    def _split(self, block: Block) -> Iterator[tuple[int, Block]]:
        """Repetitions that follow each other in one stage."""
        width, sign = abs(block.step), 1 if block.step > 0 else -1
        run: list[int] = []
        stage = -1
        for first in block.layers:
            own = {self.stage_of[block.stack, first + sign * k] for k in range(width)}
            if len(own) > 1:
                raise UnsupportedError(
                    f"layers {first} to {first + sign * (width - 1)} of {block.stack} repeat as one group, and a stage "
                    f"ends within it; give stage_layers that are multiples of {width}"
                )
            (here,) = own
            if run and here != stage:
                yield stage, replace(block, first=run[0], count=len(run))
                run = []
            stage = here
            run.append(first)
        yield stage, replace(block, first=run[0], count=len(run))

    # -- parameters -------------------------------------------------------------------

    def _owners_of_parameters(self) -> dict[int, set[int]]:
        """Stages that use each parameter outside the stacks."""
        found: dict[int, set[int]] = {}
        current = 0
        last_forward = _last_of_stacks(self.graph, "forward")
        for position, block in enumerate(self.graph.blocks):
            if block.ops[0].phase != "forward":
                continue
            if block.stack:
                *_, layer = _covered(block)
                current = self.stage_of[block.stack, layer]
            stage = self.last if position > last_forward else current
            for op in block.ops:
                for tensor in () if is_collective(op) else op.inputs.values():
                    number = self._parameter(tensor.storage)
                    if number is not None and not self.graph.storages[number].stack:
                        found.setdefault(number, set()).add(stage)
        return found

    def _parameter(self, number: int) -> int | None:
        """The parameter that a storage is, or is a copy, a gradient or a state of."""
        storage = self.graph.storages[number]
        name = storage.name.partition(":")[0]
        if storage.role in ("gradient", "optimizer") or name.endswith(".grad"):
            name = name.rpartition(".")[0]
        known = self.numbers.get(name)
        return known if known is not None and self.graph.storages[known].role == "parameter" else None

    def _by_parameter(self, block: Block) -> None:
        if block.stack:
            for stage, part in self._split(block):
                self.pieces[stage].append(part)
            return
        parts: dict[int, list[Op]] = {}
        stages_of: set[int] = {self.last}
        for op in block.ops:
            own = self._stages_of_op(op)
            # An op between those of a parameter belongs with them.
            stages_of = own or stages_of
            for stage in stages_of:
                parts.setdefault(stage, []).append(op)
        for stage, ops in parts.items():
            self.pieces[stage].append(replace(block, ops=tuple(ops)))

    def _stages_of_op(self, op: Op) -> set[int]:
        refs = [t.storage for t in (*op.inputs.values(), *op.outputs)] + [r.storage for r in op.frees]
        for number in refs:
            parameter = self._parameter(number)
            if parameter in self.owner:
                return self.owner[parameter]
        return set()

    def _move_members(self) -> None:
        """Collectives of parameters outside the stacks: each stage has those of its own."""
        for stage in range(self.count):
            gathers, reductions = [], []
            for blocks in self.pieces:
                for block in blocks:
                    for op in block.ops if not block.stack else ():
                        if is_collective(op) and "sizes" in op.attrs:
                            own = self._members(op, stage)
                            if own is not None and op.phase == "forward":
                                gathers.append(own)
                            elif own is not None and op.phase == "backward":
                                reductions.append(own)
            self.moved.append((gathers, reductions))
        for stage, (gathers, reductions) in enumerate(self.moved):
            kept = [self._without_members(block) for block in self.pieces[stage]]
            if gathers:
                kept.insert(0, Block(ops=tuple(gathers)))
            if reductions:
                last = max(k for k, block in enumerate(kept) if block.ops[0].phase in ("backward", "recompute"))
                kept.insert(last + 1, Block(ops=tuple(reductions)))
            self.pieces[stage] = [block for block in kept if block.ops]

    def _without_members(self, block: Block) -> Block:
        if block.stack or block.ops[0].phase == "optimizer":
            return block
        return replace(block, ops=tuple(op for op in block.ops if not (is_collective(op) and "sizes" in op.attrs)))

    def _members(self, op: Op, stage: int) -> Op | None:
        """The collective for the parameters of one stage."""
        own = [
            k
            for k, tensor in enumerate(op.inputs.values())
            if stage in self.owner.get(self._parameter(tensor.storage) or 0, ())
        ]
        if not own:
            return None
        names, sizes = list(op.inputs), op.attrs["sizes"]
        storages = {op.inputs[names[k]].storage for k in own} | {op.outputs[k].storage for k in own}
        total: Dim = 0
        for k in own:
            total = total + sizes[k]
        return replace(
            op,
            inputs={names[k]: op.inputs[names[k]] for k in own},
            outputs=tuple(op.outputs[k] for k in own),
            attrs={**op.attrs, "bytes": total, "sizes": [sizes[k] for k in own]},
            allocates=tuple(ref for ref in op.allocates if ref.storage in storages),
            frees=tuple(ref for ref in op.frees if ref.storage in storages),
        )

    # -- what passes between stages ---------------------------------------------------

    def _connected(self) -> tuple[Stage, ...]:
        forward = [_Uses(self.graph, blocks, ("forward",)) for blocks in self.pieces]
        backward = [_Uses(self.graph, blocks, ("backward", "recompute")) for blocks in self.pieces]
        made = {instance: stage for stage, uses in enumerate(forward) for instance in uses.written}
        constants = _constants(self.graph)
        receives: list[Dim] = [0] * self.count
        returns: list[Dim] = [0] * self.count
        copied: list[list[Op]] = [[] for _ in range(self.count)]
        for stage, uses in enumerate(forward):
            missing = [i for i in uses.read if i not in uses.written and i in made and made[i] != stage]
            for number, _ in [i for i in missing if i[0] not in constants]:
                for hop in range(made[number, _] + 1, stage + 1):
                    receives[hop] = receives[hop] + self.graph.storages[number].nbytes
            wanted = {number for number, _ in (*missing, *backward[stage].read) if number in constants}
            wanted -= {number for number, _ in uses.written}
            copied[stage] = self._makers(wanted)
        given = {instance: stage for stage, uses in enumerate(backward) for instance in uses.written}
        for stage, uses in enumerate(backward):
            for instance in uses.read:
                source = given.get(instance, stage)
                if instance not in uses.written and source > stage:
                    for hop in range(stage + 1, source + 1):
                        returns[hop] = returns[hop] + self.graph.storages[instance[0]].nbytes
        shared = {number: owners for number, owners in self.owner.items() if len(owners) > 1}
        plan = self.program.plan
        result = []
        for index in range(self.count):
            loop, place = divmod(index, plan.pp)
            back = plan.schedule in _V_SHAPED and loop % 2 == 1
            blocks = tuple(self.pieces[index])
            if copied[index]:
                blocks = (Block(ops=tuple(copied[index])), *blocks)
            result.append(
                Stage(
                    index=index,
                    rank=plan.pp - 1 - place if back else place,
                    layers=tuple(layer for layer, stage in self.stage_of.items() if stage == index),
                    blocks=blocks,
                    receives=receives[index],
                    returns=returns[index],
                    shared=tuple(self.graph.storages[n].name for n, owners in shared.items() if index in owners),
                )
            )
        return tuple(result)

    def _makers(self, wanted: set[int]) -> list[Op]:
        """Forward ops outside the stacks that make these constants (positions, masks), in order."""
        ops = [op for block in self.graph.blocks if not block.stack for op in block.ops if op.phase == "forward"]
        chosen: list[Op] = []
        for op in reversed(ops):
            if {t.storage for t in op.outputs} & wanted:
                chosen.append(op)
                wanted = wanted | {t.storage for t in op.inputs.values()}
        return chosen[::-1]


class _Uses:
    """Storages of each layer that the ops of some phases read and write."""

    def __init__(self, graph: Graph, blocks: Iterable[Block], phases: tuple[str, ...]) -> None:
        self.read: dict[Instance, None] = {}
        self.written: dict[Instance, None] = {}
        for block in blocks:
            ops = [op for op in block.ops if op.phase in phases]
            for layer in block.layers if ops else ():
                for op in ops:
                    # A tied parameter's gradients are added up by an all-reduce of its own.
                    sums = len(op.outputs) == 1 and _is_gradient(graph, op.outputs[0].storage)
                    for tensor in () if sums or is_collective(op) else op.inputs.values():
                        if graph.storages[tensor.storage].role not in RESIDENT_ROLES:
                            self.read[_instance(graph, tensor, layer)] = None
                    for ref in op.allocates:
                        self.written[_instance(graph, ref, layer)] = None


def _is_gradient(graph: Graph, number: int) -> bool:
    storage = graph.storages[number]
    return storage.role == "gradient" or storage.name.endswith(".grad:whole")


def _instance(graph: Graph, ref: Tensor | Ref, layer: int) -> Instance:
    if not graph.storages[ref.storage].stack:
        return ref.storage, None
    return ref.storage, ref.layer if ref.absolute else layer + ref.layer


def _constants(graph: Graph) -> set[int]:
    """Storages outside the stacks that depend on no parameter: every stage makes its own."""
    dependent: set[int] = set()
    constants: set[int] = set()
    for block in graph.blocks:
        for op in block.ops:
            if op.phase != "forward" or is_collective(op):
                continue
            roles = {graph.storages[t.storage].role for t in op.inputs.values()}
            weighs = "parameter" in roles or any(
                ":gathered" in graph.storages[t.storage].name for t in op.inputs.values()
            )
            made = {ref.storage for ref in op.allocates}
            if weighs or block.stack or any(t.storage in dependent for t in op.inputs.values()):
                dependent |= made
            else:
                constants |= made
    return constants - dependent
