"""The command line. Every command is a few lines around the Python call of the same name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from perfmodel.cli_graph import (
    Accumulate,
    AdapterText,
    Autocast,
    Batch,
    CaptureOptions,
    Checkpointing,
    Dispatch,
    Dtype,
    Implementation,
    Layers,
    Model,
    NoCache,
    Optimizer,
    Seq,
    TargetSeq,
    graph_of,
)
from perfmodel.cli_hardware import hardware
from perfmodel.cli_models import explain, models
from perfmodel.cli_predict import predict
from perfmodel.cli_validate import validate
from perfmodel.errors import PerfModelError

__all__ = ["app", "main"]

_PLAIN: dict[str, Any] = {
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
    "no_args_is_help": True,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
app = typer.Typer(
    name="perfmodel", help="How long a transformer takes to train on hardware that you don't have yet.", **_PLAIN
)
app.add_typer(hardware, name="hardware")
app.add_typer(validate, name="validate")
app.add_typer(models, name="models")
app.command()(predict)
app.command()(explain)


@app.command()
def capture(
    context: typer.Context,
    model: Model,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="write the graph to this file")] = None,
    batch: Batch = None,
    seq: Seq = None,
    target_seq: TargetSeq = None,
    optimizer: Optimizer = "adamw",
    dtype: Dtype = None,
    implementation: Implementation = "auto",
    dispatch: Dispatch = "neutral",
    gradient_checkpointing: Checkpointing = False,
    layers: Layers = None,
    adapter: AdapterText = None,
    accumulate: Accumulate = 1,
    autocast: Autocast = None,
    ops: Annotated[bool, typer.Option("--ops", help="list every op")] = False,
    no_cache: NoCache = False,
) -> None:
    """Capture a training step, print what it holds, save it."""
    from perfmodel.graph.store import save_graph
    from perfmodel.models import closed_form_flops
    from perfmodel.report.text import graph_text, ops_text

    options = CaptureOptions(
        optimizer=optimizer,
        dtype=dtype,
        implementation=implementation,
        dispatch=dispatch,
        gradient_checkpointing=gradient_checkpointing,
        layers=layers,
        adapter=adapter,
        accumulate=accumulate,
        autocast=autocast,
        no_cache=no_cache,
    )
    graph = graph_of(context, model, options, batch=batch, seq=seq, target_seq=target_seq)
    typer.echo(graph_text(graph, closed_form_flops(graph)))
    if ops:
        typer.echo(ops_text(graph))
    if output is not None:
        save_graph(graph, output)
        typer.echo(f"  saved       {output}")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a mistake of the user's is one line and exit code 2."""
    try:
        app(args=arguments, prog_name="perfmodel")
    except PerfModelError as error:
        print(f"perfmodel: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        print(f"perfmodel: the output can't be written: {error.strerror or error}", file=sys.stderr)
        raise SystemExit(2) from None
