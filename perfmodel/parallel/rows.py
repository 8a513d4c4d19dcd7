"""Rules of ops on rows: norms, softmax and its loss, embeddings, reads and writes by index, optimizer kernels."""

from __future__ import annotations

from dataclasses import replace

from perfmodel.graph.ir import Op
from perfmodel.ops import Tensor
from perfmodel.parallel.placement import Partial, Placement, Routed, Shard
from perfmodel.parallel.rules import (
    Context,
    Decision,
    Inside,
    Placements,
    all_out,
    elementwise,
    resolved,
    rule,
    shards,
)

__all__: list[str] = []


@rule("aten.native_layer_norm", "aten._fused_rms_norm")
def _norm(op: Op, placements: Placements, context: Context) -> Decision:
    """Rows may be sharded; what is normalised may not."""
    targets = resolved(op, placements, context)
    x = _rows_only(op, "input", targets["input"])
    others: dict[str, Placement] = {name: None for name in targets if name != "input"}
    return Decision({**others, "input": x}, all_out(op, x))


def _rows_only(op: Op, name: str, placement: Placement) -> Placement:
    if not isinstance(placement, Shard):
        return placement
    inner = len(op.attrs["normalized_shape"]) if "normalized_shape" in op.attrs else 1
    return placement if placement.dim < len(op.inputs[name].shape) - inner else None


@rule("aten.native_layer_norm_backward", "aten._fused_rms_norm_backward")
def _norm_backward(op: Op, placements: Placements, context: Context) -> Decision:
    """Gradients of weight and bias are sums over the rows."""
    targets = resolved(op, placements, context)
    found = next((p for p in (targets["input"], targets["grad_out"]) if isinstance(p, Shard)), None)
    x = _rows_only(op, "input", found)
    aligned = {name: x if len(t.shape) == len(op.inputs["input"].shape) else None for name, t in op.inputs.items()}
    sums: Placement = Partial() if x is not None else None
    out = tuple(x if len(t.shape) == len(op.inputs["input"].shape) else sums for t in op.outputs)
    return Decision(aligned, out)


# -- softmax and cross-entropy ------------------------------------------------------


@rule("aten._softmax", "aten._log_softmax", "aten._safe_softmax", "aten.logsumexp")
def _softmax(op: Op, placements: Placements, context: Context) -> Decision:
    """Over a sharded vocabulary the rows' maxima and sums are reduced (Megatron-LM's cross-entropy)."""
    targets = resolved(op, placements, context)
    x, source = targets["self"], op.inputs["self"]
    if isinstance(x, Shard) and x.dim == _dim(op, source):
        if op.name != "aten._log_softmax":
            return Decision({"self": None}, all_out(op, None))
        row = _statistic(op.outputs[0], x.dim)
        return Decision(targets, all_out(op, x), (Inside("all_reduce", (row,)), Inside("all_reduce", (row,))))
    return Decision(targets, all_out(op, x))


def _dim(op: Op, tensor: Tensor) -> int:
    return int(op.attrs.get("dim", -1)) % len(tensor.shape)


def _statistic(tensor: Tensor, dim: int) -> Tensor:
    """One number for each row."""
    return replace(tensor, shape=(*tensor.shape[:dim], *tensor.shape[dim + 1 :]), strides=None, storage=-1)


@rule("aten._softmax_backward_data", "aten._log_softmax_backward_data")
def _softmax_backward(op: Op, placements: Placements, context: Context) -> Decision:
    """Over a sharded vocabulary the row's sum of the gradient is known: that of a one-hot target."""
    targets = resolved(op, placements, context)
    x = targets["output"] if isinstance(targets["output"], Shard) else targets["grad_output"]
    if isinstance(x, Shard) and x.dim == _dim(op, op.inputs["output"]) and op.name == "aten._softmax_backward_data":
        x = None
    return Decision(dict.fromkeys(targets, x), all_out(op, x))


@rule("aten.nll_loss_forward")
def _loss(op: Op, placements: Placements, context: Context) -> Decision:
    """The target's term is with one rank of a sharded vocabulary; sharded rows give a partial sum."""
    targets = resolved(op, placements, context)
    x, target = targets["self"], targets["target"]
    if isinstance(x, Shard) and x.dim == len(op.inputs["self"].shape) - 1:
        row = _statistic(op.inputs["self"], x.dim)
        return Decision({**targets, "target": None}, all_out(op, None), (Inside("all_reduce", (row,)),))
    rows = x if isinstance(x, Shard) else target
    if isinstance(rows, Shard):
        return Decision({**targets, "self": rows, "target": rows}, all_out(op, Partial()))
    return Decision(targets, all_out(op, None))


@rule("aten.nll_loss_backward")
def _loss_backward(op: Op, placements: Placements, context: Context) -> Decision:
    """As the log-probabilities lie. A count of labels that is partial is summed."""
    del context
    targets: dict[str, Placement] = {
        name: None if isinstance(placement, Partial) else placement for name, placement in placements.items()
    }
    x = targets["self"]
    targets["grad_output"] = None
    targets["target"] = replace(x, dim=0) if isinstance(x, Shard) and x.dim == 0 else None
    return Decision(targets, all_out(op, x))


# -- reads and writes by index --------------------------------------------------------


@rule("aten.embedding")
def _embedding(op: Op, placements: Placements, context: Context) -> Decision:
    """A sharded vocabulary: each rank looks up its own rows, the rest is zero; a partial sum."""
    targets = resolved(op, placements, context)
    weight, indices = targets["weight"], targets["indices"]
    if isinstance(weight, Shard):
        targets["indices"] = None
        last = len(op.outputs[0].shape) - 1
        return Decision(targets, (Partial() if weight.dim == 0 else replace(weight, dim=last),))
    if context.sequence and indices is None:
        targets["indices"] = indices = context.tokens(op.inputs["indices"])
    return Decision(targets, (indices,))


@rule("aten.embedding_dense_backward")
def _embedding_backward(op: Op, placements: Placements, context: Context) -> Decision:
    """The table's gradient lies as the table does."""
    targets = resolved(op, placements, context)
    weight = context.weights.get("weight")
    if isinstance(weight, Shard):
        last = len(op.inputs["grad_output"].shape) - 1
        grad = replace(weight, dim=last) if weight.dim == 1 else None
        return Decision({"grad_output": grad, "indices": None}, (weight,))
    rows = next(iter(shards(targets).values()), None)
    if rows is not None and rows.dim >= len(op.inputs["indices"].shape):
        return Decision(targets, (replace(rows, dim=1),))
    return Decision(dict.fromkeys(targets, rows), (None if rows is None else Partial(),))


@rule("aten.index", "aten._unsafe_index", "aten.index_select")
def _index(op: Op, placements: Placements, context: Context) -> Decision:
    """Rows of a table. Tokens of a sharded sequence name tokens of the same rank."""
    partial = isinstance(placements["self"], Partial) and len(shards(placements)) == 0
    targets = dict(placements) if partial else resolved(op, placements, context)
    table = targets["self"]
    names = [name for name in targets if name != "self"]
    if any(isinstance(targets[name], Routed) for name in targets):
        return Decision(dict.fromkeys(targets), all_out(op, None))
    if isinstance(table, Shard) and table.kind == "expert" and table.dim == 0:
        return Decision(targets, all_out(op, Routed()))
    moved = _indexed_rank(op)
    rows = next((targets[name] for name in names if isinstance(targets[name], Shard)), None)
    if isinstance(table, Shard) and table.dim > 0:
        return Decision(targets, all_out(op, replace(table, dim=table.dim + moved)))
    if isinstance(table, Shard) and table.kind != "sequence":
        return Decision({**targets, "self": None}, all_out(op, rows))
    out: Placement = rows if rows is not None else (table if partial else None)
    if isinstance(table, Shard):
        if rows is None:
            return Decision({**targets, "self": None}, all_out(op, None))
        out = rows
    return Decision(targets, all_out(op, out))


def _indexed_rank(op: Op) -> int:
    return len(op.outputs[0].shape) - len(op.inputs["self"].shape)


@rule("aten.index_put", "aten.index_put_", "aten._index_put_impl_", "aten.index_add", "aten.index_add_",
      "aten.scatter", "aten.scatter_", "aten.scatter_add", "aten.scatter_add_", "aten.index_copy")  # fmt: skip
def _index_put(op: Op, placements: Placements, context: Context) -> Decision:
    """Rows written at positions: as the rows lie, so does the table, whose other rows are zero or of the same rank."""
    source = next(name for name in ("values", "source", "src", "value", "index") if name in op.inputs)
    values, table = placements[source], placements["self"]
    targets = dict(placements)
    if isinstance(values, Routed) or isinstance(table, Routed):
        return Decision(dict.fromkeys(placements), all_out(op, None))
    if isinstance(values, Partial) and not isinstance(table, Shard) and (context.keep_partial or not context.sequence):
        return Decision(targets, all_out(op, values))
    targets = resolved(op, placements, context)
    values, table = targets[source], targets["self"]
    positions = {name: p for name, p in targets.items() if name not in ("self", source)}
    wide = len(op.inputs["self"].shape) - len(op.inputs[source].shape)
    if isinstance(values, Shard) and values.kind != "sequence":
        out: Placement = replace(values, dim=values.dim + wide)
        return Decision({**targets, "self": out}, all_out(op, out))
    rows = next((p for p in (values, table, *positions.values()) if isinstance(p, Shard)), None)
    if rows is None:
        return Decision(targets, all_out(op, None))
    aligned = {name: rows if op.inputs[name].shape else None for name in positions}
    lies = table if isinstance(table, Shard) else context.tokens(op.inputs["self"]) or rows
    kept = values if isinstance(values, Shard) or not op.inputs[source].shape else rows
    return Decision({**aligned, "self": lies, source: kept}, all_out(op, lies))


@rule("aten.native_dropout", "aten.native_dropout_backward", "aten.bernoulli", "aten.bernoulli_")
def _dropout(op: Op, placements: Placements, context: Context) -> Decision:
    """Element by element."""
    return elementwise(op, placements, context)
