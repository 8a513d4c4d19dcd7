"""Paths of modules and names of storages, with the number of the layer left open.

Where layers are stored once, the layer's number is ``*``. In a block that repeats
a group of several layers, ``*`` is the first of the group and ``*+1`` the layer
after it (``*-1`` in backward, which runs from the last layer to the first).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

__all__ = ["adopted", "layer_of", "layer_path", "module_family", "numbered", "starred"]

_STAR = re.compile(r"(?<![^.])\*([+-]\d+)?(?![^.:])")


def module_family(path: str) -> str:
    """The path under which all layers of a stack are one: that of a storage, or of what is summed up by module.

    >>> module_family("model.layers.*+1.mlp")
    'model.layers.*.mlp'
    """
    return _STAR.sub("*", path)


def layer_path(stack: str, layer: int | str) -> str:
    """Path of a layer.

    >>> layer_path("model.layers", 3), layer_path(".", 3)
    ('model.layers.3', '3')
    """
    return str(layer) if stack == "." else f"{stack}.{layer}"


def starred(path: str, stack: str, layer: int, offset: int = 0) -> str:
    """The path or name without the number of its layer, if it lies in this layer.

    >>> starred("model.layers.3.mlp", "model.layers", 3)
    'model.layers.*.mlp'
    >>> starred("model.layers.3:forward:add.1", "model.layers", 3, offset=1)
    'model.layers.*+1:forward:add.1'
    """
    own = layer_path(stack, layer)
    if stack and (path == own or path.startswith((f"{own}.", f"{own}:"))):
        return layer_path(stack, f"*{offset:+d}" if offset else "*") + path[len(own) :]
    return path


def numbered(path: str, layer: int) -> str:
    """Inverse of :func:`starred`.

    >>> numbered("model.layers.*+1.mlp", 3)
    'model.layers.4.mlp'
    """
    return _STAR.sub(lambda star: str(layer + int(star[1] or 0)), path)


def layer_of(path: str, stacks: Iterable[str]) -> tuple[str, int]:
    """Layer stack and layer that a module or storage lies in; ``("", -1)`` for none.

    The stack whose layers are the model's own children is ``"."``.

    >>> layer_of("model.layers.3.mlp", ["model.layers"])
    ('model.layers', 3)
    >>> layer_of("model.norm", ["model.layers"])
    ('', -1)
    """
    for stack in sorted(stacks, key=len, reverse=True):
        if stack == "." or path.startswith(f"{stack}."):
            head = re.split(r"[.:]", path[0 if stack == "." else len(stack) + 1 :], maxsplit=1)[0]
            if head.isdigit():
                return stack, int(head)
    return "", -1


def adopted(modules: Sequence[str], phases: Sequence[str], stacks: Iterable[str]) -> list[tuple[str, int]]:
    """The layer of each op, in order of execution; ``("", -1)`` for none.

    What a parent runs between two of its layers (a residual that it adds, say) repeats with
    them: it counts as part of the layer before it.

    Parameters
    ----------
    modules : sequence of str
        Module of each op.
    phases : sequence of str
        Phase of each op; ``backward`` and ``recompute`` are one here.
    stacks : iterable of str
        Paths of the layer stacks.

    Examples
    --------
    >>> adopted(["embed", "", "layers.0", "", "layers.1", "", "head"], ["forward"] * 7, ["layers"])
    [('', -1), ('', -1), ('layers', 0), ('layers', 0), ('layers', 1), ('', -1), ('', -1)]
    """
    known = {module: layer_of(module, stacks) for module in set(modules)}
    places = [known[module] for module in modules]
    last: int | None = None  # position of the last op that lies in a layer
    for position, place in enumerate(places):
        if not place[0]:
            continue
        if last is not None and last + 1 < position and _follows(places[last], place):
            parent = place[0].rpartition(".")[0]
            inside = all(not parent or f"{m}.".startswith(f"{parent}.") for m in modules[last + 1 : position])
            if inside and len({_kind(phase) for phase in phases[last : position + 1]}) == 1:
                places[last + 1 : position] = [places[last]] * (position - last - 1)
        last = position
    return places


def _follows(before: tuple[str, int], after: tuple[str, int]) -> bool:
    """Whether two layers are neighbours: of one stack, or of two that one parent runs side by side."""
    siblings = before[0].rpartition(".")[0] == after[0].rpartition(".")[0]
    return before[0] == after[0] or (siblings and abs(before[1] - after[1]) <= 1)


def _kind(phase: str) -> str:
    return "backward" if phase == "recompute" else phase
