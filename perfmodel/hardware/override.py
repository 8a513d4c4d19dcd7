"""Changing single values of a description by their dotted path, for machines that don't exist.

``memory.hbm.bandwidth`` is the place ``memory: - {name: hbm, bandwidth: …}`` of the file.
Entries of lists are named, or counted as in ``memory[0]``; ``memory.bandwidth`` is that of
the main memory, the first entry. What is changed is validated as if the file said it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel

from perfmodel._model_errors import known_keys, location_text, member, models_of
from perfmodel.errors import FileError, UnsupportedError, suggestion
from perfmodel.sourced import OVERRIDE, SourcedNumber
from perfmodel.yamlfile import Node, scalar, validate

__all__ = ["Override", "overridden", "parse_assignment", "with_prefix"]

#: What a path may be set to: a quantity with its unit, a number, text, a list of texts; ``None`` removes it.
Override = str | int | float | bool | Sequence[str] | None

_Model = TypeVar("_Model", bound=BaseModel)
_NOWHERE: Mapping[str, tuple[int, int]] = {}


def parse_assignment(text: str) -> tuple[str, str]:
    """Path and value of ``path=value``, as the command line takes it.

    >>> parse_assignment("device.memory.hbm.bandwidth=4TB/s")
    ('device.memory.hbm.bandwidth', '4TB/s')

    Raises
    ------
    UnsupportedError
        If it isn't of that form.
    """
    path, equals, value = text.partition("=")
    if not equals or not path.strip() or not value.strip():
        raise UnsupportedError(f"{text[:60]!r} is not path=value; write e.g. device.memory.hbm.bandwidth=4TB/s")
    return path.strip(), value.strip()


def with_prefix(overrides: Mapping[str, Override], prefix: str) -> dict[str, Override]:
    """Those overrides whose path starts with ``prefix.``, without it."""
    return {
        path.removeprefix(f"{prefix}."): value for path, value in overrides.items() if path.startswith(f"{prefix}.")
    }


def overridden(root: Node, model_type: type[_Model], overrides: Mapping[str, Override]) -> _Model:
    """The model that nodes describe once ``overrides`` have been put in.

    Raises
    ------
    UnsupportedError
        If a path leads nowhere, or what results isn't valid.
    FileError
        Without overrides, if what the nodes say isn't valid.
    """
    if not overrides:
        return validate(root, model_type)
    for path, value in overrides.items():
        root = _set(root, model_type, _steps(path), value, path)
    try:
        return validate(root, model_type)
    except FileError as error:
        said = " ".join(", ".join(f"{path}={value}" for path, value in overrides.items()).split())
        raise UnsupportedError(f"with {said[:200]}: {error}") from None


def _steps(path: str) -> list[str | int]:
    words = re.findall(r"\[([0-9]{1,6})\]|([^.\[\]]+)", path)
    if not words or not path.isprintable():
        raise UnsupportedError(f"{path[:60]!r} is not a path; write e.g. memory.hbm.bandwidth")
    return [int(index) if index else name for index, name in words]


def _set(node: Node, annotation: Any, steps: list[str | int], value: Override, path: str, done: int = 0) -> Node:
    """A copy of ``node`` with the value at ``steps[done:]`` set."""
    if done == len(steps):
        return _leaf(node, annotation, value, path)
    step = steps[done]
    if isinstance(node.value, list):
        index = _index(node.value, step, path, main=steps[done - 1] == "memory")
        used = 1 if isinstance(step, int) or step == _name_of(node.value[index]) else 0
        items = list(node.value)
        items[index] = _set(items[index], member(annotation, index), steps, value, path, done + used)
        return node._replace(value=items)
    if not isinstance(node.value, dict) or _is_number(annotation):
        raise UnsupportedError(f"{path}: {location_text(steps[:done])} is a value; end the path there")
    key = str(step)
    inner = member(annotation, key)
    if inner is None:
        known = known_keys(annotation, ()) if models_of(annotation) else list(node.value)
        cure = suggestion(key, known) or f"known: {', '.join(known)}"
        raise UnsupportedError(f"{path}: no {key[:40]!r} in {location_text(steps[:done]) or 'the description'}; {cure}")
    members, keys = dict(node.value), dict(node.keys)
    if done == len(steps) - 1 and (value is None or value == "null"):
        if key not in members:
            raise UnsupportedError(f"{path}: there is nothing to remove; leave it out")
        del members[key], keys[key]
        return node._replace(value=members, keys=keys)
    below = members.get(key)
    if below is None or below.value is None:
        below = Node({}, node.line, node.column, _NOWHERE, node.path)
    members[key] = _set(below, inner, steps, value, path, done + 1)
    keys.setdefault(key, (node.line, node.column))
    return node._replace(value=members, keys=keys)


def _index(items: list[Node], step: str | int, path: str, *, main: bool) -> int:
    """The entry that a step means: by its number, by its name, or the only or ``main`` one if the step is inside it."""
    if isinstance(step, int):
        if step < len(items):
            return step
        raise UnsupportedError(f"{path}: there are {len(items)} entries; count from 0")
    names = [_name_of(item) for item in items]
    if step in names:
        return names.index(step)
    if items and (main or len(items) == 1) and isinstance(items[0].value, dict) and step in items[0].value:
        return 0
    known = [name for name in names if name is not None]
    cure = suggestion(step, known) or (f"known: {', '.join(known)}" if known else "the list is empty")
    raise UnsupportedError(f"{path}: no entry {step[:40]!r}; {cure}")


def _leaf(node: Node, annotation: Any, value: Override, path: str) -> Node:
    if isinstance(value, str):
        new: Any = value if _is_number(annotation) else scalar(value)
    else:
        new = list(value) if isinstance(value, Sequence) else value
    if isinstance(new, list):
        new = [Node(item, node.line, node.column, _NOWHERE, node.path) for item in new]
    if not _is_number(annotation):
        if isinstance(node.value, dict) and node.value:
            raise UnsupportedError(f"{path}: is not a single value; go on with one of {', '.join(node.value)}")
        return Node(new, node.line, node.column, _NOWHERE, node.path)
    was = f"was {node.value['value'].value} ({node.value['source'].value})" if _stated(node) else "was not stated"
    parts = {"value": new, "source": "assumed", "confidence": "D", "note": f"{OVERRIDE} {was}"}
    members = {key: Node(part, node.line, node.column, _NOWHERE, node.path) for key, part in parts.items()}
    if isinstance(node.value, dict):  # a price keeps its date
        members = {key: part for key, part in node.value.items() if key not in (*parts, "cite")} | members
    return Node(members, node.line, node.column, dict.fromkeys(members, (node.line, node.column)), node.path)


def _stated(node: Node) -> bool:
    return isinstance(node.value, dict) and {"value", "source"} <= set(node.value)


def _name_of(item: Node) -> str | None:
    name = item.value.get("name") if isinstance(item.value, dict) else None
    return None if name is None else str(name.value)


def _is_number(annotation: Any) -> bool:
    return any(issubclass(model, SourcedNumber) for model in models_of(annotation))
