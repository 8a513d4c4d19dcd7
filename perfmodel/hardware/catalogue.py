"""Finding device files by name.

Looked through in this order: the folders of ``$PERFMODEL_HARDWARE`` (separated as
in ``$PATH``), the files shipped with the package, the ``hardware_specs`` beside a
checkout. A device of an earlier folder hides one of the same name in a later one.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perfmodel.errors import FileError, UnknownNameError, UnsupportedError
from perfmodel.hardware.device import Device
from perfmodel.hardware.schema import device_of, load_device_file
from perfmodel.yamlfile import parse_yaml, read_text

__all__ = ["SEARCH_VARIABLE", "check_file", "device_files", "device_names", "hardware_roots", "load_device"]

#: Environment variable that names folders with hardware files.
SEARCH_VARIABLE = "PERFMODEL_HARDWARE"

_PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    path: Path
    aliases: tuple[str, ...]


def load_device(name_or_path: str | os.PathLike[str]) -> Device:
    """Load a device by its catalogue name, an alias of it, or the path of its file.

    Parameters
    ----------
    name_or_path : str or path
        A path if it ends with ``.yaml`` or ``.yml`` or contains a separator; else a name.

    Raises
    ------
    UnknownNameError
        If no device has that name; names the nearest ones.
    UnsupportedError
        If two devices claim the alias.
    FileError
        If the file is missing or wrong.

    Examples
    --------
    >>> load_device("h100").name
    'nvidia-h100-sxm-80gb'
    """
    path = Path(name_or_path) if _is_path(name_or_path) else _find(str(name_or_path))
    return device_of(load_device_file(path), path)


def device_names() -> tuple[str, ...]:
    """Names of all devices of the catalogue, sorted.

    Raises
    ------
    FileError
        If a file of the catalogue isn't YAML with a name.
    """
    return tuple(sorted(_index()))


def device_files() -> dict[str, Path]:
    """The file of each device of the catalogue, by name, sorted."""
    return {name: entry.path for name, entry in sorted(_index().items())}


def check_file(path: str | Path) -> list[str]:
    """Check a device file and grade its sources.

    Returns
    -------
    list of str
        First a summary of where the numbers come from and how sure they are; then a
        warning for each thing that is allowed and yet worth a look.

    Raises
    ------
    FileError
        If the file isn't a valid device.
    """
    file = load_device_file(path)
    numbers = file.numbers()
    total = len(numbers)
    origins = Counter(number.source for number in numbers.values())
    grades: Counter[str] = Counter(number.confidence for number in numbers.values())
    by_origin = ", ".join(f"{count} {origin}" for origin, count in origins.most_common())
    by_grade = ", ".join(f"{grade} {100 * grades[grade] / total:.0f} %" for grade in "ABCD" if grades[grade])
    report = [f"{file.name}: {total} numbers: {by_origin}; confidence {by_grade}"]
    report += [f"citation {key!r} is not used by any number" for key in file.unused_citations()]
    matrix = file.compute.matrix.peak.rates()
    for dtype in ("fp32", "bf16"):
        if dtype not in matrix:
            report.append(f"compute.matrix.peak has no {dtype}: a model in it can't be predicted on this device")
    if "fp32" not in file.compute.vector.peak.rates():
        report.append("compute.vector.peak has no fp32: losses and optimizers in it can't be predicted on this device")
    if "int32" not in file.compute.vector.peak.rates():
        report.append("compute.vector.peak has no int32: index arithmetic can't be predicted on this device")
    if file.power is None:
        report.append("no power: energy can't be predicted")
    if not file.price:
        report.append("no price: cost can't be predicted")
    return report


def hardware_roots() -> tuple[Path, ...]:
    """The folders with hardware files, in the order in which they are looked through.

    Raises
    ------
    FileError
        If ``$PERFMODEL_HARDWARE`` names what isn't a folder.
    """
    roots = []
    for text in os.environ.get(SEARCH_VARIABLE, "").split(os.pathsep):
        if not text:
            continue
        folder = Path(text)
        if not folder.is_dir():
            raise FileError(f"{text}: is not a folder; correct the environment variable {SEARCH_VARIABLE}")
        roots.append(folder)
    # A wheel carries the files inside the package; a checkout and an editable install have them beside it.
    roots += [root for root in (_PACKAGE / "_hardware_specs", _PACKAGE.parent / "hardware_specs") if root.is_dir()]
    return tuple(roots)


def _is_path(name_or_path: str | os.PathLike[str]) -> bool:
    text = str(name_or_path)
    separators = [os.sep] + ([os.altsep] if os.altsep else [])
    return (
        not isinstance(name_or_path, str)
        or text.endswith((".yaml", ".yml"))
        or any(separator in text for separator in separators)
    )


def _find(name: str) -> Path:
    index = _index()
    if name in index:
        return index[name].path
    claims = sorted(device for device, entry in index.items() if name in entry.aliases)
    if len(claims) > 1:
        raise UnsupportedError(f"device {name!r} may be {' or '.join(claims)}; write the full name")
    if not claims:
        aliases = [alias for entry in index.values() for alias in entry.aliases]
        raise UnknownNameError(
            "device",
            name,
            [*index, *aliases],
            f"known devices: {', '.join(sorted(index))}; or give the path of a device file",
        )
    return index[claims[0]].path


def _index() -> dict[str, _Entry]:
    index: dict[str, _Entry] = {}
    for root in hardware_roots():
        found: dict[str, _Entry] = {}
        for path in sorted([*root.glob("devices/*.yaml"), *root.glob("*.yaml")]):
            entry = _entry(path)
            if entry is None:
                continue
            name, value = entry
            if name in found:
                raise FileError(f"{path}: device {name!r} is described in {found[name].path} too; rename one of them")
            found[name] = value
        for name, value in found.items():
            index.setdefault(name, value)
    return index


def _entry(path: Path) -> tuple[str, _Entry] | None:
    """Name and aliases of a device file, without checking the rest; ``None`` for a file of another schema."""
    content: dict[str, Any] = parse_yaml(read_text(path), str(path)).plain()
    schema = content.get("schema")
    if path.parent.name != "devices" and not (isinstance(schema, str) and schema.startswith("device/")):
        return None
    name, aliases = content.get("name"), content.get("aliases") or []
    if not isinstance(name, str) or not isinstance(aliases, list):
        raise FileError(f"{path}: a device file needs `name:`, and a list if it has `aliases:`; run the check on it")
    return name, _Entry(path=path, aliases=tuple(str(alias) for alias in aliases))
