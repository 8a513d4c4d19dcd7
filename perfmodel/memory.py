"""Memory over a step, from when each storage is made and freed.

No tensor is followed: a captured op says which storages it makes and which die
after it, so memory is a running sum. A repeated layer contributes the same
changes every time, and the sum over 126 layers is one ``cumsum``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from perfmodel.errors import UnsupportedError
from perfmodel.graph.ir import RESIDENT_ROLES, ROLES, Block, Graph
from perfmodel.graph.paths import module_family
from perfmodel.symbols import evaluate

__all__ = ["MemoryProfile", "largest_batch", "memory_profile"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryProfile:
    """Memory of one device over one step, in bytes.

    Attributes
    ----------
    peak : float
        Largest sum of live storages.
    at_peak : Mapping[str, float]
        What is live then, by role (:data:`perfmodel.graph.ir.ROLES`).
    activations_at_peak : Mapping[str, float]
        Saved activations then, by module (layers of a stack together).
    peak_phase, peak_module, peak_op : str
        The op during which the peak is reached.
    resident : float
        Live before the step begins.
    curve : ndarray of float64, shape [events]
        Live bytes after each allocation and each release, in order.
    op_index : ndarray of int64, shape [events]
        Position in the step of the op that each event belongs to.
    first_step : bool
        Whether this is the very first step, in which the optimizer's state is made.
    """

    peak: float
    at_peak: Mapping[str, float]
    activations_at_peak: Mapping[str, float]
    peak_phase: str
    peak_module: str
    peak_op: str
    resident: float
    curve: Floats
    op_index: npt.NDArray[np.int64]
    first_step: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, without the curve."""
        return {
            "version": 1,
            "peak": self.peak,
            "at_peak": dict(self.at_peak),
            "activations_at_peak": dict(self.activations_at_peak),
            "peak_phase": self.peak_phase,
            "peak_module": self.peak_module,
            "peak_op": self.peak_op,
            "resident": self.resident,
            "first_step": self.first_step,
        }


def memory_profile(graph: Graph, *, first_step: bool = False) -> MemoryProfile:
    """Memory over a step of ``graph`` at its bindings.

    Counts what PyTorch allocates for tensors. Not included: the CUDA context,
    library workspaces and the allocator's rounding and fragmentation.

    Parameters
    ----------
    graph : Graph
    first_step : bool
        The first step, which makes the optimizer's state at its end, instead
        of a steady one, in which the state is there all along.
    """
    sizes = np.array([float(evaluate(storage.nbytes, graph.bindings)) for storage in graph.storages])
    roles = np.array([ROLES.index(storage.role) for storage in graph.storages], dtype=np.int64)
    blocks = _blocks(graph, first_step)
    live = np.zeros(len(sizes))
    for number, storage in enumerate(graph.storages):
        if storage.role in (*RESIDENT_ROLES, "optimizer"):
            live[number] = storage.count
    # Buffers made by an op (constants) are events, not residents; so is state that the first step makes.
    made = {ref.storage for block in blocks for op in block.ops for ref in op.allocates}
    live[[number for number in made if graph.storages[number].role in (*RESIDENT_ROLES, "optimizer")]] = 0

    resident = float(live @ sizes)
    changes = [_changes(block, sizes) for block in blocks]
    spelled = [np.tile(change, block.count) for change, block in zip(changes, blocks, strict=True)]
    curve = resident + np.cumsum(np.concatenate([np.zeros(0), *spelled]))
    lengths = [len(block.ops) * block.count for block in blocks]
    op_index = np.repeat(np.arange(sum(lengths)), 2)
    if not len(curve):
        raise UnsupportedError(f"{graph.name} has no ops; capture a module that computes something")

    where = int(np.argmax(curve))
    position = where // 2
    block_number = int(np.searchsorted(np.cumsum(lengths), position, side="right"))
    for block in blocks[:block_number]:
        live += _net(block, len(sizes), len(block.ops)) * block.count
    inside = position - sum(lengths[:block_number])
    block = blocks[block_number]
    rounds, last = divmod(inside, len(block.ops))
    live += _net(block, len(sizes), len(block.ops)) * rounds + _net(block, len(sizes), last)
    for ref in block.ops[last].allocates:
        live[ref.storage] += 1
    held = live * sizes
    by_module: dict[str, float] = {}
    for storage, size in zip(graph.storages, held.tolist(), strict=True):
        if storage.role == "activation" and size > 0:
            by_module[storage.module] = by_module.get(storage.module, 0.0) + size
    op = block.ops[last]
    return MemoryProfile(
        peak=float(curve[where]),
        at_peak={role: float(held[roles == number].sum()) for number, role in enumerate(ROLES)},
        activations_at_peak=dict(sorted(by_module.items(), key=lambda item: -item[1])),
        peak_phase=op.phase,
        peak_module=module_family(op.module),
        peak_op=op.name,
        resident=resident,
        curve=curve,
        op_index=op_index,
        first_step=first_step,
    )


def largest_batch(graph: Graph, capacity: float, *, symbol: str = "batch", limit: int = 1 << 24) -> int:
    """The largest batch whose steps, the first and the steady ones, fit in ``capacity`` bytes; 0 if none does.

    Peak memory never falls as the batch grows, so bisection finds it.

    Raises
    ------
    UnsupportedError
        If the graph has no such symbol, or was captured for a batch of one only
        (PyTorch takes other branches there).
    """
    if symbol not in graph.bindings:
        raise UnsupportedError(
            f"{graph.name} was captured with a fixed {symbol}; capture it with dynamic_shapes that name {symbol!r}"
        )
    if not capacity > 0:
        raise UnsupportedError(f"capacity must be a positive number of bytes, not {capacity!r}")

    def holds_at(size: int) -> bool:
        return not graph.broken_guards({**graph.bindings, symbol: size})

    def fits(size: int) -> bool:
        there = graph.at(**{symbol: size})
        return max(memory_profile(there, first_step=first).peak for first in (False, True)) <= capacity

    own = graph.bindings[symbol]
    start = next((size for size in (1, 2) if holds_at(size)), own)
    if not fits(start):
        if start > 2:
            raise UnsupportedError(
                f"{graph.name} was captured for {symbol}={own}, where it doesn't fit, and holds for no small {symbol}; "
                "capture it with a smaller one"
            )
        return 0
    low, high = start, start * 2
    while high <= limit and holds_at(high) and fits(high):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        if middle <= limit and holds_at(middle) and fits(middle):
            low = middle
        else:
            high = middle
    if low < limit and not holds_at(low + 1):
        raise UnsupportedError(
            f"{graph.name} fits with {symbol}={low}, and was captured for no larger one; "
            f"capture it with {symbol} above {low}"
        )
    return low


def _blocks(graph: Graph, first_step: bool) -> list[Block]:
    if not first_step:
        return list(graph.blocks)
    before = [block for block in graph.blocks if block.ops[0].phase not in ("optimizer", "release")]
    after = [block for block in graph.blocks if block.ops[0].phase == "release"]
    return [*before, *graph.first_optimizer, *after]


def _changes(block: Block, sizes: Floats) -> Floats:
    """Bytes made and freed (negative) by each op of a block, alternating."""
    changes = np.zeros(2 * len(block.ops))
    for position, op in enumerate(block.ops):
        changes[2 * position] = sum(sizes[ref.storage] for ref in op.allocates)
        changes[2 * position + 1] = -sum(sizes[ref.storage] for ref in op.frees)
    return changes


def _net(block: Block, storages: int, upto: int) -> Floats:
    """How many copies of each storage the first ``upto`` ops of a block leave behind."""
    net = np.zeros(storages)
    for op in block.ops[:upto]:
        for ref in op.allocates:
            net[ref.storage] += 1
        for ref in op.frees:
            net[ref.storage] -= 1
    return net
