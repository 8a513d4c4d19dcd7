"""What every comparison with measurements puts out: a row for each measurement, and a summary.

::

    {"rows": [{"id", "measured_s", "predicted_s", "low_s", "high_s", "status", "reason"}, …],
     "summary": {"count", "supported", "mape", "median_ape", "p90_ape", "bias", "interval_coverage"}}

A measurement that can't be predicted is a row with the status ``"unsupported"`` and a reason; none is dropped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perfmodel.hardware.files import write_text

__all__ = ["OK", "UNSUPPORTED", "Row", "Summary", "report_dict", "summarise", "summary_table", "write_report"]

OK, UNSUPPORTED = "ok", "unsupported"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measurement and what was predicted for it, in seconds.

    Attributes
    ----------
    id : str
        Of the measurement: its own, or its line in the file.
    measured_s : float or None
        ``None`` where the file has none that can be read.
    predicted_s : float or None
        ``None`` where it's unsupported.
    low_s, high_s : float or None
        Interval of the prediction; ``None`` where there are no held-out residuals to take it from.
    status : {"ok", "unsupported"}
    reason : str
        Why it's unsupported; empty otherwise.
    """

    id: str
    measured_s: float | None
    predicted_s: float | None = None
    low_s: float | None = None
    high_s: float | None = None
    status: str = OK
    reason: str = ""

    @property
    def error(self) -> float | None:
        """Predicted over measured, less one; ``None`` where it's unsupported."""
        if self.status != OK or self.predicted_s is None or self.measured_s is None:
            return None
        return self.predicted_s / self.measured_s - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Errors over the supported rows; ``None`` where there are none.

    Attributes
    ----------
    count, supported : int
        Rows, and those that were predicted.
    mape, median_ape, p90_ape : float or None
        Mean, median and 90th percentile of ``abs(predicted / measured - 1)``.
    bias : float or None
        Geometric mean of ``predicted / measured``, less one: positive where predictions are too slow.
    interval_coverage : float or None
        Share of the measurements inside the interval, of those that have one.
    """

    count: int
    supported: int
    mape: float | None
    median_ape: float | None
    p90_ape: float | None
    bias: float | None
    interval_coverage: float | None


def summarise(rows: Iterable[Row]) -> Summary:
    """The summary of some rows.

    Examples
    --------
    >>> found = summarise([Row(id="a", measured_s=1.0, predicted_s=1.1), Row(id="b", measured_s=2.0, predicted_s=1.9)])
    >>> found.count, round(found.mape, 3), found.interval_coverage
    (2, 0.075, None)
    """
    every = list(rows)
    good = [row for row in every if row.error is not None]
    errors = np.abs([row.error for row in good if row.error is not None])
    if not good:
        nothing = dict.fromkeys(("mape", "median_ape", "p90_ape", "bias", "interval_coverage"))
        return Summary(count=len(every), supported=0, **nothing)
    logs = [math.log(row.predicted_s / row.measured_s) for row in good if row.predicted_s and row.measured_s]
    inside = [
        row.low_s <= row.measured_s <= row.high_s
        for row in good
        if row.low_s is not None and row.high_s is not None and row.measured_s is not None
    ]
    return Summary(
        count=len(every),
        supported=len(good),
        mape=float(np.mean(errors)),
        median_ape=float(np.median(errors)),
        p90_ape=float(np.quantile(errors, 0.9)),
        bias=math.expm1(float(np.mean(logs))) if logs else None,
        interval_coverage=float(np.mean(inside)) if inside else None,
    )


def report_dict(
    rows: Sequence[Row], *, summary: Summary | None = None, groups: Mapping[str, Summary] | None = None
) -> dict[str, Any]:
    """Rows and a summary as plain JSON types: that of all rows if none is given; those of ``groups`` too, if any."""
    report: dict[str, Any] = {"rows": [asdict(row) for row in rows], "summary": asdict(summary or summarise(rows))}
    if groups is not None:
        report["groups"] = {name: asdict(found) for name, found in groups.items()}
    return report


def write_report(
    path: str | Path,
    rows: Sequence[Row],
    *,
    summary: Summary | None = None,
    groups: Mapping[str, Summary] | None = None,
) -> None:
    """Write :func:`report_dict` as JSON, whole or not at all.

    Raises
    ------
    FileError
        If it can't be written.
    """
    report = report_dict(rows, summary=summary, groups=groups)
    lines = ",\n".join(json.dumps(row, allow_nan=False) for row in report.pop("rows"))
    others = ",\n".join(f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in report.items())
    write_text(Path(path), f'{{"rows": [\n{lines}\n],\n{others}}}\n')


def summary_table(groups: Mapping[str, Sequence[Row]], total: str = "all") -> str:
    """A line for each group of rows, and one for all of them.

    Examples
    --------
    >>> print(summary_table({"a100": [Row(id="1", measured_s=1.0, predicted_s=1.1)]}))
    group   rows  supported   mape  median    p90   bias  in interval
    a100       1          1  10.0%   10.0%  10.0%  10.0%            -
    all        1          1  10.0%   10.0%  10.0%  10.0%            -
    """
    every = [row for rows in groups.values() for row in rows]
    width = max(len("group"), len(total), *(len(name) for name in groups)) if groups else len("group")
    lines = [f"{'group':{width}}   rows  supported   mape  median    p90   bias  in interval"]
    for name, rows in (*groups.items(), (total, every)):
        found = summarise(rows)
        lines.append(
            f"{name:{width}} {found.count:6d} {found.supported:10d} {_percent(found.mape):>6} "
            f"{_percent(found.median_ape):>7} {_percent(found.p90_ape):>6} {_percent(found.bias):>6} "
            f"{_percent(found.interval_coverage):>12}"
        )
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"
