"""The public face: one collective, or arrays of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from perfmodel.errors import UnknownNameError, UnsupportedError
from perfmodel.hardware.collectives import Residual
from perfmodel.timing.collectives.group import Network, RankGroup
from perfmodel.timing.collectives.model import OPS, candidates
from perfmodel.timing.collectives.torus import torus_time

__all__ = ["CollectiveTime", "CollectiveTimes", "bus_factor", "collective_time", "collective_times"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

#: What a time includes: the operation alone, as back-to-back calls measure it, or a profiled kernel.
TIMINGS = ("device", "profiled")


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveTime:
    """How long one collective takes.

    Attributes
    ----------
    op : str
    nbytes : float
        As nccl-tests counts them: the whole gathered or scattered buffer.
    ranks : int
    time : float
        Seconds.
    algorithm, protocol : str
        What the library picks.
    low, high : float or None
        Between them the time lies with a probability of 90 %, by held-out residuals; ``None`` without any.
    source : {"fitted", "borrowed", "assumed"}
        Where the constants come from: measured on this link, on another one of its kind, or nowhere.
    """

    op: str
    nbytes: float
    ranks: int
    time: float
    algorithm: str
    protocol: str
    low: float | None
    high: float | None
    source: str

    @property
    def algbw(self) -> float:
        """Bytes/s: size over time."""
        return self.nbytes / self.time if self.time > 0 else 0.0

    @property
    def busbw(self) -> float:
        """Bytes/s that a link carries, as nccl-tests defines it."""
        return self.algbw * bus_factor(self.op, self.ranks)


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveTimes:
    """The same over arrays, all of the cases' shape; ``low`` and ``high`` are NaN where there are no residuals."""

    time: Floats
    algorithm: npt.NDArray[np.str_]
    protocol: npt.NDArray[np.str_]
    low: Floats
    high: Floats


def bus_factor(op: str, ranks: npt.ArrayLike) -> float:
    """Bus bandwidth over algorithm bandwidth, as nccl-tests defines it (doc/PERFORMANCE.md).

    >>> bus_factor("all_reduce", 8), bus_factor("all_gather", 8), bus_factor("broadcast", 8)
    (1.75, 0.875, 1.0)
    """
    count = float(np.asarray(ranks))
    if op in ("broadcast", "send_recv"):
        return 1.0
    return (2 if op == "all_reduce" else 1) * (count - 1) / count


def collective_time(
    op: str, nbytes: float, group: RankGroup, *, algorithm: str | None = None, timing: str = "device"
) -> CollectiveTime:
    """Time of one collective.

    Parameters
    ----------
    op : str
        ``all_reduce``, ``all_gather``, ``reduce_scatter``, ``all_to_all``, ``broadcast`` or ``send_recv``.
    nbytes : float
        As nccl-tests counts them: of an all-gather the whole gathered buffer, of a reduce-scatter the whole
        one that is scattered, of an all-to-all what one rank sends in all, its own share included.
    group : RankGroup
        From :func:`~perfmodel.timing.collectives.group_of`.
    algorithm : str, optional
        Only this one; the fastest if left out.
    timing : {"device", "profiled"}
        The operation alone; or a kernel as a profiler sees it, which waits for the last rank to arrive.

    Raises
    ------
    UnknownNameError
        If the operation isn't known.
    UnsupportedError
        If the group can't run it.

    Examples
    --------
    >>> from perfmodel.hardware import load_cluster
    >>> from perfmodel.timing.collectives import group_of
    >>> node = group_of(load_cluster("dgx-h100"), range(8))
    >>> found = collective_time("all_reduce", 512 * 2**20, node)
    >>> found.algorithm, round(found.busbw / 1e9, -1)
    ('nvls', 440.0)
    """
    return _collective_time(op, float(nbytes), _Key(group), algorithm, timing)


class _Key:
    """A group by its network's identity and its numbers."""

    __slots__ = ("group", "numbers")

    def __init__(self, group: RankGroup) -> None:
        self.group = group
        self.numbers = (
            id(group.network),
            group.ranks,
            group.local,
            group.nodes,
            group.tier,
            group.concurrent,
            group.shape,
            group.wraps,
            group.strides,
        )

    def __hash__(self) -> int:
        return hash(self.numbers)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and other.numbers == self.numbers


@lru_cache(maxsize=65536)
def _collective_time(op: str, nbytes: float, key: _Key, algorithm: str | None, timing: str) -> CollectiveTime:
    group = key.group
    if group.shape:
        times = _on_torus(op, np.array([nbytes]), group)
    else:
        times = collective_times(
            op,
            [nbytes],
            network=group.network,
            local=[group.ranks / group.nodes],
            nodes=[group.nodes],
            tier=[group.tier],
            concurrent=[group.concurrent],
            algorithm=algorithm,
            timing=timing,
        )
    low, high = float(times.low[0]), float(times.high[0])
    route = group.network.between if group.nodes > 1 or group.shape else group.network.inside
    return CollectiveTime(
        op=op,
        nbytes=nbytes,
        ranks=group.ranks,
        time=float(times.time[0]),
        algorithm=str(times.algorithm[0]),
        protocol=str(times.protocol[0]),
        low=None if np.isnan(low) else low,
        high=None if np.isnan(high) else high,
        source="fitted" if route is None or group.ranks == 1 else route.source_of(op),
    )


def collective_times(
    op: str,
    nbytes: npt.ArrayLike,
    *,
    network: Network,
    local: npt.ArrayLike,
    nodes: npt.ArrayLike = 1,
    tier: npt.ArrayLike | None = None,
    concurrent: npt.ArrayLike = 1,
    algorithm: str | None = None,
    timing: str = "device",
) -> CollectiveTimes:
    """Times of one operation over arrays of sizes and groups, which broadcast.

    Parameters
    ----------
    op, algorithm, timing
        As for :func:`collective_time`.
    nbytes : array_like
    network : Network
        From :func:`~perfmodel.timing.collectives.network_of`.
    local, nodes : array_like
        Ranks in each node, and in how many nodes.
    tier : array_like of int, optional
        Index of the tier of switches that joins the nodes; left out: that of neighbouring nodes.
    concurrent : array_like
        How many such groups use a node's ports at once.

    Raises
    ------
    UnknownNameError
        If the operation isn't known.
    UnsupportedError
        If a group can't run it; tori are asked through :func:`collective_time`.
    """
    _check(op, timing)
    if network.fabric is not None and network.fabric.torus is not None:
        raise UnsupportedError("a torus has axes, not nodes; ask collective_time with the group of its devices")
    sizes, inner, outer, groups = np.broadcast_arrays(
        *(np.asarray(value, float) for value in (nbytes, local, nodes, concurrent))
    )
    where = _tiers(network, outer) if tier is None else np.broadcast_to(np.asarray(tier, np.int64), sizes.shape)
    if np.any(sizes < 0) or np.any(inner < 1) or np.any(outer < 1) or np.any(groups < 1):
        raise UnsupportedError("bytes are 0 or more; ranks, nodes and concurrent groups 1 or more")
    if op == "send_recv":
        _check_pair(inner * outer)
    alone = inner * outer <= 1
    found = candidates(op, sizes, inner, outer, network, tier=where, concurrent=groups, algorithm=algorithm)
    every = np.stack([np.broadcast_to(candidate.time, sizes.shape) for candidate in found])
    best = np.argmin(every, axis=0)
    time = np.where(alone, 0.0, np.take_along_axis(every, best[None], axis=0)[0])
    if not np.all(np.isfinite(time)):
        raise UnsupportedError(f"{algorithm} can't run {op} for some of the groups; leave the algorithm to the library")
    if timing == "profiled" and op != "send_recv":
        time = np.where(alone, time, np.maximum(time, _arrival(network, outer)))
    low, high = _interval(op, sizes, inner, outer, network, time, timing)
    return CollectiveTimes(
        time=time,
        algorithm=np.array([candidate.algorithm for candidate in found])[best],
        protocol=np.array([candidate.protocol for candidate in found])[best],
        low=low,
        high=high,
    )


def _check(op: str, timing: str) -> None:
    if op not in OPS:
        raise UnknownNameError("collective", op, OPS, f"known are {', '.join(OPS)}")
    if timing not in TIMINGS:
        raise UnknownNameError("timing", timing, TIMINGS, f"known are {', '.join(TIMINGS)}")


def _check_pair(ranks: Floats) -> None:
    if np.any(ranks > 2):
        raise UnsupportedError(f"send_recv among {np.max(ranks):.0f} ranks; give the group of its sender and receiver")


def _tiers(network: Network, nodes: Floats) -> Ints:
    """The tier that joins so many neighbouring nodes."""
    fabric = network.fabric
    if fabric is None or not fabric.tiers:
        return np.zeros(nodes.shape, np.int64)
    reach = np.array([np.inf if tier.nodes is None else tier.nodes for tier in fabric.tiers])
    if np.any(nodes > reach[-1]):
        raise UnsupportedError(
            f"{fabric.name} connects {fabric.tiers[-1].nodes} nodes, not {np.max(nodes):.0f}; choose a larger fabric"
        )
    return np.searchsorted(reach, nodes).astype(np.int64)


def _on_torus(op: str, sizes: Floats, group: RankGroup) -> CollectiveTimes:
    _check(op, "device")
    route = group.network.between
    assert route is not None
    assert group.network.fabric is not None
    if op == "send_recv":
        _check_pair(np.array([float(group.ranks)]))
    time = torus_time(
        op,
        sizes,
        group.shape,
        group.wraps,
        group.strides,
        bandwidth=route.bandwidth,
        hop=group.network.fabric.hop,
    )
    unknown = np.full(sizes.shape, np.nan)
    return CollectiveTimes(
        time=time,
        algorithm=np.full(sizes.shape, "torus"),
        protocol=np.full(sizes.shape, "Simple"),
        low=unknown,
        high=unknown,
    )


def _arrival(network: Network, nodes: Floats) -> Floats:
    """Seconds until the last rank has arrived, as profiled kernels show it."""
    inside, between = (
        0.0 if route is None else route.collectives.arrival or 0.0 for route in (network.inside, network.between)
    )
    return np.where(nodes > 1, between, inside)


def _interval(
    op: str, sizes: Floats, local: Floats, nodes: Floats, network: Network, time: Floats, timing: str
) -> tuple[Floats, Floats]:
    """Time times the exponential of the residuals' quantiles, of the slowest link that is used."""
    ranks = local * nodes
    low, high = np.full(sizes.shape, np.nan), np.full(sizes.shape, np.nan)
    for route, used in ((network.inside, nodes == 1), (network.between, nodes > 1)):
        if route is None:
            continue
        if not route.measured(op):
            _apply(route.transfer, used, sizes, time, low, high)
            continue
        constants = route.constants(op)
        if timing == "profiled" and constants.profiled:
            _apply(constants.profiled, used, sizes, time, low, high)
            continue
        seen = np.isin(ranks, route.collectives.ranks)
        _apply(constants.residuals, used & seen, sizes, time, low, high)
        _apply(constants.unseen, used & ~seen, sizes, time, low, high)
    return np.where(ranks <= 1, time, low), np.where(ranks <= 1, time, high)


def _apply(
    residuals: Sequence[Residual], cases: npt.NDArray[np.bool_], sizes: Floats, time: Floats, low: Floats, high: Floats
) -> None:
    if not residuals or not np.any(cases):
        return
    bounds = [residual.below for residual in residuals if residual.below is not None]
    index = np.searchsorted(bounds, sizes, side="right")
    ends = np.exp(np.array([[residual.low, residual.high] for residual in residuals]))
    low[cases] = (time * ends[index, 0])[cases]
    high[cases] = (time * ends[index, 1])[cases]
