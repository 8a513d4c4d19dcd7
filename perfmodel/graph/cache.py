"""Captured graphs on disk, so that PyTorch is needed once per model."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perfmodel.errors import FileError
from perfmodel.folders import cache_folder
from perfmodel.graph.ir import Graph
from perfmodel.graph.store import VERSION, load_graph, save_graph

__all__ = ["cache_folder", "fetch", "keep", "key_of"]


@functools.cache
def _code_digest() -> str:
    """Digest of the code that makes graphs: a changed capture doesn't find what the old one stored."""
    digest = hashlib.sha256(str(VERSION).encode())
    package = Path(__file__).parents[1]
    for room in ("graph", "models"):
        for path in sorted((package / room).rglob("*")):
            if path.suffix in (".py", ".yaml"):
                digest.update(path.read_bytes())
    return digest.hexdigest()


def key_of(question: Mapping[str, Any]) -> str:
    """Cache key of everything that decides what a capture yields (JSON types)."""
    text = json.dumps({**question, "code": _code_digest()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def fetch(key: str) -> Graph | None:
    """The graph kept under ``key``; ``None`` if there is none, or it is damaged."""
    path = cache_folder() / f"{key}.json"
    if not path.exists():
        return None
    try:
        return load_graph(path)
    except FileError:
        return None  # a damaged entry is captured anew and overwritten


def keep(key: str, graph: Graph) -> None:
    """Keep a graph; where the folder isn't writable, the next call captures again."""
    with contextlib.suppress(FileError):
        save_graph(graph, cache_folder() / f"{key}.json")
