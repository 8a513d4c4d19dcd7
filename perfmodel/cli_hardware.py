"""The commands ``perfmodel hardware …``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from perfmodel.errors import UnknownNameError, UnsupportedError

__all__ = ["hardware"]

hardware = typer.Typer(
    help="The catalogue of devices, nodes, fabrics and clusters.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

AsJson = Annotated[bool, typer.Option("--json", help="print JSON, numbers in SI units")]
AsCsv = Annotated[bool, typer.Option("--csv", help="print CSV, numbers in SI units")]
What = Annotated[str, typer.Option("--what", help="devices, nodes, fabrics or clusters")]


@hardware.command("list")
def list_(
    what: What = "devices",
    where: Annotated[
        list[str] | None,
        typer.Option("--where", help="a condition, e.g. kind=gpu or memory.capacity>=80GB; repeatable"),
    ] = None,
    sort: Annotated[str, typer.Option("--sort", help="a field; -field for descending")] = "name",
    columns: Annotated[str | None, typer.Option("--columns", help="fields, separated by commas")] = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """List the catalogue."""
    from perfmodel.hardware.listing import matching, records, sorted_by
    from perfmodel.report.hardware import listing_csv, listing_text

    if as_json and as_csv:
        raise UnsupportedError("--json and --csv are two forms of one list; choose one")
    chosen = sorted_by(matching(records(what), where or []), sort)
    if as_json:
        typer.echo(json.dumps(chosen, indent=2))
        return
    shown = [name.strip() for name in columns.split(",")] if columns else None
    typer.echo((listing_csv if as_csv else listing_text)(what, chosen, shown))


@hardware.command("show")
def show(
    name: Annotated[str, typer.Argument(help="a name of the catalogue, or a YAML file")],
    resolved: Annotated[bool, typer.Option("--resolved", help="print the file merged over its bases, as YAML")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a description with the source of every number."""
    from perfmodel.hardware.check import kind_of
    from perfmodel.hardware.files import KINDS, file_of, is_path, nodes_of

    if is_path(name):
        path = Path(name)
        kind = kind_of(nodes_of(path))
    else:
        kind, path = _find(name, list(KINDS), file_of)
    if resolved:
        from perfmodel.hardware.inherit import resolve
        from perfmodel.yamltext import node_text

        typer.echo(node_text(resolve(kind, path).root))
        return
    found = _load(kind, path)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
        return
    from perfmodel.report.device import description_text, device_text

    typer.echo(device_text(found) if kind == "device" else description_text(found.to_dict(), found.sources))


@hardware.command("compare")
def compare(
    names: Annotated[list[str], typer.Argument(help="names of the catalogue, or YAML files")],
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Compare devices field by field."""
    from perfmodel.hardware.catalogue import load_device
    from perfmodel.report.hardware import comparison_text

    found = [load_device(name).to_dict() for name in names]
    typer.echo(json.dumps(found, indent=2) if as_json else comparison_text(found, as_csv=as_csv))


@hardware.command("check")
def check(files: Annotated[list[Path], typer.Argument(help="hardware files")]) -> None:
    """Check hardware files: errors with line and column, then what lowers their grade."""
    from perfmodel.hardware.check import check_file

    for file in files:
        remarks = check_file(file)
        typer.echo("\n".join([f"{file}: ok", *(f"  {remark}" for remark in remarks)]))


@hardware.command("probe")
def probe(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="write the device to this file")] = None,
    device: Annotated[str, typer.Option("--device", help="cpu, or gpu0, gpu1, …")] = "cpu",
) -> None:
    """Describe this machine's CPU, or one of its GPUs."""
    from perfmodel.hardware.probe import probe as look

    text = look(device)
    if output is None:
        typer.echo(text)
        return
    from perfmodel.hardware.files import write_text

    write_text(output, text + "\n")
    typer.echo(f"{output}: written; check it with: perfmodel hardware check {output}")


@hardware.command("schema")
def schema(
    folder: Annotated[Path, typer.Argument(help="where to write device.json, node.json, fabric.json, cluster.json")],
) -> None:
    """Write the JSON Schema of the files, for editors."""
    from perfmodel.hardware.files import write_text
    from perfmodel.hardware.jsonschema import schemas

    for name, text in schemas().items():
        write_text(folder / name, text)
        typer.echo(str(folder / name))


def _find(name: str, kinds: list[str], file_of: Any) -> tuple[str, Path]:
    """The first kind of hardware in which something has the name."""
    known: list[str] = []
    for kind in kinds:
        try:
            return kind, file_of(kind, name)
        except UnknownNameError as error:
            known += error.known
    raise UnknownNameError("hardware", name, known, "see perfmodel hardware list, also with --what nodes")


def _load(kind: str, path: Path) -> Any:
    from perfmodel.hardware.catalogue import load_device
    from perfmodel.hardware.systems import load_cluster, load_fabric, load_node

    return {"device": load_device, "node": load_node, "fabric": load_fabric, "cluster": load_cluster}[kind](path)
