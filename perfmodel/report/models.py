"""Tables of published models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from perfmodel.models.catalogue import ModelEntry
from perfmodel.models.inputs import SYMBOLS, batch_inputs
from perfmodel.report.table import table

__all__ = ["COLUMNS", "entry_text", "listing_text", "record"]

#: What a listing shows.
COLUMNS = ("name", "family", "parameters", "layers", "hidden", "task", "dtype", "sizes")


def record(entry: ModelEntry) -> dict[str, Any]:
    """What the catalogue says of a model, as plain values."""
    sizes = [size for size in SYMBOLS if any(size in shape for shape, _ in batch_inputs(entry.dims).values())]
    return {
        "name": entry.name,
        "aliases": list(entry.aliases),
        "family": entry.dims.family,
        "task": entry.task,
        "parameters": entry.parameters,
        "layers": {stack.path: stack.depth for stack in entry.dims.stacks},
        "sizes": sizes,
        "max_length": entry.dims.max_length,
        "dtype": entry.dtype,
        "dims": entry.dims.to_dict(),
        "source": entry.source,
    }


def listing_text(records: Sequence[Mapping[str, Any]]) -> str:
    """A table of models, one a line."""
    return table(("model", *COLUMNS[1:]), ([_cell(of, column) for column in COLUMNS] for of in records))


def _cell(of: Mapping[str, Any], column: str) -> str:
    match column:
        case "parameters":
            return f"{of['parameters']:,}"
        case "layers":
            return " + ".join(str(depth) for depth in of["layers"].values()) or "-"
        case "hidden":
            return str(of["dims"].get("hidden_size", "-"))
        case "sizes":
            return ", ".join(of["sizes"])
        case _:
            return str(of[column])


def entry_text(entry: ModelEntry) -> str:
    """All that the catalogue says of a model."""
    of = record(entry)
    formula = entry.dims.parameters()
    layers = ", ".join(f"{path} {depth}" for path, depth in of["layers"].items())
    limit = "" if of["max_length"] is None else f" (seq at most {of['max_length']:,})"
    lines = [
        f"{entry.name}: {of['family']}, trained on {of['task']}",
        *([f"  aliases     {', '.join(entry.aliases)}"] if entry.aliases else []),
        f"  parameters  {entry.parameters:,} published, {formula:,} from the dimensions",
        f"  layers      {layers or 'no stack of equal ones'}",
        f"  sizes       {', '.join(of['sizes'])}{limit}",
        f"  weights     {entry.dtype}",
        f"  source      {entry.source}",
        "  dimensions",
    ]
    fields = _flat({key: value for key, value in of["dims"].items() if key not in ("version", "family")})
    width = max(len(key) for key in fields)
    return "\n".join([*lines, *(f"    {key.ljust(width)}  {value}" for key, value in fields.items())])


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values by dotted path; what isn't there is left out."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, bool):
            flat[f"{prefix}{key}"] = "yes" if value else "no"
        elif value is not None:
            flat[f"{prefix}{key}"] = str(value)
    return flat
