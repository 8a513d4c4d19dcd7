"""Names of a package that are imported when they're first used, so that a quick command stays quick."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["lazy"]


def lazy(package: str, rooms: Mapping[str, str]) -> Callable[[str], Any]:
    """A ``__getattr__`` for ``package`` that finds each name in the module that ``rooms`` says."""

    def find(name: str) -> Any:
        if name not in rooms:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(rooms[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return find
