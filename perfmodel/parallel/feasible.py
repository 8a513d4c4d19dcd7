"""Whether a model can be laid out as a plan says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from perfmodel.errors import UnsupportedError
from perfmodel.graph.ir import Graph
from perfmodel.parallel.patterns import divisors
from perfmodel.parallel.plan import Plan
from perfmodel.symbols import evaluate

__all__ = ["check_plan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sizes:
    """What of a model a plan divides; 0 where the model has none."""

    heads: int = 0
    kv_heads: int = 0
    layers: int = 0
    experts: int = 0
    seq: int = 0
    batch: int = 0


def check_plan(plan: Plan, model: Any) -> None:
    """Raise where a degree doesn't divide what it splits.

    Parameters
    ----------
    plan : Plan
    model : Graph or TransformerDims

    Raises
    ------
    UnsupportedError
        The remainder, and what to give instead.
    """
    sizes = _of_graph(model) if isinstance(model, Graph) else _of_dims(model)
    if sizes.heads and sizes.heads % plan.tp:
        _refuse("tp", plan.tp, "attention heads", sizes.heads)
    if sizes.kv_heads and sizes.kv_heads % plan.tp and plan.tp % sizes.kv_heads:
        raise UnsupportedError(
            f"tp {plan.tp} is neither a divisor nor a multiple of {sizes.kv_heads} key-value heads; "
            f"give {_choices(sizes.heads or sizes.kv_heads)}"
        )
    if plan.cp > 1 and plan.cp_kind == "all-to-all" and sizes.heads and sizes.heads % (plan.tp * plan.cp):
        raise UnsupportedError(
            f"cp_kind 'all-to-all': tp {plan.tp} × cp {plan.cp} = {plan.tp * plan.cp} doesn't divide {sizes.heads} "
            "attention heads; change cp or use 'ring'"
        )
    if plan.ep > 1 and not sizes.experts:
        raise UnsupportedError(f"ep={plan.ep}, and the model has no routed experts; set ep=1")
    if sizes.experts and sizes.experts % plan.ep:
        _refuse("ep", plan.ep, "experts", sizes.experts)
    stages = plan.pp * plan.vpp
    if plan.stage_layers is not None:
        if sizes.layers and sum(plan.stage_layers) != sizes.layers:
            raise UnsupportedError(
                f"stage_layers add up to {sum(plan.stage_layers)} layers, the model has {sizes.layers}; correct them"
            )
    elif sizes.layers and sizes.layers % stages:
        base, more = divmod(sizes.layers, stages)
        raise UnsupportedError(
            f"{sizes.layers} layers aren't a multiple of pp {plan.pp} × vpp {plan.vpp} = {stages}; change one, or give "
            f"stage_layers, e.g. {more} stages of {base + 1} and {stages - more} of {base}"
        )
    split = plan.cp * (plan.tp if plan.sp else 1)
    if sizes.seq and sizes.seq % split:
        raise UnsupportedError(
            f"a sequence of {sizes.seq} tokens isn't a multiple of cp {plan.cp}"
            + (f" × tp {plan.tp} = {split}" if plan.sp else "")
            + "; change the sequence or the degrees"
        )


def _refuse(name: str, degree: int, what: str, size: int) -> None:
    raise UnsupportedError(f"{name} {degree} doesn't divide {size} {what}; give {_choices(size)}")


def _choices(size: int) -> str:
    return "one of " + ", ".join(str(d) for d in divisors(size))


def _of_dims(dims: Any) -> _Sizes:
    return _Sizes(
        heads=getattr(dims, "num_attention_heads", 0) or 0,
        kv_heads=getattr(dims, "num_key_value_heads", 0) or 0,
        layers=getattr(dims, "num_hidden_layers", 0) or 0,
        experts=getattr(dims, "num_experts", 0) or 0,
    )


def _of_graph(graph: Graph) -> _Sizes:
    heads = kv_heads = experts = seq = 0
    inputs = {number for number, storage in enumerate(graph.storages) if storage.role == "input"}
    for op, _ in graph.ops():
        if op.name == "perfmodel.attention":
            heads = heads or int(evaluate(op.inputs["query"].shape[1], graph.bindings))
            kv_heads = kv_heads or int(evaluate(op.inputs["key"].shape[1], graph.bindings))
        elif op.name == "aten._grouped_mm" and len(op.inputs["mat2"].shape) == 3:
            experts = experts or int(evaluate(op.inputs["mat2"].shape[0], graph.bindings))
        for tensor in op.inputs.values():
            if not seq and tensor.storage in inputs and len(tensor.shape) == 2:
                seq = int(evaluate(tensor.shape[1], graph.bindings))
    return _Sizes(
        heads=heads, kv_heads=kv_heads, layers=max(graph.stacks.values(), default=0), experts=experts, seq=seq
    )
