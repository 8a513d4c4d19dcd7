"""Folders outside the package."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder() -> Path:
    """``$PERFMODEL_CACHE``, or ``perfmodel`` in ``$XDG_CACHE_HOME`` (``~/.cache``)."""
    own = os.environ.get("PERFMODEL_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "perfmodel"
