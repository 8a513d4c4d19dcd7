"""The torch-free graph of one training step.

A :class:`Graph` is a sequence of blocks (:class:`Block`), each a run of ops
(:class:`Op`) that is executed ``count`` times. Layers that repeat are stored once: in a block
with ``count > 1`` every reference to a storage of the layer stack is relative to
the layer being executed (``-1`` is the layer before it), so that a graph of 126
layers is as small as one of four and still says exactly which storage is
allocated and freed when. Where kinds of layers alternate, a block repeats a group
of them, and references are relative to the first of the group.

Sizes are ints or symbolic (:class:`perfmodel.symbols.Expr`); ``bindings`` gives
each symbol its value.
"""

from __future__ import annotations

import ast
import itertools
import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from perfmodel.dtypes import item_size
from perfmodel.errors import FileError, ShapeError, UnknownNameError, UnsupportedError
from perfmodel.graph.count import PHASES, Coverage, count, coverage, total_bytes, total_flops
from perfmodel.graph.paths import module_family
from perfmodel.ops import Tensor
from perfmodel.symbols import Dim, evaluate, parse

__all__ = ["PHASES", "RESIDENT_ROLES", "ROLES", "Block", "Graph", "Op", "Ref", "Storage", "blocks_by_phase", "holds"]

#: What a storage is for. ``activation`` is kept from forward to backward,
#: ``temporary`` dies in the phase in which it was made.
ROLES = ("parameter", "buffer", "input", "gradient", "optimizer", "activation", "temporary")

#: Roles whose storages exist before the first step begins.
RESIDENT_ROLES = ("parameter", "buffer", "input")


class Ref(NamedTuple):
    """A storage, and which layer's copy of it (see :class:`perfmodel.ops.Tensor`)."""

    storage: int
    layer: int = 0
    absolute: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """A piece of memory that tensors look at.

    Parameters
    ----------
    name : str
        Unique among the storages of its stack; relative to the layer where there is one.
    nbytes : Dim
        Size in bytes.
    role : str
        One of :data:`ROLES`.
    module : str
        Path of the module that made or owns it; the layer's index is ``*``.
    stack : str
        Path of the layer stack it belongs to (``"model.layers"``), or empty.
    layers : tuple of int, optional
        Every layer that has one, in rising order; ``None`` outside a stack.
    dtype : str
        Of a parameter; empty for the rest.
    trainable : bool
        Whether a parameter gets a gradient.
    """

    name: str
    nbytes: Dim
    role: str
    module: str
    stack: str = ""
    layers: tuple[int, ...] | None = None
    dtype: str = ""
    trainable: bool = True

    @property
    def count(self) -> int:
        """How many copies exist."""
        return 1 if self.layers is None else len(self.layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One call of an op: an :class:`perfmodel.ops.OpCall` with its place in the step.

    ``allocates`` lists the storages that the call makes, ``frees`` those that are
    released after it and before the next op. Where ops are fused
    (:func:`perfmodel.graph.fuse.fuse`), ``on_chip`` names the operands that this
    op neither reads from memory nor writes to it (``in:self``, ``out:0``), and
    ``launches`` is false but for one op of each kernel.
    """

    name: str
    phase: str
    module: str
    inputs: Mapping[str, Tensor]
    outputs: tuple[Tensor, ...]
    attrs: Mapping[str, Any]
    allocates: tuple[Ref, ...] = ()
    frees: tuple[Ref, ...] = ()
    on_chip: tuple[str, ...] = ()
    launches: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Ops that are executed ``count`` times in a row.

    Parameters
    ----------
    ops : tuple of Op
        In order of execution.
    count : int
        Repetitions.
    stack : str
        Layer stack whose layers the repetitions are, or empty.
    first, step : int
        Layer of the first repetition, and how the layer moves between
        repetitions: +1 in forward, -1 in backward; +2 and -2 where each
        repetition is a group of two layers (``first`` is then the one that runs
        first). In an op's module the layer is ``*``, others of the group are ``*+1``,
        ``*-1`` and so on (:func:`perfmodel.graph.paths.module_family` drops the difference).
    """

    ops: tuple[Op, ...]
    count: int = 1
    stack: str = ""
    first: int = 0
    step: int = 1

    @property
    def layers(self) -> range:
        """Layer of each repetition; the first that runs, where each is a group."""
        return range(self.first, self.first + self.step * self.count, self.step)

    @property
    def span(self) -> range:
        """All layers of all repetitions, in rising order."""
        first, period = self.first, abs(self.step)
        last = first if self.step > 0 else first + self.step * self.count + 1
        return range(last, last + period * self.count)


def blocks_by_phase(ops: Iterable[Op]) -> tuple[Block, ...]:
    """Ops in order, a block for each phase (recompute lies within backward)."""
    groups = itertools.groupby(ops, key=lambda op: "backward" if op.phase == "recompute" else op.phase)
    return tuple(Block(ops=tuple(group)) for _, group in groups)


@dataclass(frozen=True, kw_only=True)
class Graph:
    """One training step of a model, without PyTorch.

    Parameters
    ----------
    name : str
        What was captured.
    blocks : tuple of Block
        The steady step: forward, backward (with recompute), optimizer, release.
    first_optimizer : tuple of Block
        The optimizer phase of the very first step, which also makes the optimizer's state.
    storages : tuple of Storage
        What tensors look at.
    stacks : Mapping[str, int]
        Layer stacks and their depth.
    bindings : Mapping[str, int]
        Symbol values in force, e.g. ``{"batch": 8, "seq": 4096}``.
    guards : tuple of str
        Conditions on the symbols under which the capture holds.
    meta : Mapping[str, Any]
        Where it came from: model, implementation, dtype, optimizer, versions.
    """

    name: str
    blocks: tuple[Block, ...]
    first_optimizer: tuple[Block, ...] = ()
    storages: tuple[Storage, ...] = ()
    stacks: Mapping[str, int] = field(default_factory=dict)
    bindings: Mapping[str, int] = field(default_factory=dict)
    guards: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    trace: Any = field(default=None, compare=False, repr=False)

    @property
    def symbols(self) -> tuple[str, ...]:
        """Names of the symbols, sorted."""
        return tuple(sorted(self.bindings))

    @property
    def depth(self) -> int:
        """Number of ops of a steady step, repetitions included."""
        return sum(len(block.ops) * block.count for block in self.blocks)

    def ops(self) -> Iterator[tuple[Op, int]]:
        """Each stored op of a steady step with how often it runs."""
        for block in self.blocks:
            for op in block.ops:
                yield op, block.count

    def at(self, **values: int) -> Graph:
        """The same graph for other sizes.

        Parameters
        ----------
        **values : int
            New values of symbols, e.g. ``batch=8, seq=4096``.

        Raises
        ------
        UnknownNameError
            If the graph has no such symbol.
        ShapeError
            If a value isn't a positive integer, or the capture doesn't hold there.
        """
        for name, value in values.items():
            if name not in self.bindings:
                cure = f"its sizes are {', '.join(self.symbols) or 'all fixed'}"
                raise UnknownNameError(f"symbol of {self.name}", name, self.bindings, cure)
            if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
                raise ShapeError(f"{name} must be a positive integer, not {value!r}")
        bindings = {**self.bindings, **{name: operator.index(value) for name, value in values.items()}}
        broken = self.broken_guards(bindings)
        if broken:
            sizes = ", ".join(f"{key}={value}" for key, value in bindings.items())
            raise ShapeError(
                f"{self.name} was captured for {' and '.join(broken)}, not {sizes}; capture it at those sizes"
            )
        return replace(self, bindings=bindings)

    def broken_guards(self, bindings: Mapping[str, int]) -> list[str]:
        """Conditions of the capture that don't hold at these sizes."""
        return [guard for guard in self.guards if not holds(guard, bindings)]

    def parameters(self, *, trainable_only: bool = False) -> int:
        """Number of parameters, tied ones once."""
        return sum(
            int(evaluate(storage.nbytes, self.bindings)) // item_size(storage.dtype) * storage.count
            for storage in self.storages
            if storage.role == "parameter" and (storage.trainable or not trainable_only)
        )

    def flops(
        self,
        unit: str = "matrix",
        *,
        causal: str = "full",
        recompute: bool = True,
        phase: str | None = None,
        dtype: str | None = None,
        at: Mapping[str, Any] | None = None,
    ) -> Any:
        """Floating-point operations of one step, a multiply-add counted as two.

        Parameters
        ----------
        unit : {"matrix", "vector"}
        causal : {"full", "half"}
            Causal attention by its whole square (FlopCounterMode, PaLM,
            Megatron) or by its visible pairs only.
        recompute : bool
            Whether work that is done again counts: activation checkpoints and
            the scores that a fused attention backward recomputes. ``False``
            gives model flops, as in MFU, which are of forward and backward
            (Muon's products are the optimizer's); ``True`` gives those of HFU.
        phase, dtype : str, optional
            Only this phase, only arithmetic in this type.
        at : mapping, optional
            Sizes other than the graph's bindings; arrays broadcast.

        Returns
        -------
        int, or ndarray of float64 where ``at`` has arrays
        """
        return total_flops(self, unit, causal=causal, recompute=recompute, phase=phase, dtype=dtype, at=at)

    def bytes(self, *, phase: str | None = None, at: Mapping[str, Any] | None = None) -> Any:
        """Bytes that the ops of one step read and write, each operand of each op once; see :meth:`flops`."""
        return total_bytes(self, phase=phase, at=at)

    @property
    def answers(self) -> dict[str, int]:
        """How often a step asks about data (``.item()``) and the capture made the answer up, by module."""
        found: dict[str, int] = {}
        for op, times in self.ops():
            if op.name == "aten._local_scalar_dense":
                place = "optimizer" if op.phase == "optimizer" else module_family(op.module) or "(root)"
                found[place] = found.get(place, 0) + times
        return found

    @property
    def coverage(self) -> Coverage:
        """How much of the step has a counting rule."""
        return coverage(count(self))

    @property
    def fx(self) -> Any:
        """The captured step as a ``torch.fx.Graph``.

        A module's capture has it. A model by name has it when captured with
        ``cache=False, folded=False``, so that nothing comes from the disk or is derived.

        Node ``meta`` carries ``phase``, ``module``, ``shape``, ``dtype``, ``strides`` and ``storage``.

        Raises
        ------
        UnsupportedError
            If this graph was loaded from a file or the cache.
        """
        if self.trace is None:
            raise UnsupportedError(
                f"{self.name} was loaded or derived, and the torch.fx graph isn't kept then; "
                "capture it with cache=False, folded=False to get .fx"
            )
        from perfmodel.graph.capture.fx import build_fx

        return build_fx(self.trace)


def holds(condition: str, bindings: Mapping[str, int]) -> bool:
    """Whether a guard such as ``"batch*seq >= 2"`` is true at these sizes.

    >>> holds("not (batch == 1 or seq > 1024)", {"batch": 4, "seq": 512})
    True
    """
    return bool(_holds(ast.parse(condition, mode="eval").body, bindings))


def _holds(node: ast.expr, bindings: Mapping[str, int]) -> Any:
    match node:
        case ast.BoolOp(op=op, values=values):
            return (all if isinstance(op, ast.And) else any)(_holds(value, bindings) for value in values)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not _holds(operand, bindings)
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            a, b = (evaluate(parse(ast.unparse(side)), bindings) for side in (left, right))
            return _COMPARE[type(op)](a, b)
    raise FileError(f"guard {ast.unparse(node)!r} is not a comparison of sizes; capture the model again")


_COMPARE: dict[type[ast.cmpop], Any] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
