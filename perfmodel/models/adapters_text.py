"""A way of fine-tuning as one word, for a command line: ``lora:rank=16,targets=q_proj+v_proj``."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

from perfmodel.errors import UnknownNameError, UnsupportedError
from perfmodel.models.adapters import ADAPTERS, Adapter

__all__ = ["parse_adapter"]

_TRUTH = {"yes": True, "true": True, "no": False, "false": False}


def parse_adapter(text: str) -> Adapter:
    """The specification that a text stands for.

    Parameters
    ----------
    text : str
        ``KIND`` or ``KIND:NAME=VALUE,…``: a key of :data:`perfmodel.models.adapters.ADAPTERS` and
        fields of its class. Several targets are joined by ``+``; what is true or false is ``yes`` or ``no``.

    Raises
    ------
    UnknownNameError
        No such kind, or a setting that it doesn't have.
    UnsupportedError
        A value that the setting can't have, or one that is given twice.

    Examples
    --------
    >>> parse_adapter("prefix-tuning")
    PrefixTuning(virtual_tokens=20)
    >>> parse_adapter("lora:rank=16,targets=q_proj+v_proj").targets
    ('q_proj', 'v_proj')
    """
    kind, colon, rest = text.partition(":")
    if kind not in ADAPTERS:
        raise UnknownNameError("adapter", kind, ADAPTERS, f"give one of {', '.join(ADAPTERS)}, e.g. lora:rank=16")
    cls = ADAPTERS[kind]
    types = {field.name: str(field.type) for field in fields(cls)}
    settings: dict[str, Any] = {}
    for part in rest.split(",") if colon else ():
        name, equals, value = part.partition("=")
        if not equals or not value:
            example = next(iter(types))
            raise UnsupportedError(
                f"adapter {text}: {part!r} is no setting; write NAME=VALUE, e.g. {kind}:{example}=16"
            )
        if name not in types:
            raise UnknownNameError(f"setting of {kind}", name, types, f"it has {', '.join(types)}")
        if name in settings:
            raise UnsupportedError(f"adapter {text}: {name} is given twice; give it once")
        settings[name] = _value(text, name, types[name], value)
    return cls(**settings)


def _value(text: str, name: str, wanted: str, value: str) -> Any:
    """A setting's value as the type of its field says."""
    if wanted.startswith("tuple"):
        return tuple(value.split("+"))
    if wanted == "bool":
        if value.lower() not in _TRUTH:
            raise UnsupportedError(f"adapter {text}: {name} is {value!r}; write yes or no")
        return _TRUTH[value.lower()]
    if wanted in ("int", "float"):
        try:
            number = int(value) if wanted == "int" else float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            kind = "a whole number" if wanted == "int" else "a number"
            raise UnsupportedError(f"adapter {text}: {name} is {value!r}; write {kind}")
        return number
    return value
