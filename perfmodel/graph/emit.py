"""From values to ops with labels: what stays on chip, what launches, when storages live."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from perfmodel.graph.dataflow import Dataflow, Node
from perfmodel.graph.ir import Op, Ref
from perfmodel.graph.kernels import merged_kernels

__all__ = ["emit"]


@dataclass(slots=True)
class _Part:
    """An op in a kernel; the same op may be part of several."""

    node: Node
    place: Node  # the op before which it stands, or itself
    on_chip: list[str] = field(default_factory=list)
    launches: bool = False
    touches: set[int] = field(default_factory=set)  # storages that it reads or writes in memory
    index: int = -1  # among all ops

    @property
    def inlined(self) -> bool:
        return self.node is not self.place


def emit(flow: Dataflow) -> list[Op]:
    """The ops in order of execution, labelled; every storage lives from its first to its last use in memory."""
    kernels = [_parts(flow, nodes) for nodes in _kernels(flow)]
    in_memory = set(flow.kept)
    for parts in kernels:
        in_memory |= _outside_reads(flow, parts)
    at: dict[int, list[_Part]] = {}
    for parts in kernels:
        _label(flow, parts, in_memory)
        for part in parts:
            at.setdefault(part.place.position, []).append(part)
    return _with_lifetimes(flow, kernels, at)


def _kernels(flow: Dataflow) -> Iterator[list[Node]]:
    """The ops of each kernel that aren't inlined. Forward and backward are compiled apart."""
    by_position = {node.position: node for node in flow.nodes}
    for backward in (False, True):
        nodes = [node for node in flow.nodes if node.backward == backward and not node.inlined]
        merged = merged_kernels(
            [node.position for node in nodes],
            {node.position: node.loops for node in nodes},
            {node.position: flow.leaves(node, backward) for node in nodes},
            {node.position: set(node.outputs) for node in nodes},
            {node.position: flow.layers[node.position] for node in nodes},
        )
        for kernel in merged:
            yield [by_position[position] for position in kernel.ops]


def _parts(flow: Dataflow, nodes: Iterable[Node]) -> list[_Part]:
    """All ops of a kernel, each after those that it needs."""
    parts: list[_Part] = []
    done: set[int] = set()

    def add(node: Node, place: Node) -> None:
        if node.position in done:
            return
        done.add(node.position)
        if not node.library:
            for value in node.inputs.values():
                maker = flow.computed_by(value, place.backward)
                if maker is not None:
                    add(maker, place)
        parts.append(_Part(node, place))

    for node in nodes:
        add(node, node)
    return parts


def _is_inside(flow: Dataflow, part: _Part, value: int, made: set[int]) -> bool:
    if part.node.library:
        return False
    return value in made or flow.computed_by(value, part.place.backward) is not None


def _made(parts: Iterable[_Part]) -> set[int]:
    return {value for part in parts for value in part.node.outputs}


def _outside_reads(flow: Dataflow, parts: list[_Part]) -> set[int]:
    made = _made(parts)
    return {value for part in parts for value in part.node.inputs.values() if not _is_inside(flow, part, value, made)}


def _label(flow: Dataflow, parts: list[_Part], in_memory: set[int]) -> None:
    made = _made(parts)
    reads: dict[int, list[tuple[int, _Part, str]]] = {}
    for part in parts:
        node = part.node
        for name, value in node.inputs.items():
            if _is_inside(flow, part, value, made):
                part.on_chip.append(f"in:{name}")
                continue
            part.touches.add(flow.storage_of[value])
            # A gather reads some rows of its table, and counts them.
            is_table = node.cost is not None and node.cost.family == "gather" and name == next(iter(node.op.inputs))
            if not node.library and not is_table:
                reads.setdefault(value, []).append((int(node.call.inputs[name].nbytes), part, name))
        for number, value in enumerate(node.outputs):
            if part.inlined or value not in in_memory:
                part.on_chip.append(f"out:{number}")
            else:
                part.touches.add(flow.storage_of[value])
    for value, readers in reads.items():
        left = flow.sizes[flow.storage_of[value]]
        for size, part, name in sorted(readers, key=lambda reader: -reader[0]):
            if size > left:
                part.on_chip.append(f"in:{name}")
            else:
                left -= size
    # Ops that take several kernels by themselves are part of this one.
    launching = min(parts, key=lambda part: 1 if part.node.cost is None else part.node.cost.kernels)
    launching.launches = True


def _with_lifetimes(flow: Dataflow, kernels: list[list[_Part]], at: dict[int, list[_Part]]) -> list[Op]:
    made = {ref.storage for op in flow.ops for ref in op.allocates}
    freed = {ref.storage for op in flow.ops for ref in op.frees}
    running = {node.position for node in flow.nodes}
    ops: list[Op] = []
    others: list[tuple[int, Ref]] = []
    for position, op in enumerate(flow.ops):
        if position not in running:
            ops.append(replace(op, allocates=(), frees=()))
        for part in at.get(position, ()):
            part.index = len(ops)
            ops.append(_op(part))
        # What neither forward nor backward made is freed where it was.
        others += [(max(len(ops) - 1, 0), ref) for ref in op.frees if ref.storage not in made]
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for parts in kernels:
        # What a kernel reads is there until its end.
        end = max(part.index for part in parts)
        for part in parts:
            for storage in part.touches:
                first[storage] = min(first.get(storage, part.index), part.index)
                last[storage] = max(last.get(storage, end), end)
    allocates: dict[int, list[Ref]] = {}
    frees: dict[int, list[Ref]] = {}
    for index, ref in others:
        frees.setdefault(index, []).append(ref)
    for storage in sorted(made & set(first)):
        allocates.setdefault(first[storage], []).append(Ref(storage))
        if storage in freed:
            frees.setdefault(last[storage], []).append(Ref(storage))
    return [
        replace(op, allocates=tuple(allocates.get(index, ())), frees=tuple(frees.get(index, ())))
        for index, op in enumerate(ops)
    ]


def _op(part: _Part) -> Op:
    op, place = part.node.op, part.place.op
    again = part.node.backward != part.place.backward
    return replace(
        op,
        phase="recompute" if again else op.phase,
        module=place.module if part.inlined else op.module,
        allocates=(),
        frees=(),
        on_chip=tuple(part.on_chip),
        launches=part.launches,
    )
