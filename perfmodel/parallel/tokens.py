"""Where a tensor has its tokens: the batch and the sequence of a step."""

from __future__ import annotations

from collections.abc import Sequence

from perfmodel.graph.ir import Graph
from perfmodel.parallel.placement import Shard
from perfmodel.symbols import Dim, Expr

__all__ = ["sequence_shard", "token_dims"]


def token_dims(graph: Graph) -> tuple[Dim, Dim]:
    """Batch and sequence: the shape of the first input of two dimensions of whole numbers."""
    inputs = {n for n, storage in enumerate(graph.storages) if storage.role == "input"}
    for op, _ in graph.ops():
        for tensor in op.inputs.values():
            if tensor.storage in inputs and len(tensor.shape) == 2 and tensor.dtype in ("int64", "int32"):
                return tensor.shape[0], tensor.shape[1]
    return 0, 0


def sequence_shard(shape: Sequence[Dim], batch: Dim, seq: Dim) -> Shard | None:
    """Where a tensor has its sequence; ``None`` where it has none.

    >>> sequence_shard((2, 64, 256), 2, 64).dim, sequence_shard((128, 256), 2, 64).outer
    (1, 2)
    """
    if len(shape) >= 2 and shape[1] == seq and (len(shape) >= 3 or shape[0] == batch or shape[0] == 1):
        return Shard(1, kind="sequence")
    if len(shape) == 4 and shape[2] == seq:
        return Shard(2, kind="sequence")  # [batch, heads, seq, head_dim]
    if shape and shape[0] == batch * seq:
        return Shard(0, outer=batch, kind="sequence")
    if shape and isinstance(shape[0], Expr) and isinstance(batch * seq, Expr):
        copies = shape[0] // (batch * seq)  # a row for each expert that a token goes to
        if isinstance(copies, int) and copies > 1 and copies * batch * seq == shape[0]:
            return Shard(0, outer=batch, unit=copies, kind="sequence")
    return None
