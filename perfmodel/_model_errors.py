"""Words for pydantic's validation errors: what is wrong in the file, and the cure."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from perfmodel.errors import suggestion

__all__ = ["known_keys", "location_text", "member", "models_of", "problem_text"]

_EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "a mapping (`key: value` lines)",
    "float_type": "a number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "list_type": "a list",
    "model_type": "a mapping (`key: value` lines)",
    "string_type": "text",
}


def problem_text(details: Mapping[str, Any], at: Sequence[str | int], model_type: type[BaseModel]) -> str:
    """One line for one error of ``ValidationError.errors()``.

    Parameters
    ----------
    details : mapping
        The error.
    at : sequence of str and int
        Where in the file it is: the steps of ``details["loc"]`` that exist there.
    model_type : type
        The model of the whole file.
    """
    kind = details["type"]
    if kind == "extra_forbidden":
        key = str(at[-1])
        known = known_keys(model_type, at[:-1])
        cure = suggestion(key, known) or f"known keys: {', '.join(known)}"
        return f"unknown key {_short(key)}{_inside(at[:-1])}; {cure}"
    if kind == "missing":
        return f"key {details['loc'][-1]!r} is missing{_inside(at)}; add it"
    if kind == "perfmodel":
        return f"{location_text(at)}: {details['msg']}" if at else str(details["msg"])
    where = location_text(at) or "the file"
    value = details["input"]
    if kind == "literal_error":
        choices = _choices(details)
        cure = (suggestion(value, choices) if isinstance(value, str) else "") or f"write {' or '.join(choices)}"
        return f"{where} is {_short(value)}; {cure}"
    if kind in _EXPECTED:
        expected = _EXPECTED[kind]
        cure = "put it in quotes" if expected == "text" and isinstance(value, (int, float)) else f"write {expected}"
        if value is None:
            return f"{where} is empty; write {expected}"
        return f"{where} is {_kind_of(value)}, not {expected}; {cure}"
    message = " ".join(str(details["msg"]).removeprefix("Value error, ").split())
    return f"{where} is {_short(value)}: {message[:1].lower()}{message[1:]}; correct it"


def location_text(at: Sequence[str | int]) -> str:
    """A place in a file as people say it.

    >>> location_text(("memory", 0, "bandwidth"))
    'memory[0].bandwidth'
    """
    text = ""
    for step in at:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def _inside(at: Sequence[str | int]) -> str:
    return f" in {location_text(at)}" if at else ""


def _choices(details: Mapping[str, Any]) -> list[str]:
    expected = str(details["ctx"]["expected"]).replace(" or ", ", ")
    return [choice.strip("'") for choice in expected.split(", ")]


def _short(value: Any) -> str:
    # Not repr() of the whole: an error about a list would print the list.
    if isinstance(value, (dict, list)):
        return _kind_of(value)
    text = value if isinstance(value, str) else str(value)
    text = " ".join(text.split())
    return repr(text if len(text) <= 40 else text[:40] + "…")


def _kind_of(value: Any) -> str:
    match value:
        case bool():
            return f"{str(value).lower()} (true or false)"
        case dict():
            return "a mapping"
        case list():
            return "a list"
        case str():
            return f"text {_short(value)}"
        case _:
            return f"the number {_short(value)[1:-1]}"


def known_keys(model_type: type[BaseModel], at: Sequence[str | int]) -> list[str]:
    """The keys that the model at ``at`` takes, by the names they have in a file."""
    annotation: Any = model_type
    for step in at:
        annotation = member(annotation, step)
    keys: list[str] = []
    for model in models_of(annotation):
        keys += [field.alias or name for name, field in model.model_fields.items()]
    return keys


def member(annotation: Any, step: str | int) -> Any:
    """The annotation of what ``step`` leads to, ``None`` where the model has no such member."""
    for option in _options(annotation):
        origin = get_origin(option)
        if isinstance(step, int) and origin in (list, tuple, Sequence):
            return get_args(option)[0]
        if origin in (dict, Mapping):
            return get_args(option)[1]
        if isinstance(option, type) and issubclass(option, BaseModel):
            for name, field in option.model_fields.items():
                if step in (name, field.alias):
                    return field.annotation
    return None


def models_of(annotation: Any) -> list[type[BaseModel]]:
    """The models among the members of a union."""
    return [option for option in _options(annotation) if isinstance(option, type) and issubclass(option, BaseModel)]


def _options(annotation: Any) -> list[Any]:
    """The members of a union, without ``Annotated`` around them."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _options(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [inner for option in get_args(annotation) for inner in _options(option)]
    return [annotation]
