"""How a tensor lies over a dimension of the device mesh: sharded, replicated, partial.

The vocabulary is DTensor's (``torch.distributed.tensor``): ``Shard``, ``Replicate``,
``Partial``. A layout maps the mesh dimensions (``"tp"``, ``"cp"``, ``"ep"``, …) to
placements; where one is missing, the tensor is replicated. Sizes stay symbolic in the
degrees: 32 heads over ``tp`` ranks are ``ceil(32 / tp)`` heads a rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from perfmodel.ops.tensor import Tensor
from perfmodel.symbols import Dim, ceil_div, evaluate, product

__all__ = [
    "Layout",
    "Partial",
    "Placement",
    "Replicate",
    "Routed",
    "Shard",
    "followed",
    "local_size",
    "local_tensor",
    "reshaped",
    "same",
]


@dataclass(frozen=True, slots=True)
class Shard:
    """Each rank holds a part of dimension ``dim``.

    Parameters
    ----------
    dim : int
        Counted from 0.
    outer : Dim
        How often the sharded axis repeats within the dimension: after ``[batch, seq]`` has been
        flattened to ``[batch * seq]``, a sharded sequence has ``outer=batch`` (DTensor's ``_StridedShard``).
    unit : Dim
        Elements that stay together, such as ``head_dim``. Of a dimension of ``size`` a rank holds
        ``outer * ceil(size / (outer * unit) / degree) * unit``; one unit is held by several ranks
        where there are more ranks than units (key-value heads under a wider tensor parallelism).
    kind : {"feature", "sequence", "expert"}
        What the parts are. Tokens of a sharded sequence are independent of each other in all ops but attention.
    packed : bool
        The dimension holds several tensors side by side (query, key and value; gate and up), each sharded on its own.
    """

    dim: int
    outer: Dim = 1
    unit: Dim = 1
    kind: str = "feature"
    packed: bool = False


@dataclass(frozen=True, slots=True)
class Partial:
    """Each rank holds a term; the value is their ``op`` (``"sum"`` or ``"max"``)."""

    op: str = "sum"


@dataclass(frozen=True, slots=True)
class Routed:
    """Rows are with the rank that holds their expert, not with the rank whose tokens they are."""


@dataclass(frozen=True, slots=True)
class Replicate:
    """Each rank holds all of it. In layouts the same as no entry."""


#: ``None`` is replicated.
Placement = Shard | Partial | Routed | None
Layout = Mapping[str, Placement]


def same(a: Placement, b: Placement) -> bool:
    """Whether two placements put the same elements on the same rank."""
    if isinstance(a, Shard) and isinstance(b, Shard):
        return a.dim == b.dim and a.outer == b.outer
    return a == b


def local_size(size: Dim, shard: Shard, degree: Dim) -> Dim:
    """What the rank with the largest part holds of a sharded dimension.

    >>> local_size(1024, Shard(0, unit=128), 16)
    128
    >>> from perfmodel.symbols import symbol
    >>> str(local_size(4096, Shard(0), symbol("tp")))
    '-floordiv(-4096, tp)'
    """
    return shard.outer * ceil_div(size // (shard.outer * shard.unit), degree) * shard.unit


def local_tensor(tensor: Tensor, layout: Layout, degrees: Mapping[str, Dim], at: Mapping[str, Any]) -> Tensor:
    """A rank's part of a tensor: local shape, and strides as if the local storage had been made in the same order."""
    if not any(isinstance(placement, Shard) for placement in layout.values()):
        return tensor
    shape = list(tensor.shape)
    for mesh, placement in layout.items():
        if isinstance(placement, Shard):
            shape[placement.dim] = local_size(shape[placement.dim], placement, degrees[mesh])
    strides = tensor.strides
    if strides is not None:
        values = [int(evaluate(stride, at)) for stride in strides]
        strides = tuple(
            _local_stride(stride, values, position, tensor.shape, shape) for position, stride in enumerate(strides)
        )
    return replace(tensor, shape=tuple(shape), strides=strides)


def _local_stride(stride: Dim, values: Sequence[int], position: int, whole: Sequence[Dim], local: Sequence[Dim]) -> Dim:
    """A stride spans the dimensions that lie further in; it shrinks as they do."""
    for inner, value in enumerate(values):
        if 0 < value < values[position] and not (local[inner] is whole[inner] or local[inner] == whole[inner]):
            stride = stride * local[inner] // whole[inner]
    return stride


def reshaped(shard: Shard, old: Sequence[Dim], new: Sequence[Dim], at: Mapping[str, Any]) -> Shard | None:
    """Where a sharded axis is after a view of a row-major tensor of shape ``old`` as shape ``new``.

    Where the axis is split over several dimensions, its parts are whole slices of the
    first of them (heads of ``[heads, head_dim]``). ``None`` where no dimension holds it.

    >>> reshaped(Shard(1), (2, 64, 256), (128, 256), {})
    Shard(dim=0, outer=2, unit=1, kind='feature', packed=False)
    >>> reshaped(Shard(2), (2, 64, 256), (2, 64, 8, 32), {}).dim
    2
    """
    outer = product(old[: shard.dim]) * shard.outer
    inner = shard.unit * product(old[shard.dim + 1 :])
    units = old[shard.dim] // (shard.outer * shard.unit)
    n_outer, n_inner, n_units = (int(evaluate(size, at)) for size in (outer, inner, units))
    sizes = [int(evaluate(size, at)) for size in new]
    before = 1
    for dim, size in enumerate(sizes):
        after = product(sizes[dim + 1 :])
        if size > 1 and before * size > n_outer:
            if n_outer % before:
                return None
            if n_inner % after == 0 and n_outer // before * n_units * (n_inner // after) == size:
                lead, unit = outer // product(new[:dim]), inner // product(new[dim + 1 :])
                return replace(shard, dim=dim, outer=lead, unit=unit)
            if n_outer == before and after > n_inner:
                return replace(shard, dim=dim, outer=1, unit=1)
            return None
        before *= size
    return None


def followed(shard: Shard, old: Tensor, new: Tensor, at: Mapping[str, Any]) -> Shard | None:
    """Where a sharded axis is in another look at the same memory; ``None`` where no one dimension holds it.

    >>> old = Tensor(shape=(256, 128), dtype="float32", strides=(1, 256))
    >>> followed(Shard(1), old, Tensor(shape=(2, 64, 256), dtype="float32"), {}) is None
    True
    >>> followed(Shard(1), old, Tensor(shape=(128, 256), dtype="float32"), {}).dim
    0
    """
    old_strides, new_strides = _strides(old), _strides(new)
    # The axis in memory: `units` parts that lie `step` elements apart.
    step = old_strides[shard.dim] * shard.unit
    units = old.shape[shard.dim] // (shard.outer * shard.unit)
    n_step, n_units = int(evaluate(step, at)), int(evaluate(units, at))
    for dim, (size, stride) in enumerate(zip(new.shape, new_strides, strict=True)):
        n_size, n_stride = int(evaluate(size, at)), int(evaluate(stride, at))
        if n_size == 1 or not n_stride or n_step % n_stride or n_stride * n_size < n_step * n_units:
            continue
        if n_stride * n_size % (n_step * n_units):
            return None
        outer, unit = size * stride // (step * units), step // stride
        return replace(shard, dim=dim, outer=outer, unit=unit)
    return None


def _strides(tensor: Tensor) -> tuple[Dim, ...]:
    if tensor.strides is not None:
        return tensor.strides
    steps: list[Dim] = []
    step: Dim = 1
    for size in reversed(tensor.shape):
        steps.append(step)
        step = step * size
    return tuple(reversed(steps))
