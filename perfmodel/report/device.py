"""A device with the source of every number."""

from __future__ import annotations

from typing import Any

from perfmodel.hardware import Device
from perfmodel.report.text import table

__all__ = ["device_text"]


def device_text(device: Device) -> str:
    """Every number of a device with its unit, its source and how sure it is."""
    head = [
        f"{device.name} ({device.kind}, {device.vendor} {device.architecture}, {device.year})",
        f"  also called  {', '.join(device.aliases) or 'nothing else'}",
        f"  validated    {device.validated}",
        f"  execution    {device.execution}; runtimes: {', '.join(device.runtimes)}",
    ]
    rows = []
    for place, source in device.sources.items():
        where = source.title or source.note
        rows.append((place, _shown(_value(device, place)), source.source, source.confidence, where[:70]))
    return "\n".join([*head, "", table(("number", "value", "source", "sure", "from"), rows)])


def _value(device: Device, place: str) -> Any:
    """The number at a dotted place of the file, e.g. ``memory[0].bandwidth``."""
    value: Any = device.to_dict()
    for part in place.replace("]", "").replace("[", ".").split("."):
        value = value[int(part)] if isinstance(value, list) else value.get(part) if isinstance(value, dict) else None
    return value


def _shown(value: Any) -> str:
    return "-" if value is None else f"{value:.6g}" if isinstance(value, (int, float)) else str(value)
