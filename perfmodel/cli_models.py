"""The commands ``perfmodel models …``."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from perfmodel.errors import UnknownNameError

__all__ = ["explain", "models"]

models = typer.Typer(
    help="The catalogue of published models.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


@models.command("list")
def list_(
    family: Annotated[str | None, typer.Option("--family", help="only this family, e.g. decoder")] = None,
    as_json: AsJson = False,
) -> None:
    """List the catalogue."""
    from perfmodel.models import catalogue
    from perfmodel.models.families import FAMILIES
    from perfmodel.report.models import listing_text, record

    if family is not None and family not in FAMILIES:
        raise UnknownNameError("family", family, FAMILIES, f"give one of {', '.join(FAMILIES)}")
    entries = (catalogue.get(name) for name in catalogue.names())
    chosen = [record(entry) for entry in entries if family in (None, entry.dims.family)]
    typer.echo(json.dumps(chosen, indent=2) if as_json else listing_text(chosen))


@models.command("show")
def show(
    name: Annotated[str, typer.Argument(help="a name or an alias, e.g. llama-3.1-8b")], as_json: AsJson = False
) -> None:
    """Show a model's dimensions, its size and where they come from."""
    from perfmodel.models import catalogue
    from perfmodel.report.models import entry_text, record

    entry = catalogue.get(name)
    typer.echo(json.dumps(record(entry), indent=2) if as_json else entry_text(entry))


def explain(
    model: Annotated[str, typer.Argument(help="a name, e.g. llama-3.1-8b, or a Hugging Face config.json")],
    batch: Annotated[int | None, typer.Option("--batch", help="sequences (images) a step")] = None,
    seq: Annotated[int | None, typer.Option("--seq", help="tokens a sequence, where the model has some")] = None,
    target_seq: Annotated[int | None, typer.Option("--target-seq", help="tokens of each target")] = None,
    as_json: AsJson = False,
) -> None:
    """Print a model's layer as formulas, next to the counts of the captured step."""
    from perfmodel.models import capture
    from perfmodel.models.explain import explain as formulas_of
    from perfmodel.models.from_config import find
    from perfmodel.report.explain import explanation_record, explanation_text

    entry = find(model)
    formulas = formulas_of(entry.dims)
    # Ours, because the formulas name its modules; both implementations have the same products.
    graph = capture(
        model, batch=batch, seq_len=seq, target_seq_len=target_seq, optimizer=None, implementation="reference"
    )
    if as_json:
        typer.echo(json.dumps(explanation_record(entry.name, formulas, graph), indent=2))
    else:
        typer.echo(explanation_text(entry.name, formulas, graph))
