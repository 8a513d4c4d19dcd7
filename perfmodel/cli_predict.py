"""The command ``perfmodel predict``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    is_graph_file,
)
from perfmodel.errors import UnsupportedError
from perfmodel.units import parse_quantity

if TYPE_CHECKING:
    from perfmodel.graph.ir import Graph
    from perfmodel.hardware import Cluster, Device
    from perfmodel.parallel.plan import Plan
    from perfmodel.prediction import Prediction

__all__ = ["predict"]


def predict(
    context: typer.Context,
    model: Model,
    on: Annotated[
        list[str], typer.Option("--on", help="name or YAML file of a device, node or cluster; repeat to compare")
    ],
    batch: Batch = None,
    seq: Seq = None,
    target_seq: TargetSeq = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="number of nodes")] = None,
    tp: Annotated[int | None, typer.Option(min=1, help="tensor parallelism")] = None,
    sp: Annotated[bool | None, typer.Option("--sp/--no-sp", help="sequence parallelism over --tp")] = None,
    pp: Annotated[int | None, typer.Option(min=1, help="pipeline stages")] = None,
    vpp: Annotated[int | None, typer.Option(min=1, help="virtual stages a pipeline rank")] = None,
    cp: Annotated[int | None, typer.Option(min=1, help="context parallelism")] = None,
    ep: Annotated[int | None, typer.Option(min=1, help="expert parallelism")] = None,
    dp: Annotated[int | None, typer.Option(min=1, help="data parallelism; what the devices leave if left out")] = None,
    zero: Annotated[int | None, typer.Option(min=0, max=3, help="stage of ZeRO; 3 is FSDP")] = None,
    micro_batch: Annotated[int | None, typer.Option(min=1, help="sequences that a rank runs at once")] = None,
    global_batch: Annotated[int | None, typer.Option(min=1, help="sequences a step, over all ranks")] = None,
    schedule: Annotated[str | None, typer.Option(help="pipeline schedule, e.g. 1F1B, Interleaved1F1B")] = None,
    recompute: Annotated[
        str | None, typer.Option(help="none, selective, full, every n-th layer (a number), or modules by comma")
    ] = None,
    plan: Annotated[Path | None, typer.Option(help="plan file (YAML); the options above change what it says")] = None,
    runtime: Annotated[
        str | None, typer.Option(help="what the software does; the device's first runtime if left out")
    ] = None,
    optimizer: Optimizer = "adamw",
    dtype: Dtype = None,
    implementation: Implementation = "auto",
    dispatch: Dispatch = "neutral",
    gradient_checkpointing: Checkpointing = False,
    layers: Layers = None,
    adapter: AdapterText = None,
    accumulate: Accumulate = 1,
    autocast: Autocast = None,
    tokens: Annotated[str | None, typer.Option(help="train on so many tokens, e.g. 15T")] = None,
    samples: Annotated[
        str | None, typer.Option(help="train on so many samples, or the data set's size with --epochs")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="passes over --samples")] = None,
    steps: Annotated[str | None, typer.Option(help="train so many steps")] = None,
    largest_batch: Annotated[
        bool, typer.Option("--largest-batch", help="also find the largest batch that fits on a device")
    ] = False,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="another value by dotted path, e.g. device.memory.hbm.bandwidth=4TB/s; repeatable"),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="an op without a counting rule is an error")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    plot: Annotated[Path | None, typer.Option(help="write a roofline plot (needs matplotlib)")] = None,
    trace: Annotated[Path | None, typer.Option(help="write the step's timeline for https://ui.perfetto.dev")] = None,
    no_cache: NoCache = False,
) -> None:
    """Predict a training step: time, memory, what it's bound by."""
    from perfmodel.hardware.machine import load_machine
    from perfmodel.predict import predict as predict_step

    machines = [load_machine(name, nodes=nodes, overrides=_overrides(changes)) for name in on]
    degrees = {"tp": tp, "sp": sp, "pp": pp, "vpp": vpp, "cp": cp, "ep": ep, "dp": dp, "zero": zero}
    sizes = {"micro_batch": micro_batch, "global_batch": global_batch}
    layout = _plan(plan, {**degrees, **sizes, "schedule": schedule, "recompute": _recompute(recompute)})
    _refuse(machines, layout, batch, plot=plot, trace=trace, largest_batch=largest_batch)
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

    def ask(sequences: int | None) -> Graph:
        return graph_of(context, model, options, batch=sequences, seq=seq, target_seq=target_seq)

    graph = ask(batch if layout is None else layout.micro_batch)
    amount = {
        key: parse_quantity(value, "count") if isinstance(value, str) else value
        for key, value in (("tokens", tokens), ("samples", samples), ("epochs", epochs), ("steps", steps))
        if value is not None
    }
    results: list[dict[str, Any]] = []
    for machine in machines:
        p = predict_step(graph, machine, layout, runtime=runtime, strict=strict)
        training = p.train(**amount) if amount else None
        extra: dict[str, Any] = {}
        if largest_batch:
            # A batch of one is a graph of its own; the search needs the one for more.
            alone = graph.bindings.get("batch") == 1 and not is_graph_file(model)
            extra["largest_batch"] = _largest(ask(2) if alone else graph, p)
        if plot is not None:
            from perfmodel.report.roofline import plot_roofline

            (table,) = p.timed.tables.values()
            plot_roofline(p, table.device, plot)
        if trace is not None:
            p.timeline.save(trace)
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


def _plan(file: Path | None, options: dict[str, Any]) -> Plan | None:
    """The plan of a file with what options change; ``None`` where nothing asks for one."""
    given = {name: value for name, value in options.items() if value is not None}
    if file is None and not given:
        return None
    from perfmodel.parallel.plan import Plan

    stated = {} if file is None else Plan.load(file).to_dict()
    if "vpp" in given and "schedule" not in given and stated.get("schedule", "1F1B") == "1F1B" and given["vpp"] > 1:
        given["schedule"] = "Interleaved1F1B"
    return Plan.from_dict({**stated, **given})


def _recompute(text: str | None) -> str | int | tuple[str, ...] | None:
    if text is None or text in ("none", "selective", "full"):
        return text
    return int(text) if text.isdigit() else tuple(text.split(","))


def _refuse(
    machines: list[Device | Cluster],
    layout: Plan | None,
    batch: int | None,
    *,
    plot: Path | None,
    trace: Path | None,
    largest_batch: bool,
) -> None:
    if layout is not None and batch is not None:
        raise UnsupportedError(
            "--batch is of one device; under a plan give --micro-batch (a rank's) and --global-batch (a step's)"
        )
    if layout is not None and (plot is not None or largest_batch):
        raise UnsupportedError("--plot and --largest-batch are of one device; leave them out, or the plan")
    if plot is not None and len(machines) > 1:
        raise UnsupportedError("--plot draws one device; give one --on")
    if trace is not None and len(machines) > 1:
        raise UnsupportedError("--trace writes one timeline; give one --on")


def _largest(graph: Graph, p: Prediction) -> int:
    from perfmodel.memory import largest_batch
    from perfmodel.runtimes import rewrite

    return largest_batch(rewrite(graph, p.timed.software), p.capacity)


def _overrides(changes: list[str] | None) -> dict[str, str]:
    """Overrides by dotted path from ``device.path=value``."""
    from perfmodel.hardware.override import parse_assignment

    overrides = {}
    for change in changes or []:
        path, value = parse_assignment(change)
        if path.partition(".")[0] not in ("device", "node", "fabric"):
            raise UnsupportedError(f"--set {path}: begins with nothing known; write e.g. device.{path}")
        overrides[path] = value
    return overrides
