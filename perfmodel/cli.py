"""The command line. Every command is a few lines around the Python call of the same name."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perfmodel.cli_hardware import hardware
from perfmodel.cli_validate import validate
from perfmodel.cli_models import explain, models
from perfmodel.errors import PerfModelError, UnsupportedError
from perfmodel.units import parse_quantity

if TYPE_CHECKING:
    from perfmodel.graph.ir import Graph

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
app.command()(explain)

Model = Annotated[str, typer.Argument(help="a model name, or a graph file that `perfmodel capture` wrote")]
Batch = Annotated[int | None, typer.Option("--batch", help="sequences a step")]
Seq = Annotated[int | None, typer.Option("--seq", help="tokens a sequence")]
Optimizer = Annotated[str, typer.Option(help="adamw, adam, sgd, sgd-momentum or none")]
Dtype = Annotated[
    str | None, typer.Option(help="type of the parameters, e.g. bfloat16; the checkpoint's own if left out")
]
Implementation = Annotated[str, typer.Option(help="auto, huggingface or reference")]
Dispatch = Annotated[str, typer.Option(help="neutral (accelerators) or cpu: whose dropout and attention are captured")]
Checkpointing = Annotated[bool, typer.Option("--gradient-checkpointing", help="recompute each layer in backward")]
Layers = Annotated[int | None, typer.Option(help="another number of layers")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="capture anew")]


@app.command()
def predict(
    context: typer.Context,
    model: Model,
    on: Annotated[list[str], typer.Option("--on", help="a device name or YAML file; repeat to compare")],
    batch: Batch = None,
    seq: Seq = None,
    runtime: Annotated[
        str | None, typer.Option(help="what the software does; the device's first runtime if left out")
    ] = None,
    optimizer: Optimizer = "adamw",
    dtype: Dtype = None,
    implementation: Implementation = "auto",
    dispatch: Dispatch = "neutral",
    gradient_checkpointing: Checkpointing = False,
    layers: Layers = None,
    tokens: Annotated[str | None, typer.Option(help="train on so many tokens, e.g. 15T")] = None,
    samples: Annotated[
        str | None, typer.Option(help="train on so many samples, or the data set's size with --epochs")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="passes over --samples")] = None,
    steps: Annotated[str | None, typer.Option(help="train so many steps")] = None,
    largest_batch: Annotated[
        bool, typer.Option("--largest-batch", help="also find the largest batch that fits")
    ] = False,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="another value by dotted path, e.g. device.memory.hbm.bandwidth=4TB/s; repeatable"),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="an op without a counting rule is an error")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    plot: Annotated[Path | None, typer.Option(help="write a roofline plot (needs matplotlib)")] = None,
    no_cache: NoCache = False,
) -> None:
    """Predict a training step: time, memory, what it's bound by."""
    from perfmodel.hardware import load_device
    from perfmodel.predict import predict as predict_step

    devices = [load_device(name, overrides=_overrides(changes)) for name in on]
    if plot is not None and len(devices) > 1:
        raise UnsupportedError("--plot draws one device; give one --on")

    def ask(sequences: int | None) -> Graph:
        return _graph(
            context,
            model,
            sequences,
            seq,
            optimizer,
            dtype,
            implementation,
            dispatch,
            gradient_checkpointing,
            layers,
            no_cache,
        )

    graph = ask(batch)
    amount = {
        key: parse_quantity(value, "count") if isinstance(value, str) else value
        for key, value in (("tokens", tokens), ("samples", samples), ("epochs", epochs), ("steps", steps))
        if value is not None
    }
    results: list[dict[str, Any]] = []
    for device in devices:
        p = predict_step(graph, device, runtime=runtime, strict=strict)
        training = p.train(**amount) if amount else None
        extra: dict[str, Any] = {}
        if largest_batch:
            from perfmodel.memory import largest_batch as find
            from perfmodel.runtimes import load_runtime, rewrite

            # A batch of one is a graph of its own; the search needs the one for more.
            several = graph if graph.bindings.get("batch") != 1 or model.endswith(".json") else ask(2)
            extra["largest_batch"] = find(rewrite(several, load_runtime(p.runtime)), device.main_memory.capacity)
        if plot is not None:
            from perfmodel.report.roofline import plot_roofline

            plot_roofline(p, device, plot)
        if as_json:
            if training is not None:
                extra["training"] = training.to_dict()
            results.append({**p.to_dict(), **extra})
        else:
            from perfmodel.report.text import prediction_text

            typer.echo(prediction_text(p, training))
            if largest_batch:
                typer.echo(f"  batch       largest that fits: {extra['largest_batch'] or 'none'}")
    if as_json:
        typer.echo(json.dumps(results if len(results) > 1 else results[0], indent=2))


@app.command()
def capture(
    context: typer.Context,
    model: Model,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="write the graph to this file")] = None,
    batch: Batch = None,
    seq: Seq = None,
    optimizer: Optimizer = "adamw",
    dtype: Dtype = None,
    implementation: Implementation = "auto",
    dispatch: Dispatch = "neutral",
    gradient_checkpointing: Checkpointing = False,
    layers: Layers = None,
    ops: Annotated[bool, typer.Option("--ops", help="list every op")] = False,
    no_cache: NoCache = False,
) -> None:
    """Capture a training step, print what it holds, save it."""
    from perfmodel.graph.store import save_graph
    from perfmodel.models import closed_form_flops
    from perfmodel.report.text import graph_text, ops_text

    graph = _graph(
        context, model, batch, seq, optimizer, dtype, implementation, dispatch, gradient_checkpointing, layers, no_cache
    )
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


def _graph(
    context: typer.Context,
    model: str,
    batch: int | None,
    seq: int | None,
    optimizer: str,
    dtype: str | None,
    implementation: str,
    dispatch: str,
    gradient_checkpointing: bool,
    layers: int | None,
    no_cache: bool,
) -> Graph:
    if model.endswith(".json"):
        from perfmodel.graph.store import load_graph

        _refuse_capture_options(context, model)
        sizes = {name: value for name, value in (("batch", batch), ("seq", seq)) if value is not None}
        return load_graph(model).at(**sizes)
    from perfmodel.models.step import capture as capture_step

    with _progress(f"capturing {model}") as say:
        return capture_step(
            model,
            optimizer=None if optimizer == "none" else optimizer,
            batch=batch,
            seq_len=seq,
            dtype=dtype,
            implementation=implementation,
            dispatch=dispatch,
            gradient_checkpointing=gradient_checkpointing,
            layers=layers,
            cache=not no_cache,
            progress=say,
        )


def _overrides(changes: list[str] | None) -> dict[str, str]:
    """Overrides of the device from ``device.path=value``."""
    from perfmodel.hardware.override import parse_assignment

    overrides = {}
    for change in changes or []:
        path, value = parse_assignment(change)
        if not path.startswith("device."):
            raise UnsupportedError(f"--set {path}: begins with nothing known; write e.g. device.{path}")
        overrides[path.removeprefix("device.")] = value
    return overrides


def _refuse_capture_options(context: typer.Context, file: str) -> None:
    """Options of capturing say nothing about a graph that is captured already."""
    names = ("optimizer", "dtype", "implementation", "dispatch", "gradient_checkpointing", "layers", "no_cache")
    sources = {name: context.get_parameter_source(name) for name in names}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UnsupportedError(
            f"{file} is captured already, and {options} would change it; capture the model with {options}"
        )


@contextlib.contextmanager
def _progress(what: str) -> Iterator[Callable[[str], None]]:
    """Say on standard error what a long call is doing; nothing if it's over within a second."""
    begun = time.monotonic()
    if sys.stderr.isatty():
        from rich.console import Console

        with Console(stderr=True).status(what) as status:
            yield lambda phase: status.update(f"{what}: {phase} ({time.monotonic() - begun:.0f} s)")
        return

    def say(phase: str) -> None:
        if time.monotonic() - begun > 1:
            print(f"{what}: {phase} ({time.monotonic() - begun:.0f} s)", file=sys.stderr)

    yield say
