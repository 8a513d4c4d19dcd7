"""Rules of ops that look at the same elements in another shape, and of those that put tensors side by side."""

from __future__ import annotations

from dataclasses import replace

from perfmodel.graph.ir import Op
from perfmodel.parallel.placement import Shard, reshaped
from perfmodel.parallel.rules import Context, Decision, Placements, all_out, elementwise, resolved, rule

__all__: list[str] = []


@rule("aten.view", "aten._unsafe_view", "aten.reshape", "aten._reshape_alias", "aten.unsqueeze", "aten.squeeze",
      "aten.flatten", "aten.unflatten", "aten.unsqueeze_", "aten.squeeze_", "aten.view_as")  # fmt: skip
def _reshape(op: Op, placements: Placements, context: Context) -> Decision:
    """The sharded axis is followed; where the new shape doesn't hold it, it's gathered."""
    source, placement = op.inputs["self"], placements["self"]
    if isinstance(placement, Shard):
        moved = reshaped(placement, source.shape, op.outputs[0].shape, context.at)
        return Decision({**placements, "self": placement if moved else None}, (moved,))
    return Decision(placements, (placement,))


@rule("aten.t", "aten.transpose", "aten.permute", "aten.swapaxes", "aten.movedim", "aten.t_", "aten.transpose_")
def _permute(op: Op, placements: Placements, context: Context) -> Decision:
    """Dimensions change places."""
    del context
    placement = placements["self"]
    if isinstance(placement, Shard):
        rank = len(op.inputs["self"].shape)
        order = list(range(rank))
        if op.name == "aten.permute":
            order = [d % rank for d in op.attrs["dims"]]
        elif rank >= 2:
            a, b = (0, 1) if op.name.startswith("aten.t") and "dim0" not in op.attrs else (
                int(op.attrs["dim0"]) % rank, int(op.attrs["dim1"]) % rank)  # fmt: skip
            order[a], order[b] = order[b], order[a]
        placement = replace(placement, dim=order.index(placement.dim))
    return Decision(placements, (placement,))


@rule("aten.expand", "aten.expand_as", "aten.broadcast_to")
def _expand(op: Op, placements: Placements, context: Context) -> Decision:
    """Dimensions are added in front, and dimensions of one repeat."""
    del context
    placement = placements["self"]
    if isinstance(placement, Shard):
        placement = replace(placement, dim=placement.dim + len(op.outputs[0].shape) - len(op.inputs["self"].shape))
    return Decision({**placements, **{n: None for n in placements if n != "self"}}, all_out(op, placement))


@rule("aten.detach", "aten.alias", "aten.lift_fresh", "aten.view_as_complex", "aten.view_as_real", "aten.real",
      "aten.imag", "aten._conj")  # fmt: skip
def _alias(op: Op, placements: Placements, context: Context) -> Decision:
    """The same tensor; pairs of numbers as one, at the end of the shape."""
    del op, context
    return Decision(placements, (placements["self"],))


@rule("aten.slice", "aten.narrow", "aten.split", "aten.split_with_sizes", "aten.chunk", "aten.unsafe_split",
      "aten.unsafe_split_with_sizes", "aten.slice_backward", "aten.diff")  # fmt: skip
def _part(op: Op, placements: Placements, context: Context) -> Decision:
    """Parts along a dimension. A sharded one has parts where it's packed, or where it's tokens of the sequence."""
    name = "self" if "self" in op.inputs else "grad_output"
    placement = placements[name]
    if isinstance(placement, Shard):
        source = op.inputs[name]
        if placement.dim == op.attrs.get("dim", 0) % len(source.shape):
            if name == "grad_output":
                # The parts come back side by side.
                return Decision(placements, all_out(op, replace(placement, packed=placement.kind == "feature")))
            whole = all(t.shape[placement.dim] == source.shape[placement.dim] for t in op.outputs)
            if not (whole or placement.packed or placement.kind == "sequence"):
                return Decision({**placements, name: None}, all_out(op, None))
    del context
    return Decision(placements, all_out(op, placement))


@rule("aten.select", "aten.unbind")
def _select(op: Op, placements: Placements, context: Context) -> Decision:
    """A dimension goes."""
    del context
    placement = placements["self"]
    if isinstance(placement, Shard):
        dim = op.attrs.get("dim", 0) % len(op.inputs["self"].shape)
        if placement.dim == dim:
            return Decision({**placements, "self": None}, all_out(op, None))
        placement = replace(placement, dim=placement.dim - (dim < placement.dim))
    return Decision(placements, all_out(op, placement))


@rule("aten.select_backward")
def _select_backward(op: Op, placements: Placements, context: Context) -> Decision:
    """A dimension comes back."""
    del context
    placement = placements["grad_output"]
    if isinstance(placement, Shard):
        dim = op.attrs["dim"] % len(op.outputs[0].shape)
        placement = replace(placement, dim=placement.dim + (dim <= placement.dim))
    return Decision(placements, all_out(op, placement))


@rule("aten.cat", "aten.stack")
def _cat(op: Op, placements: Placements, context: Context) -> Decision:
    """Side by side along a dimension: where that is the sharded one, the result is packed."""
    decision = elementwise(_same_shapes(op), placements, context)
    out = decision.outputs[0]
    if not isinstance(out, Shard) or op.name == "aten.stack":
        if isinstance(out, Shard):
            dim = op.attrs.get("dim", 0) % len(op.outputs[0].shape)
            out = replace(out, dim=out.dim + (dim <= out.dim))
        return Decision(decision.inputs, (out,))
    if out.dim == op.attrs.get("dim", 0) % len(op.outputs[0].shape):
        targets = {name: replace(out, packed=False) for name in op.inputs}
        return Decision(targets, (replace(out, packed=out.kind == "feature"),))
    return decision


def _same_shapes(op: Op) -> Op:
    """The op as if its result had the shape of its first operand."""
    first = next(iter(op.inputs.values()))
    return replace(op, outputs=(replace(op.outputs[0], shape=first.shape, strides=None),))


@rule("aten.repeat_interleave", "aten.repeat", "aten.roll", "aten.flip")
def _repeat(op: Op, placements: Placements, context: Context) -> Decision:
    """Copies; along the sharded dimension each rank's part is copied by itself."""
    targets = resolved(op, placements, context)
    return Decision(targets, all_out(op, targets["self"]))
