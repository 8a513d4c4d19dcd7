"""A model's formulas beside what was captured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from perfmodel.graph.count import count
from perfmodel.graph.ir import Graph
from perfmodel.graph.paths import module_family, numbered
from perfmodel.models.formulas import Explanation, Formula, Section
from perfmodel.report.table import table
from perfmodel.report.text import amount

__all__ = ["Line", "compared", "explanation_record", "explanation_text"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A formula with both counts of matrix flops, of one forward pass and one layer."""

    section: Section
    formula: Formula
    expected: int
    captured: int


def compared(explanation: Explanation, graph: Graph) -> tuple[list[Line], int]:
    """Each formula with what was captured of its modules.

    Parameters
    ----------
    explanation : Explanation
    graph : Graph
        Of the reference implementation of the same dimensions, folded.

    Returns
    -------
    lines : list of Line
    total : int
        Matrix flops of the whole captured forward pass.
    """
    by_module = _forward_flops(graph)
    lines = []
    for section in explanation.sections:
        prefix = f"{section.stack}.{section.layers[0]}." if section.layers else ""
        for formula in section.formulas:
            captured = sum(by_module.get(prefix + module, 0) for module in formula.modules)
            expected = explanation.flops(formula, graph.bindings)
            lines.append(Line(section=section, formula=formula, expected=expected, captured=captured))
    return lines, int(graph.flops("matrix", phase="forward"))


def _forward_flops(graph: Graph) -> dict[str, int]:
    """Matrix flops of forward by module, layers spelled out."""
    found: dict[str, int] = {}
    costs = iter(count(graph))
    for block in graph.blocks:
        counted = [next(costs) for _ in block.ops]
        for op, of in zip(block.ops, counted, strict=True):
            if op.phase != "forward" or of.cost is None or not of.cost.matrix_flops:
                continue
            for layer in block.layers:
                module = numbered(op.module, layer) if block.stack else module_family(op.module)
                found[module] = found.get(module, 0) + int(of.cost.matrix_flops)
    return found


def explanation_text(name: str, explanation: Explanation, graph: Graph) -> str:
    """The legend, the formulas of each kind of layer, and both counts side by side."""
    lines, total = compared(explanation, graph)
    width = max(len(symbol.name) for symbol in explanation.legend)
    text = [f"{name}: forward pass, matrix products; a multiply-add is two flops, attention counts every pair", ""]
    for symbol in explanation.legend:
        text.append(f"  {symbol.name.ljust(width)}  {symbol.meaning} = {symbol.at(graph.bindings):,}")
    for section in explanation.sections:
        rows = [_row(line) for line in lines if line.section is section]
        text += ["", *_indented(section.title, rows)]
    expected = explanation.total(graph.bindings)
    text += [
        "",
        f"  forward pass: {amount(expected)} by the formulas, {amount(total)} captured ({_ratio(expected, total)})",
    ]
    return "\n".join(text)


def _row(line: Line) -> tuple[str, str, str, str, str]:
    if not line.formula.flops:
        return (line.formula.part, line.formula.equation, "", "", "")
    return (
        line.formula.part,
        line.formula.equation,
        line.formula.flops.replace("*", " "),
        amount(line.expected),
        amount(line.captured) if line.captured == line.expected else f"{amount(line.captured)} !",
    )


def _indented(title: str, rows: list[tuple[str, str, str, str, str]]) -> list[str]:
    """The first three columns left-aligned, the figures right-aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    padded = [("", *(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), *row[3:]) for row in rows]
    header = ("", *(cell.ljust(w) for cell, w in zip((title, "", "flops"), widths, strict=True)), "formula", "captured")
    return [f"  {line}".rstrip() for line in table(header, padded).splitlines()]


def _ratio(expected: int, captured: int) -> str:
    return "equal" if expected == captured else f"captured / formulas = {captured / expected:.6f}"


def explanation_record(name: str, explanation: Explanation, graph: Graph) -> dict[str, Any]:
    """The same as plain values."""
    lines, total = compared(explanation, graph)

    def plain(line: Line) -> Mapping[str, Any]:
        formula = line.formula
        return {
            "part": formula.part,
            "equation": formula.equation,
            "flops": formula.flops,
            "modules": list(formula.modules),
            "formula_flops": line.expected,
            "captured_flops": line.captured,
        }

    return {
        "model": name,
        "bindings": dict(graph.bindings),
        "legend": [{"name": s.name, "meaning": s.meaning, "value": s.at(graph.bindings)} for s in explanation.legend],
        "sections": [
            {
                "title": section.title,
                "layers": list(section.layers),
                "lines": [plain(line) for line in lines if line.section is section],
            }
            for section in explanation.sections
        ],
        "forward_flops": {"formulas": explanation.total(graph.bindings), "captured": total},
    }
