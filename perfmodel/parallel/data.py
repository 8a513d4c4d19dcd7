"""What data-parallel ranks share: gradients (DDP), the optimizer's state, gradients and parameters (ZeRO, FSDP).

The parameters of a layer form one unit, all others the root unit, as ``fully_shard(layer)`` and
``fully_shard(model)`` make them; each unit communicates at once. ZeRO-3 splits each parameter
along its first dimension (FSDP2), ZeRO-1 and 2 split the flat buffer (Megatron-LM's distributed
optimizer, DeepSpeed). Where a part isn't even it's padded, as these do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from perfmodel.dtypes import item_size
from perfmodel.graph.ir import Block, Graph, Op, Ref, Storage
from perfmodel.ops import Tensor
from perfmodel.parallel.placement import Layout
from perfmodel.parallel.rewriting import collective
from perfmodel.parallel.sharing import ROOT, Parameter, Sharing, Unit, edited, placed_at, ref_of, total, with_numbers
from perfmodel.symbols import Dim, ceil_div, product

__all__ = ["share"]


def share(graph: Graph, layouts: Mapping[int, Layout], sharing: Sharing) -> Graph:
    """A rank's graph with the collectives of data parallelism, and what is sharded in the size of a shard.

    Parameters
    ----------
    graph : Graph
        Of one rank, parameters whole but for tensor and expert parallelism.
    layouts : mapping of int to Layout
        Of parameters, by number of the storage.
    sharing : Sharing
    """
    return _Share(graph, layouts, sharing).run()


class _Share:
    def __init__(self, graph: Graph, layouts: Mapping[int, Layout], sharing: Sharing) -> None:
        self.graph = graph
        self.sharing = sharing
        self.storages = list(graph.storages)
        self.parameters = self._find_parameters(layouts)
        self.of_gradient = {p.gradient: p for p in self.parameters.values() if p.gradient >= 0}
        self.gathered: dict[int, int] = {}
        self.whole: dict[int, int] = {}
        self.sharded: set[int] = set()

    def _find_parameters(self, layouts: Mapping[int, Layout]) -> dict[int, Parameter]:
        shapes: dict[int, tuple[Dim, ...]] = {}
        for blocks in (self.graph.blocks, self.graph.first_optimizer):
            for block in blocks:
                for op in block.ops:
                    for tensor in op.inputs.values():
                        storage = self.graph.storages[tensor.storage]
                        if storage.role == "parameter" and tensor.nbytes == storage.nbytes and tensor.strides is None:
                            shapes.setdefault(tensor.storage, tensor.shape)
        found: dict[int, Parameter] = {}
        by_name: dict[str, Parameter] = {}
        for number, storage in enumerate(self.graph.storages):
            if storage.role == "parameter":
                shape = shapes.get(number) or (storage.nbytes // item_size(storage.dtype),)
                expert = "ep" in layouts.get(number, {})
                found[number] = by_name[storage.name] = Parameter(number, storage, shape, expert)
        for number, storage in enumerate(self.graph.storages):
            owner = by_name.get(storage.name.rpartition(".")[0])
            if owner is not None and storage.role == "gradient":
                owner.gradient = number
            elif owner is not None and storage.role == "optimizer":
                owner.state.append(number)
        return found

    def run(self) -> Graph:
        zero = self.sharing.zero
        blocks = list(self.graph.blocks)
        if zero == 3:
            blocks = self._gather_parameters(blocks)
        blocks = self._reduce_gradients(blocks)
        first = list(self.graph.first_optimizer)
        if zero:
            blocks = [self._sharded_optimizer(block) for block in blocks]
            first = [self._sharded_optimizer(block) for block in first]
            self._shrink()
        if zero in (1, 2):
            blocks = self._gather_updated(blocks)
        return replace(
            self.graph, blocks=tuple(blocks), first_optimizer=tuple(first), storages=tuple(self.storages), trace=None
        )

    # -- groups and sizes -----------------------------------------------------------

    def _group(self, expert: bool) -> str:
        if expert:
            return "edp"
        return "shard" if self.sharing.zero == 3 else "dp-cp"

    def _ranks(self, expert: bool) -> Dim:
        return self.sharing.ranks[self._group(expert)]

    def _shard_shape(self, p: Parameter, shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
        ranks = self._ranks(p.expert)
        if self.sharing.zero == 3 and len(shape) == len(p.shape):
            return (ceil_div(shape[0], ranks), *shape[1:])
        return (ceil_div(product(shape), ranks),)

    # -- FSDP -------------------------------------------------------------------------

    def _gather_parameters(self, blocks: list[Block]) -> list[Block]:
        for p in list(self.parameters.values()):
            dtype = self.sharing.parameters or p.storage.dtype
            nbytes = p.storage.nbytes // item_size(p.storage.dtype) * item_size(dtype)
            self.gathered[p.number] = self._store(p.storage, f"{p.storage.name}:gathered", nbytes, "temporary")
        positions = [k for k, block in enumerate(blocks) if block.ops[0].phase in ("forward", "backward", "recompute")]
        uses: dict[int, dict[Unit, tuple[int, int]]] = {}  # block: unit: first and last use
        for k in positions:
            for at, op in enumerate(blocks[k].ops):
                for tensor in op.inputs.values():
                    if tensor.storage in self.parameters:
                        unit = self._unit(tensor, blocks[k])
                        first, _ = uses.setdefault(k, {}).setdefault(unit, (at, at))
                        uses[k][unit] = (first, at)
        root = sorted(k for k in positions if ROOT in uses.get(k, {}))
        for k in positions:
            inserts: dict[int, list[Op]] = {}
            frees: dict[int, list[Ref]] = {}
            forward = blocks[k].ops[0].phase == "forward"
            for unit, (first, last) in uses.get(k, {}).items():
                tensors = self._members(unit, blocks[k])
                if unit == ROOT:
                    # Gathered before the first op, as the root of fully_shard is, and kept until backward ends.
                    if k == root[0]:
                        inserts.setdefault(0, []).extend(self._all_gather(blocks[k].ops[0], tensors))
                    if k == root[-1]:
                        frees.setdefault(last, []).extend(self._gathered_refs(tensors))
                    continue
                if forward or self.sharing.reshard:
                    inserts.setdefault(first, []).extend(self._all_gather(blocks[k].ops[first], tensors))
                if not forward or self.sharing.reshard:
                    frees.setdefault(last, []).extend(self._gathered_refs(tensors))
            blocks[k] = edited(blocks[k], inserts, {}, frees, self._use_gathered)
        return blocks

    def _members(self, unit: Unit, block: Block) -> list[Tensor]:
        """All parameters of a unit, used in this block or not."""
        stack, layer, absolute = unit
        number = layer if absolute else block.first + layer
        return [
            Tensor(shape=p.shape, dtype=p.storage.dtype, storage=p.number, layer=layer, absolute=absolute)
            for p in self.parameters.values()
            if p.storage.stack == stack and (p.storage.layers is None or number in p.storage.layers)
        ]

    def _unit(self, tensor: Tensor | Ref, block: Block) -> Unit:
        stack = self.graph.storages[tensor.storage].stack
        if not stack or stack != block.stack:
            return ROOT
        return (stack, tensor.layer, tensor.absolute)

    def _all_gather(self, like: Op, tensors: Iterable[Tensor]) -> list[Op]:
        ops = []
        for expert in (False, True):
            chosen = [t for t in tensors if self.parameters[t.storage].expert is expert]
            if not chosen:
                continue
            ranks = self._ranks(expert)
            inputs: dict[str, Tensor] = {}
            outputs = []
            sizes: list[Dim] = []
            for position, tensor in enumerate(chosen):
                p = self.parameters[tensor.storage]
                dtype = self.sharing.parameters or p.storage.dtype
                shape = self._shard_shape(p, p.shape)
                inputs[f"inputs.{position}"] = placed_at(tensor, tensor.storage, shape, p.storage.dtype)
                outputs.append(placed_at(tensor, self.gathered[tensor.storage], p.shape, dtype))
                sizes.append(product(shape) * item_size(dtype) * ranks)
            ops.append(
                collective("all_gather_into_tensor", like, inputs, tuple(outputs), group=self._group(expert),
                           ranks=ranks, nbytes=total(sizes), sizes=sizes, overlap=self.sharing.overlap_gather,
                           allocates=tuple(ref_of(t) for t in outputs))
            )  # fmt: skip
        return ops

    def _gathered_refs(self, tensors: Iterable[Tensor]) -> list[Ref]:
        return [Ref(self.gathered[t.storage], t.layer, t.absolute) for t in tensors]

    def _use_gathered(self, op: Op) -> Op:
        if not any(t.storage in self.gathered for t in (*op.inputs.values(), *op.outputs)):
            return op
        return with_numbers(op, self.gathered)

    # -- gradients ----------------------------------------------------------------------

    def _reduce_gradients(self, blocks: list[Block]) -> list[Block]:
        self._retype_gradients()
        last: dict[Unit, tuple[int, int]] = {}
        where: dict[int, dict[Unit, tuple[int, dict[int, Tensor]]]] = {}
        for k, block in enumerate(blocks):
            if block.ops[0].phase not in ("backward", "recompute"):
                continue
            for at, op in enumerate(block.ops):
                for tensor in (*op.inputs.values(), *op.outputs):
                    if tensor.storage in self.of_gradient:
                        unit = self._unit(tensor, block)
                        _, tensors = where.setdefault(k, {}).get(unit, (at, {}))
                        tensors.setdefault(tensor.storage, tensor)
                        where[k][unit] = (at, tensors)
                        if unit == ROOT:
                            last[unit] = (k, at)
        root = [(k, units.pop(ROOT)) for k, units in list(where.items()) if ROOT in units]
        if root:
            k, at = last[ROOT]
            everything = {number: tensor for _, (_, tensors) in root for number, tensor in tensors.items()}
            where.setdefault(k, {})[ROOT] = (len(blocks[k].ops) - 1, everything)
        for k, units in where.items():
            after: dict[int, list[Op]] = {}
            for at, tensors in units.values():
                after.setdefault(at, []).extend(self._reduce(blocks[k].ops[at], tensors.values()))
            blocks[k] = edited(blocks[k], {}, after, {}, self._use_whole)
        return blocks

    def _retype_gradients(self) -> None:
        zero = self.sharing.zero
        for p in self.parameters.values():
            if p.gradient < 0:
                continue
            storage = self.storages[p.gradient]
            dtype = self.sharing.gradients
            if dtype:
                size = storage.nbytes // item_size(p.storage.dtype) * item_size(dtype)
                self.storages[p.gradient] = storage = replace(storage, nbytes=size)
            if zero >= 2:
                self.whole[p.gradient] = self._store(storage, f"{storage.name}:whole", storage.nbytes, "temporary")

    def _reduce(self, like: Op, tensors: Iterable[Tensor]) -> list[Op]:
        ops: list[Op] = []
        zero = self.sharing.zero
        for expert in (False, True):
            chosen = [t for t in tensors if self.of_gradient[t.storage].expert is expert]
            ranks = self._ranks(expert)
            if not chosen or (isinstance(ranks, int) and ranks == 1):
                continue
            inputs: dict[str, Tensor] = {}
            outputs = []
            sizes: list[Dim] = []
            dtype = ""
            for position, tensor in enumerate(chosen):
                p = self.of_gradient[tensor.storage]
                dtype = self.sharing.communication or self.sharing.gradients or p.storage.dtype
                shape = self._shard_shape(p, p.shape) if zero else p.shape
                inputs[f"inputs.{position}"] = placed_at(tensor, self.whole.get(p.gradient, p.gradient), p.shape, dtype)
                outputs.append(placed_at(tensor, p.gradient, shape, dtype))
                sizes.append(product(shape) * item_size(dtype) * (ranks if zero else 1))
            details: dict[str, Any] = {
                "group": self._group(expert), "ranks": ranks, "nbytes": total(sizes), "sizes": sizes,
                "overlap": self.sharing.overlap_reduce,
                "per": "micro_batch" if zero >= 2 else "step",
            }  # fmt: skip
            if not zero:
                ops.append(
                    collective("all_reduce_", like, inputs, tuple(outputs), bucket=self.sharing.bucket, **details)
                )
                continue
            made = tuple(ref_of(t) for t in outputs) if zero >= 2 else ()
            op = collective("reduce_scatter_tensor", like, inputs, tuple(outputs), allocates=made, **details)
            gone = tuple(ref_of(t) for t in inputs.values()) if zero >= 2 else ()
            ops.append(replace(op, frees=gone))
            if self.sharing.hybrid and not expert:
                parts = [tensor.nbytes for tensor in outputs]
                shards = {f"inputs.{k}": t for k, t in enumerate(outputs)}
                details.update(
                    group="replicate", ranks=self.sharing.ranks["replicate"], nbytes=total(parts), sizes=parts
                )
                ops.append(collective("all_reduce_", like, shards, tuple(outputs), **details))
        return ops

    def _use_whole(self, op: Op) -> Op:
        touched = any(t.storage in self.whole for t in (*op.inputs.values(), *op.outputs))
        return with_numbers(op, self.whole) if touched else op

    # -- the optimizer ----------------------------------------------------------------

    def _sharded_optimizer(self, block: Block) -> Block:
        """The ops of the optimizer on a rank's shard."""
        owners: dict[int, Parameter] = {}
        for p in self.parameters.values():
            owners.update(dict.fromkeys((p.number, p.gradient, *p.state), p))

        def changed(op: Op) -> Op:
            if op.phase != "optimizer":
                return op
            for name, tensor in (*op.inputs.items(), *((f"out.{k}", t) for k, t in enumerate(op.outputs))):
                del name
                if tensor.storage not in owners:
                    source = next((owners[t.storage] for t in op.inputs.values() if t.storage in owners), None)
                    if source is not None and tensor.shape == source.shape:
                        owners[tensor.storage] = source
            inputs = {name: self._shard_tensor(t, owners) for name, t in op.inputs.items()}
            return replace(op, inputs=inputs, outputs=tuple(self._shard_tensor(t, owners) for t in op.outputs))

        return replace(block, ops=tuple(changed(op) for op in block.ops))

    def _shard_tensor(self, tensor: Tensor, owners: Mapping[int, Parameter]) -> Tensor:
        p = owners.get(tensor.storage)
        if p is None or not tensor.shape or tensor.shape != p.shape:
            return tensor
        self.sharded.add(tensor.storage)
        return replace(tensor, shape=self._shard_shape(p, tensor.shape), strides=None)

    def _shrink(self) -> None:
        """Storages of which a rank has its shard only."""
        zero = self.sharing.zero
        for p in self.parameters.values():
            own = set(p.state) & self.sharded
            if zero >= 2 and p.gradient >= 0:
                own.add(p.gradient)
            if zero == 3:
                own.add(p.number)
            count = product(p.shape)
            for number in own:
                storage = self.storages[number]
                shard = product(self._shard_shape(p, p.shape))
                self.storages[number] = replace(storage, nbytes=shard * (storage.nbytes // count))
            self.sharded -= {p.number, p.gradient, *p.state}
        for number in self.sharded:
            # Temporaries of the optimizer.
            storage = self.storages[number]
            owner = self._owner_of_temporary(storage)
            if owner is not None:
                count = product(owner.shape)
                shard = product(self._shard_shape(owner, owner.shape))
                self.storages[number] = replace(storage, nbytes=shard * (storage.nbytes // count))

    def _owner_of_temporary(self, storage: Storage) -> Parameter | None:
        sizes = {p.storage.nbytes: p for p in self.parameters.values()}
        return sizes.get(storage.nbytes)

    def _gather_updated(self, blocks: list[Block]) -> list[Block]:
        """ZeRO-1 and 2: every rank gets the parameters that the others have updated."""
        where: dict[int, dict[Unit, tuple[int, dict[int, Tensor]]]] = {}
        for k, block in enumerate(blocks):
            for at, op in enumerate(block.ops):
                if op.phase != "optimizer":
                    continue
                for tensor in (*op.inputs.values(), *op.outputs):
                    if tensor.storage in self.parameters:
                        unit = self._unit(tensor, block)
                        _, tensors = where.setdefault(k, {}).get(unit, (at, {}))
                        tensors.setdefault(tensor.storage, tensor)
                        where[k][unit] = (at, tensors)
        for k, units in where.items():
            after: dict[int, list[Op]] = {}
            for at, tensors in units.values():
                after.setdefault(at, []).extend(self._all_gather_updated(blocks[k].ops[at], tensors.values()))
            blocks[k] = edited(blocks[k], {}, after, {}, lambda op: op)
        return blocks

    def _all_gather_updated(self, like: Op, tensors: Iterable[Tensor]) -> list[Op]:
        ops = []
        for expert in (False, True):
            chosen = [t for t in tensors if self.parameters[t.storage].expert is expert]
            ranks = self._ranks(expert)
            if not chosen or (isinstance(ranks, int) and ranks == 1):
                continue
            inputs: dict[str, Tensor] = {}
            outputs = []
            sizes: list[Dim] = []
            for position, tensor in enumerate(chosen):
                p = self.parameters[tensor.storage]
                shape = self._shard_shape(p, p.shape)
                inputs[f"inputs.{position}"] = placed_at(tensor, p.number, shape, p.storage.dtype)
                outputs.append(placed_at(tensor, p.number, p.shape, p.storage.dtype))
                sizes.append(product(shape) * item_size(p.storage.dtype) * ranks)
            ops.append(
                collective("all_gather_into_tensor", like, inputs, tuple(outputs), group=self._group(expert),
                           ranks=ranks, nbytes=total(sizes), sizes=sizes, per="step",
                           overlap=self.sharing.overlap_gather)
            )  # fmt: skip
        return ops

    def _store(self, source: Storage, name: str, nbytes: Dim, role: str) -> int:
        self.storages.append(replace(source, name=name, nbytes=nbytes, role=role, dtype="", trainable=True))
        return len(self.storages) - 1
