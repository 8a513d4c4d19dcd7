"""Which ranks communicate with each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from perfmodel.errors import UnknownNameError, UnsupportedError

__all__ = ["DIMENSIONS", "KINDS", "rank_groups"]

#: Dimensions that ranks are numbered over.
DIMENSIONS = ("tp", "cp", "ep", "dp", "pp")

#: Kinds of groups.
KINDS = ("tp", "cp", "dp", "pp", "dp-cp", "shard", "replicate", "ep", "etp", "edp")

Groups = tuple[tuple[int, ...], ...]


def rank_groups(
    kind: str, *, order: Sequence[str], sizes: Mapping[str, int], experts: Mapping[str, int], shard: int
) -> Groups:
    """Groups of ranks of one kind, as Megatron-LM's ``RankGenerator`` forms them.

    Dense layers see the ranks as ``tp × cp × dp × pp``, experts as ``etp × ep × edp × pp``; both
    are numbered in the same order, the innermost first.

    Parameters
    ----------
    kind : str
        One of :data:`KINDS`.
    order : sequence of str
        :data:`DIMENSIONS`, the innermost first.
    sizes : mapping of str to int
        ``tp``, ``cp``, ``dp``, ``pp``.
    experts : mapping of str to int
        ``etp`` and ``ep``.
    shard : int
        Ranks of a sharding group.

    Returns
    -------
    tuple of tuple of int
        Sorted by their first rank.
    """
    if kind not in KINDS:
        raise UnknownNameError("kind of group", kind, KINDS, f"known are {', '.join(KINDS)}")
    if kind in ("ep", "etp", "edp"):
        inner = sizes["tp"] * sizes["cp"] * sizes["dp"]
        lengths = {"tp": experts["etp"], "ep": experts["ep"], "pp": sizes["pp"], "cp": 1}
        lengths["dp"] = inner // (experts["etp"] * experts["ep"])
        if order.index("pp") not in (0, len(order) - 1) and (experts["ep"] > 1):
            raise UnsupportedError(
                f"order {'-'.join(order)} has pp between the dimensions that experts share; put pp first or last"
            )
        return _along(order, lengths, {"ep": ["ep"], "etp": ["tp"], "edp": ["dp"]}[kind])
    lengths = {**sizes, "ep": 1}
    if kind in ("shard", "replicate"):
        data = _along(order, lengths, ["dp", "cp"])
        if kind == "shard":
            return tuple(group[i : i + shard] for group in data for i in range(0, len(group), shard))
        return tuple(group[i::shard] for group in data for i in range(shard))
    return _along(order, lengths, kind.split("-"))


def _along(order: Sequence[str], lengths: Mapping[str, int], dims: Sequence[str]) -> Groups:
    """Ranks that differ only in ``dims``."""
    outermost_first = list(reversed(order))
    ranks = np.arange(int(np.prod([lengths[d] for d in order]))).reshape([lengths[d] for d in outermost_first])
    axes = [outermost_first.index(d) for d in sorted(dims, key=outermost_first.index)]
    size = int(np.prod([lengths[d] for d in dims]))
    moved = np.moveaxis(ranks, axes, range(-len(axes), 0)).reshape(-1, size)
    return tuple(sorted(tuple(int(r) for r in group) for group in moved))
