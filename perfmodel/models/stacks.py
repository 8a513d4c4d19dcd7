"""What every kind of model's dimensions have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

__all__ = ["LayerStack", "ModelDims"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerStack:
    """Layers of a model that follow one another, ``prefix`` of their own kind, then repeating every ``period``.

    Attributes
    ----------
    path : str
        In the reference module, e.g. ``"layers"`` or ``"encoder.layers"``.
    depth : int
        Number of layers.
    prefix : int
        Layers at the start that aren't like the rest (DeepSeek-V3's three dense ones).
    period : int
        After how many layers the pattern repeats (2 where sliding and full attention alternate).
    """

    path: str
    depth: int
    prefix: int = 0
    period: int = 1


class ModelDims(Protocol):
    """The record of numbers that says what a model is; each family has its own (:mod:`perfmodel.models.families`)."""

    @property
    def family(self) -> str:
        """Name of the family, e.g. ``"decoder"``."""

    @property
    def stacks(self) -> tuple[LayerStack, ...]:
        """Layers that repeat; empty where a model has none."""

    @property
    def max_length(self) -> int | None:
        """Longest sequence that can be run, where there is a hard limit (learned positions)."""

    def with_depths(self, depths: Mapping[str, int]) -> Self:
        """The same model with another number of layers, by path of the stack.

        What the pattern says of the layers that stay is kept: a stack of
        ``prefix`` + n layers keeps its prefix.
        """

    def parameters(self) -> int:
        """Trainable numbers of the model with its head, tied weights once."""

    def closed_form_flops(self, bindings: Mapping[str, int]) -> float | None:
        """Matrix flops of a training step by the field's formula (PaLM's 6N + 12LHQT, or its like), or ``None``."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values with the family's name; ``from_dict`` of the class is the inverse."""
