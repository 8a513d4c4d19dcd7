"""Rules of ops that multiply: matrix products, routed experts, attention."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from perfmodel.errors import UnsupportedError
from perfmodel.graph.ir import Op
from perfmodel.parallel.placement import Partial, Placement, Routed, Shard
from perfmodel.parallel.rules import Context, Decision, Inside, Placements, all_out, resolved, rule

__all__ = ["OPERANDS"]

OPERANDS = {
    "aten.mm": ("self", "mat2"),
    "aten._scaled_mm": ("self", "mat2"),
    "aten.bmm": ("self", "mat2"),
    "aten.addmm": ("mat1", "mat2"),
    "aten.addmm_": ("mat1", "mat2"),
    "aten.baddbmm": ("batch1", "batch2"),
    "aten.mv": ("self", "vec"),
    "aten.dot": ("self", "tensor"),
    "aten._grouped_mm": ("self", "mat2"),
}


@rule(*(name for name in OPERANDS if name != "aten._grouped_mm"))
def _matmul(op: Op, placements: Placements, context: Context) -> Decision:
    """``[b, m, k] x [b, k, n]``: rows or columns may be sharded, or both along ``k`` to a partial sum.

    Where both are sharded in ways that one dimension of the mesh can't serve, the
    operand whose sequence is sharded is gathered: weights stay where they are.
    """
    left, right = OPERANDS[op.name]
    targets = resolved(op, placements, context)
    a, b = targets[left], targets[right]
    a_rank, b_rank = len(op.inputs[left].shape), len(op.inputs[right].shape)
    # The name of the sharded axis: "b", "m", "k" or "n".
    a_axis, b_axis = _axis(a, a_rank, "mk"), _axis(b, b_rank, "kn" if b_rank > 1 else "k")
    if a_axis and b_axis and a_axis != b_axis:
        if isinstance(a, Shard) and (a.kind == "sequence" or not _is_sequence(b)):
            a, a_axis = None, ""
        else:
            b, b_axis = None, ""
    axis = a_axis or b_axis
    known = a if a_axis else b
    assert known is None or isinstance(known, Shard)
    if axis in ("b", "k") and known is not None:
        a = replace(known, dim=0 if axis == "b" else a_rank - 1)
        b = replace(known, dim=0 if axis == "b" else max(b_rank - 2, 0))
    out: Placement = None
    if axis == "k":
        out = Partial()
    elif known is not None:
        rank = len(op.outputs[0].shape)
        out = replace(known, dim={"b": 0, "m": a_rank - 2, "n": rank - 1}[axis])
    targets.update({left: a, right: b})
    for name in targets:
        if name not in (left, right):
            targets[name] = _added(op, name, out)
    return Decision(targets, all_out(op, out))


def _axis(placement: Placement, rank: int, last: str) -> str:
    if not isinstance(placement, Shard):
        return ""
    from_end = placement.dim - rank + len(last)
    return last[from_end] if from_end >= 0 else "b"


def _is_sequence(placement: Placement) -> bool:
    return isinstance(placement, Shard) and placement.kind == "sequence"


def _added(op: Op, name: str, out: Placement) -> Placement:
    """The bias: sliced as the result is. Of a partial result one rank adds it."""
    if not isinstance(out, Shard):
        return None
    tensor, result = op.inputs[name], op.outputs[0]
    dim = out.dim - len(result.shape) + len(tensor.shape)
    return replace(out, dim=dim) if dim >= 0 and tensor.shape[dim] == result.shape[out.dim] else None


@rule("aten._grouped_mm")
def _grouped(op: Op, placements: Placements, context: Context) -> Decision:
    """``[rows, k] x [experts, k, n]``, or for the weights' gradient ``[k, rows] x [rows, n]``.

    Experts that are sharded want the rows that are routed to them.
    """
    targets = dict(placements) if context.keep_partial else resolved(op, placements, context)
    x, w = targets["self"], targets["mat2"]
    others: dict[str, Placement] = {name: None for name in targets if name not in ("self", "mat2")}
    if len(op.inputs["mat2"].shape) == 2:  # the gradient of the weights
        if isinstance(x, Routed) or isinstance(w, Routed):
            expert = Shard(0, kind="expert")
            return Decision({**others, "self": Routed(), "mat2": Routed()}, all_out(op, expert))
        if _is_sequence(x) and _is_sequence(w):
            return Decision(targets, all_out(op, Partial()))
        if isinstance(x, Shard) and isinstance(w, Shard) and _is_sequence(x) != _is_sequence(w):
            x, w = (None, w) if _is_sequence(x) else (x, None)
        out: Placement = None
        if isinstance(x, Shard):
            out = Partial() if _is_sequence(x) else replace(x, dim=1)
            w = replace(x, dim=0) if _is_sequence(x) else w
        elif isinstance(w, Shard):
            out = Partial() if _is_sequence(w) else replace(w, dim=2)
            x = replace(w, dim=1) if _is_sequence(w) else x
        return Decision({**others, "self": x, "mat2": w}, all_out(op, out))
    if isinstance(w, Shard) and w.dim == 0:
        return Decision({**others, "self": Routed(), "mat2": w}, all_out(op, Routed()))
    if isinstance(x, Routed):
        return Decision({**others, "self": x, "mat2": w}, all_out(op, x))
    if isinstance(w, Shard) and w.dim == 1:
        return Decision({**others, "self": replace(w, dim=1), "mat2": w}, all_out(op, Partial()))
    if isinstance(w, Shard):
        x = None if _is_sequence(x) else x
        return Decision({**others, "self": x, "mat2": w}, all_out(op, replace(w, dim=1)))
    if isinstance(x, Shard) and x.dim == 1:
        return Decision({**others, "self": x, "mat2": replace(x, dim=1)}, all_out(op, Partial()))
    return Decision({**others, "self": x, "mat2": w}, all_out(op, x))


# -- attention -------------------------------------------------------------------------

_HEADS = 1
_QUERY = {"query", "out", "grad_out", "logsumexp", "q"}
_KEYS = {"key", "value", "k", "v"}


def _attention(op: Op, placements: Placements, context: Context, outputs: tuple[str, ...]) -> Decision:
    targets = resolved(op, placements, context)
    query: Any = targets.get("query", targets.get("q"))
    if not isinstance(query, Shard) or query.dim < 2:
        # Heads, or the batch: all operands alike. Fewer key-value heads than ranks: each is on several.
        shard = next((p for p in targets.values() if isinstance(p, Shard)), None)
        aligned = {name: _along_heads(op, name, shard) for name in targets}
        return Decision(aligned, tuple(shard for _ in outputs))
    if context.mesh != "cp":
        return Decision(dict.fromkeys(targets), all_out(op, None))
    if op.attrs.get("window") is not None:
        raise UnsupportedError(
            f"{op.module}: attention over a window of keys isn't understood under context parallelism; set cp=1"
        )
    if context.kind == "all-to-all":
        heads = Shard(_HEADS)
        aligned = {name: _along_heads(op, name, heads) for name in targets}
        back = tuple(None if name == "logsumexp" else query for name in outputs)
        return Decision(aligned, tuple(heads for _ in outputs), then=tuple(p or heads for p in back))
    sequence = {name: replace(query, dim=2) for name in targets if name in _QUERY}
    masks = {name: replace(query, dim=len(op.inputs[name].shape) - 2) for name in targets if name == "attn_mask"}
    # Ranks take an early and a late part of the sequence each, so that all see half of the pairs.
    visible = min(op.attrs.get("visible") or 1.0, 0.5) if op.attrs.get("is_causal") else op.attrs.get("visible")
    attrs = {} if visible is None else {"is_causal": False, "visible": visible}
    keys: dict[str, Placement] = {name: query for name in targets if name in _KEYS}
    whole: dict[str, Placement] = dict.fromkeys(keys)
    if context.kind == "ring":
        # Keys and values go round; backward their gradients travel with them.
        backward = op.name.endswith("_backward")
        traffic = Inside("send_recv", tuple(op.inputs[name] for name in keys), "backward" if backward else "forward")
        ring = {**targets, **sequence, **masks, **keys}
        return Decision(ring, tuple(query for _ in outputs), (traffic,), seen=whole, attrs=attrs)
    results = tuple(Partial() if name in ("key", "value") else query for name in outputs)
    return Decision({**targets, **sequence, **masks, **whole}, results, attrs=attrs)


def _along_heads(op: Op, name: str, shard: Shard | None) -> Placement:
    shape = op.inputs[name].shape
    if shard is None or len(shape) <= shard.dim:
        return None
    if name == "attn_mask" and isinstance(shape[shard.dim], int) and shape[shard.dim] == 1:
        return None
    return shard


@rule("perfmodel.attention", "aten._scaled_dot_product_flash_attention",
      "aten._scaled_dot_product_flash_attention_for_cpu", "aten._scaled_dot_product_efficient_attention",
      "aten._scaled_dot_product_cudnn_attention")  # fmt: skip
def _forward(op: Op, placements: Placements, context: Context) -> Decision:
    """Heads are independent; a sharded sequence needs all keys (see ``Plan.cp_kind``)."""
    if len(op.outputs) != 2:
        raise UnsupportedError(
            f"{op.name} was captured as this machine's kernel; capture with dispatch='neutral' to shard it"
        )
    return _attention(op, placements, context, ("query", "logsumexp"))


@rule("perfmodel.attention_backward")
def _backward(op: Op, placements: Placements, context: Context) -> Decision:
    """As forward; gradients of gathered keys and values are partial sums."""
    return _attention(op, placements, context, ("query", "key", "value"))
