"""How placements pass through ops: one rule for each family of ops.

A rule sees one op and, for one dimension of the mesh, the placements of its inputs. It
answers which placements the inputs must have instead, which the outputs then get, and
what the op itself communicates. The pass (:mod:`perfmodel.parallel.shard`) makes the
changes of placement, and so the collectives. Dimensions of the mesh don't see each other.

The rules are those of DTensor's sharding strategies (``torch.distributed.tensor._ops``),
with Megatron-LM's choice where several are valid: weights stay where they are and
activations move.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from perfmodel.errors import UnsupportedError
from perfmodel.graph.ir import Op
from perfmodel.ops import Tensor, cost
from perfmodel.parallel.placement import Partial, Placement, Routed, Shard, same
from perfmodel.symbols import Dim

__all__ = ["Context", "Decision", "Inside", "decide", "has_rule", "rule"]

Placements = Mapping[str, Placement]


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a rule may ask besides the op.

    Attributes
    ----------
    mesh : str
        The dimension of the mesh that is being decided.
    at : mapping of str to int
        Numbers for the symbols, to compare sizes by.
    tokens : callable
        The placement of a tensor whose tokens are sharded as a sequence, or ``None`` where it isn't made of tokens.
    sequence : bool
        Whether partial activations are reduced into sequence shards (sequence parallelism).
    keep_partial : bool
        Whether products with replicated factors leave a term a term (inside of a layer that runs on local tensors).
    saved : frozenset of str
        Inputs that were made in forward.
    weights : mapping of str to Placement
        Placements of the parameters of the op's module, by their last name.
    kind : str
        How attention exchanges a sharded sequence: one of ``perfmodel.parallel.plan.CP_KINDS``.
    """

    mesh: str
    at: Mapping[str, Any]
    tokens: Callable[[Tensor], Placement] = lambda _tensor: None
    sequence: bool = False
    keep_partial: bool = False
    saved: frozenset[str] = frozenset()
    weights: Mapping[str, Placement] = field(default_factory=dict)
    kind: str = ""

    def reduced(self, tensor: Tensor) -> Placement:
        """Where the sum of a partial tensor goes."""
        return self.tokens(tensor) if self.sequence else None


@dataclass(frozen=True, slots=True)
class Inside:
    """A collective that an op needs within: an all-reduce of row statistics, keys and values that go round."""

    op: str
    tensors: tuple[Tensor, ...]
    steps: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """What a rule answers.

    Attributes
    ----------
    inputs : mapping of str to Placement
        Placements that the inputs must have.
    outputs : tuple of Placement
        Placements that the outputs get.
    inside : tuple of Inside
        What is communicated within the op.
    seen : mapping of str to Placement
        Inputs that the op works through in another size than the rank holds at once.
    then : tuple of Placement, optional
        Placements that the outputs are brought to at once.
    attrs : mapping of str to Any
        Attributes that change.
    """

    inputs: Placements
    outputs: tuple[Placement, ...]
    inside: tuple[Inside, ...] = ()
    seen: Placements = field(default_factory=dict)
    then: tuple[Placement, ...] | None = None
    attrs: Mapping[str, Any] = field(default_factory=dict)


Rule = Callable[[Op, Placements, Context], Decision]
_RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Make a function the rule of the ops ``names``."""

    def add(function: Rule) -> Rule:
        for name in names:
            _RULES[name] = function
        return function

    return add


def has_rule(op: Op) -> bool:
    """Whether placements can be passed through the op."""
    return _find(op) is not None


def decide(op: Op, placements: Placements, context: Context) -> Decision:
    """The decision for one op and one dimension of the mesh.

    Raises
    ------
    UnsupportedError
        If the op has no rule.
    """
    found = _find(op)
    if found is None:
        raise UnsupportedError(
            f"{op.name} in {op.module or '(root)'} has no sharding rule, and an input of it is sharded over "
            f"{context.mesh}; give it one with perfmodel.parallel.rules.rule, or keep the module out of the plan"
        )
    return found(op, placements, context)


def _find(op: Op) -> Rule | None:
    known = _RULES.get(op.name)
    if known is None:
        amount = cost(op)
        known = None if amount is None else _BY_FAMILY.get(amount.family)
    return known


def shards(placements: Placements) -> dict[str, Shard]:
    """The sharded ones."""
    return {name: placement for name, placement in placements.items() if isinstance(placement, Shard)}


def resolved(op: Op, placements: Placements, context: Context) -> dict[str, Placement]:
    """The placements with every partial one reduced."""
    return {
        name: context.reduced(op.inputs[name]) if isinstance(placement, Partial) else placement
        for name, placement in placements.items()
    }


def all_out(op: Op, placement: Placement) -> tuple[Placement, ...]:
    """The same placement for every output."""
    return (placement,) * len(op.outputs)


# -- element by element -----------------------------------------------------------

#: Gradients are added up by these; a partial operand makes a partial result.
_SUMS = frozenset(
    f"aten.{name}"
    for name in (
        "add", "add_", "sub", "sub_", "cat", "stack", "slice_backward", "select_backward", "clone", "copy_", "_to_copy",
    )
)  # fmt: skip

#: All that are linear in an operand.
_LINEAR = _SUMS | {f"aten.{name}" for name in ("neg", "mul", "mul_", "div", "div_")}

_LIKE = frozenset(
    f"aten.{name}" for name in ("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like")
)


def elementwise(op: Op, placements: Placements, context: Context) -> Decision:
    """Operands broadcast against each other. A replicated operand is sliced, a partial one reduced."""
    names = list(op.inputs)
    if op.name in _LIKE:
        kept = {name: None if isinstance(p, Partial) else p for name, p in placements.items()}
        return Decision(placements, all_out(op, kept[names[0]] if names else None))
    partial = [name for name in names if isinstance(placements[name], Partial)]
    whole = all(isinstance(p, Partial) or p is None for p in placements.values())
    if partial and whole and _stays_partial(op, partial, context):
        factors = op.name.startswith(("aten.mul", "aten.div"))
        terms = dict(placements) if factors else dict.fromkeys(names, placements[partial[0]])
        return Decision(terms, all_out(op, placements[partial[0]]))
    if any(isinstance(placements[name], Routed) for name in names):
        return _routed(op, placements, context)
    shape = op.outputs[0].shape if op.outputs else op.inputs[names[0]].shape
    rank = len(shape)
    targets = dict(placements)
    found: Shard | None = None
    for name, shard in shards(placements).items():
        moved = replace(shard, dim=shard.dim + rank - len(op.inputs[name].shape))
        if found is None:
            found = moved
        elif same(found, moved):
            found = replace(found, packed=found.packed or moved.packed, unit=_coarser(found.unit, moved.unit))
    for name in names:
        tensor, placement = op.inputs[name], placements[name]
        if isinstance(placement, Partial) and found is None:
            targets[name] = placement = context.reduced(tensor)
            if isinstance(placement, Shard):
                found = replace(placement, dim=placement.dim + rank - len(tensor.shape))
    for name in names:
        tensor = op.inputs[name]
        dim = -1 if found is None else found.dim - rank + len(tensor.shape)
        wide = found is not None and dim >= 0 and tensor.shape[dim] == shape[found.dim]
        targets[name] = replace(found, dim=dim) if wide and found is not None else None
    out = tuple(None if found is None or len(t.shape) != rank else found for t in op.outputs)
    return Decision(targets, out)


def _coarser(a: Dim, b: Dim) -> Dim:
    return b if isinstance(a, int) and a == 1 else a


def _stays_partial(op: Op, partial: list[str], context: Context) -> bool:
    """Whether the result of a partial operand may be partial too.

    Forward a term is summed where it leaves its product, as every implementation does. Backward
    gradients are added up first: a replicated one then counts as the term of one rank.
    """
    local = context.keep_partial and all(name in context.saved for name in partial)
    if local and op.name in _LINEAR:
        factor = partial == ["self"] or (len(partial) == 1 and op.name.startswith("aten.mul"))
        return factor or not op.name.startswith(("aten.mul", "aten.div"))
    if op.name not in _SUMS or op.phase != "backward":
        return False
    return op.name != "aten._to_copy" or not any(context.tokens(op.inputs[name]) for name in partial)


def _routed(op: Op, placements: Placements, context: Context) -> Decision:
    """All rows are with their experts, or all come back."""
    del context
    rows = {name: p for name, p in placements.items() if op.inputs[name].shape}
    if all(isinstance(p, Routed) for p in rows.values()):
        return Decision(placements, all_out(op, Routed()))
    return Decision(dict.fromkeys(placements), all_out(op, None))


rule(*_LINEAR, *_LIKE)(elementwise)


@rule("aten.constant_pad_nd")
def _pad(op: Op, placements: Placements, context: Context) -> Decision:
    """Where a sequence is padded by a token to be shifted, the neighbour's first token takes the padding's place."""
    targets = resolved(op, placements, context)
    placement, source, out = targets["self"], op.inputs["self"], op.outputs[0]
    if isinstance(placement, Shard) and placement.kind != "sequence":
        grows = source.shape[placement.dim] != out.shape[placement.dim]
        placement = None if grows else placement
    return Decision({"self": placement}, (placement,))


@rule("aten.arange", "aten.zeros", "aten.ones", "aten.full", "aten.empty", "aten.scalar_tensor", "aten.randint",
      "aten.linspace", "aten.eye", "aten.rand",
      "aten.randn", "aten.empty_strided", "aten.triu_indices", "aten.tril_indices",
      "aten._local_scalar_dense", "aten.item", "perfmodel.release")  # fmt: skip
def _created(op: Op, placements: Placements, context: Context) -> Decision:
    """Every rank makes its own."""
    del context
    return Decision(placements, all_out(op, None))


@rule("aten.new_empty", "aten.new_empty_strided", "aten.new_zeros", "aten.new_ones", "aten.new_full")
def _made_like(op: Op, placements: Placements, context: Context) -> Decision:
    """A buffer for what lies like ``self``, where its dimensions are; its content is no one's yet."""
    del context
    placement, source, out = placements.get("self"), op.inputs.get("self"), op.outputs[0]
    if not isinstance(placement, Shard) or source is None or len(source.shape) != len(out.shape):
        return Decision(placements, all_out(op, None))
    fits = source.shape[placement.dim] == out.shape[placement.dim]
    return Decision(placements, all_out(op, placement if fits else None))


# -- sums over dimensions --------------------------------------------------------------


def reduction(op: Op, placements: Placements, context: Context) -> Decision:
    """A sum over a sharded dimension is a partial sum; other reductions gather, a maximum is a partial maximum."""
    name = "self" if "self" in op.inputs else next(iter(op.inputs))
    placement, source = placements[name], op.inputs[name]
    rank = len(source.shape)
    base = op.name.removeprefix("aten.")
    if isinstance(placement, Partial):
        if base in ("sum", "mean"):
            return Decision(placements, all_out(op, placement))
        placement = context.reduced(source)
    if not isinstance(placement, Shard):
        return Decision({**placements, name: placement}, all_out(op, placement))
    dims: Any = op.attrs.get("dim")
    if dims is None or isinstance(dims, bool):
        dims = range(rank)
    elif isinstance(dims, int):
        dims = (dims,)
    gone = {d % rank for d in dims or range(rank)}
    if placement.dim not in gone:
        kept = placement.dim if op.attrs.get("keepdim") else placement.dim - sum(d < placement.dim for d in gone)
        return Decision({**placements, name: placement}, all_out(op, replace(placement, dim=kept)))
    if base in ("sum", "mean"):
        return Decision({**placements, name: placement}, all_out(op, Partial()))
    if base in ("amax", "max"):
        return Decision({**placements, name: placement}, all_out(op, Partial("max")))
    return Decision({**placements, name: None}, all_out(op, None))


_BY_FAMILY: dict[str, Rule] = {
    "elementwise": elementwise,
    "random": elementwise,
    "reduction": reduction,
}


@rule("aten.topk", "aten.sort", "aten.argsort", "aten.cumsum", "aten.cumprod", "aten.argmax", "aten.gather")
def _along(op: Op, placements: Placements, context: Context) -> Decision:
    """Along one dimension. Tokens of a sequence are routed by the rank that has them."""
    targets = resolved(op, placements, context)
    placement, source = targets["self"], op.inputs["self"]
    if isinstance(placement, Shard) and placement.kind != "sequence":
        dim = op.attrs.get("dim", -1)
        if placement.dim == dim % max(len(source.shape), 1):
            placement = None
    return Decision({name: _aligned(placement, op.inputs[name], source) for name in targets}, all_out(op, placement))


def _aligned(placement: Placement, tensor: Tensor, like: Tensor) -> Placement:
    return placement if len(tensor.shape) == len(like.shape) else None


@rule("aten.histc", "aten.bincount", "aten.one_hot", "aten.searchsorted", "aten.nonzero", "aten.bucketize")
def _counts(op: Op, placements: Placements, context: Context) -> Decision:
    """How often the rank's own tokens name each bin."""
    targets = resolved(op, placements, context)
    return Decision(targets, all_out(op, None))
