"""Checks that the records of dimensions share: each names the field and the cure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from perfmodel.errors import UnknownNameError, UnsupportedError

__all__ = ["check_choice", "check_flags", "check_number", "check_probability", "check_size", "keywords_of"]


def check_size(name: str, value: object, *, least: int = 1) -> None:
    """Refuse what isn't an integer of ``least`` or more.

    Raises
    ------
    UnsupportedError
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        kind = "a positive integer; correct it" if least == 1 else f"an integer of {least} or more; {least} is none"
        raise UnsupportedError(f"{name}={value!r} must be {kind}")


def check_number(name: str, value: object) -> None:
    """Refuse what isn't a positive, finite number.

    Raises
    ------
    UnsupportedError
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        raise UnsupportedError(f"{name}={value!r} must be a positive number; correct it")


def check_probability(name: str, value: object) -> None:
    """Refuse what isn't a probability that dropout takes.

    Raises
    ------
    UnsupportedError
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise UnsupportedError(f"{name}={value!r} is no dropout probability; give 0 or more and less than 1")


def check_flags(record: Any, names: Iterable[str], prefix: str = "") -> None:
    """Refuse a field that is neither true nor false.

    Raises
    ------
    UnsupportedError
    """
    for name in names:
        if not isinstance(getattr(record, name), bool):
            raise UnsupportedError(
                f"{prefix}{name}={getattr(record, name)!r} is neither true nor false; write one of them"
            )


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Refuse what isn't one of the choices.

    Raises
    ------
    UnknownNameError
    """
    known = tuple(choices)
    if value not in known:
        raise UnknownNameError(name, str(value), known, f"choose from {', '.join(known)}")


def keywords_of(record: Any, name: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of a dataclass from plain values, with none unknown and none missing.

    Parameters
    ----------
    record : dataclass
    name : str
        Of the field that holds it, for the messages.
    data : mapping

    Raises
    ------
    UnknownNameError
        For a key that isn't a field.
    UnsupportedError
        If fields without a default are missing.
    """
    fields = {field.name: field for field in dataclasses.fields(record) if field.init}
    for key in data:
        if key not in fields:
            raise UnknownNameError(f"field of {name}", str(key), fields)
    missing = [key for key, field in fields.items() if field.default is dataclasses.MISSING and key not in data]
    if missing:
        raise UnsupportedError(f"{name} lacks {', '.join(missing)}; give {'it' if len(missing) == 1 else 'them'}")
    return dict(data)
