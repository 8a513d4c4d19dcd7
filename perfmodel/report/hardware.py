"""Tables of hardware: listings and comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from perfmodel.hardware.listing import dimension_of, field, fields
from perfmodel.report.table import csv_text, table
from perfmodel.units import format_quantity

__all__ = ["COLUMNS", "comparison_text", "listing_csv", "listing_text"]

Record = Mapping[str, Any]

#: What a listing of each kind shows.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "devices": ("name", "kind", "year", "fastest", "memory.capacity", "memory.bandwidth", "power.tdp", "runtimes"),
    "nodes": ("name", "device.name", "devices", "interconnect.name", "interconnect.bandwidth", "network", "power.tdp"),
    "fabrics": ("name", "topology", "link", "bandwidth", "latency", "rails"),
    "clusters": ("name", "nodes", "devices", "parts", "fabric.name", "location.place"),
}


def listing_text(what: str, records: Sequence[Record], columns: Sequence[str] | None = None) -> str:
    """A table of records, one a line, numbers with their units."""
    shown = tuple(columns or COLUMNS[what])
    header = (what.removesuffix("s") if shown[0] == "name" else shown[0], *shown[1:])
    return table(header, ([_text(column, _cell(record, column)) for column in shown] for record in records))


def listing_csv(what: str, records: Sequence[Record], columns: Sequence[str] | None = None) -> str:
    """The same as comma-separated values, numbers in SI units."""
    shown = tuple(columns or COLUMNS[what])
    return csv_text(shown, ([_bare(_cell(record, column)) for column in shown] for record in records))


def comparison_text(records: Sequence[Record], *, as_csv: bool = False) -> str:
    """A column for each record, a line for each field on which they differ or agree."""
    paths = list(dict.fromkeys(path for record in records for path in fields(record)))
    paths = [path for path in paths if path not in ("name", "aliases", "validated")]
    header = ["field", *(str(record["name"]) for record in records)]
    if as_csv:
        return csv_text(header, ([path, *(_bare(field(record, path)) for record in records)] for path in paths))
    rows = ([path, *(_short(_text(path, field(record, path))) for record in records)] for path in paths)
    return table(header, rows)


def _cell(record: Record, column: str) -> Any:
    """A field, or one of the columns that are made of several."""
    match column:
        case "fastest":
            peaks = field(record, "compute.matrix.peak") or {}
            return max(peaks.values(), default=None)
        case "network":
            return sum(nic["bandwidth"] * nic["count"] for nic in field(record, "nics") or []) or None
        case "nodes" if isinstance(record.get("groups"), list):
            return sum(group["nodes"] for group in record["groups"])
        case "devices" if isinstance(record.get("groups"), list):
            return sum(group["nodes"] * group["node"]["devices"] for group in record["groups"])
        case "parts":
            return [f"{group['nodes']} x {group['node']['name']}" for group in record["groups"]]
        case _:
            return field(record, column)


def _text(path: str, value: Any) -> str:
    if value is None or value == []:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    dimension = {"fastest": "FLOP/s", "network": "bytes/s"}.get(path) or dimension_of(path)
    if dimension is not None and isinstance(value, (int, float)):
        return format_quantity(value, dimension, digits=4)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _short(text: str, width: int = 32) -> str:
    """A cell that keeps its column narrow; the CSV form has all of it."""
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _bare(value: Any) -> object:
    return " ".join(str(item) for item in value) if isinstance(value, list) else "" if value is None else value
