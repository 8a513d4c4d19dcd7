"""``Program``: what one rank does in a step, pipeline stages together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from perfmodel.errors import UnsupportedError
from perfmodel.graph.ir import Graph, Op
from perfmodel.ops import cost
from perfmodel.parallel.placement import Layout
from perfmodel.parallel.plan import Plan
from perfmodel.symbols import Dim, evaluate

__all__ = ["Collective", "Program", "is_collective"]

_PREFIX = "c10d."


@dataclass(frozen=True, slots=True, kw_only=True)
class Collective:
    """A collective of a program.

    Attributes
    ----------
    op : str
        ``all_reduce``, ``all_gather``, ``reduce_scatter``, ``all_to_all`` or ``send_recv``.
    group : str
        Kind of the ranks that take part; ``ranks`` of them.
    nbytes : int or ndarray
        As nccl-tests counts: what a rank gives to an all-reduce, reduce-scatter or all-to-all, what it gets from an
        all-gather, one message of a send.
    dtype, phase, module : str
    per : {"micro_batch", "step"}
    count : int or ndarray
        How often it runs, repetitions of layers included.
    overlap : bool
        Whether it may run beside compute that doesn't need it.
    """

    op: str
    group: str
    ranks: Any
    nbytes: Any
    dtype: str
    phase: str
    module: str
    per: str
    count: Any
    overlap: bool


@dataclass(frozen=True, kw_only=True)
class Program:
    """What one rank does in a step.

    Parameters
    ----------
    graph : Graph
        The rank's ops with local shapes and collectives (``c10d.…``); its symbols are those of
        the source and the degrees of the plan.
    source : Graph
        The whole step of one data-parallel rank that it was made from.
    plan : Plan
    layouts : mapping of str to Layout
        Placements of the parameters that aren't replicated, by name.
    """

    graph: Graph
    source: Graph
    plan: Plan
    layouts: Mapping[str, Layout]

    def at(self, **values: int) -> Program:
        """The same structure with other degrees or sizes, e.g. ``at(tp=4, batch=2)``.

        Raises
        ------
        UnsupportedError
            If a degree becomes 1 or stops being 1, which is another structure: shard again.
        """
        for name in ("tp", "cp", "dp", "ep"):
            if name in values and name not in self.graph.bindings:
                raise UnsupportedError(f"{name} is 1 in this program and is no symbol of it; shard with {name} > 1")
        return replace(self, graph=self.graph.at(**values))

    def ops(self) -> Iterator[tuple[Op, int]]:
        """Ops that compute, with how often they run."""
        for op, times in self.graph.ops():
            if not is_collective(op):
                yield op, times

    def collectives(self, at: Mapping[str, Any] | None = None) -> tuple[Collective, ...]:
        """The collectives of a micro-batch and a step, in the order in which they are issued; none of a single rank.

        Parameters
        ----------
        at : mapping, optional
            Values for symbols other than the program's; arrays broadcast.
        """
        values = {**self.graph.bindings, **(at or {})}
        found = (
            Collective(
                op=op.name.removeprefix(_PREFIX).removesuffix("_").removesuffix("_into_tensor").removesuffix("_tensor")
                .removesuffix("_single"),
                group=op.attrs["group"],
                ranks=evaluate(op.attrs["ranks"], values),
                nbytes=evaluate(op.attrs["bytes"], values),
                dtype=op.attrs["dtype"],
                phase=op.phase,
                module=op.module,
                per=op.attrs["per"],
                count=evaluate(op.attrs.get("messages", 1), values) * times,
                overlap=op.attrs["overlap"],
            )
            for op, times in self.graph.ops()
            if is_collective(op)
        )  # fmt: skip
        return tuple(c for c in found if isinstance(c.ranks, np.ndarray) or c.ranks > 1)

    def traffic(self, at: Mapping[str, Any] | None = None) -> dict[tuple[str, str, str], Any]:
        """Bytes by (op, group, per): the sum of ``nbytes`` times ``count``.

        Evaluated once as a sum of symbols, so that arrays of degrees cost little.
        """
        totals: dict[tuple[str, str, str], Dim] = {}
        for op, times in self.graph.ops():
            if is_collective(op):
                name = op.name.removeprefix(_PREFIX)
                key = (name, op.attrs["group"], op.attrs["per"])
                totals[key] = totals.get(key, 0) + op.attrs["bytes"] * op.attrs.get("messages", 1) * times
        values = {**self.graph.bindings, **(at or {})}
        arrays = {
            name: np.asarray(value, dtype=np.float64) if isinstance(value, np.ndarray) else value
            for name, value in values.items()
        }
        return {key: evaluate(total, arrays) for key, total in totals.items()}

    def replicated_flops(self) -> dict[str, int]:
        """Matrix flops that ranks of one model replica do in excess of the whole step, by module.

        The ranks of ``tp`` and ``cp`` together do the source's flops plus these. Work is
        replicated where no placement splits it, and where key-value heads are fewer than ranks.
        """
        values = self.graph.bindings
        ranks = int(values.get("tp", 1)) * int(values.get("cp", 1))
        excess: dict[str, int] = {}
        for graph, sign in ((self.graph, ranks), (self.source, -1)):
            for op, times in graph.ops():
                if is_collective(op):
                    continue
                amount = cost(op)
                if amount is None or (isinstance(amount.matrix_flops, int) and not amount.matrix_flops):
                    continue
                flops = int(evaluate(amount.matrix_flops, {**graph.bindings, **values}))
                excess[op.module] = excess.get(op.module, 0) + sign * flops * times
        return {module: flops for module, flops in excess.items() if flops}


def is_collective(op: Op) -> bool:
    """Whether an op communicates."""
    return op.name.startswith(_PREFIX)
