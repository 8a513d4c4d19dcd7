"""A model's matrix products as a paper would write them: formulas of named sizes, with a legend.

The formulas come from the dimensions alone, by hand; nothing of a captured graph is
looked at. So what they add up to is a check of the capture, and of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from perfmodel.symbols import evaluate, parse

__all__ = ["Explanation", "Formula", "Section", "Symbol", "layer_title"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Symbol:
    """A letter of the formulas: a number of the model, or a size that the user chooses.

    Attributes
    ----------
    name, meaning : str
    value : int, optional
    size : str
        Where there is no value: which of the graph's symbols it is (``"batch"``, ``"seq"``, ``"target_seq"``).
    """

    name: str
    meaning: str
    value: int | None = None
    size: str = ""

    def at(self, bindings: Mapping[str, int]) -> int:
        """Its number."""
        return bindings[self.size] if self.value is None else self.value


@dataclass(frozen=True, kw_only=True, slots=True)
class Formula:
    """One line of a layer.

    Attributes
    ----------
    part : str
        What it is, e.g. ``"keys"``.
    equation : str
        What is computed.
    flops : str
        Matrix flops of one forward pass, an expression of the symbols; a multiply-add is two, and attention
        counts all pairs, hidden or not. Empty where no matrix product takes part.
    modules : tuple of str
        Modules of the reference model that do it, within the layer (or the model, outside of layers).
    """

    part: str
    equation: str
    flops: str = ""
    modules: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """Lines of the layers that are alike.

    Attributes
    ----------
    title : str
    formulas : tuple of Formula
    layers : tuple of int
        Numbers of these layers; empty for what lies outside of layers.
    stack : str
        Path of their stack in the reference module.
    """

    title: str
    formulas: tuple[Formula, ...]
    layers: tuple[int, ...] = ()
    stack: str = "layers"


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """A model as formulas.

    Attributes
    ----------
    legend : tuple of Symbol
    sections : tuple of Section
        In the order of a forward pass.
    """

    legend: tuple[Symbol, ...]
    sections: tuple[Section, ...]

    def flops(self, formula: Formula, bindings: Mapping[str, int]) -> int:
        """Matrix flops of one line, once, for sizes of the graph's symbols."""
        values = {symbol.name: symbol.at(bindings) for symbol in self.legend}
        return int(evaluate(parse(formula.flops), values)) if formula.flops else 0

    def total(self, bindings: Mapping[str, int]) -> int:
        """Matrix flops of a forward pass."""
        return sum(
            self.flops(formula, bindings) * max(len(section.layers), 1)
            for section in self.sections
            for formula in section.formulas
        )


def layer_title(layers: Sequence[int], words: str = "") -> str:
    """What a section of layers is called.

    >>> layer_title([0, 2, 4], "window of 4096"), layer_title([3])
    ('layer x 3: 0–4, every 2nd (window of 4096)', 'layer x 1: 3')
    """
    steps = {after - before for before, after in itertools.pairwise(layers)}
    numbers = f"{layers[0]}" if len(layers) == 1 else f"{layers[0]}–{layers[-1]}"
    if len(steps) == 1 and steps != {1}:
        step = steps.pop()
        numbers += f", every {step}{ {2: 'nd', 3: 'rd'}.get(step, 'th') }"
    elif len(steps) > 1:
        numbers += ", those"
    return f"layer x {len(layers)}: {numbers}{f' ({words})' if words else ''}"
