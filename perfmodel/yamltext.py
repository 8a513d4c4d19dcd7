"""Writing YAML the way the hardware files are written: mappings in blocks, numbers with their source on one line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from perfmodel.yamlfile import Node, scalar

__all__ = ["node_text", "yaml_text"]

_PLAIN = re.compile(r"[A-Za-z0-9_/][A-Za-z0-9_./%+ -]*")


def yaml_text(value: Any) -> str:
    """YAML of dicts, lists and scalars that :func:`perfmodel.yamlfile.parse_yaml` reads back.

    >>> print(yaml_text({"name": "x", "clock": {"value": "2 GHz", "source": "assumed"}, "runtimes": ["eager"]}))
    name: x
    clock: {value: 2 GHz, source: assumed}
    runtimes: [eager]
    """
    return "\n".join(_lines(value, 0, lambda _: ""))


def node_text(root: Node) -> str:
    """YAML of nodes, with a comment where a line comes from another file than the first."""

    def origin(node: Any) -> str:
        inherited = isinstance(node, Node) and node.path != root.path
        return f"  # {Path(node.path).name}:{node.line}" if inherited else ""

    return "\n".join(_lines(root, 0, origin))


def _lines(item: Any, indent: int, origin: Callable[[Any], str]) -> list[str]:
    value = item.value if isinstance(item, Node) else item
    space = " " * indent
    lines: list[str] = []
    if isinstance(value, dict):
        for key, member in value.items():
            if _is_block(member):
                lines += [f"{space}{_scalar_text(key)}:", *_lines(member, indent + 2, origin)]
            else:
                lines.append(f"{space}{_scalar_text(key)}: {_flow(member)}{origin(member)}")
        return lines
    for member in value:
        if _is_block(member):
            first, *rest = _lines(member, indent + 2, origin)
            lines += [f"{space}- {first.lstrip()}", *rest]
        else:
            lines.append(f"{space}- {_flow(member)}{origin(member)}")
    return lines


def _is_block(item: Any) -> bool:
    """Whether it takes several lines: a mapping that holds others, or a list of mappings."""
    value = item.value if isinstance(item, Node) else item
    members = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    inner = [member.value if isinstance(member, Node) else member for member in members]
    if not any(isinstance(member, (dict, list)) for member in inner):
        return False
    return isinstance(value, dict) or any(isinstance(member, dict) for member in inner)


def _flow(item: Any) -> str:
    value = item.value if isinstance(item, Node) else item
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_scalar_text(key)}: {_flow(member)}" for key, member in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_flow(member) for member in value) + "]"
    return _scalar_text(value)


def _scalar_text(value: Any) -> str:
    if isinstance(value, str):
        # Plain only where no reader could take it for anything but this text.
        plain = _PLAIN.fullmatch(value) and scalar(value) == value and value == value.strip()
        return value if plain else _quoted(value)
    return json.dumps(value)


def _quoted(text: str) -> str:
    """Text in double quotes; what YAML would take for a line's end, or refuse, is escaped."""
    parts = []
    for character in text:
        code = ord(character)
        if character in '"\\':
            parts.append(f"\\{character}")
        elif character.isprintable():
            parts.append(character)
        else:
            parts.append(f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
    return f'"{"".join(parts)}"'
