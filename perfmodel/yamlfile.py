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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError

from perfmodel._model_errors import problem_text
from perfmodel.errors import FileError

__all__ = [
    "MAX_BYTES",
    "MAX_DEPTH",
    "FileModel",
    "Node",
    "load_model",
    "parse_yaml",
    "problem",
    "read_text",
    "scalar",
    "validate",
    "validate_part",
]

#: Largest file in bytes, and deepest nesting, that are read.
MAX_BYTES = 2**18
MAX_DEPTH = 50

# libyaml's parser is some ten times faster; both produce the same events.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,29})")
_FLOAT = re.compile(r"[-+]?(\.[0-9]{1,99}|(0|[1-9][0-9]{0,98})(\.[0-9]{0,99})?)([eE][-+]?[0-9]{1,9})?")
_SURROGATE = re.compile("[\ud800-\udfff]")  # libyaml refuses them itself
_NO_KEYS: Mapping[str, tuple[int, int]] = {}
_CONSTANTS = {"": None, "~": None, "null": None, "true": True, "false": False}


class FileModel(BaseModel):
    """Base of everything that a file describes: no unknown keys, no silent conversion, frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)


_Model = TypeVar("_Model", bound=BaseModel)


class Node(NamedTuple):
    """A value of a file with its place.

    Attributes
    ----------
    value : dict of str to Node, list of Node, or scalar
        Scalars are ``str``, ``int``, ``float``, ``bool`` or ``None``.
    line, column : int
        Where it starts, counted from 1.
    keys : mapping of str to (line, column)
        Where a mapping's keys stand, each in the file of its value.
    path : str
        The file, as messages name it.
    """

    value: Any
    line: int
    column: int
    keys: Mapping[str, tuple[int, int]]
    path: str

    @property
    def place(self) -> str:
        """``path:line:column``."""
        return f"{self.path}:{self.line}:{self.column}"

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
    return validate(parse_yaml(read_text(path), str(path)), model_type)


def validate(root: Node, model_type: type[_Model]) -> _Model:
    """The model that nodes describe; they may come from several files.

    Raises
    ------
    FileError
        If it isn't what the model says, with the place in the file where the value stands.
    """
    try:
        return model_type.model_validate(root.plain())
    except ValidationError as error:
        raise FileError(_first_problem(error.errors(include_url=False), root, model_type)) from None


def validate_part(root: Node, model_type: type[BaseModel]) -> None:
    """Check nodes of which some may be missing: what others are merged over.

    Checks of the whole, over several values, need all of them and aren't made.

    Raises
    ------
    FileError
        If something that is there isn't what the model says.
    """
    try:
        model_type.model_validate(root.plain())
    except ValidationError as error:
        found = [
            details
            for details in error.errors(include_url=False)
            if details["type"] != "missing" or _is_number(root, details["loc"][:-1])
        ]
        if found:
            raise FileError(_first_problem(found, root, model_type)) from None


def _is_number(root: Node, at: tuple[str | int, ...]) -> bool:
    """Whether a number with its source stands there: that one is never left incomplete."""
    value: Any = root.plain()
    for step in at:
        if isinstance(value, dict):
            value = value.get(step, value)
        elif isinstance(value, list) and isinstance(step, int):
            value = value[step]
    return isinstance(value, dict) and bool({"value", "source", "confidence"} & set(value))


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
        raise FileError(f"{shown}:1:1: larger than {MAX_BYTES} bytes; a description file is a few kilobytes")
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
    path = _one_line(path)
    illegal = yaml.reader.Reader.NON_PRINTABLE.search(text)
    if illegal is not None:
        line, column = text.count("\n", 0, illegal.start()) + 1, illegal.start() - text.rfind("\n", 0, illegal.start())
        code = f"U+{ord(illegal.group()):04X}"
        raise FileError(f"{path}:{line}:{column}: {code} is a character that YAML doesn't allow; remove it")
    # Built from events, not by yaml.compose(): that one recurses, and 10,000 brackets end it with a RecursionError.
    try:
        root = _document(_Loader(text).get_event, path)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = _one_line(error.problem or error.context or "not YAML")
        if "nesting depth" in what:  # newer releases of libyaml have a limit of their own, at 1,000
            raise FileError(f"{path}{_place(mark)}: nested deeper than {MAX_DEPTH} levels; flatten it") from None
        raise FileError(
            f"{path}{_place(mark)}: not YAML: {what}; check indentation, colons, quotes and brackets"
        ) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the latter: escapes beyond Unicode, without libyaml
        raise FileError(f"{path}:1:1: not YAML: {_one_line(str(error))}; check the file's text") from None
    if not isinstance(root.value, dict):
        raise FileError(f"{root.place}: the file is not a mapping; write `key: value` lines")
    return root


def _document(following: Callable[[], Any], path: str) -> Node:
    """The one document of a file; ``following`` gives its events one by one."""
    root = None
    while not isinstance(event := following(), yaml.StreamEndEvent):
        if isinstance(event, yaml.DocumentStartEvent):
            if root is not None:
                raise FileError(f"{path}{_place(event.start_mark)}: a second document; write one description a file")
        elif isinstance(event, yaml.NodeEvent):
            root = _node(event, following, path, 0)
    if root is None:
        raise FileError(f"{path}:1:1: the file is empty; write `key: value` lines")
    return root


def _node(event: Any, following: Callable[[], Any], path: str, depth: int) -> Node:
    """The node that starts with ``event``; what plain YAML doesn't have is refused before it can grow."""
    mark = event.start_mark
    if event.anchor is not None:
        raise FileError(f"{path}{_place(mark)}: anchors and aliases (& and *) are not read; write the value out")
    if event.tag is not None:
        raise FileError(f"{path}{_place(mark)}: tags ({_one_line(event.tag)}) are not read; remove it")
    line, column = mark.line + 1, mark.column + 1
    kind = type(event)
    if kind is yaml.ScalarEvent:
        text = event.value
        if not text.isascii() and _SURROGATE.search(text):
            raise FileError(f"{path}:{line}:{column}: half of a surrogate pair; write the character itself")
        # Text in quotes, or a block of it, is text whatever it says.
        return Node(scalar(text) if event.implicit[0] else text, line, column, _NO_KEYS, path)
    if depth == MAX_DEPTH:
        raise FileError(f"{path}:{line}:{column}: nested deeper than {MAX_DEPTH} levels; flatten it")
    if kind is yaml.SequenceStartEvent:
        items = []
        while type(inner := following()) is not yaml.SequenceEndEvent:
            items.append(_node(inner, following, path, depth + 1))
        return Node(items, line, column, _NO_KEYS, path)
    members: dict[str, Node] = {}
    keys: dict[str, tuple[int, int]] = {}
    while type(inner := following()) is not yaml.MappingEndEvent:
        if isinstance(inner, yaml.CollectionStartEvent):
            place = f"{path}{_place(inner.start_mark)}"
            raise FileError(f"{place}: a key is a list or a mapping; write a plain word before the colon")
        name = _node(inner, following, path, depth)
        key: str = inner.value
        if key in members:
            first = keys[key]
            raise FileError(
                f"{name.place}: key {_short(key)} comes twice, first at {first[0]}:{first[1]}; remove one of them"
            )
        keys[key] = (name.line, name.column)
        members[key] = _node(following(), following, path, depth + 1)
    return Node(members, line, column, keys, path)


def scalar(text: str) -> Any:
    """What a plain scalar means: nothing, a truth value, a whole number, a number, or text.

    >>> scalar("3.35e12"), scalar("NO"), scalar("12:30"), scalar("~")
    (3350000000000.0, 'NO', '12:30', None)
    """
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if text[0] not in "0123456789+-.":
        return text
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text) and math.isfinite(number := float(text)):
        return number
    return text


def _first_problem(errors: Sequence[Mapping[str, Any]], root: Node, model_type: type[BaseModel]) -> str:
    """The message of the first problem by place; unknown keys first, since a misspelt key is also a missing one."""
    found: list[Any] = []
    for details in errors:
        at = tuple(details["loc"]) + tuple(details.get("ctx", {}).get("at", ()))
        unknown = details["type"] == "extra_forbidden"
        path, line, column, walked = _locate(root, at, on_key=unknown)
        # The file that was asked for comes before those that it is based on.
        found.append((not unknown, path != root.path, path, line, column, len(found), details, walked))
    _, _, path, line, column, _, details, walked = min(found)  # the running number keeps details from being compared
    text = problem_text(details, walked, model_type)
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return f"{path}:{line}:{column}: {' '.join(text.split())}{more}"


def _locate(root: Node, at: tuple[str | int, ...], *, on_key: bool) -> tuple[str, int, int, tuple[str | int, ...]]:
    """The place of a value, and the part of ``at`` that exists in the file."""
    node, (line, column) = root, (root.line, root.column)
    walked: list[str | int] = []
    for index, step in enumerate(at):
        if isinstance(node.value, dict) and step in node.value:
            inner = node.value[step]
            last = index == len(at) - 1
            line, column = node.keys[str(step)] if on_key and last else (inner.line, inner.column)
        elif isinstance(node.value, list) and isinstance(step, int) and step < len(node.value):
            inner = node.value[step]
            line, column = inner.line, inner.column
        else:
            continue  # a name that pydantic adds: the branch of a union, or a missing key
        node = inner
        walked.append(step)
    return node.path, line, column, tuple(walked)


def _place(mark: Any) -> str:
    return "" if mark is None else f":{mark.line + 1}:{mark.column + 1}"


def _one_line(text: str) -> str:
    return " ".join(text.replace("\0", " ").split())[:200]


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "…")
