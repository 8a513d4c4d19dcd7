"""Emit a rank's ops: redistribute tensors, keep what has been gathered, free what nobody needs any more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from perfmodel.errors import UnsupportedError
from perfmodel.graph.ir import Graph, Op, Ref, Storage
from perfmodel.ops import Tensor
from perfmodel.parallel.placement import Layout, Partial, Placement, Routed, Shard, followed, local_tensor, same
from perfmodel.symbols import Dim, evaluate

__all__ = ["Value", "Writer", "collective"]


def collective(
    name: str,
    like: Op,
    inputs: Mapping[str, Tensor],
    outputs: tuple[Tensor, ...],
    *,
    group: str,
    ranks: Dim,
    nbytes: Dim,
    per: str = "micro_batch",
    overlap: bool = False,
    allocates: tuple[Ref, ...] = (),
    **attrs: Any,
) -> Op:
    """A collective in the place of ``like``.

    Parameters
    ----------
    name : str
        ``all_reduce_``, ``all_gather_into_tensor``, ``reduce_scatter_tensor``, ``all_to_all_single``,
        ``send`` or ``recv``: those of ``torch.distributed``.
    group : str
        Kind of ranks that take part (``"tp"``, ``"dp"``, …), ``ranks`` of them.
    nbytes : Dim
        As nccl-tests counts them: the larger of what a rank gives and what it gets.
    per : {"micro_batch", "step"}
        How often it runs.
    overlap : bool
        Whether it may run beside the compute that doesn't need it.
    """
    tensor = next(iter((*inputs.values(), *outputs)))
    details = {
        "group": group, "ranks": ranks, "bytes": nbytes, "dtype": tensor.dtype, "per": per, "overlap": overlap, **attrs,
    }  # fmt: skip
    return Op(
        name=f"c10d.{name}",
        phase=like.phase,
        module=like.module,
        inputs=inputs,
        outputs=outputs,
        attrs=details,
        allocates=allocates,
    )


#: A storage and the layer whose copy it is; ``None`` outside a stack.
Instance = tuple[int, int | None]


@dataclass(slots=True)
class Value:
    """A tensor of the whole graph, where it is now, and how it lies."""

    whole: Tensor
    storage: int
    layout: dict[str, Placement]
    layer: int | None = None

    @property
    def instance(self) -> Instance:
        """The storage, and the layer whose copy of it is meant."""
        return self.storage, self.layer


@dataclass(slots=True)
class Writer:
    """Collects a rank's ops and storages while the pass walks over the graph.

    Attributes
    ----------
    degrees : mapping of str to Dim
        Ranks of each dimension of the mesh.
    at : mapping of str to int
        Numbers for all symbols.
    regather : bool
        Whether gathered sequences are dropped after forward and gathered again in backward (Megatron-LM),
        or kept (DTensor).
    """

    graph: Graph
    degrees: Mapping[str, Dim]
    at: Mapping[str, Any]
    regather: bool
    ops: list[Op] = field(default_factory=list)
    storages: list[Storage] = field(default_factory=list)
    sized: dict[int, Dim] = field(default_factory=dict)
    parts: dict[Any, Tensor] = field(default_factory=dict)
    #: Redistributions of a storage that hold still: (mesh, how) to (storage, placement, shape).
    copies: dict[Instance, dict[tuple[str, str], tuple[int, Placement, Tensor]]] = field(default_factory=dict)
    touched: set[Instance] = field(default_factory=set)
    #: Storages made here, by what they are a copy of.
    made: dict[tuple[int, str], int] = field(default_factory=dict)
    origin: dict[int, int] = field(default_factory=dict)
    #: Storages whose last use may be earlier than in the whole graph.
    replaced: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.storages = list(self.graph.storages)

    def local(self, value: Value) -> Tensor:
        """The rank's part of a value."""
        return self.part(value.whole, value.layout, value.storage)

    def part(self, whole: Tensor, layout: Layout, storage: int) -> Tensor:
        """The rank's part of a tensor, in a storage."""
        key = (whole.shape, whole.strides, whole.dtype, tuple(layout.items()))
        known = self.parts.get(key)
        if known is None:
            known = self.parts[key] = local_tensor(whole, layout, self.degrees, self.at)
        return Tensor(
            shape=known.shape,
            dtype=known.dtype,
            strides=known.strides,
            storage=storage,
            layer=whole.layer,
            absolute=whole.absolute,
            on_chip=whole.on_chip,
        )

    def written(self, instance: Instance) -> None:
        """A storage gets new content: copies of the old one are worth nothing."""
        self.touched.add(instance)
        self.copies.pop(instance, None)

    def repeat(self, layers: Iterable[int], of: int) -> None:
        """What was done while layer ``of`` ran is done while each of ``layers`` runs."""
        touched, self.touched = self.touched, set()
        for storage, layer in touched:
            if layer is None:
                continue
            known = self.copies.get((storage, layer))
            for other in layers:
                instance = (storage, layer + other - of)
                if known is None:
                    self.copies.pop(instance, None)
                else:
                    self.copies[instance] = dict(known)

    def _known(self, value: Value) -> dict[tuple[str, str], tuple[int, Placement, Tensor]]:
        self.touched.add(value.instance)
        return self.copies.setdefault(value.instance, {})

    def made_with(self, tensor: Tensor, layout: Layout) -> None:
        """The storage of an output is allocated with the size of the rank's part."""
        number = tensor.storage
        whole = self.graph.storages[number].nbytes
        local = self.part(tensor, layout, number)
        size = whole
        if local.shape != tensor.shape:
            size = local.numel * (whole // tensor.numel) if tensor.nbytes != whole else local.nbytes
        known = self.sized.setdefault(number, size)
        if known != size:
            if evaluate(known, self.at) == evaluate(size, self.at):
                return
            raise UnsupportedError(
                f"{self.graph.storages[number].name} has {size} bytes in one layer and {known} in another; "
                "give alike layers alike placements"
            )

    def scratch(self, value: Value, what: str, tensor: Tensor) -> Tensor:
        """A tensor beside a value, in a storage of its own that is made and freed in every layer."""
        key = (value.storage, what)
        number = self.made.get(key)
        if number is None:
            number = self.made[key] = len(self.storages)
            source = self.storages[value.storage]
            self.storages.append(
                replace(
                    source,
                    name=f"{source.name}:{what}",
                    nbytes=tensor.nbytes,
                    role="temporary",
                    dtype="",
                    trainable=True,
                )
            )
        return replace(tensor, storage=number, layer=value.whole.layer, absolute=value.whole.absolute)

    # -- redistribution -----------------------------------------------------------

    def redistribute(self, value: Value, mesh: str, target: Placement, like: Op) -> Value:
        """The value with another placement over one dimension of the mesh, and the collective that makes it."""
        current = value.layout.get(mesh)
        if isinstance(current, Partial):
            value = self._settled(value, mesh)
            current = value.layout.get(mesh)
        if same(current, target):
            return value
        if isinstance(current, Partial):
            return self._reduce(value, mesh, current, target, like)
        if isinstance(current, Routed) or isinstance(target, Routed):
            return self._exchange(value, mesh, target, like)
        if current is None:
            return _placed(value, mesh, target)  # a slice: every rank has it already
        assert isinstance(current, Shard)
        if isinstance(target, Shard):
            return self._exchange(value, mesh, target, like)
        return self._gather(value, mesh, current, like)

    def _settled(self, value: Value, mesh: str) -> Value:
        """A partial value that has been reduced before, in this or another shape."""
        known = self.copies.get(value.instance, {})
        if (mesh, "reduced") in known:
            return _placed(value, mesh, None)
        if (mesh, "scattered") in known:
            storage, placement, shaped = known[mesh, "scattered"]
            assert isinstance(placement, Shard)
            moved = followed(placement, shaped, value.whole, self.at)
            if moved is not None:
                return _placed(Value(value.whole, storage, value.layout, value.layer), mesh, moved)
        return value

    def _reduce(self, value: Value, mesh: str, current: Partial, target: Placement, like: Op) -> Value:
        group, ranks = mesh, self.degrees[mesh]
        known = self._known(value)
        if isinstance(target, Shard):
            before = self.local(value)
            after = _placed(value, mesh, target)
            after.storage = self._copy(value, f"{mesh}.scattered", self.local(after))
            known[mesh, "scattered"] = (after.storage, target, value.whole)
            self.replaced.add(value.storage)
            out = self.local(after)
            self._emit(
                collective("reduce_scatter_tensor", like, {"input": before}, (out,), group=group, ranks=ranks,
                           nbytes=out.nbytes * ranks, allocates=(_ref(out),), op=current.op)
            )  # fmt: skip
            return after
        after = _placed(value, mesh, None)
        tensor = self.local(after)
        known[mesh, "reduced"] = (value.storage, None, value.whole)
        self._emit(
            collective("all_reduce_", like, {"self": tensor}, (tensor,), group=group, ranks=ranks,
                       nbytes=tensor.nbytes, op=current.op)
        )  # fmt: skip
        return after

    def _gather(self, value: Value, mesh: str, current: Shard, like: Op) -> Value:
        how = "gathered"
        if self.regather and current.kind == "sequence":
            how = f"gathered in {_phase(like)}"
        known = self._known(value)
        after = _placed(value, mesh, None)
        if (mesh, how) in known:
            after.storage = known[mesh, how][0]
            return after
        before, out = self.local(value), self.local(after)
        after.storage = self._copy(value, f"{mesh}.{how.replace(' ', '.')}", out)
        known[mesh, how] = (after.storage, None, value.whole)
        self.replaced.add(value.storage)
        out = self.local(after)
        ranks = self.degrees[mesh]
        self._emit(
            collective("all_gather_into_tensor", like, {"input": before}, (out,), group=mesh, ranks=ranks,
                       nbytes=before.nbytes * ranks, allocates=(_ref(out),))
        )  # fmt: skip
        return after

    def _exchange(self, value: Value, mesh: str, target: Placement, like: Op) -> Value:
        how = "exchanged" if isinstance(target, Shard) else "dispatched" if target is not None else "combined"
        known = self._known(value)
        after = _placed(value, mesh, target)
        if (mesh, how) in known:
            after.storage = known[mesh, how][0]
            return after
        before = self.local(value)
        after.storage = self._copy(value, f"{mesh}.{how}", self.local(after))
        known[mesh, how] = (after.storage, target, value.whole)
        if target is not None:
            # What comes back is what was sent.
            back = {"dispatched": "combined", "exchanged": "exchanged"}[how]
            self._known(after)[mesh, back] = (value.storage, value.layout.get(mesh), value.whole)
        self.replaced.add(value.storage)
        out = self.local(after)
        self._emit(
            collective("all_to_all_single", like, {"input": before}, (out,), group=mesh, ranks=self.degrees[mesh],
                       nbytes=before.nbytes, allocates=(_ref(out),))
        )  # fmt: skip
        return after

    def _copy(self, value: Value, how: str, tensor: Tensor) -> int:
        """A storage for a redistributed value: the same one in every layer."""
        key = (value.storage, how)
        number = self.made.get(key)
        if number is None:
            number = self.made[key] = len(self.storages)
            source = self.storages[value.storage]
            role = source.role if source.role in ("activation", "temporary", "gradient") else "temporary"
            self.storages.append(
                replace(source, name=f"{source.name}:{how}", nbytes=tensor.nbytes, role=role, dtype="", trainable=True)
            )
            self.origin[number] = value.storage
        self.written((number, value.layer))
        return number

    def _emit(self, op: Op) -> None:
        self.ops.append(op)


def _placed(value: Value, mesh: str, placement: Placement) -> Value:
    layout = {name: kept for name, kept in value.layout.items() if name != mesh}
    if placement is not None:
        layout[mesh] = placement
    return Value(value.whole, value.storage, layout, value.layer)


def _ref(tensor: Tensor) -> Ref:
    return Ref(tensor.storage, tensor.layer, tensor.absolute)


def _phase(op: Op) -> str:
    return "backward" if op.phase == "recompute" else op.phase
