"""Sum up what a graph does.

Each op's cost comes from :mod:`perfmodel.ops`; here it is taken at given sizes
(numbers, arrays, or left symbolic) and added over the step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from perfmodel.dtypes import item_size
from perfmodel.errors import PerfModelError, UnknownNameError
from perfmodel.ops import FLOP_COUNTER_OPS, OpCost, Tensor, cost
from perfmodel.ops.common import is_in_place
from perfmodel.symbols import Dim, Expr, evaluate, symbol

if TYPE_CHECKING:
    from perfmodel.graph.ir import Graph, Op

__all__ = [
    "CONVENTIONS",
    "PHASES",
    "Binder",
    "Call",
    "Counted",
    "Coverage",
    "count",
    "coverage",
    "total_bytes",
    "total_flops",
]

#: Phases of a training step, in order. ``recompute`` is forward work that
#: activation checkpointing repeats inside backward; ``release`` frees gradients.
PHASES = ("forward", "backward", "recompute", "optimizer", "release")

#: How causal attention is counted. ``full``: the whole square of scores, as
#: FlopCounterMode, the PaLM paper and Megatron do. ``half``: only the pairs that
#: the mask leaves visible, as a fused kernel computes them.
CONVENTIONS = ("full", "half")


class Call(NamedTuple):
    """An op at given sizes; an :class:`perfmodel.ops.OpCall`."""

    name: str
    inputs: Mapping[str, Tensor]
    outputs: tuple[Tensor, ...]
    attrs: Mapping[str, Any]


class Counted(NamedTuple):
    """An op of the graph, the same at given sizes, what one call costs (``None``: no rule), how often it runs."""

    op: Op
    call: Call
    cost: OpCost | None
    times: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """How much of a step has a counting rule.

    Attributes
    ----------
    ops : float
        Share of op calls that run something (views aren't counted).
    bytes : float
        Share of the bytes that their operands hold.
    flop_counter : float
        Share of the calls of ops that PyTorch's FlopCounterMode knows.
    missing : Mapping[str, int]
        Ops without a rule, with how often they run.
    """

    ops: float
    bytes: float
    flop_counter: float
    missing: Mapping[str, int]


def count(graph: Graph, values: Mapping[str, Any] | None = None) -> Iterator[Counted]:
    """The cost of every stored op of a steady step.

    Parameters
    ----------
    graph : Graph
    values : mapping, optional
        Sizes to count at; the graph's own bindings if left out. Numbers,
        arrays, or :func:`perfmodel.symbols.symbol` to stay symbolic.
    """
    bind = Binder(graph.bindings if values is None else values)
    for block in graph.blocks:
        for op in block.ops:
            call = bind(op)
            yield Counted(op, call, _fused_cost(op, call), block.count)


def _fused_cost(op: Op, call: Call) -> OpCost | None:
    """The op's cost, less what stays inside of the fused kernel that it's part of."""
    whole = cost(call)
    if whole is None or (op.launches and not op.on_chip):
        return whole
    kernels = whole.kernels if op.launches else 0
    reading, writing = cost(_marked(call, op.on_chip, "in:self")), cost(_marked(call, op.on_chip, "out:0"))
    if reading is None or writing is None:
        return None
    return replace(whole, read=reading.read, written=writing.written, kernels=kernels)


def _marked(call: Call, on_chip: Sequence[str], overwritten: str) -> Call:
    """The call with its on-chip operands marked; ``overwritten`` is the label of what an op in place changes."""
    in_place = is_in_place(call)

    def inside(name: str, tensor: Tensor) -> Tensor:
        label = overwritten if in_place and name == "self" else f"in:{name}"
        return replace(tensor, on_chip=True) if label in on_chip else tensor

    outputs = tuple(replace(t, on_chip=True) if f"out:{k}" in on_chip else t for k, t in enumerate(call.outputs))
    return Call(call.name, {name: inside(name, t) for name, t in call.inputs.items()}, outputs, call.attrs)


def total_flops(
    graph: Graph | Sequence[Counted],
    unit: str = "matrix",
    *,
    causal: str = "full",
    recompute: bool = True,
    phase: str | None = None,
    dtype: str | None = None,
    at: Mapping[str, Any] | None = None,
) -> Any:
    """See :meth:`perfmodel.graph.ir.Graph.flops`; takes ops that are counted already, too."""
    if unit not in ("matrix", "vector"):
        raise UnknownNameError("unit", unit, ("matrix", "vector"))
    if causal not in CONVENTIONS:
        raise UnknownNameError("convention for causal attention", causal, CONVENTIONS)
    if phase is not None and phase not in PHASES:
        raise UnknownNameError("phase", phase, PHASES)
    if dtype is not None:
        item_size(dtype)

    def of(counted: Counted) -> Dim:
        op, _, c, times = counted
        if c is None or (phase and op.phase != phase) or (dtype and c.dtype != dtype):
            return 0
        if not recompute and op.phase in ("recompute", "optimizer"):
            return 0
        if unit == "vector":
            return c.vector_flops * times
        flops = c.matrix_flops
        if causal == "half":
            flops = flops - c.masked
        if not recompute:
            flops = flops - (c.repeated if causal == "full" else c.repeated - c.repeated_masked)
        return flops * times

    return sum(of(counted) for counted in graph) if isinstance(graph, Sequence) else _total(graph, of, at)


def total_bytes(graph: Graph, *, phase: str | None = None, at: Mapping[str, Any] | None = None) -> Any:
    """See :meth:`perfmodel.graph.ir.Graph.bytes`."""

    def of(counted: Counted) -> Dim:
        op, _, c, times = counted
        return 0 if c is None or (phase and op.phase != phase) else (c.read + c.written) * times

    return _total(graph, of, at)


def coverage(counted: Iterable[Counted]) -> Coverage:
    """Share of ops, bytes and known-flop ops that have a rule."""
    calls = known_calls = matmuls = known_matmuls = 0
    size = known_size = 0
    missing: dict[str, int] = {}
    for op, call, c, times in counted:
        if c is not None and c.family in ("view", "host"):
            continue
        amount = sum(int(t.nbytes) for t in (*call.inputs.values(), *call.outputs)) * times
        matmul = times if op.name in FLOP_COUNTER_OPS else 0
        calls, size, matmuls = calls + times, size + amount, matmuls + matmul
        if c is None:
            missing[op.name] = missing.get(op.name, 0) + times
        else:
            known_calls, known_size, known_matmuls = known_calls + times, known_size + amount, known_matmuls + matmul
    return Coverage(
        ops=known_calls / calls if calls else 1.0,
        bytes=known_size / size if size else 1.0,
        flop_counter=known_matmuls / matmuls if matmuls else 1.0,
        missing=missing,
    )


def _total(graph: Graph, of: Any, at: Mapping[str, Any] | None) -> Any:
    values = {**graph.bindings, **(at or {})}
    unknown = set(values) - set(graph.bindings)
    if unknown:
        sizes = f"its sizes are {', '.join(graph.symbols) or 'all fixed'}"
        raise UnknownNameError(f"symbol of {graph.name}", sorted(unknown)[0], graph.bindings, sizes)
    if not any(isinstance(value, np.ndarray) for value in values.values()):
        return sum(of(counted) for counted in count(graph, values))
    # One symbolic sum, evaluated once for all cases, instead of every op for every case.
    total = sum(of(counted) for counted in count(graph, {name: symbol(name) for name in values}))
    _check_arrays(values)
    arrays = {name: np.asarray(value, dtype=np.float64) for name, value in values.items()}
    result = evaluate(total, arrays)
    return (
        result
        if isinstance(result, np.ndarray)
        else np.full(np.broadcast_shapes(*(a.shape for a in arrays.values())), float(result))
    )


def _check_arrays(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        array = np.asarray(value)
        if array.size and not (np.isfinite(array).all() and (array >= 1).all()):
            raise PerfModelError(f"{name} must hold positive sizes; it holds {array.min()}")


class Binder:
    """Evaluates the sizes of ops, each distinct tensor once.

    Parameters
    ----------
    values : mapping
        Numbers, arrays or symbols by the name of the symbol.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self._tensors: dict[Any, Tensor] = {}

    def __call__(self, op: Op) -> Call:
        """The op at these sizes."""
        return Call(
            op.name,
            {name: self._tensor(tensor) for name, tensor in op.inputs.items()},
            tuple(self._tensor(tensor) for tensor in op.outputs),
            {name: self._attribute(value) for name, value in op.attrs.items()},
        )

    def _tensor(self, tensor: Tensor) -> Tensor:
        key = (tensor.shape, tensor.dtype, tensor.strides)
        known = self._tensors.get(key)
        if known is None:
            known = self._tensors[key] = Tensor(
                shape=tuple(evaluate(size, self._values) for size in tensor.shape),
                dtype=tensor.dtype,
                strides=None
                if tensor.strides is None
                else tuple(evaluate(size, self._values) for size in tensor.strides),
            )
        return known

    def _attribute(self, value: Any) -> Any:
        if isinstance(value, Expr):
            return evaluate(value, self._values)
        if isinstance(value, list):
            return [self._attribute(item) for item in value]
        return value
