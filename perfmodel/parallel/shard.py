"""``shard``: a step and a plan, to what one rank does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from perfmodel.errors import ShapeError, UnsupportedError
from perfmodel.graph.ir import Graph
from perfmodel.parallel.data import share
from perfmodel.parallel.layouts import seeds_for
from perfmodel.parallel.plan import Plan
from perfmodel.parallel.precision import check_compute, with_optimizer_dtype
from perfmodel.parallel.program import Program
from perfmodel.parallel.propagate import propagate
from perfmodel.parallel.recompute import with_recompute
from perfmodel.parallel.sharing import Sharing
from perfmodel.parallel.tokens import token_dims
from perfmodel.symbols import Dim, evaluate, symbol

__all__ = ["shard"]


def shard(graph: Graph, plan: Plan, placements: Mapping[str, str] | None = None) -> Program:
    """What one rank does under a plan.

    Degrees above 1 stay symbols (``tp``, ``cp``, ``dp``, ``ep``) in the program's sizes, bound to
    the plan's values: other degrees of the same structure need no other pass.

    Parameters
    ----------
    graph : Graph
        The step of one data-parallel rank, captured with a symbol for the batch or at the plan's micro-batch.
    plan : Plan
        With ``dp`` given or derived (:meth:`Plan.on`).
    placements : mapping of str to str, optional
        Module pattern to style, as Hugging Face's ``base_model_tp_plan`` and ``parallelize_module`` have them
        (:data:`perfmodel.parallel.layouts.STYLES`). Inferred from the graph if left out.

    Returns
    -------
    Program

    Raises
    ------
    UnsupportedError
        If the plan doesn't fit the model, or an op has no rule for what is sharded.

    Examples
    --------
    >>> program = shard(step, Plan(tp=8, sp=True, dp=2))  # doctest: +SKIP
    >>> program.collectives()[0]  # doctest: +SKIP
    """
    plan.check(graph)
    dp = plan.data_parallel
    graph = with_recompute(_with_micro_batch(graph, plan), plan.recompute)
    if "compute" in plan.dtypes:
        check_compute(graph, plan.dtypes["compute"])
    if "optimizer" in plan.dtypes:
        graph = with_optimizer_dtype(graph, plan.dtypes["optimizer"])
    degrees = {name: size for name, size in (("tp", plan.tp), ("cp", plan.cp), ("ep", plan.ep), ("dp", dp)) if size > 1}
    taken = sorted(set(degrees) & set(graph.bindings))
    if taken:
        raise UnsupportedError(f"{graph.name} has a size named {taken[0]!r}, which names a degree; capture it renamed")
    symbols: dict[str, Dim] = {name: symbol(name) for name in degrees}
    at = {**graph.bindings, **degrees}
    seeds = seeds_for(
        graph,
        tp=plan.tp,
        sequence=plan.sp,
        cp=plan.cp,
        ep=plan.ep,
        experts_over_tp=plan.expert_tp > 1,
        styles=placements,
        at=at,
    )
    mesh: dict[str, Dim] = {name: symbols[name] for name in ("ep", "cp", "tp") if name in symbols}
    local, layouts = propagate(
        graph, seeds, mesh, regather=plan.sequence_gather == "again", cp_kind=plan.cp_kind, at=at
    )
    local = replace(local, bindings=at)
    if dp * plan.cp > 1:
        local = share(local, layouts, _sharing(plan, symbols))
    names = {graph.storages[number].name: layout for number, layout in seeds.parameters.items()}
    return Program(graph=local, source=graph, plan=plan, layouts=names)


def _with_micro_batch(graph: Graph, plan: Plan) -> Graph:
    batch, _ = token_dims(graph)
    if isinstance(batch, int):
        if batch and batch != plan.micro_batch:
            raise ShapeError(
                f"{graph.name} was captured with a batch of {batch}, and the plan's micro_batch is {plan.micro_batch}; "
                "capture it with a symbol (dynamic_shapes) or at that batch"
            )
        return graph
    name = str(batch)
    if name not in graph.bindings:
        raise ShapeError(f"the batch of {graph.name} is {name}, not one symbol; capture it with dynamic_shapes")
    return graph.at(**{name: plan.micro_batch})


def _sharing(plan: Plan, symbols: Mapping[str, Dim]) -> Sharing:
    tp, cp, dp, ep = (symbols.get(name, 1) for name in ("tp", "cp", "dp", "ep"))
    data = dp * cp
    experts = (tp * cp * dp) // (ep * (tp if plan.expert_tp > 1 else 1))
    group: Any = plan.shard_group
    return Sharing(
        zero=plan.zero,
        reshard=plan.reshard_after_forward,
        ranks={
            "dp-cp": data,
            "edp": experts,
            "shard": data if group is None else group,
            "replicate": 1 if group is None else data // group,
        },
        hybrid=group is not None and group < int(evaluate(plan.data_parallel * plan.cp, {})),
        gradients=plan.dtypes.get("gradients", ""),
        communication=plan.dtypes.get("communication", ""),
        parameters=plan.dtypes.get("parameters", ""),
        overlap_reduce="grad_reduce" in plan.overlap,
        overlap_gather="param_gather" in plan.overlap,
        bucket=plan.bucket,
    )
