"""Walk over the graph once and write each rank's ops: placements in, placements out, collectives between."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from perfmodel.errors import UnsupportedError
from perfmodel.graph.ir import Block, Graph, Op, Ref
from perfmodel.ops import Tensor
from perfmodel.ops.common import is_in_place
from perfmodel.parallel import contractions, rows, views  # noqa: F401  (they register their rules)
from perfmodel.parallel.liveness import free_where_last_used, last_gradient_writes
from perfmodel.parallel.placement import Layout, Partial, Placement, Shard, followed, same
from perfmodel.parallel.rewriting import Value, Writer, collective
from perfmodel.parallel.rules import Context, Inside, decide, has_rule
from perfmodel.parallel.seeds import Seeds
from perfmodel.parallel.tokens import sequence_shard, token_dims
from perfmodel.symbols import Dim, evaluate

__all__ = ["propagate"]


def propagate(
    graph: Graph, seeds: Seeds, degrees: Mapping[str, Dim], *, regather: bool, cp_kind: str, at: Mapping[str, Any]
) -> tuple[Graph, dict[int, Layout]]:
    """One rank's graph, and the layout of every parameter and gradient.

    Parameters
    ----------
    graph : Graph
        The whole step of one data-parallel rank.
    seeds : Seeds
    degrees : mapping of str to Dim
        Ranks of each dimension of the mesh, as symbols; the order is that in which dimensions are decided.
    regather : bool
        See :class:`perfmodel.parallel.rewriting.Writer`.
    cp_kind : str
        How attention exchanges a sequence that is sharded over ``cp``.
    at : mapping of str to int
        Numbers for the sizes and degrees.

    Raises
    ------
    UnsupportedError
        If an op without a rule meets a sharded tensor.
    """
    walk = _Walk(graph, seeds, degrees, regather=regather, cp_kind=cp_kind, at=at)
    blocks = tuple(new for block in graph.blocks for new in walk.block(block))
    walk.start_optimizer()
    first = tuple(new for block in graph.first_optimizer for new in walk.block(block))
    storages = tuple(
        replace(storage, nbytes=walk.writer.sized.get(number, storage.nbytes))
        for number, storage in enumerate(walk.writer.storages)
    )
    local = replace(graph, blocks=blocks, first_optimizer=first, storages=storages, trace=None)
    return free_where_last_used(local, walk.writer.origin, walk.writer.replaced), walk.resident


class _Walk:
    def __init__(
        self,
        graph: Graph,
        seeds: Seeds,
        degrees: Mapping[str, Dim],
        *,
        regather: bool,
        cp_kind: str,
        at: Mapping[str, Any],
    ) -> None:
        self.graph = graph
        self.seeds = seeds
        self.meshes = tuple(degrees)
        self.at = at
        self.cp_kind = cp_kind
        self.writer = Writer(graph=graph, degrees=degrees, at=at, regather=regather)
        self.layer = 0
        self.values: dict[int, dict[Any, Value]] = {}
        self.producers: dict[int, str] = {}
        self.backward_made: set[int] = set()
        self.batch, self.seq = token_dims(graph)
        self.copied: dict[int, Dim] = {}
        self.resident = self._resident()
        self.last_writes = last_gradient_writes(graph)
        self._weights: dict[str, dict[str, Layout]] = {}
        for number, layout in self.resident.items():
            storage = graph.storages[number]
            if storage.role == "parameter":
                self._weights.setdefault(storage.module, {})[storage.name.rpartition(".")[2]] = layout

    def _resident(self) -> dict[int, Layout]:
        """Layouts of parameters, and of what belongs to one: its gradient and the optimizer's state."""
        found: dict[int, Layout] = {**self.seeds.parameters, **self.seeds.inputs}
        by_name = {self.graph.storages[n].name: (n, layout) for n, layout in self.seeds.parameters.items()}
        for number, storage in enumerate(self.graph.storages):
            if storage.role in ("gradient", "optimizer"):
                name = storage.name.rpartition(".")[0]
                if name in by_name:
                    parameter, layout = by_name[name]
                    whole = self.graph.storages[parameter]
                    if storage.role == "gradient" and parameter in self.seeds.units:
                        self.copied[number] = self.seeds.units[parameter]
                    if storage.role == "gradient" or storage.nbytes * 8 >= whole.nbytes:
                        found[number] = layout
        return found

    # -- blocks -------------------------------------------------------------------

    def block(self, block: Block) -> Iterator[Block]:
        """A block as a rank runs it; split where its first repetition meets other placements than the later ones."""
        layers = list(block.layers)
        done = 0
        ops = self._run(block, layers[0])
        while done + 1 < len(layers):
            again = self._run(block, layers[done + 1])
            if again == ops:
                self.writer.repeat(layers[done + 2 :], layers[done + 1])
                break
            yield replace(block, ops=ops, count=1, first=layers[done])
            done += 1
            ops = again
        yield replace(block, ops=ops, count=len(layers) - done, first=layers[done])

    def _run(self, block: Block, layer: int) -> tuple[Op, ...]:
        self.writer.ops = []
        self.writer.touched = set()
        self.layer = layer
        for position, op in enumerate(block.ops):
            self._op(op)
            for number in self.last_writes.get(id(block), {}).get(position, ()):
                self._finish_gradient(number, op)
        return tuple(self.writer.ops)

    def _layer(self, ref: Tensor | Ref) -> int | None:
        """The layer whose copy of a storage is meant."""
        if not self.graph.storages[ref.storage].stack:
            return None
        return ref.layer if ref.absolute else self.layer + ref.layer

    def start_optimizer(self) -> None:
        """The first step's optimizer phase sees parameters and gradients as they lie at rest."""
        self.values = {}
        self.writer.copies = {}

    # -- one op -------------------------------------------------------------------

    def _op(self, op: Op) -> None:
        values = {name: self._value(tensor, op) for name, tensor in op.inputs.items()}
        layouts: list[dict[str, Placement]] = [{} for _ in op.outputs]
        traffic: list[tuple[str, Inside]] = []
        seen: dict[str, dict[str, Placement]] = {}
        then: list[tuple[str, tuple[Placement, ...]]] = []
        changes: list[tuple[int, str, str]] = []
        targets: dict[str, Mapping[str, Placement]] = {}
        for mesh in self.meshes:
            placements = {name: value.layout.get(mesh) for name, value in values.items()}
            context = self._context(op, mesh)
            self._at_edges(op, mesh, values, placements)
            quiet = not any(placement is not None for placement in placements.values())
            if quiet and not (context.sequence and op.name in ("aten.embedding",)) and not context.weights:
                continue
            if quiet and not has_rule(op):
                continue
            decision = decide(op, placements, context)
            changes += [
                (_turn(placements[name], target), mesh, name)
                for name, target in decision.inputs.items()
                if not same(placements[name], target)
            ]
            targets[mesh] = decision.inputs
            for layout, placement in zip(layouts, decision.outputs, strict=True):
                if placement is not None:
                    layout[mesh] = placement
            traffic += [(mesh, inside) for inside in decision.inside]
            for name, placement in decision.seen.items():
                seen.setdefault(name, {})[mesh] = placement
            if decision.then is not None:
                then.append((mesh, decision.then))
            if decision.attrs:
                op = replace(op, attrs={**op.attrs, **decision.attrs})
        for _, mesh, name in sorted(changes, key=lambda change: change[0]):
            values[name] = self.writer.redistribute(values[name], mesh, targets[mesh][name], op)
        for mesh, inside in traffic:
            self._inside(op, mesh, inside, values)
        self._write(op, values, layouts, seen)
        for mesh, placements_after in then:
            self._afterwards(op, mesh, placements_after)

    def _afterwards(self, op: Op, mesh: str, placements: tuple[Placement, ...]) -> None:
        """Bring the outputs to where the rest of the step expects them."""
        for tensor, placement in zip(op.outputs, placements, strict=True):
            value = self.values[tensor.storage][_look(tensor)]
            if not same(value.layout.get(mesh), placement):
                self.values[tensor.storage][_look(tensor)] = self.writer.redistribute(value, mesh, placement, op)

    def _write(
        self,
        op: Op,
        values: Mapping[str, Value],
        layouts: Sequence[dict[str, Placement]],
        seen: Mapping[str, Mapping[str, Placement]],
    ) -> None:
        writer = self.writer
        inputs = {
            name: writer.local(replace(value, layout={**value.layout, **seen.get(name, {})}))
            for name, value in values.items()
        }
        allocated = {ref.storage for ref in op.allocates}
        for ref in op.allocates:
            writer.written((ref.storage, self._layer(ref)))
            self.values.pop(ref.storage, None)
        moved = {tensor.storage: values[name].storage for name, tensor in op.inputs.items()}
        outputs = []
        for tensor, layout in zip(op.outputs, layouts, strict=True):
            number = tensor.storage
            if number in allocated:
                writer.made_with(tensor, layout)
                self.producers[number] = op.module
                self.backward_made.discard(number)
                if op.phase == "backward":
                    self.backward_made.add(number)
            else:
                number = moved.get(number, number)
            value = Value(tensor, number, dict(layout), self._layer(tensor))
            self.values.setdefault(tensor.storage, {})[_look(tensor)] = value
            outputs.append(writer.local(value))
        if is_in_place(op) and op.outputs:
            writer.written(values["self"].instance)
        attrs = _localised(op, outputs)
        writer.ops.append(
            Op(
                name=op.name,
                phase=op.phase,
                module=op.module,
                inputs=inputs,
                outputs=tuple(outputs),
                attrs=attrs,
                allocates=op.allocates,
                frees=op.frees,
                on_chip=op.on_chip,
                launches=op.launches,
            )
        )

    def _inside(self, op: Op, mesh: str, inside: Inside, values: Mapping[str, Value]) -> None:
        writer, ranks = self.writer, self.writer.degrees[mesh]
        if inside.op == "all_reduce":
            (row,) = inside.tensors
            source = values["self"].layout
            kept = {m: p for m, p in source.items() if isinstance(p, Shard) and p.dim < len(row.shape) and m != mesh}
            local = writer.scratch(values["self"], f"{mesh}.statistics", writer.part(row, kept, -1))
            ref = Ref(local.storage, local.layer, local.absolute)
            summed = collective(
                "all_reduce_",
                op,
                {"self": local},
                (local,),
                group=mesh,
                ranks=ranks,
                nbytes=local.nbytes,
                allocates=(ref,),
            )
            writer.ops.append(replace(summed, frees=(ref,)))
            return
        size: Dim = 0
        for name, value in values.items():
            if op.inputs[name] in inside.tensors:
                size = size + writer.local(value).nbytes
        # Each of the (ranks - 1) steps passes what a rank holds on to its neighbour; backward the gradients too.
        twice = 2 if inside.steps == "backward" else 1
        writer.ops.append(
            collective("send_recv", op, {}, (writer.local(values["key"]),), group=mesh, ranks=ranks,
                       nbytes=size * twice, overlap=True, messages=ranks - 1)
        )  # fmt: skip

    def _context(self, op: Op, mesh: str) -> Context:
        weights: Mapping[str, Placement] = {}
        if op.name == "aten.embedding_dense_backward":
            weights = {name: layout.get(mesh) for name, layout in self._weights.get(op.module, {}).items()}
        return Context(
            mesh=mesh,
            at=self.at,
            tokens=self._tokens,
            sequence=mesh == "cp" or (mesh == "tp" and self.seeds.sequence),
            keep_partial=any(_within(op.module, module) for module in self.seeds.local_modules),
            saved=frozenset(name for name, t in op.inputs.items() if t.storage not in self.backward_made),
            weights=weights if any(weights.values()) else {},
            kind=self.cp_kind,
        )

    def _at_edges(self, op: Op, mesh: str, values: dict[str, Value], placements: dict[str, Placement]) -> None:
        """Modules that ask for a whole input or give a whole output."""
        if mesh != "tp":
            return
        for name, value in values.items():
            number = op.inputs[name].storage
            made_in, backward = self.producers.get(number, ""), number in self.backward_made
            current = placements[name]
            target: Placement = current
            for module in self.seeds.gathered_outputs:
                inside, from_inside = _within(op.module, module), _within(made_in, module)
                if isinstance(current, Shard) and from_inside and not (inside or backward):
                    target = None
                elif current is None and inside and backward and not from_inside:
                    target = Shard(len(value.whole.shape) - 1)
            for module in self.seeds.local_modules:
                inside, from_inside = _within(op.module, module), _within(made_in, module)
                if inside and not from_inside and isinstance(current, Shard) and current.kind == "sequence":
                    target = None
                elif from_inside and backward and not inside and isinstance(current, Partial):
                    target = self._tokens(value.whole) if self.seeds.sequence else None
            if not same(current, target):
                values[name] = self.writer.redistribute(value, mesh, target, op)
                placements[name] = target

    # -- values -----------------------------------------------------------------

    def _value(self, tensor: Tensor, op: Op) -> Value:
        known = self.values.get(tensor.storage)
        if known is not None:
            found = known.get(_look(tensor))
            if found is not None:
                return Value(tensor, found.storage, found.layout, self._layer(tensor))
            for other in reversed(list(known.values())):
                layout = self._reshaped(other, tensor)
                if layout is not None:
                    return Value(tensor, other.storage, layout, self._layer(tensor))
        layout = dict(self.resident.get(tensor.storage, {}))
        if any(isinstance(p, Shard) and p.dim >= len(tensor.shape) for p in layout.values()):
            raise UnsupportedError(
                f"{op.name} in {op.module or '(root)'} looks at {self.graph.storages[tensor.storage].name} in a shape "
                "that its placement isn't known in; keep it out of the plan"
            )
        if not tensor.shape:
            layout = {}
        if tensor.storage in self.resident and layout:
            self._sized(tensor, layout)
        return Value(tensor, tensor.storage, layout, self._layer(tensor))

    def _sized(self, tensor: Tensor, layout: Layout) -> None:
        storage = self.graph.storages[tensor.storage]
        if tensor.storage not in self.writer.sized and tensor.nbytes == storage.nbytes:
            self.writer.made_with(tensor, layout)

    def _reshaped(self, value: Value, tensor: Tensor) -> dict[str, Placement] | None:
        """The layout of another look at a storage of which one look is known."""
        layout: dict[str, Placement] = {}
        for mesh, placement in value.layout.items():
            moved: Placement = placement
            if isinstance(placement, Shard):
                moved = followed(placement, value.whole, tensor, self.at)
                if moved is None:
                    return None
            layout[mesh] = moved
        return layout

    def _tokens(self, tensor: Tensor) -> Placement:
        """The sequence dimension of a tensor that holds a row for each token."""
        return sequence_shard(tensor.shape, self.batch, self.seq)

    # -- gradients ----------------------------------------------------------------

    def _finish_gradient(self, number: int, op: Op) -> None:
        """Terms of a gradient that ranks of one model replica hold are summed; it lies as its parameter does."""
        looks = self.values.get(number)
        if not looks:
            return
        value = list(looks.values())[-1]
        layout = self.resident.get(number, {})
        changed = False
        for mesh in self.meshes:
            current = value.layout.get(mesh)
            target = layout.get(mesh) if current is None or not isinstance(current, Shard) else current
            if "ep" in layout and mesh != "ep" and current is not None and not isinstance(current, Shard):
                # Experts have no copies within a replica: their terms meet in the data-parallel sum.
                value = replace(value, layout={m: p for m, p in value.layout.items() if m != mesh})
            elif mesh == "cp" and current is not None and not isinstance(current, Shard):
                # Summed with the data-parallel ranks.
                value = replace(value, layout={m: p for m, p in value.layout.items() if m != mesh})
            elif not same(current, target) and not isinstance(target, Shard):
                before = len(self.writer.ops)
                value = self.writer.redistribute(value, mesh, None, op)
                self._per_step(before)
            changed = True
        if number in self.copied:
            self._sum_copies(value, self.copied[number], op)
        if changed:
            self.values[number] = {}

    def _sum_copies(self, value: Value, units: Dim, op: Op) -> None:
        """Where ranks of ``tp`` hold the same heads, each has seen some of the queries."""
        ranks = self.writer.degrees["tp"]
        if int(evaluate(ranks, self.at)) <= int(evaluate(units, self.at)):
            return
        tensor = self.writer.local(value)
        self.writer.ops.append(
            collective(
                "all_reduce_",
                op,
                {"self": tensor},
                (tensor,),
                group="tp",
                ranks=ranks // units,
                nbytes=tensor.nbytes,
                per="step",
            )
        )

    def _per_step(self, before: int) -> None:
        for position in range(before, len(self.writer.ops)):
            op = self.writer.ops[position]
            self.writer.ops[position] = replace(op, attrs={**op.attrs, "per": "step"})


def _turn(current: Placement, target: Placement) -> int:
    """Terms are summed before tensors are exchanged, and gathered last, so that the least is moved."""
    if isinstance(current, Partial):
        return 0
    return 2 if isinstance(current, Shard) and target is None else 1


def _look(tensor: Tensor) -> Any:
    return tensor.shape, tensor.strides


def _within(module: str, outer: str) -> bool:
    return module == outer or module.startswith(f"{outer}.")


def _localised(op: Op, outputs: Sequence[Tensor]) -> Mapping[str, Any]:
    """The op's attributes with the shapes of its result in local sizes."""
    if "size" in op.attrs and outputs:
        return {**op.attrs, "size": list(outputs[0].shape)}
    return op.attrs
