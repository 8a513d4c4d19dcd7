"""Time of a collective operation: the best of the algorithms and protocols that the library has.

Legend: S bytes as nccl-tests counts them; n ranks, m of them in each of N nodes; L bandwidth
of a link in one direction, between nodes that of all ports that the node's ranks can use,
and a its latency times ``step``; f steps through the ring (2 for all-reduce, else 1).
With the constants of :class:`~perfmodel.hardware.collectives.CollectiveConstants` and the
proportions of :class:`~perfmodel.timing.collectives.kinds.Structure`, a ring takes::

    k = f (n - 1)                  steps, f (N - 1) of them between nodes
    w = f S (n - 1) / n            bytes that a rank sends
    LL      startup + k a                    + w / (first L)
    LL128   startup + k a wider              + (w + S/n) / (small L)
    Simple  startup + k a wider + fill       + (w + own S/n) / (large L)

The shape is that of NCCL's own tuning (src/graph/tuning.cc): latency, and bandwidth, of
each algorithm and protocol. What a rank keeps, S/n, costs too: LL128 copies it as it copies what
it received. Through several links a ring goes at the pace of the slowest. Beside the ring there are::

    NVLS (n > 2)    startup + k a wider + multicast_fill fill + S (1 + 1/n) / (multicast L)
    tree (N > 1)    f = 2: startup + 2 (m - 1) a + 2 log2(N) a' + …  + 2 S / (tree L)
    hierarchical    reduce-scatter inside, all-reduce of S/m between, all-gather inside

An all-to-all sends S/n to each other rank, n - 1 messages that are under way at once; the
small ones with LL over a channel each (``small`` of L), the large ones with Simple. What leaves
a node shares its ports, and is under way beside what stays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from perfmodel.errors import UnsupportedError
from perfmodel.hardware.collectives import COLLECTIVES, CollectiveConstants
from perfmodel.timing.collectives.group import Network
from perfmodel.timing.collectives.kinds import Structure, structure
from perfmodel.timing.collectives.route import Route

__all__ = ["ALGORITHMS", "OPS", "PROTOCOLS", "Candidate", "Link", "candidates", "link_times"]

Floats = npt.NDArray[np.float64]

OPS = COLLECTIVES
ALGORITHMS = ("ring", "tree", "nvls", "pairwise", "hierarchical", "torus", "gloo")
PROTOCOLS = ("LL", "LL128", "Simple")

_STEPS = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1, "broadcast": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Seconds of one algorithm with one protocol, shape [cases]."""

    algorithm: str
    protocol: str
    time: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A link with the constants of one operation.

    Attributes
    ----------
    constants : CollectiveConstants
    bandwidth : ndarray
        Bytes/s in one direction, by case: of a rank, or between nodes of all ranks of a node.
    latency : ndarray
        Seconds of a step.
    """

    constants: CollectiveConstants
    bandwidth: Floats
    latency: Floats


def inside_link(op: str, route: Route, local: Floats) -> Link:
    """The link within a node, for so many ranks there."""
    constants = route.constants(op)
    bandwidth = np.full_like(local, route.bandwidth)
    if op == "send_recv":
        bandwidth /= route.lanes
    elif route.topology == "all-to-all":
        # A link for each pair: a group uses those to its own members.
        bandwidth *= np.clip((local - 1) / route.lanes, 0, 1)
    elif route.topology == "torus" and op == "all_to_all":
        # On its way a message passes other devices: S X/4 on the busiest of an axis's two links (see torus.py).
        axes, longest = sum(size > 1 for size in route.dims), max(route.dims)
        bandwidth *= min(1.0, 4 / (axes * longest))
    if route.topology == "pairs" and route.across is not None:
        bandwidth = np.where(local > 2, np.minimum(bandwidth, route.across), bandwidth)
    if constants.contention is not None:
        bandwidth = bandwidth * (2 / np.maximum(local, 2)) ** constants.contention
    return Link(
        constants=constants,
        bandwidth=bandwidth,
        latency=np.full_like(local, route.latency * constants.step),
    )


def between_link(op: str, network: Network, local: Floats, tier: npt.NDArray[np.int64], concurrent: Floats) -> Link:
    """The ports of a node, for so many ranks in it, and the tier of switches where they meet others."""
    route = network.between
    assert route is not None
    constants = route.constants(op)
    ports = np.minimum(local * network.ports_per_device, network.ports / concurrent)
    bandwidth = ports * route.bandwidth
    latency = np.full_like(bandwidth, route.latency)
    if network.fabric is not None and network.fabric.tiers:
        tiers = network.fabric.tiers
        over = np.array([network.fabric.oversubscription(index) for index in range(len(tiers))])
        hops = np.array([entry.hops - tiers[0].hops for entry in tiers])
        bandwidth = bandwidth / over[tier]
        latency = latency + hops[tier] * network.fabric.hop
    return Link(constants=constants, bandwidth=bandwidth, latency=latency * constants.step)


def candidates(
    op: str,
    nbytes: Floats,
    local: Floats,
    nodes: Floats,
    network: Network,
    *,
    tier: npt.NDArray[np.int64],
    concurrent: Floats,
    algorithm: str | None = None,
) -> list[Candidate]:
    """Every algorithm and protocol that can run a case; ``inf`` where it can't.

    Parameters
    ----------
    op : str
        One of :data:`OPS`.
    nbytes, local, nodes, tier, concurrent : ndarray
        Shape [cases]: bytes, ranks in a node, nodes, the tier of switches that joins them, how many such
        groups use the ports at once.
    network : Network
    algorithm : str, optional
        Only this one. ``"hierarchical"`` is considered only when it's asked for, as NCCL doesn't have it.
    """
    several = nodes > 1
    if network.inside is None and bool(np.any(local > 1)):
        raise UnsupportedError("several ranks in a node, but nothing that joins them; give the node an interconnect")
    if network.between is None and bool(np.any(several)):
        raise UnsupportedError("a group over several nodes of a single one; load a cluster with more nodes")
    inside = inside_link(op, network.inside, local) if network.inside is not None else None
    between = between_link(op, network, local, tier, concurrent) if network.between is not None else None
    multicast = network.inside is not None and network.inside.multicast
    found = link_times(op, nbytes, local, nodes, inside, between, multicast=multicast)
    if op == "all_reduce" and between is not None and inside is not None and algorithm == "hierarchical":
        found = _hierarchical(nbytes, local, nodes, network, tier, concurrent)
    routes = [route for route in (network.inside, network.between) if route is not None]
    if any(route.library == "gloo" for route in routes):
        # Gloo has one protocol; its sockets copy every byte, which its constants say.
        found = [
            Candidate(algorithm="gloo", protocol="Simple", time=one.time) for one in found if one.protocol == "Simple"
        ]
    if algorithm is not None:
        found = [candidate for candidate in found if candidate.algorithm == algorithm]
        if not found:
            raise UnsupportedError(f"{op} has no algorithm {algorithm!r} here; known: {', '.join(ALGORITHMS)}")
    return found


def link_times(
    op: str,
    nbytes: Floats,
    local: Floats,
    nodes: Floats,
    inside: Link | None,
    between: Link | None,
    *,
    multicast: bool,
    proportions: Structure | None = None,
) -> list[Candidate]:
    """The formulas of this module, for links whose constants are given; shapes as for :func:`candidates`."""
    share = proportions or structure()
    path = _Path(local, nodes, inside, between)
    if op in ("all_to_all", "send_recv"):
        return _pairwise(op, nbytes, path, share)
    found = _ring(op, nbytes, path, share)
    if op == "all_reduce":
        if multicast and inside is not None and inside.constants.multicast is not None:
            found.append(_multicast(nbytes, path, inside, share))
        if between is not None:
            found += _tree(nbytes, path, between, share)
    return found


class _Path:
    """What a ring through one or two links sees."""

    def __init__(self, local: Floats, nodes: Floats, inside: Link | None, between: Link | None) -> None:
        self.local, self.nodes, self.ranks = local, nodes, local * nodes
        self.inside, self.between = inside, between
        self.within = local > 1
        self.beyond = nodes > 1

    def most(self, of: Callable[[CollectiveConstants], float]) -> Floats:
        """The larger of a constant of the links that are used."""
        inside = of(self.inside.constants) if self.inside is not None else 0.0
        between = of(self.between.constants) if self.between is not None else 0.0
        return np.maximum(np.where(self.within, inside, 0.0), np.where(self.beyond, between, 0.0))

    def bandwidth(self, of: Callable[[CollectiveConstants], float], inside: float | None = None) -> Floats:
        """The smaller of the bandwidths of the links that are used, each times a constant (``inside`` replaces one)."""
        rate = np.full_like(self.ranks, np.inf)
        if self.inside is not None:
            rate = np.where(
                self.within, self.inside.bandwidth * (of(self.inside.constants) if inside is None else inside), rate
            )
        if self.between is not None:
            there = self.between.bandwidth * of(self.between.constants)
            rate = np.where(self.beyond, np.minimum(rate, there), rate)
        return rate

    def steps(self, total: Floats, outside: Floats) -> Floats:
        """Seconds of so many steps, so many of them between nodes."""
        time = np.zeros_like(self.ranks)
        if self.inside is not None:
            time = time + (total - outside) * self.inside.latency
        if self.between is not None:
            time = time + outside * self.between.latency
        return time


def _ring(op: str, nbytes: Floats, path: _Path, share: Structure) -> list[Candidate]:
    ranks = path.ranks
    rounds = _STEPS[op]
    latency = path.steps(rounds * (ranks - 1), rounds * (path.nodes - 1))
    # A broadcast passes everything on; nobody keeps a share of its own.
    sent = nbytes if op == "broadcast" else rounds * nbytes * (ranks - 1) / ranks
    kept = 0.0 if op == "broadcast" else nbytes / ranks
    startup = path.most(lambda c: c.startup)
    first = path.bandwidth(lambda c: c.small, inside=share.first)
    small = path.bandwidth(lambda c: c.small)
    large = path.bandwidth(lambda c: c.large)
    wide = startup + share.wider * latency
    return [
        Candidate(algorithm="ring", protocol="LL", time=startup + latency + sent / first),
        Candidate(algorithm="ring", protocol="LL128", time=wide + (sent + kept) / small),
        Candidate(
            algorithm="ring",
            protocol="Simple",
            time=wide + path.most(lambda c: c.fill) + (sent + share.own * kept) / large,
        ),
    ]


def _pairwise(op: str, nbytes: Floats, path: _Path, share: Structure) -> list[Candidate]:
    ranks = path.ranks
    startup, fill = path.most(lambda c: c.startup), path.most(lambda c: c.fill)
    if op == "send_recv":
        latency = path.steps(ranks - 1, path.nodes - 1)
        small = path.bandwidth(lambda c: c.small)
        large = path.bandwidth(lambda c: c.large)
        return [
            Candidate(algorithm="pairwise", protocol="LL", time=startup + latency + nbytes / small),
            Candidate(algorithm="pairwise", protocol="Simple", time=startup + latency + fill + nbytes / large),
        ]
    # The messages are under way at once: each costs its issue, and the farthest its way.
    latency = np.zeros_like(ranks)
    if path.between is not None:
        latency = np.where(path.beyond, path.between.latency, latency)
        issue = share.issue * path.between.latency if path.inside is None else path.inside.latency
        latency = latency + (ranks - 1) * issue
    elif path.inside is not None:
        latency = (ranks - 1) * path.inside.latency
    pair = nbytes / ranks
    few = np.zeros_like(ranks)
    many = np.zeros_like(ranks)
    if path.inside is not None:
        rate, constants = path.inside.bandwidth, path.inside.constants
        rate = np.where(path.within, rate, 1.0)
        # A channel for each pair; together they carry no more than the link does.
        shared = np.minimum(constants.small, constants.large / np.maximum(path.local - 1, 1))
        few = np.where(path.within, pair / (shared * rate), few)
        inner = pair * (path.local - 1 + share.own) / (constants.large * rate)
        many = np.where(path.within, inner, many)
    if path.between is not None:
        # What leaves the node shares its ports, and is under way beside what stays in it.
        rate, constants = path.between.bandwidth / path.local, path.between.constants
        beyond = pair * (ranks - path.local)
        few = np.where(path.beyond, np.maximum(few, beyond / (constants.small * rate)), few)
        many = np.where(path.beyond, np.maximum(many, beyond / (constants.large * rate)), many)
    return [
        Candidate(algorithm="pairwise", protocol="LL", time=startup + latency + few),
        Candidate(algorithm="pairwise", protocol="Simple", time=startup + latency + fill + many),
    ]


def _multicast(nbytes: Floats, path: _Path, inside: Link, share: Structure) -> Candidate:
    """Each rank's data goes up to the switch once, and each sum of a share once."""
    constants = inside.constants
    assert constants.multicast is not None
    # Every rank has to be there before the switch can add, which takes as long as a pass along the ring.
    waiting = share.wider * path.steps(2 * (path.ranks - 1), np.zeros_like(path.ranks))
    time = constants.startup + waiting + share.multicast_fill * constants.fill
    whole = time + nbytes * (1 + 1 / path.local) / (constants.multicast * inside.bandwidth)
    # NCCL doesn't use it for two ranks; over nodes it needs a tree between them, which isn't modelled.
    return Candidate(algorithm="nvls", protocol="Simple", time=np.where((path.local > 2) & ~path.beyond, whole, np.inf))


def _tree(nbytes: Floats, path: _Path, between: Link, share: Structure) -> list[Candidate]:
    """A chain inside each node and a double binary tree between them: every byte goes up once and down once."""
    levels = np.ceil(np.log2(np.maximum(path.nodes, 1)))
    latency = 2 * levels * between.latency
    if path.inside is not None:
        latency = latency + 2 * (path.local - 1) * path.inside.latency
    startup, fill = path.most(lambda c: c.startup), path.most(lambda c: c.fill)
    small = path.bandwidth(lambda c: c.small)
    large = path.bandwidth(lambda c: c.large)
    times = {
        "LL128": startup + share.wider * latency + 2 * nbytes / (share.tree * small),
        "Simple": startup + share.wider * latency + fill + 2 * nbytes / (share.tree * large),
    }
    return [
        Candidate(algorithm="tree", protocol=protocol, time=np.where(path.beyond, time, np.inf))
        for protocol, time in times.items()
    ]


def _hierarchical(
    nbytes: Floats,
    local: Floats,
    nodes: Floats,
    network: Network,
    tier: npt.NDArray[np.int64],
    concurrent: Floats,
) -> list[Candidate]:
    """Reduce-scatter inside each node, as many all-reduces between them as it has ranks, all-gather inside."""
    one = np.ones_like(local)

    def best(op: str, size: Floats, inside_ranks: Floats, node_count: Floats, groups: Floats) -> Floats:
        found = candidates(op, size, inside_ranks, node_count, network, tier=tier, concurrent=groups)
        fastest: Floats = np.min(np.stack([candidate.time for candidate in found]), axis=0)
        return fastest

    scatter = np.where(local > 1, best("reduce_scatter", nbytes, local, one, one), 0.0)
    gather = np.where(local > 1, best("all_gather", nbytes, local, one, one), 0.0)
    across = np.where(nodes > 1, best("all_reduce", nbytes / local, one, nodes, concurrent * local), 0.0)
    return [Candidate(algorithm="hierarchical", protocol="Simple", time=scatter + across + gather)]
