"""Forward and backward as values: who makes them, who uses them, which are kept, which are computed again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perfmodel.graph.count import Binder, Call
from perfmodel.graph.ir import RESIDENT_ROLES, Graph, Op
from perfmodel.graph.kernels import Loops
from perfmodel.graph.partition import minimum_cut
from perfmodel.graph.paths import adopted
from perfmodel.ops import OpCost, Tensor, cost
from perfmodel.ops.common import is_in_place
from perfmodel.symbols import evaluate

__all__ = ["Dataflow", "Node"]

#: A result with several uses is stored if it's made from more operands than this, one with a single use if from
#: more than the second (``realize_reads_threshold``, ``realize_acc_reads_threshold`` of ``torch/_inductor/config.py``).
_OPERANDS_OF_SHARED, _OPERANDS_OF_SINGLE = 4, 8

_POINT_FAMILIES = ("elementwise", "copy", "random", "gather")

#: Element-wise as a compiler writes them: a comparison of the column with the target.
_POINT_OPS = ("aten.nll_loss_backward", "aten.nll_loss2d_backward")
_NLL_OPS = ("aten.nll_loss_forward", "aten.nll_loss2d_forward")
_SOFTMAX_OPS = ("aten._softmax", "aten._log_softmax", "aten._safe_softmax")

#: Operands that only give a shape or are overwritten.
_NOT_READ = {"aten.copy_": "self", "aten.nll_loss_backward": "self", "aten.nll_loss2d_backward": "self"}


@dataclass(slots=True, eq=False)
class Node:
    """An op that runs something.

    Attributes
    ----------
    op : Op
    call : Call
        The op at the graph's sizes.
    position : int
        Among the ops.
    cost : OpCost, optional
        ``None``: no rule.
    loops : Loops
    inputs : dict of str to int
        Operands that are read, as values.
    outputs : list of int
    backward : bool
        Whether it runs after forward.
    inlined : bool
        Whether kernels that use the result compute it.
    """

    op: Op
    call: Call
    position: int
    cost: OpCost | None
    loops: Loops
    inputs: dict[str, int]
    outputs: list[int]
    backward: bool
    inlined: bool = False

    @property
    def library(self) -> bool:
        """Whether its kernel isn't generated: its operands have to be in memory."""
        return self.loops.kind == "library"


class Dataflow:
    """The forward and backward ops of a flat graph.

    A value is what a storage holds between two writes; it is a number.

    Parameters
    ----------
    graph : Graph
        Flat.
    ops : sequence of Op
        Its ops of forward and backward.

    Attributes
    ----------
    nodes : list of Node
        In order of execution.
    storage_of : list of int
        The storage of each value.
    layers : list of tuple of str and int
        Layer stack and layer of each op: layers have to come out alike, so no value is inlined into the next one.
    kept : set of int
        Values that are needed in memory: saved for backward, or alive after it.
    """

    def __init__(self, graph: Graph, ops: Sequence[Op]) -> None:
        self.graph = graph
        self.ops = ops
        self.layers = adopted([op.module for op in ops], [op.phase for op in ops], graph.stacks)
        self.nodes: list[Node] = []
        self.storage_of: list[int] = []
        self.kept: set[int] = set()
        self.sizes = [int(evaluate(storage.nbytes, graph.bindings)) for storage in graph.storages]
        self._maker: dict[int, Node] = {}
        self._users: dict[int, list[Node]] = {}
        self._again: set[int] = set()
        self._leaves: dict[tuple[int, bool], set[int]] = {}
        self._read()
        self._library = [node.position for node in self.nodes if node.library]
        self._partition()
        for node in self.nodes:
            node.inlined = self._can_inline(node)

    def computed_by(self, value: int, backward: bool) -> Node | None:
        """The op that a generated kernel of forward or backward runs itself to have ``value``, if it does."""
        maker = self._maker.get(value)
        if maker is None:
            return None
        if maker.backward == backward:
            return maker if maker.inlined else None
        return maker if value in self._again else None

    def leaves(self, node: Node, backward: bool) -> set[int]:
        """Values in memory from which a kernel of forward or backward computes ``node``."""
        known = self._leaves.get((node.position, backward))
        if known is None:
            known = set()
            for value in node.inputs.values():
                maker = None if node.library else self.computed_by(value, backward)
                known |= {value} if maker is None else self.leaves(maker, backward)
            self._leaves[node.position, backward] = known
        return known

    # -- reading the graph ------------------------------------------------------

    def _read(self) -> None:
        current: dict[int, int] = {}
        pinned = {i for i, storage in enumerate(self.graph.storages) if storage.role in RESIDENT_ROLES}
        freed = {ref.storage for op in self.ops for ref in op.frees}
        bind = Binder(self.graph.bindings)

        def written(storage: int) -> int:
            current[storage] = len(self.storage_of)
            self.storage_of.append(storage)
            return current[storage]

        for position, op in enumerate(self.ops):
            call = bind(op)
            known = cost(call)
            if known is not None and known.family == "view":
                continue
            inputs = {
                name: current[t.storage] if t.storage in current else written(t.storage)
                for name, t in op.inputs.items()
            }
            if op.name in _NLL_OPS:
                op, call = self._picked_from_logits(op, call, inputs)
            inputs.pop(_NOT_READ.get(op.name, ""), None)
            if known is not None and known.family == "copy" and known.read == 0:
                inputs.clear()
            results = (op.inputs["self"],) if is_in_place(op) else op.outputs
            looks = (call.inputs["self"],) if is_in_place(op) else call.outputs
            if is_in_place(op) and int(looks[0].nbytes) != self.sizes[results[0].storage]:
                # Written in parts: the rest stays what it was.
                pinned.add(results[0].storage)
            node = Node(
                op=op,
                call=call,
                position=position,
                cost=known,
                loops=_loops(call, looks, known),
                inputs=inputs,
                outputs=[written(tensor.storage) for tensor in results],
                backward=op.phase != "forward",
            )
            self.nodes.append(node)
            self._maker.update(dict.fromkeys(node.outputs, node))
            for value in set(inputs.values()):
                self._users.setdefault(value, []).append(node)
        for value, storage in enumerate(self.storage_of):
            if storage in pinned or (storage not in freed and current[storage] == value):
                self.kept.add(value)

    def _picked_from_logits(self, op: Op, call: Call, inputs: dict[str, int]) -> tuple[Op, Call]:
        """A negative log-likelihood that takes the target's logit and its row's sum, not a stored log-softmax."""
        softmax = self._maker.get(inputs["self"])
        if softmax is None or softmax.op.name != "aten._log_softmax":
            return op, call
        inputs["self"] = softmax.inputs["self"]
        logits = {"self": softmax.op.inputs["self"]}
        picked = Op(
            name=op.name,
            phase=op.phase,
            module=op.module,
            inputs={**op.inputs, **logits},
            outputs=op.outputs,
            attrs=op.attrs,
            allocates=op.allocates,
            frees=op.frees,
        )
        return picked, call._replace(inputs={**call.inputs, "self": softmax.call.inputs["self"]})

    # -- what backward computes again -------------------------------------------

    def _partition(self) -> None:
        forward = [v for v in range(len(self.storage_of)) if v not in self._maker or not self._maker[v].backward]
        sizes: dict[int, int] = {}
        operands: dict[int, list[int]] = {}
        fixed: list[int] = []
        for value in forward:
            maker = self._maker.get(value)
            in_memory = any(user.library for user in self._users_of(value, backward=False))
            in_memory = in_memory or (maker is not None and maker.library)
            # A value that no library kernel makes or uses is written just to be kept.
            cost_of_keeping = self.sizes[self.storage_of[value]] * (1 if in_memory else 2)
            sizes[value] = 0 if self._is_resident(value) else cost_of_keeping
            if maker is None or not self._can_repeat(maker, value):
                fixed.append(value)
            else:
                operands[value] = list(maker.inputs.values())
        needed = [value for value in forward if self._users_of(value, backward=True)]
        saved = minimum_cut(sizes, operands, fixed, needed)
        self.kept |= saved
        pending = [value for value in needed if value not in saved]
        while pending:
            value = pending.pop()
            if value not in self._again and value not in saved:
                self._again.add(value)
                pending += operands[value]

    def _can_repeat(self, node: Node, value: int) -> bool:
        if node.cost is None or node.cost.family == "random" or value in self.kept:
            return False
        if node.loops.kind != "point" and node.op.name not in _SOFTMAX_OPS:
            return False
        if self._leaves_layer(node, self._users_of(value, backward=True)):
            return False
        return not self._is_far_from_operands(node)

    def _is_far_from_operands(self, node: Node) -> bool:
        """Whether a library kernel ran since an operand's first use: in backward they won't meet in a kernel."""
        uses = (self._users[value][0].position for value in node.inputs.values() if not self._is_resident(value))
        first = min(uses, default=node.position)
        return any(first < position < node.position for position in self._library)

    # -- what is computed where it's used -----------------------------------------

    def _can_inline(self, node: Node) -> bool:
        if node.loops.kind != "point" or len(node.outputs) != 1 or node.outputs[0] in self.kept:
            return False
        users = self._users_of(node.outputs[0], node.backward)
        if self._leaves_layer(node, users):
            return False
        limit = _OPERANDS_OF_SHARED if len(users) > 1 else _OPERANDS_OF_SINGLE
        return len(self.leaves(node, node.backward)) <= limit

    def _users_of(self, value: int, backward: bool) -> list[Node]:
        return [user for user in self._users.get(value, ()) if user.backward == backward]

    def _leaves_layer(self, node: Node, users: Iterable[Node]) -> bool:
        """Whether a result is used by a library kernel, or in another layer."""
        layer = self.layers[node.position]
        return any(user.library or self.layers[user.position] != layer for user in users)

    def _is_resident(self, value: int) -> bool:
        return self.graph.storages[self.storage_of[value]].role in RESIDENT_ROLES


def _loops(call: Call, results: Sequence[Tensor], known: OpCost | None) -> Loops:
    if known is None or call.name.startswith("perfmodel."):
        return Loops("library")
    if (known.family in _POINT_FAMILIES and call.name not in _NLL_OPS) or call.name in _POINT_OPS:
        return Loops("point", int(results[0].numel))
    rows, cols = int(known.rows), int(known.cols)
    if call.name in _NLL_OPS:
        return Loops("row", 1, rows)
    if known.family == "norm":
        if not call.name.startswith(("aten.native_layer_norm", "aten._fused_rms_norm")):
            return Loops("column", rows, cols)
        of_weights = "output_mask" in call.attrs and not call.attrs["output_mask"][0]
        return Loops("column", cols, rows) if of_weights else Loops("row", rows, cols)
    if known.family in ("reduction", "softmax"):
        name = "output" if "output" in call.inputs else "self"
        return Loops("row" if _along_rows(call.inputs[name], call.attrs) else "column", rows, cols)
    return Loops("scatter" if known.family == "scatter" else "library")


def _along_rows(x: Tensor, attrs: Mapping[str, Any]) -> bool:
    """Whether the reduced dimensions are the last ones."""
    dims = attrs.get("dim")
    if dims is None or isinstance(dims, bool):
        return True
    rank = len(x.shape)
    reduced = {d % rank for d in _as_list(dims)} if rank else set()
    left = [d for d, size in enumerate(x.shape) if d not in reduced and size != 1]
    return not reduced or not left or max(left) < min(reduced)


def _as_list(dims: Any) -> Iterable[int]:
    return dims if isinstance(dims, (list, tuple)) else (dims,)
