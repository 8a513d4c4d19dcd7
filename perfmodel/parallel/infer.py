"""Find out which weights a tensor-parallel plan splits by columns and which by rows.

A weight whose output reaches the next product, attention or the loss through ops that
don't need the whole feature dimension is split by columns; the weight that this product
has is split by rows. That is Megatron-LM's rule (Shoeybi et al. 2019, section 3), read
off the graph: query, key, value, up and gate come out by columns, output and down by
rows, the head with its cross-entropy by vocabulary, a gate of experts not at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from perfmodel.graph.ir import Graph, Op
from perfmodel.ops import Tensor
from perfmodel.parallel.contractions import OPERANDS
from perfmodel.parallel.placement import Placement, Shard, same
from perfmodel.parallel.rules import Context, decide, has_rule
from perfmodel.symbols import Dim

__all__ = ["Weights", "find_weights"]

_ATTENTION = "perfmodel.attention"


@dataclass(slots=True)
class Weights:
    """What the graph does with its parameters, by number of the storage.

    Attributes
    ----------
    shapes : dict
        Shape of each parameter.
    linear : dict
        Of a weight in a product: its dimensions of inputs and of outputs.
    embeddings : dict
        Tables, and whether they are looked up by an input of the step (tokens) rather than by positions.
    experts : set
        Weights of routed experts, the expert in dimension 0.
    columns : dict
        How the outputs of a weight can be sharded: with the unit that stays together, packed or not.
    rows : set
        Weights whose inputs are sharded where the columns before them are.
    biases : dict
        Parameters that are added to or multiplied with a sharded feature dimension: the weights it comes from.
    """

    shapes: dict[int, tuple[Dim, ...]] = field(default_factory=dict)
    linear: dict[int, tuple[int, int]] = field(default_factory=dict)
    embeddings: dict[int, bool] = field(default_factory=dict)
    experts: set[int] = field(default_factory=set)
    columns: dict[int, Shard] = field(default_factory=dict)
    rows: set[int] = field(default_factory=set)
    biases: dict[int, frozenset[int]] = field(default_factory=dict)


def find_weights(graph: Graph, at: Mapping[str, Any]) -> Weights:
    """Read off how weights can be sharded.

    Parameters
    ----------
    graph : Graph
        The whole step.
    at : mapping of str to int
        Numbers for its symbols.
    """
    excluded: set[int] = set()
    while True:
        trace = _Trace(graph, at, excluded)
        trace.run()
        again = excluded | trace.broken | (set(trace.candidates) - set(trace.used))
        if again == excluded:
            return trace.result()
        excluded = again


@dataclass(frozen=True, slots=True)
class _Tag:
    """A feature dimension that may be sharded, and the weights that would make it so."""

    shard: Shard
    weights: frozenset[int]


class _Trace:
    def __init__(self, graph: Graph, at: Mapping[str, Any], excluded: set[int]) -> None:
        self.graph = graph
        self.excluded = excluded
        self.context = Context(mesh="tp", at=at)
        self.tags: dict[Any, _Tag] = {}
        self.parameters: dict[Any, tuple[int, dict[int, int]]] = {}
        self.weights = Weights()
        self.candidates: set[int] = set()
        self.broken: set[int] = set()
        self.used: dict[int, Dim] = {}  # weight: the unit that its consumer keeps together
        self.packed: set[int] = set()

    def run(self) -> None:
        for op in self._forward():
            self._note_parameters(op)
            operands = OPERANDS.get(op.name)
            if operands and _key(op.inputs[operands[1]]) in self.parameters:
                self._linear(op, *operands)
            elif op.name == _ATTENTION:
                self._attention(op)
            elif op.name == "aten.embedding":
                self._embedding(op)
            else:
                self._pass(op)

    def result(self) -> Weights:
        for number in self.candidates:
            if number not in self.broken and number in self.used:
                _, columns = self.weights.linear[number]
                packed = number in self.packed
                self.weights.columns[number] = Shard(columns, unit=self.used[number], packed=packed)
        return self.weights

    def _forward(self) -> Iterator[Op]:
        for block in self.graph.blocks:
            for op in block.ops:
                if op.phase == "forward":
                    yield op

    def _note_parameters(self, op: Op) -> None:
        for tensor in op.inputs.values():
            storage = self.graph.storages[tensor.storage]
            number = tensor.storage
            if storage.role == "parameter" and number not in self.weights.shapes and tensor.nbytes == storage.nbytes:
                self.weights.shapes[number] = tensor.shape
                self.parameters[_key(tensor)] = (number, {d: d for d in range(len(tensor.shape))})
        # Other looks at a parameter, and copies of it in another type.
        sources = [t for t in op.inputs.values() if _key(t) in self.parameters]
        if len(op.inputs) == 1 and sources and has_rule(op) and len(op.outputs) == 1:
            number, dims = self.parameters[_key(sources[0])]
            name = next(iter(op.inputs))
            moved: dict[int, int] = {}
            for own, dim in dims.items():
                decision = decide(op, {name: Shard(dim)}, self.context)
                out = decision.outputs[0]
                if same(decision.inputs[name], Shard(dim)) and isinstance(out, Shard):
                    moved[own] = out.dim
            self.parameters[_key(op.outputs[0])] = (number, moved)

    def _linear(self, op: Op, left: str, right: str) -> None:
        number, dims = self.parameters[_key(op.inputs[right])]
        rank = len(op.inputs[right].shape)
        place = {where: own for own, where in dims.items()}
        if rank - 1 not in place or rank - 2 not in place:
            self._break(op)
            return
        self.weights.linear[number] = (place[rank - 2], place[rank - 1])
        if rank == 3 or op.name == "aten._grouped_mm":
            self.weights.experts.add(number)
        tag = self.tags.get(_key(op.inputs[left]))
        out = op.outputs[0]
        self.tags.pop(_key(out), None)
        if tag is not None and tag.shard.dim == len(op.inputs[left].shape) - 1:
            self._use(tag, 1)
            self.weights.rows.add(number)
            return
        if tag is not None:
            self.broken |= tag.weights
        if number in self.excluded:
            return
        self.candidates.add(number)
        self.tags[_key(out)] = _Tag(Shard(len(out.shape) - 1), frozenset({number}))
        for name, tensor in op.inputs.items():
            if name not in (left, right):
                self._bias(tensor, frozenset({number}))

    def _bias(self, tensor: Tensor, weights: frozenset[int]) -> None:
        known = self.parameters.get(_key(tensor))
        if known is not None and len(tensor.shape) >= 1:
            self.weights.biases[known[0]] = weights

    def _attention(self, op: Op) -> None:
        found: frozenset[int] = frozenset()
        tagged = 0
        for name in ("query", "key", "value"):
            tag = self.tags.get(_key(op.inputs[name]))
            if tag is None:
                continue
            if tag.shard.dim != 1:
                self.broken |= tag.weights
                continue
            tagged += 1
            found |= tag.weights
            heads, width = op.inputs[name].shape[1], op.inputs[name].shape[3]
            for number in tag.weights:
                size = self.weights.shapes[number][self.weights.linear[number][1]]
                self.used[number] = width if number in self.packed else size // heads
        for out in op.outputs:
            self.tags.pop(_key(out), None)
        if tagged == 3:
            for out in op.outputs:
                self.tags[_key(out)] = _Tag(Shard(1), found)
        else:
            self.broken |= found

    def _embedding(self, op: Op) -> None:
        known = self.parameters.get(_key(op.inputs["weight"]))
        if known is not None:
            by_tokens = self.graph.storages[op.inputs["indices"].storage].role == "input"
            self.weights.embeddings[known[0]] = by_tokens
        self._clear(op)

    def _pass(self, op: Op) -> None:
        tagged = {name: self.tags[_key(t)] for name, t in op.inputs.items() if _key(t) in self.tags}
        self._clear(op)
        if not tagged:
            return
        weights = frozenset(number for tag in tagged.values() for number in tag.weights)
        if op.name == "aten._log_softmax":
            # A loss over a sharded vocabulary has its own all-reduces.
            self._use(next(iter(tagged.values())), 1)
            return
        if not has_rule(op):
            self.broken |= weights
            return
        placements: dict[str, Placement] = {name: tagged[name].shard if name in tagged else None for name in op.inputs}
        decision = decide(op, placements, self.context)
        if not all(same(decision.inputs[name], tag.shard) for name, tag in tagged.items()):
            packed = self._packed(op, placements)
            if packed is None:
                self.broken |= weights
                return
            self.packed |= weights
            decision = packed
        for name, tensor in op.inputs.items():
            if name not in tagged and isinstance(decision.inputs[name], Shard):
                self._bias(tensor, weights)
        for tensor, placement in zip(op.outputs, decision.outputs, strict=True):
            if isinstance(placement, Shard):
                self.tags[_key(tensor)] = _Tag(replace(placement, packed=False), weights)
            elif placement is not None:
                self.broken |= weights

    def _packed(self, op: Op, placements: Mapping[str, Placement]) -> Any:
        """The decision where the feature dimension holds several tensors side by side."""
        as_packed = {n: replace(p, packed=True) if isinstance(p, Shard) else p for n, p in placements.items()}
        decision = decide(op, as_packed, self.context)
        return decision if all(same(decision.inputs[n], p) for n, p in placements.items() if p is not None) else None

    def _use(self, tag: _Tag, unit: Dim) -> None:
        for number in tag.weights:
            self.used.setdefault(number, unit)

    def _clear(self, op: Op) -> None:
        for tensor in op.outputs:
            self.tags.pop(_key(tensor), None)

    def _break(self, op: Op) -> None:
        for tensor in op.inputs.values():
            tag = self.tags.get(_key(tensor))
            if tag is not None:
                self.broken |= tag.weights
        self._clear(op)


def _key(tensor: Tensor) -> Any:
    return tensor.storage, tensor.shape, tensor.strides
