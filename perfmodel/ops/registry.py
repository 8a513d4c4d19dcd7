"""The one table of rules: op name to a pure function of shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from perfmodel.ops.cost import OpCost
from perfmodel.ops.tensor import OpCall

__all__ = ["CostRule", "cost", "has_rule", "known_ops", "register"]

CostRule = Callable[[OpCall], OpCost]
_Rule = TypeVar("_Rule", bound=CostRule)
_RULES: dict[str, CostRule] = {}


def register(*names: str) -> Callable[[_Rule], _Rule]:
    """Make a function the rule of the ops ``names`` (``"aten.mm"``, without overload).

    Raises
    ------
    ValueError
        If one of them has a rule already.
    """

    def add(rule: _Rule) -> _Rule:
        for name in names:
            if name in _RULES:
                raise ValueError(f"op {name!r} has a rule already: {_RULES[name].__qualname__}")
            _RULES[name] = rule
        return rule

    return add


def cost(call: OpCall) -> OpCost | None:
    """What ``call`` costs, or ``None`` where its op has no rule (a reported gap, never a zero)."""
    rule = _RULES.get(call.name)
    return None if rule is None else rule(call)


def has_rule(name: str) -> bool:
    """Whether the op has a rule."""
    return name in _RULES


def known_ops() -> tuple[str, ...]:
    """Names of all ops with a rule, sorted."""
    return tuple(sorted(_RULES))
