"""Op calls written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from perfmodel.ops import OpCost, Tensor, cost


@dataclass(frozen=True, kw_only=True)
class Call:
    name: str
    inputs: dict[str, Tensor]
    outputs: tuple[Tensor, ...] = ()
    attrs: dict[str, Any] = field(default_factory=dict)


def tensor(*shape: Any, dtype: str = "float32", strides: Any = None) -> Tensor:
    return Tensor(shape=shape, dtype=dtype, strides=strides)


def cost_of(name: str, inputs: dict[str, Tensor], outputs: Sequence[Tensor] = (), **attrs: Any) -> OpCost:
    found = cost(Call(name=name, inputs=inputs, outputs=tuple(outputs), attrs=attrs))
    assert found is not None
    return found
