"""What the commands ask for to get a graph: a model and how to capture it, or a file."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perfmodel.errors import UnsupportedError

if TYPE_CHECKING:
    from perfmodel.graph.ir import Graph

__all__ = [
    *("Accumulate", "AdapterText", "Autocast", "Batch", "Checkpointing", "Dispatch", "Dtype", "Implementation"),
    *("Layers", "Model", "NoCache", "Optimizer", "Seq", "TargetSeq"),
    *("CaptureOptions", "graph_of", "is_graph_file"),
]

Model = Annotated[
    str,
    typer.Argument(
        help="a model name, a Hugging Face config.json (or its folder), or a graph file that `perfmodel capture` wrote"
    ),
]
Batch = Annotated[int | None, typer.Option("--batch", help="sequences a step")]
Seq = Annotated[int | None, typer.Option("--seq", help="tokens a sequence")]
TargetSeq = Annotated[int | None, typer.Option("--target-seq", help="tokens of each target, for models that have some")]
Optimizer = Annotated[
    str,
    typer.Option(
        help="adamw, adam, sgd, sgd-momentum, adafactor, adagrad, lamb, lion, muon (with adamw), rmsprop or none"
    ),
]
Dtype = Annotated[
    str | None, typer.Option(help="type of the parameters, e.g. bfloat16; the checkpoint's own if left out")
]
Implementation = Annotated[str, typer.Option(help="auto, huggingface or reference")]
Dispatch = Annotated[str, typer.Option(help="neutral (accelerators) or cpu: whose dropout and attention are captured")]
Checkpointing = Annotated[bool, typer.Option("--gradient-checkpointing", help="recompute each layer in backward")]
Layers = Annotated[int | None, typer.Option(help="another number of layers")]
AdapterText = Annotated[
    str | None,
    typer.Option(
        "--adapter",
        help="fine-tune by new parameters: lora, qlora, adalora, prefix-tuning, prompt-tuning or bottleneck-adapter, "
        "with settings, e.g. lora:rank=16,targets=q_proj+v_proj",
    ),
]
Accumulate = Annotated[int, typer.Option("--accumulate", help="micro-steps of such a batch in an optimizer step")]
Autocast = Annotated[str | None, typer.Option(help="run forward as in torch.autocast: bfloat16 or float16")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="capture anew")]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureOptions:
    """The options of a command that say how a model is captured; a captured graph takes none of them."""

    optimizer: str
    dtype: str | None
    implementation: str
    dispatch: str
    gradient_checkpointing: bool
    layers: int | None
    adapter: str | None
    accumulate: int
    autocast: str | None
    no_cache: bool


def graph_of(
    context: typer.Context,
    model: str,
    options: CaptureOptions,
    *,
    batch: int | None,
    seq: int | None,
    target_seq: int | None,
) -> Graph:
    """The step of a model by name, of a config.json, or of a graph file; what takes longer says so on standard error.

    Raises
    ------
    PerfModelError
        If the model can't be captured so, or options of capturing are given for a graph file.
    """
    if is_graph_file(model):
        from perfmodel.graph.store import load_graph

        _refuse_capture_options(context, model)
        sizes = {"batch": batch, "seq": seq, "target_seq": target_seq}
        return load_graph(model).at(**{name: value for name, value in sizes.items() if value is not None})
    from perfmodel.models.adapters_text import parse_adapter
    from perfmodel.models.step import capture as capture_step

    adapter = parse_adapter(options.adapter) if options.adapter else None
    with _progress(f"capturing {model}") as say:
        return capture_step(
            model,
            optimizer=None if options.optimizer == "none" else options.optimizer,
            batch=batch,
            seq_len=seq,
            target_seq_len=target_seq,
            dtype=options.dtype,
            implementation=options.implementation,
            dispatch=options.dispatch,
            gradient_checkpointing=options.gradient_checkpointing,
            layers=options.layers,
            adapter=adapter,
            accumulate=options.accumulate,
            autocast=options.autocast,
            cache=not options.no_cache,
            progress=say,
        )


def is_graph_file(model: str) -> bool:
    """Whether a model is given as a graph file; what else ends in .json is a config of Hugging Face's."""
    path = Path(model)
    if path.suffix != ".json":
        return False
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return path.name != "config.json"
    return re.search(r'"(model_type|text_config)"\s*:', text) is None or '"perfmodel-graph"' in text


def _refuse_capture_options(context: typer.Context, file: str) -> None:
    """Options of capturing say nothing about a graph that is captured already."""
    sources = {field.name: context.get_parameter_source(field.name) for field in fields(CaptureOptions)}
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
