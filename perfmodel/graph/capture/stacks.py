"""Where a module keeps its layers."""

from __future__ import annotations

from typing import Any, TypeGuard

import torch

__all__ = ["layer_stacks"]


def layer_stacks(module: torch.nn.Module) -> dict[str, int]:
    """Paths of outermost containers whose children are numbered, with their lengths; ``"."`` is the module itself.

    A container of parts that are all unlike each other, which hold containers themselves, is only a frame.
    """
    found: dict[str, int] = {}
    seen: set[torch.nn.Module] = set()

    def visit(part: torch.nn.Module, path: str) -> None:
        if part in seen:
            return
        seen.add(part)
        if _is_numbered(part) and (_has_twins(part) or not any(map(_is_numbered, list(part.modules())[1:]))):
            found[path or "."] = len(part)
            return
        for name, child in part.named_children():
            visit(child, f"{path}.{name}" if path else name)

    visit(module, "")
    return found


def _is_numbered(part: torch.nn.Module) -> TypeGuard[torch.nn.ModuleList | torch.nn.Sequential]:
    return isinstance(part, (torch.nn.ModuleList, torch.nn.Sequential)) and len(part) > 1


def _has_twins(container: torch.nn.Module) -> bool:
    """Whether two children have the same parts with the same parameters."""
    looks = [tuple(map(_look, *zip(*child.named_modules(), strict=True))) for child in container.children()]
    return len(set(looks)) < len(looks)


def _look(path: str, part: torch.nn.Module) -> tuple[Any, ...]:
    return path, type(part), *(parameter.shape for parameter in part.parameters(recurse=False))
