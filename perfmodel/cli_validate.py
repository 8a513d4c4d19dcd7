"""The commands ``perfmodel validate …``: predictions against measurements."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["validate"]

validate = typer.Typer(
    help="Compare predictions with measurements.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@validate.callback()
def _validate() -> None:
    """Compare predictions with measurements."""


@validate.command("collectives")
def collectives(
    file: Annotated[Path, typer.Argument(help="a CSV table of measured collectives, plain or gzipped")],
    output: Annotated[Path | None, typer.Option("--json", help="write rows and summary to this file")] = None,
) -> None:
    """Predict every measured collective of a table and compare."""
    from perfmodel.validation.collectives import predict_rows, read_measurements
    from perfmodel.validation.rows import UNSUPPORTED, Row, summary_table, write_report

    measurements = read_measurements(file)
    rows = predict_rows(measurements)
    groups: dict[str, list[Row]] = {}
    for one, row in zip(measurements, rows, strict=True):
        groups.setdefault(f"{one.device} {one.op}", []).append(row)
    typer.echo(summary_table(groups))
    reasons: dict[str, int] = {}
    for row in rows:
        if row.status == UNSUPPORTED:
            reasons[row.reason] = reasons.get(row.reason, 0) + 1
    for reason, count in sorted(reasons.items(), key=lambda item: -item[1]):
        typer.echo(f"unsupported: {count} row{'s' if count > 1 else ''}: {reason}")
    if output is not None:
        write_report(output, rows)
        typer.echo(f"{output}: written")


@validate.command("runs")
def runs(
    files: Annotated[list[Path], typer.Argument(help="YAML lists of measured training runs")],
    output: Annotated[Path | None, typer.Option("--json", help="write rows and summaries to this file")] = None,
    group_by: Annotated[
        str, typer.Option("--group-by", help="family, group or device; several, separated by commas")
    ] = "family",
) -> None:
    """Predict step time and peak memory of every measured run and compare."""
    from perfmodel.validation.rows import summarise, write_report
    from perfmodel.validation.runs import predict_runs
    from perfmodel.validation.runs_report import grouped, runs_report, summaries
    from perfmodel.validation.runs_schema import read_runs

    by = [name.strip() for name in group_by.split(",")]
    grouped([], by)
    measured = read_runs(files)
    shown = sys.stderr.isatty()
    with typer.progressbar(length=len(measured), label="predicting", file=sys.stderr, hidden=not shown) as bar:
        rows = predict_runs(measured, lambda _: bar.update(1))
    typer.echo(runs_report(rows, by))
    if output is not None:
        summary = summarise(row for row in rows if row.scored)
        write_report(output, rows, summary=summary, groups=summaries(grouped(rows, by)))
        typer.echo(f"{output}: written")
