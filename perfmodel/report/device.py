"""A description of hardware with the source of every number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perfmodel.hardware import Device
from perfmodel.hardware.listing import dimension_of
from perfmodel.report.table import table
from perfmodel.sourced import Source
from perfmodel.units import format_quantity

__all__ = ["description_text", "device_text"]


def device_text(device: Device) -> str:
    """Every number of a device with its unit, its source and how sure it is."""
    head = [
        f"{device.name} ({device.kind}, {device.vendor} {device.architecture}, {device.year})",
        f"  also called  {', '.join(device.aliases) or 'nothing else'}",
        f"  validated    {device.validated}",
        f"  execution    {device.execution}; runtimes: {', '.join(device.runtimes)}",
    ]
    if device.overrides:
        head.append(f"  overrides    {', '.join(f'{path} = {value}' for path, value in device.overrides.items())}")
    return "\n".join([*head, "", _numbers(device.to_dict(), device.sources)])


def description_text(record: Mapping[str, Any], sources: Mapping[str, Source]) -> str:
    """The same of a node, a fabric or a cluster, from its ``to_dict()``."""
    head = [str(record["name"])]
    for key, value in record.items():
        if isinstance(value, (str, int)) and key not in ("name", "version", "path") and value != "":
            head.append(f"  {key:<12} {value}")
    if isinstance(record.get("device"), Mapping):
        head.append(f"  {'device':<12} {record['device']['name']}")
    for group in record.get("groups", []):
        node = group["node"]
        head.append(f"  {'group':<12} {group['name']}: {group['nodes']} x {node['name']} ({node['device']['name']})")
    if isinstance(record.get("fabric"), Mapping):
        head.append(f"  {'fabric':<12} {record['fabric']['name']}")
    return "\n".join([*head, "", _numbers(record, sources)] if sources else head)


def _numbers(record: Mapping[str, Any], sources: Mapping[str, Source]) -> str:
    rows = []
    for place, source in sources.items():
        where = source.title or source.note
        rows.append((place, _shown(place, _value(record, place)), source.source, source.confidence, where[:70]))
    return table(("number", "value", "source", "sure", "from"), rows)


def _value(record: Mapping[str, Any], place: str) -> Any:
    """The number at a dotted place of the file, e.g. ``memory[0].bandwidth``; prices and a fabric's link differ."""
    value: Any = {**record, "price": record.get("prices")}
    if place == "link.bandwidth":
        return record.get("bandwidth")
    for part in place.replace("]", "").replace("[", ".").split("."):
        value = value[int(part)] if isinstance(value, list) else value.get(part) if isinstance(value, dict) else None
    return value["rate"] if isinstance(value, dict) and "rate" in value else value


def _shown(place: str, value: Any) -> str:
    if value is None:
        return "-"
    dimension = dimension_of(place)
    if dimension is not None and isinstance(value, (int, float)):
        return format_quantity(value, dimension, digits=5)
    return f"{value:.6g}" if isinstance(value, (int, float)) else str(value)
