"""Errors over measured runs, by family, group or device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from perfmodel.errors import UnknownNameError
from perfmodel.validation.rows import OK, UNSUPPORTED, Summary, summarise
from perfmodel.validation.runs import RunRow

__all__ = ["GROUPINGS", "grouped", "mean_of_groups", "runs_report", "summaries"]

#: What rows can be grouped by.
GROUPINGS = ("family", "group", "device")
_HEADER = ("runs", "unsupported", "scored", "median", "P90", "bias", "memory", "median")


def grouped(rows: Sequence[RunRow], by: Sequence[str] = ("family",)) -> dict[str, list[RunRow]]:
    """Rows by one or several of :data:`GROUPINGS`, in the order in which they appear.

    Raises
    ------
    UnknownNameError
        For another grouping.
    """
    for name in by:
        if name not in GROUPINGS:
            raise UnknownNameError("grouping", name, GROUPINGS, f"known are {', '.join(GROUPINGS)}")
    found: dict[str, list[RunRow]] = {}
    for row in rows:
        found.setdefault(" ".join(getattr(row, name) or "(none)" for name in by), []).append(row)
    return found


def summaries(groups: Mapping[str, Sequence[RunRow]]) -> dict[str, Summary]:
    """The summary of each group over its scored rows."""
    return {name: summarise(row for row in rows if row.scored) for name, rows in groups.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """What a line of the table says; errors are ``None`` where there are no rows."""

    runs: int
    unsupported: int
    scored: int
    median: float | None
    p90: float | None
    bias: float | None
    memory: int
    memory_median: float | None


def _line(rows: Sequence[RunRow], counted: Sequence[RunRow]) -> _Line:
    found = summarise(counted)
    memory = [
        abs(row.predicted_memory_gb / row.measured_memory_gb - 1)
        for row in counted
        if row.status == OK and row.predicted_memory_gb and row.measured_memory_gb
    ]
    return _Line(
        runs=len(rows),
        unsupported=sum(row.status == UNSUPPORTED for row in rows),
        scored=found.supported,
        median=found.median_ape,
        p90=found.p90_ape,
        bias=found.bias,
        memory=len(memory),
        memory_median=float(np.median(memory)) if memory else None,
    )


def mean_of_groups(found: Mapping[str, Summary]) -> tuple[float | None, float | None]:
    """Means over groups of the median error and of the 90th percentile: a large group counts like a small one."""
    medians = [each.median_ape for each in found.values() if each.median_ape is not None]
    highs = [each.p90_ape for each in found.values() if each.p90_ape is not None]
    return (float(np.mean(medians)), float(np.mean(highs))) if medians and highs else (None, None)


def runs_report(rows: Sequence[RunRow], by: Sequence[str] = ("family",)) -> str:
    """Tables of the errors of step time and peak memory, and the reasons why runs are unsupported.

    First the runs that are scored, then those that aren't, by group too.
    """
    groups = grouped(rows, by)
    lines = {name: _line(every, [row for row in every if row.scored]) for name, every in groups.items()}
    median, p90 = mean_of_groups(summaries(groups))
    parts = [_table(" ".join(by), lines)]
    parts.append(f"mean over {len(groups)} groups: median {_percent(median)}, P90 {_percent(p90)}")
    apart = grouped([row for row in rows if not row.scored], by)
    if apart:
        parts.append("\nnot scored (quality C, circular, or composed like another run of its layout):")
        parts.append(_table(" ".join(by), {name: _line(every, every) for name, every in apart.items()}))
    reasons: dict[str, int] = {}
    for row in rows:
        if row.status == UNSUPPORTED:
            reasons[row.reason] = reasons.get(row.reason, 0) + 1
    if reasons:
        parts.append("\nunsupported:")
        parts += [f"{count:5d}  {reason}" for reason, count in sorted(reasons.items(), key=lambda item: -item[1])]
    return "\n".join(parts)


def _table(first: str, lines: Mapping[str, _Line]) -> str:
    cells = [
        (
            name,
            str(each.runs),
            str(each.unsupported),
            str(each.scored),
            _percent(each.median),
            _percent(each.p90),
            _percent(each.bias, signed=True),
            str(each.memory),
            _percent(each.memory_median),
        )
        for name, each in lines.items()
    ]
    table = [(first, *_HEADER), *cells]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(widths[k]) for k, cell in enumerate(row) if k)])
        for row in table
    )


def _percent(value: float | None, *, signed: bool = False) -> str:
    return "-" if value is None else f"{100 * value:{'+' if signed else ''}.1f}%"
