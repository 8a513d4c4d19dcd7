"""What data parallelism shares, and edits of ops that it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from perfmodel.graph.ir import Block, Op, Ref, Storage
from perfmodel.ops import Tensor
from perfmodel.symbols import Dim

__all__ = ["ROOT", "Parameter", "Sharing", "Unit", "edited", "placed_at", "ref_of", "total", "with_numbers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """How data-parallel ranks share.

    Attributes
    ----------
    zero : int
        Stage of ZeRO.
    reshard : bool
        Whether gathered parameters are dropped after forward.
    ranks : mapping of str to Dim
        By kind of group: ``"dp-cp"`` and ``"edp"`` that hold copies of dense and of expert parameters;
        ``"shard"`` and ``"replicate"`` of hybrid sharding.
    hybrid : bool
        Whether sharding groups are smaller than ``"dp-cp"``.
    gradients, communication, parameters : str
        Types; empty for as captured.
    overlap_reduce, overlap_gather : bool
    bucket : int
        Bytes of one call of an all-reduce.
    """

    zero: int
    reshard: bool
    ranks: Mapping[str, Dim]
    hybrid: bool
    gradients: str = ""
    communication: str = ""
    parameters: str = ""
    overlap_reduce: bool = True
    overlap_gather: bool = True
    bucket: int = 0


#: A layer of a stack as a block refers to it, or the root.
Unit = tuple[str, int, bool]
ROOT: Unit = ("", 0, False)


@dataclass(slots=True)
class Parameter:
    """A parameter with its gradient and the optimizer's state, by numbers of the storages."""

    number: int
    storage: Storage
    shape: tuple[Dim, ...]
    expert: bool
    gradient: int = -1
    state: list[int] = field(default_factory=list)


def total(sizes: Iterable[Dim]) -> Dim:
    """Sum of sizes."""
    total: Dim = 0
    for size in sizes:
        total = total + size
    return total


def placed_at(like: Tensor, storage: int, shape: tuple[Dim, ...], dtype: str) -> Tensor:
    """A contiguous tensor of another shape and storage, in the layer of ``like``."""
    return Tensor(shape=shape, dtype=dtype, storage=storage, layer=like.layer, absolute=like.absolute)


def ref_of(tensor: Tensor) -> Ref:
    """The storage of a tensor as a reference."""
    return Ref(tensor.storage, tensor.layer, tensor.absolute)


def with_numbers(op: Op, numbers: Mapping[int, int]) -> Op:
    """The op with storages replaced by others."""

    def moved(tensor: Tensor) -> Tensor:
        return replace(tensor, storage=numbers[tensor.storage]) if tensor.storage in numbers else tensor

    def ref(r: Ref) -> Ref:
        return Ref(numbers.get(r.storage, r.storage), r.layer, r.absolute)

    return replace(
        op,
        inputs={name: moved(t) for name, t in op.inputs.items()},
        outputs=tuple(moved(t) for t in op.outputs),
        allocates=tuple(ref(r) for r in op.allocates),
        frees=tuple(ref(r) for r in op.frees),
    )


def edited(
    block: Block,
    before: Mapping[int, list[Op]],
    after: Mapping[int, list[Op]],
    frees: Mapping[int, list[Ref]],
    change: Callable[[Op], Op],
) -> Block:
    """The block with ops inserted, storages freed after ops, and each of its own ops changed.

    Collectives of parameters, which were inserted before, are left as they are.
    """
    ops: list[Op] = []
    for position, op in enumerate(block.ops):
        ops += before.get(position, ())
        new = op if op.name.startswith("c10d.") and op.attrs["group"] in ("shard", "edp") else change(op)
        if position in frees:
            new = replace(new, frees=(*new.frees, *frees[position]))
        ops.append(new)
        ops += after.get(position, ())
    return replace(block, ops=tuple(ops))
