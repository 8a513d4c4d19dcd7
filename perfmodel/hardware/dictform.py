"""JSON form of nodes, fabrics and clusters: plain dicts of their fields, versioned."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from perfmodel.errors import PerfModelError
from perfmodel.hardware.device import Device

__all__ = ["from_dict", "to_dict"]

_VERSION = 1

_Value = TypeVar("_Value")


def to_dict(value: Any) -> dict[str, Any]:
    """The fields of a frozen dataclass, with a version."""
    return {"version": _VERSION, **_plain(value)}


def from_dict(kind: type[_Value], data: Mapping[str, Any]) -> _Value:
    """Inverse of :func:`to_dict`.

    Raises
    ------
    PerfModelError
        If ``data`` is of another version.
    """
    if data.get("version") != _VERSION:
        raise PerfModelError(
            f"a {kind.__name__.lower()} of version {data.get('version')!r} can't be read by this release, "
            f"which reads version {_VERSION}; write it again"
        )
    result: _Value = _value(kind, {key: member for key, member in data.items() if key != "version"})
    return result


def _plain(value: Any) -> Any:
    if isinstance(value, Device):
        return value.to_dict()
    if is_dataclass(value):
        return {member.name: _plain(getattr(value, member.name)) for member in fields(value)}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _value(hint: Any, data: Any) -> Any:
    """``data`` as what a type hint of a field says."""
    if get_origin(hint) in (Union, types.UnionType):
        return None if data is None else _value(next(h for h in get_args(hint) if h is not type(None)), data)
    if hint is Device:
        return Device.from_dict(data)
    if is_dataclass(hint) and isinstance(hint, type):
        return hint(**{key: _value(_hints(hint)[key], member) for key, member in data.items()})
    if get_origin(hint) is tuple:
        return tuple(_value(get_args(hint)[0], item) for item in data)
    if get_origin(hint) is Mapping:
        return {key: _value(get_args(hint)[1], item) for key, item in data.items()}
    return data
