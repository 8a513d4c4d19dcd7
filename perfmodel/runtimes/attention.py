"""Attention with its scores in memory, from attention captured as one op.

The ops are those of PyTorch's math path (``_scaled_dot_product_attention_math``
in ``aten/src/ATen/native/transformers/attention.cpp``): scale query and key,
multiply, add the mask, softmax, dropout, multiply; backward as autograd derives
it. The mask of causality, a window or packing is taken as prepared once, outside the layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from perfmodel.graph.ir import Graph, Op, Ref
from perfmodel.ops import Tensor
from perfmodel.symbols import product

__all__ = ["unfuse_attention"]


def unfuse_attention(graph: Graph) -> Graph:
    """The graph with every fused attention spelled out as products, softmax and dropout."""
    storages = list(graph.storages)
    made: dict[tuple[object, ...], int] = {}
    # What unfused attention keeps for backward, by the log-sum-exp that fused attention kept: it's
    # made where that was made and freed where that was freed.
    kept: dict[int, dict[str, int]] = {}

    def forward(op: Op) -> tuple[Op, ...]:
        return (
            _forward(_Emitter(op, op.outputs[1], storages, made), kept) if op.name == "perfmodel.attention" else (op,)
        )

    def backward(op: Op) -> tuple[Op, ...]:
        if op.name not in ("perfmodel.attention_backward", "perfmodel.attention_bias_backward"):
            return (op,)
        return _backward(_Emitter(op, op.inputs["logsumexp"], storages, made), kept)

    def frees(op: Op) -> tuple[Op, ...]:
        if not any(ref.storage in kept for ref in op.frees):
            return (op,)
        instead = [
            Ref(number, ref.layer, ref.absolute)
            for ref in op.frees
            for number in (kept[ref.storage].values() if ref.storage in kept else (ref.storage,))
        ]
        return (replace(op, frees=tuple(instead)),)

    blocks = graph.blocks
    for change in (forward, backward, frees):
        blocks = tuple(replace(block, ops=tuple(new for op in block.ops for new in change(op))) for block in blocks)
    return replace(graph, blocks=blocks, storages=tuple(storages), trace=None)


class _Emitter:
    """Writes the ops that stand for one fused op, in its module, phase and layer."""

    def __init__(self, fused: Op, logsumexp: Tensor, storages: list[Any], made: dict[tuple[object, ...], int]) -> None:
        self.fused = fused
        self.logsumexp = logsumexp
        self.ops: list[Op] = []
        self._storages = storages
        self._made = made

    def look(self, shape: tuple[Any, ...], storage: int | None = None, dtype: str | None = None) -> Tensor:
        """A contiguous tensor in the layer of the fused op; without a storage until something makes it."""
        return Tensor(
            shape=shape,
            dtype=dtype or self.fused.inputs["query"].dtype,
            storage=-1 if storage is None else storage,
            layer=self.logsumexp.layer,
            absolute=self.logsumexp.absolute,
        )

    def call(
        self, name: str, inputs: Mapping[str, Tensor], *results: Tensor, role: str = "temporary", attrs: Any = None
    ) -> Tensor:
        """An op; results without a storage get one, those that the fused op made are made here."""
        made = tuple(self._stored(result, role, position) for position, result in enumerate(results))
        refs = [Ref(tensor.storage, tensor.layer, tensor.absolute) for tensor in made]
        new = [
            ref for ref, result in zip(refs, results, strict=True) if result.storage < 0 or ref in self.fused.allocates
        ]
        fused = self.fused
        self.ops.append(
            Op(
                name=name,
                phase=fused.phase,
                module=fused.module,
                inputs=inputs,
                outputs=made,
                attrs=attrs or {},
                allocates=tuple(new),
            )
        )
        return made[0]

    def free(self, *tensors: Tensor) -> None:
        """These die after the op written last."""
        refs = tuple(Ref(tensor.storage, tensor.layer, tensor.absolute) for tensor in tensors)
        self.ops[-1] = replace(self.ops[-1], frees=(*self.ops[-1].frees, *refs))

    def done(self) -> tuple[Op, ...]:
        """All ops; what the fused op freed dies after the last."""
        self.ops[-1] = replace(self.ops[-1], frees=(*self.ops[-1].frees, *self.fused.frees))
        return tuple(self.ops)

    def _stored(self, tensor: Tensor, role: str, position: int) -> Tensor:
        """The tensor in a storage of its own: the same in every layer, as the log-sum-exp's is."""
        if tensor.storage >= 0:
            return tensor
        model = self._storages[self.logsumexp.storage]
        part = f"{self.fused.name.rpartition('.')[2]}.{len(self.ops)}.{position}"
        number = self._made.setdefault((self.logsumexp.storage, part), len(self._storages))
        if number == len(self._storages):
            self._storages.append(replace(model, name=f"{model.name}:{part}", nbytes=tensor.nbytes, role=role))
        return replace(tensor, storage=number)


def _forward(emit: _Emitter, kept: dict[int, dict[str, int]]) -> tuple[Op, ...]:
    op = emit.fused
    out = op.outputs[0]
    query, key, value = (op.inputs[name] for name in ("query", "key", "value"))
    heads, q_len, kv_len = query.shape[-3], query.shape[-2], key.shape[-2]
    square = (*query.shape[:-3], heads, q_len, kv_len)
    role = "activation" if op.phase in ("forward", "recompute") else "temporary"

    scaled_query = emit.call("aten.mul", {"self": query}, emit.look(query.shape), role=role)
    own = {"query": scaled_query}
    if key.shape[-3] != heads:
        # Grouped heads: every query head gets a copy of its keys and values.
        key = emit.call("aten.repeat_interleave", {"self": key}, emit.look(_of_heads(key, heads)))
        value = own["value"] = emit.call(
            "aten.repeat_interleave", {"self": value}, emit.look(_of_heads(value, heads)), role=role
        )
    own["key"] = emit.call("aten.mul", {"self": key}, emit.look(key.shape), role=role)
    if key.storage != op.inputs["key"].storage:
        emit.free(key)
    scores = emit.call(
        "aten.bmm",
        {"self": _flat(scaled_query), "mat2": _transposed(_flat(own["key"]))},
        emit.look(_flat_shape(square)),
    )
    mask = op.inputs.get("attn_mask")
    if mask is None and any(op.attrs.get(name) for name in ("is_causal", "window", "visible")):
        mask = emit.look((q_len, kv_len), storage=query.storage)
    if mask is not None:
        emit.call("aten.add_", {"self": scores, "other": mask}, scores)
    weights = own["weights"] = emit.call(
        "aten._softmax", {"self": scores}, emit.look(square), role=role, attrs={"dim": -1}
    )
    emit.free(scores)
    if op.attrs.get("dropout_p"):
        weights = emit.call(
            "aten.native_dropout", {"input": weights}, emit.look(square), emit.look(square, dtype="bool"), role=role
        )
        own["dropped"], own["dropout_mask"] = emit.ops[-1].outputs
    emit.call("aten.bmm", {"self": _flat(weights), "mat2": _flat(value)}, out)
    kept[emit.logsumexp.storage] = {name: tensor.storage for name, tensor in own.items()}
    return emit.done()


def _backward(emit: _Emitter, kept: dict[int, dict[str, int]]) -> tuple[Op, ...]:
    op = emit.fused
    own = kept[emit.logsumexp.storage]
    grad_query, grad_key, grad_value, *grad_mask = op.outputs
    query, key, value, grad = (op.inputs[name] for name in ("query", "key", "value", "grad_out"))
    heads, q_len, kv_len = query.shape[-3], query.shape[-2], key.shape[-2]
    square = (*query.shape[:-3], heads, q_len, kv_len)
    all_keys, all_values = _of_heads(key, heads), _of_heads(value, heads)
    if "value" in own:
        value = emit.look(all_values, own["value"])
    weights = emit.look(square, own.get("dropped", own["weights"]))

    def into(grad_of: Tensor, name: str, inputs: Mapping[str, Tensor]) -> None:
        """The gradient of keys or values; grouped heads add up afterwards."""
        if "value" not in own:
            emit.call(name, inputs, grad_of)
            return
        wide = emit.call(name, inputs, emit.look(_flat_shape(all_keys if grad_of is grad_key else all_values)))
        emit.call("aten.sum", {"self": wide}, grad_of, attrs={"dim": [2]})
        emit.free(wide)

    into(grad_value, "aten.bmm", {"self": _transposed(_flat(weights)), "mat2": _flat(grad)})
    d_weights = emit.call(
        "aten.bmm", {"self": _flat(grad), "mat2": _transposed(_flat(value))}, emit.look(_flat_shape(square))
    )
    if "dropout_mask" in own:
        mask = emit.look(square, own["dropout_mask"], "bool")
        dropped = d_weights
        d_weights = emit.call("aten.native_dropout_backward", {"grad_output": dropped, "mask": mask}, emit.look(square))
        emit.free(dropped)
    softmax = {"grad_output": d_weights, "output": emit.look(square, own["weights"])}
    # The gradient of the scores is that of a mask that was added to them.
    into_scores = grad_mask[0] if grad_mask else emit.look(square)
    d_scores = emit.call("aten._softmax_backward_data", softmax, into_scores, attrs={"dim": -1})
    emit.free(d_weights)
    keys, queries = emit.look(all_keys, own["key"]), emit.look(query.shape, own["query"])
    d_query = emit.call("aten.bmm", {"self": _flat(d_scores), "mat2": _flat(keys)}, emit.look(_flat_shape(query.shape)))
    d_key = emit.call(
        "aten.bmm", {"self": _transposed(_flat(d_scores)), "mat2": _flat(queries)}, emit.look(_flat_shape(all_keys))
    )
    if not grad_mask:
        emit.free(d_scores)
    emit.call("aten.mul", {"self": d_query}, grad_query)
    emit.free(d_query)
    into(grad_key, "aten.mul", {"self": d_key})
    emit.free(d_key)
    return emit.done()


def _of_heads(tensor: Tensor, heads: Any) -> tuple[Any, ...]:
    return (*tensor.shape[:-3], heads, *tensor.shape[-2:])


def _flat_shape(shape: tuple[Any, ...]) -> tuple[Any, ...]:
    return (product(shape[:-2]), *shape[-2:])


def _flat(tensor: Tensor) -> Tensor:
    """Batch and heads as one dimension, the way bmm takes them."""
    return replace(tensor, shape=_flat_shape(tensor.shape), strides=None)


def _transposed(tensor: Tensor) -> Tensor:
    a, b, c = tensor.shape
    return replace(tensor, shape=(a, c, b), strides=(b * c, 1, c))
