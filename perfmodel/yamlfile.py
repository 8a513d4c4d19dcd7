"""YAML files that people edit, read strictly and validated with line and column.

What is read is the plain part of YAML 1.2: mappings, lists and scalars.
``NO`` is text, ``3.35e12`` is a number, ``12:30`` is text, a key that comes twice
is an error. Anchors, aliases, tags and several documents in one file are refused,
and so are files that are larger or nested deeper than any description needs.

:func:`load_model` is the one door: it reads a file into a pydantic model and
turns everything that can be wrong into one line, ``path:line:column: what; cure``.
Numbers with a source are in :mod:`perfmodel.sourced`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError

from perfmodel._model_errors import problem_text
from perfmodel.errors import FileError

__all__ = ["MAX_BYTES", "MAX_DEPTH", "FileModel", "Node", "load_model", "parse_yaml", "problem", "read_text"]

#: Largest file in bytes, and deepest nesting, that are read.
MAX_BYTES = 2**20
MAX_DEPTH = 50

# libyaml's parser is some ten times faster; both produce the same events.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,29})")
_FLOAT = re.compile(r"[-+]?(\.[0-9]{1,99}|(0|[1-9][0-9]{0,98})(\.[0-9]{0,99})?)([eE][-+]?[0-9]{1,9})?")
_SURROGATE = re.compile("[\ud800-\udfff]")  # libyaml refuses them itself
_CONSTANTS = {"": None, "~": None, "null": None, "true": True, "false": False}


class FileModel(BaseModel):
    """Base of everything that a file describes: no unknown keys, no silent conversion, frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)


_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Node:
    """A value of a file with its place.

    Attributes
    ----------
    value : dict of str to Node, list of Node, or scalar
        Scalars are ``str``, ``int``, ``float``, ``bool`` or ``None``.
    line, column : int
        Where it starts, counted from 1.
    keys : dict of str to (line, column)
        Where a mapping's keys stand.
    """

    value: Any
    line: int
    column: int
    keys: Mapping[str, tuple[int, int]]

    def plain(self) -> Any:
        """The same without places: dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value


def problem(message: str, *at: str | int) -> PydanticCustomError:
    """An error to raise in a pydantic validator, pointing at ``at`` below the validated value.

    Pydantic places an error at the value whose validator raised it; a check over
    several values knows better which of them to look at.
    """
    return PydanticCustomError("perfmodel", "{message}", {"message": message, "at": list(at)})


def load_model(path: str | Path, model_type: type[_Model]) -> _Model:
    """Read a YAML file into a pydantic model.

    Parameters
    ----------
    path : str or Path
        The file.
    model_type : type
        A pydantic model; derive it and its parts from :class:`FileModel`.

    Raises
    ------
    FileError
        If the file can't be read, isn't plain YAML, or isn't what the model says:
        one line, ``path:line:column: what; cure``.
    """
    shown = _one_line(str(path))
    root = parse_yaml(read_text(path), shown)
    try:
        return model_type.model_validate(root.plain())
    except ValidationError as error:
        raise FileError(_first_problem(error, root, model_type, shown)) from None


def read_text(path: str | Path) -> str:
    """The text of a file of at most :data:`MAX_BYTES`.

    Raises
    ------
    FileError
        If it's missing, not a regular file, too large, or not UTF-8.
    """
    file, shown = Path(path), _one_line(str(path))
    try:
        if file.is_dir():
            raise FileError(f"{shown}: is a directory; name a YAML file in it")
        if not file.exists():
            raise FileError(f"{shown}: no such file; check the path")
        if not file.is_file():
            raise FileError(f"{shown}: is not a regular file; name a YAML file")
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise FileError(f"{shown}: can't be read: {reason}; check the path and its permissions") from None
    if len(data) > MAX_BYTES:
        raise FileError(f"{shown}: larger than {MAX_BYTES} bytes; a description file is a few kilobytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line = before.count(b"\n") + 1
        column = error.start - (before.rfind(b"\n") + 1) + 1
        raise FileError(f"{shown}:{line}:{column}: not UTF-8 text; save the file as UTF-8") from None


def parse_yaml(text: str, path: str) -> Node:
    """The nodes of a YAML text whose top is a mapping; ``path`` is for messages.

    Raises
    ------
    FileError
        If it isn't plain YAML.
    """
    illegal = yaml.reader.Reader.NON_PRINTABLE.search(text)
    if illegal is not None:
        line, column = text.count("\n", 0, illegal.start()) + 1, illegal.start() - text.rfind("\n", 0, illegal.start())
        code = f"U+{ord(illegal.group()):04X}"
        raise FileError(f"{path}:{line}:{column}: {code} is a character that YAML doesn't allow; remove it")
    # Built from events, not by yaml.compose(): that one recurses, and 10,000 brackets end it with a RecursionError.
    try:
        events = list(_bounded(yaml.parse(text, Loader=_Loader), path))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = _one_line(error.problem or error.context or "not YAML")
        raise FileError(
            f"{path}{_place(mark)}: not YAML: {what}; check indentation, colons, quotes and brackets"
        ) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the latter: escapes beyond Unicode, without libyaml
        raise FileError(f"{path}: not YAML: {_one_line(str(error))}; check the file's text") from None
    root = _tree(events, path)
    if not isinstance(root.value, dict):
        raise FileError(f"{path}:{root.line}:{root.column}: the file is not a mapping; write `key: value` lines")
    return root


def _bounded(events: Iterator[Any], path: str) -> Iterator[Any]:
    """Pass events on; refuse what plain YAML doesn't have before it can grow."""
    depth = documents = 0

    def refuse(event: Any, message: str) -> FileError:
        return FileError(f"{path}{_place(event.start_mark)}: {message}")

    for event in events:
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise refuse(event, "anchors and aliases (& and *) are not read; write the value out")
        if getattr(event, "tag", None):
            raise refuse(event, f"tags ({_one_line(event.tag)}) are not read; remove it")
        if isinstance(event, yaml.ScalarEvent) and _SURROGATE.search(event.value):
            raise refuse(event, "half of a surrogate pair; write the character itself")
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise refuse(event, "a second document; write one description a file")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise refuse(event, f"nested deeper than {MAX_DEPTH} levels; flatten it")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        yield event


def _tree(events: list[Any], path: str) -> Node:
    content = [
        event
        for event in events
        if isinstance(event, (yaml.CollectionStartEvent, yaml.CollectionEndEvent, yaml.ScalarEvent))
    ]
    if not content:
        raise FileError(f"{path}:1:1: the file is empty; write `key: value` lines")
    iterator = iter(content)
    return _node(next(iterator), iterator, path)


def _node(event: Any, events: Iterator[Any], path: str) -> Node:
    line, column = event.start_mark.line + 1, event.start_mark.column + 1
    if isinstance(event, yaml.ScalarEvent):
        return Node(_scalar(event), line, column, {})
    if isinstance(event, yaml.SequenceStartEvent):
        items = []
        while not isinstance(following := next(events), yaml.SequenceEndEvent):
            items.append(_node(following, events, path))
        return Node(items, line, column, {})
    members: dict[str, Node] = {}
    keys: dict[str, tuple[int, int]] = {}
    while not isinstance(following := next(events), yaml.MappingEndEvent):
        here = (following.start_mark.line + 1, following.start_mark.column + 1)
        place = f"{path}:{here[0]}:{here[1]}"
        if not isinstance(following, yaml.ScalarEvent):
            raise FileError(f"{place}: a key is a list or a mapping; write a plain word before the colon")
        key = following.value
        if key in members:
            first = keys[key]
            raise FileError(
                f"{place}: key {_short(key)} comes twice, first at {first[0]}:{first[1]}; remove one of them"
            )
        keys[key] = here
        members[key] = _node(next(events), events, path)
    return Node(members, line, column, keys)


def _scalar(event: Any) -> Any:
    text: str = event.value
    if not event.implicit[0]:  # quoted, or a block of text
        return text
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text) and math.isfinite(number := float(text)):
        return number
    return text


def _first_problem(error: ValidationError, root: Node, model_type: type[BaseModel], path: str) -> str:
    """The message of the first problem by place; unknown keys first, since a misspelt key is also a missing one."""
    found = []
    for details in error.errors(include_url=False):
        at = tuple(details["loc"]) + tuple(details.get("ctx", {}).get("at", ()))
        (line, column), walked = _locate(root, at, on_key=details["type"] == "extra_forbidden")
        text = problem_text(details, walked, model_type)
        found.append((details["type"] != "extra_forbidden", line, column, text))
    found.sort()
    _, line, column, text = found[0]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return f"{path}:{line}:{column}: {' '.join(text.split())}{more}"


def _locate(root: Node, at: tuple[str | int, ...], *, on_key: bool) -> tuple[tuple[int, int], tuple[str | int, ...]]:
    """The place of a value, and the part of ``at`` that exists in the file."""
    node, place = root, (root.line, root.column)
    walked: list[str | int] = []
    for index, step in enumerate(at):
        if isinstance(node.value, dict) and step in node.value:
            last = index == len(at) - 1
            place = node.keys[str(step)] if on_key and last else (node.value[step].line, node.value[step].column)
            node = node.value[step]
        elif isinstance(node.value, list) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            place = (node.line, node.column)
        else:
            continue  # a name that pydantic adds: the branch of a union, or a missing key
        walked.append(step)
    return place, tuple(walked)


def _place(mark: Any) -> str:
    return "" if mark is None else f":{mark.line + 1}:{mark.column + 1}"


def _one_line(text: str) -> str:
    return " ".join(text.replace("\0", " ").split())[:200]


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "…")
