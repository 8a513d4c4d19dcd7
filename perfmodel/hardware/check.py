"""The check of a hardware file, of whatever kind its ``schema:`` says, and the grade of its sources."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from perfmodel.errors import FileError, suggestion
from perfmodel.hardware.files import KINDS
from perfmodel.hardware.inherit import Resolved, resolve
from perfmodel.hardware.schema import DeviceFile
from perfmodel.hardware.system_schema import ClusterFile, FabricFile, NodeFile
from perfmodel.sourced import SourcedFile, SourcedNumber
from perfmodel.yamlfile import Node, validate, validate_part

__all__ = ["FORMS", "check_file", "kind_of"]

#: The form of each kind of file.
FORMS: Mapping[str, type[SourcedFile]] = {
    "device": DeviceFile,
    "node": NodeFile,
    "fabric": FabricFile,
    "cluster": ClusterFile,
}


def kind_of(root: Node) -> str:
    """What a file describes, by its ``schema:``.

    Raises
    ------
    FileError
        If it doesn't say, or it's nothing that is known.
    """
    schema = root.value.get("schema")
    if schema is None:
        raise FileError(f"{root.place}: key 'schema' is missing; add e.g. schema: device/1")
    text = schema.value if isinstance(schema.value, str) else "another value than text"
    known = [f"{kind}/1" for kind in KINDS]
    if text not in known:
        cure = suggestion(text, known) or f"write {' or '.join(known)}"
        raise FileError(f"{schema.place}: schema is {text[:40]!r}; {cure}")
    return text.partition("/")[0]


def check_file(path: str | Path) -> list[str]:
    """Check a hardware file and grade its sources.

    A file in a folder ``bases`` may be incomplete: only what it says is checked.

    Returns
    -------
    list of str
        First a summary of where the numbers come from and how sure they are; then a
        warning for each thing that is allowed and yet worth a look.

    Raises
    ------
    FileError
        If the file isn't valid.
    """
    from perfmodel.hardware.files import nodes_of

    kind = kind_of(nodes_of(path))
    resolved = resolve(kind, path)
    if Path(path).parent.name == "bases":
        return _check_base(resolved, FORMS[kind])
    file = validate(resolved.root, FORMS[kind])
    report = [_grades(str(resolved.own.value["name"].value), file.numbers())]
    report += [f"citation {key!r} is not used by any number" for key in file.unused_citations()]
    if isinstance(file, DeviceFile):
        report += _remarks(file)
    return report


def _grades(name: str, numbers: Mapping[str, SourcedNumber]) -> str:
    origins = Counter(number.source for number in numbers.values())
    grades: Counter[str] = Counter(number.confidence for number in numbers.values())
    by_origin = ", ".join(f"{count} {origin}" for origin, count in origins.most_common())
    total = len(numbers)
    by_grade = ", ".join(f"{grade} {100 * grades[grade] / total:.0f} %" for grade in "ABCD" if grades[grade])
    return f"{name}: {total} numbers" + (f": {by_origin}; confidence {by_grade}" if total else "")


def _remarks(file: DeviceFile) -> list[str]:
    matrix = file.compute.matrix.peak.rates()
    report = [
        f"compute.matrix.peak has no {dtype}: a model in it can't be predicted on this device"
        for dtype in ("fp32", "bf16")
        if dtype not in matrix
    ]
    if file.power is None:
        report.append("no power: energy can't be predicted")
    if not file.price:
        report.append("no price: cost can't be predicted")
    return report


def _check_base(resolved: Resolved, form: type[SourcedFile]) -> list[str]:
    validate_part(resolved.root, form)
    known = resolved.root.value.get("citations")
    citations = set() if known is None else set(known.value)
    cited = list(_cites(resolved.root))
    for cite in cited:
        if cite.value not in citations:
            cure = suggestion(str(cite.value), citations) or "add it there"
            raise FileError(f"{cite.place}: {cite.value!r} is not in citations:; {cure}")
    used = {cite.value for cite in cited}
    report = [f"{Path(resolved.root.path).stem}: a base, checked as far as it goes"]
    return report + [f"citation {key!r} is not used by any number" for key in sorted(citations - used)]


def _cites(node: Node) -> Iterator[Node]:
    members: Any = node.value.values() if isinstance(node.value, dict) else node.value
    if isinstance(node.value, dict) and "value" in node.value and "cite" in node.value:
        yield node.value["cite"]
    if isinstance(node.value, (dict, list)):
        for member in members:
            yield from _cites(member)
