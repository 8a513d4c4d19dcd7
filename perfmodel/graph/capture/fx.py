"""The recorded step as a ``torch.fx.Graph``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from perfmodel.graph.capture.recorder import Call
from perfmodel.ops.tensor import Tensor

__all__ = ["build_fx"]


def build_fx(calls: Sequence[Call]) -> torch.fx.Graph:
    """Nodes in the order in which the ops ran, edges from producer to consumer.

    A tensor that no recorded op made (a parameter, an input, a constant) becomes
    a placeholder. Where autograd hands on another view of a storage than any op
    made, an ``aten.as_strided`` node stands in, so that every edge has the right
    shape. Node ``meta`` has ``phase``, ``module``, and for results ``shape``,
    ``dtype``, ``strides`` (ours: ints or symbolic) and ``storage``.
    """
    return _Builder().build(calls)


class _Builder:
    def __init__(self) -> None:
        self._graph = torch.fx.Graph()
        self._by_look: dict[Tensor, torch.fx.Node] = {}
        self._by_storage: dict[int, torch.fx.Node] = {}

    def build(self, calls: Sequence[Call]) -> torch.fx.Graph:
        for call in calls:
            if call.op is None:
                continue
            args = tuple(self._argument(arg, call) for arg in call.args)
            kwargs = {key: self._argument(arg, call) for key, arg in call.kwargs.items()}
            node = self._graph.call_function(call.op, args, kwargs)
            self._describe(node, call)
            if isinstance(call.result, Tensor):
                self._made(call.result, node)
            elif isinstance(call.result, list):
                self._members(call.result, node, call)
        self._graph.output(None)
        self._graph.lint()
        return self._graph

    def _members(self, results: Sequence[Any], node: torch.fx.Node, call: Call) -> None:
        import operator

        for position, result in enumerate(results):
            if isinstance(result, (Tensor, list)):
                member = self._graph.call_function(operator.getitem, (node, position))
                self._describe(member, call)
                if isinstance(result, Tensor):
                    self._made(result, member)
                else:
                    self._members(result, member, call)

    def _made(self, tensor: Tensor, node: torch.fx.Node) -> None:
        self._by_look[tensor] = node
        self._by_storage[tensor.storage] = node
        node.meta.update(shape=tensor.shape, dtype=tensor.dtype, strides=tensor.strides, storage=tensor.storage)

    def _argument(self, value: Any, call: Call) -> Any:
        if isinstance(value, list):
            return [self._argument(item, call) for item in value]
        if isinstance(value, Tensor):
            return self._by_look.get(value) or self._other_view(value, call)
        return str(value) if hasattr(value, "terms") else value

    def _other_view(self, tensor: Tensor, call: Call) -> torch.fx.Node:
        base = self._by_storage.get(tensor.storage)
        if base is None:
            with self._graph.inserting_before(self._first()):
                node = self._graph.placeholder(f"storage_{tensor.storage}")
            node.meta.update(phase="resident", module="")
        else:
            strides = tensor.strides if tensor.strides is not None else ()
            node = self._graph.call_function(
                torch.ops.aten.as_strided.default, (base, [str(s) for s in tensor.shape], [str(s) for s in strides])
            )
            self._describe(node, call)
        self._made(tensor, node)
        return node

    def _first(self) -> torch.fx.Node:
        for node in self._graph.nodes:
            if node.op != "placeholder":
                return node  # type: ignore[no-any-return]
        return self._graph._root

    @staticmethod
    def _describe(node: torch.fx.Node, call: Call) -> None:
        node.meta.update(phase=call.phase, module=call.module)
