"""The catalogue as records, to filter, sort and compare; kept on disk, so that a listing is quick.

A record is a description's ``to_dict()``. A field is a dotted path in it, as in overrides:
``year``, ``memory.hbm.bandwidth``, ``memory.capacity`` (of the main memory),
``compute.matrix.peak.bf16``, ``power.tdp``.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from perfmodel.errors import UnitError, UnknownNameError, UnsupportedError, suggestion
from perfmodel.folders import cache_folder
from perfmodel.units import parse_quantity

__all__ = ["dimension_of", "field", "fields", "matching", "records", "sorted_by"]

Record = Mapping[str, Any]

_SEARCH_VARIABLE = "PERFMODEL_HARDWARE"  # of perfmodel.hardware.files, which a kept listing doesn't need
_PACKAGE = Path(__file__).resolve().parent.parent
_FOLDERS = {"devices": "device", "nodes": "node", "fabrics": "fabric", "clusters": "cluster"}

#: The dimension of the last word of a field.
_DIMENSIONS = {
    "bandwidth": "bytes/s",
    "capacity": "bytes",
    "clock": "Hz",
    "tdp": "W",
    "idle": "W",
    "latency": "s",
    "hop": "s",
    "restart": "s",
    "carbon": "kg/J",
    "electricity": "USD/J",
    "efficiency": "fraction",
}
_COMPARISON = re.compile(r"\s*([A-Za-z0-9_.\[\]-]+?)\s*(>=|<=|!=|=|>|<)\s*(.+?)\s*")


def records(what: str = "devices") -> list[dict[str, Any]]:
    """Every description of a kind in the catalogue, sorted by name.

    Parameters
    ----------
    what : str
        ``"devices"``, ``"nodes"``, ``"fabrics"`` or ``"clusters"``.

    Raises
    ------
    UnknownNameError
        If there is no such kind.
    FileError
        If a file of the catalogue is wrong.
    """
    if what not in _FOLDERS:
        raise UnknownNameError("kind of hardware", what, _FOLDERS)
    stamps = _stamps()
    place = cache_folder() / f"hardware-{what}-{_digest(stamps)}.json"
    with contextlib.suppress(OSError, ValueError):
        kept = json.loads(place.read_text(encoding="utf-8"))
        if isinstance(kept, list):
            return kept
    # Thousands of small objects, none of them garbage: looking for some takes a third of the time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        found = _load(what)
    finally:
        if collecting:
            gc.enable()
    _keep(place, found)
    return found


def field(record: Record, path: str) -> Any:
    """The value at a dotted path of a record; ``None`` where it has none.

    >>> field({"memory": [{"name": "hbm", "capacity": 8e10}]}, "memory.hbm.capacity")
    80000000000.0
    """
    value: Any = record
    for step in re.findall(r"[^.\[\]]+", path):
        if isinstance(value, list):
            named = [item for item in value if isinstance(item, Mapping) and item.get("name") == step]
            if step.isdigit():
                value = value[int(step)] if int(step) < len(value) else None
                continue
            if named:
                value = named[0]
                continue
            value = value[0] if value else None  # of the main memory, the first link, the latest price
        value = value.get(step) if isinstance(value, Mapping) else None
    return value


def fields(record: Record, at: str = "") -> list[str]:
    """Every path of a record that leads to a single value, the sources left out."""
    found: list[str] = []
    for key, value in record.items():
        path = f"{at}.{key}" if at else key
        if key in ("sources", "version", "path", "overrides"):
            continue
        if isinstance(value, Mapping):
            found += fields(value, path)
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for index, item in enumerate(value):
                found += fields(item, f"{path}.{item.get('name', index)}")
        else:
            found.append(path)
    return found


def dimension_of(path: str) -> str | None:
    """The dimension of a field, of :data:`perfmodel.units.DIMENSIONS`; ``None`` for plain numbers and text.

    >>> dimension_of("memory.hbm.bandwidth"), dimension_of("calibration.matmul.bandwidth"), dimension_of("year")
    ('bytes/s', 'fraction', None)
    """
    steps = re.findall(r"[^.\[\]]+", path)
    if "calibration" in steps:
        return "s" if steps[-1] == "latency" else "fraction"
    if "peak" in steps or "sparse" in steps:
        return "FLOP/s"
    if steps[-1] == "rate" or "price" in steps:
        return "USD/s"
    if "failures" in steps:
        return "s"
    if steps[-2:] == ["host", "memory"]:
        return "bytes"
    return _DIMENSIONS.get(steps[-1])


def matching(found: Iterable[Record], conditions: Sequence[str]) -> list[Record]:
    """The records that meet all conditions, e.g. ``kind=gpu`` or ``memory.capacity>=80GB``.

    ``=`` on text also finds a part of it, without regard to case.

    Raises
    ------
    UnsupportedError
        If a condition isn't one, or no record has its field.
    """
    remaining = list(found)
    everything = list(remaining)
    for condition in conditions:
        match = _COMPARISON.fullmatch(condition)
        if match is None:
            raise UnsupportedError(
                f"{condition[:60]!r} is not a condition; write e.g. kind=gpu or memory.capacity>=80GB"
            )
        path, sign, text = match.groups()
        _has(everything, path)
        wanted = _wanted(path, sign, text)
        remaining = [record for record in remaining if _holds(field(record, path), sign, wanted)]
    return remaining


def sorted_by(found: Iterable[Record], path: str) -> list[Record]:
    """Records in the order of a field, the other way round if it starts with ``-``; those without it come last.

    Raises
    ------
    UnsupportedError
        If no record has the field.
    """
    remaining = list(found)
    down = path.startswith("-")
    path = path.removeprefix("-")
    _has(remaining, path)
    with_it = [record for record in remaining if field(record, path) is not None]
    without = [record for record in remaining if field(record, path) is None]

    def key(record: Record) -> tuple[bool, float, str]:
        value = field(record, path)
        number = isinstance(value, (int, float))
        return (not number, float(value) if number else 0.0, "" if number else str(value))

    return [*sorted(with_it, key=key, reverse=down), *without]


def _has(found: Sequence[Record], path: str) -> None:
    if found and all(field(record, path) is None for record in found):
        known = sorted({name for record in found for name in fields(record)})
        cure = suggestion(path, known) or f"fields are e.g. {', '.join(known[:6])}; see --json for all"
        raise UnsupportedError(f"no entry has a field {path!r}; {cure}")


def _wanted(path: str, sign: str, text: str) -> float | str:
    dimension = dimension_of(path)
    try:
        return parse_quantity(text, dimension or "number")
    except UnitError as error:
        if dimension is None and sign in ("=", "!="):
            return text
        raise UnsupportedError(f"{path}{sign}{text}: {error}") from None


def _holds(value: Any, sign: str, wanted: float | str) -> bool:
    if value is None:
        return sign == "!="
    if isinstance(wanted, str):
        texts = [str(item) for item in value] if isinstance(value, list) else [str(value)]
        return any(wanted.lower() in text.lower() for text in texts) == (sign == "=")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return sign == "!="
    close = abs(value - wanted) <= 1e-9 * abs(wanted)
    match sign:
        case "=":
            return close
        case "!=":
            return not close
        case ">=":
            return value >= wanted or close
        case "<=":
            return value <= wanted or close
        case ">":
            return value > wanted and not close
        case _:
            return value < wanted and not close


def _load(what: str) -> list[dict[str, Any]]:
    from perfmodel.hardware.files import index

    kind = _FOLDERS[what]
    load: Callable[[Path], Any]
    if kind == "device":  # without the forms of the other kinds, which take time to build
        from perfmodel.hardware.catalogue import load_device as load
    else:
        from perfmodel.hardware import systems

        load = {"node": systems.load_node, "fabric": systems.load_fabric, "cluster": systems.load_cluster}[kind]
    return [load(entry.path).to_dict() for _, entry in sorted(index(kind).items())]


def _stamps() -> list[tuple[str, int, int]]:
    """Every file that a listing depends on, and when it was last changed."""
    folders = [Path(text) for text in os.environ.get(_SEARCH_VARIABLE, "").split(os.pathsep) if text]
    if not all(folder.is_dir() for folder in folders):
        from perfmodel.hardware.files import hardware_roots

        hardware_roots()  # says which isn't one
    folders += [_PACKAGE / "_hardware_specs", _PACKAGE.parent / "hardware_specs"]
    stamps = []
    for folder in [*folders, _PACKAGE / "hardware", _PACKAGE]:
        stamps += _stamps_below(str(folder), deep=folder != _PACKAGE)
    return sorted(stamps)


def _stamps_below(folder: str, *, deep: bool) -> list[tuple[str, int, int]]:
    found: list[tuple[str, int, int]] = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith((".yaml", ".yml", ".py")):
                status = entry.stat()
                found.append((entry.path, status.st_mtime_ns, status.st_size))
            elif deep and entry.is_dir() and entry.name in (*_FOLDERS, "bases"):
                found += _stamps_below(entry.path, deep=True)
    return found


def _digest(stamps: list[tuple[str, int, int]]) -> str:
    return hashlib.sha256(repr(stamps).encode()).hexdigest()[:24]


def _keep(place: Path, found: list[dict[str, Any]]) -> None:
    """Keep a listing in place of older ones; where that can't be written, the next one is made again."""
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        kind = place.name.rsplit("-", 1)[0]
        for old in place.parent.glob(f"{kind}-*.json"):
            old.unlink(missing_ok=True)
        fresh = place.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps(found), encoding="utf-8")
        fresh.replace(place)
