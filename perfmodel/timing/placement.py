"""Where a plan's groups of ranks sit on a cluster, and what their collectives take there.

Rank i of a plan is device i of the cluster, counted through the first node, then the second, and
so on; :attr:`perfmodel.parallel.plan.Plan.order` says which dimension is innermost.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from perfmodel.hardware import Cluster, Device
from perfmodel.parallel.plan import Plan
from perfmodel.timing.collectives import RankGroup, collective_time, group_of

__all__ = ["PlacedPlan"]

Ints = npt.NDArray[np.int64]


class PlacedPlan:
    """A plan on a cluster.

    Parameters
    ----------
    plan : Plan
        With as many devices as the cluster has (:meth:`perfmodel.parallel.plan.Plan.on`).
    cluster : Cluster

    Attributes
    ----------
    pipeline : ndarray of int64, shape [tp * cp * dp, pp]
        The ranks of each pipeline, by pipeline rank.
    sources : dict of str to str
        Where the constants of collectives come from (:class:`perfmodel.timing.collectives.CollectiveTime`), by kind
        of group that has been asked for.
    """

    def __init__(self, plan: Plan, cluster: Cluster) -> None:
        self.plan = plan
        self.cluster = cluster
        self.pipeline: Ints = np.array(plan.groups("pp"), dtype=np.int64)
        self._node, self._width, self._kind = _nodes(cluster)
        self._groups: dict[str, tuple[RankGroup, ...]] = {}
        self._ranks: dict[str, Ints] = {}
        self._parts: dict[int, Cluster] = {}
        self._times: dict[tuple[str, str, float], float] = {}
        self.sources: dict[str, str] = {}

    def devices(self, pipeline_rank: int) -> tuple[Device, ...]:
        """The kinds of devices that run a pipeline rank; several where its peers are on unlike nodes."""
        kinds = np.unique(self._kind[self.pipeline[:, pipeline_rank]])
        return tuple(self.cluster.groups[kind].node.device for kind in kinds.tolist())

    def time(self, op: str, kind: str, nbytes: float, pipeline_rank: int) -> float:
        """Seconds of a collective in the slowest of the groups of a kind that a pipeline rank's peers form.

        Parameters
        ----------
        op : str
            As :func:`perfmodel.timing.collectives.collective_time` has it.
        kind : str
            As :meth:`perfmodel.parallel.plan.Plan.groups` has it; not ``"pp"``.
        nbytes : float
        pipeline_rank : int
        """
        # On nodes of one kind all pipeline ranks are alike.
        where = pipeline_rank if self.cluster.mixed else 0
        key = (op, f"{kind} {where}", nbytes)
        known = self._times.get(key)
        if known is None:
            groups = self._pairs(kind, where) if op == "send_recv" else self.groups(kind, where)
            known = self._times[key] = self._slowest(op, kind, nbytes, groups)
        return known

    def groups(self, kind: str, pipeline_rank: int = 0) -> tuple[RankGroup, ...]:
        """The groups of a kind that a pipeline rank's peers form, one of each way in which they sit."""
        name = f"{kind} {pipeline_rank}"
        if name not in self._groups:
            self._groups[name] = self._distinct(self._members(kind, pipeline_rank))
        return self._groups[name]

    def _members(self, kind: str, pipeline_rank: int) -> Ints:
        """Ranks of each group, shape [groups, ranks]."""
        if kind not in self._ranks:
            self._ranks[kind] = np.array(self.plan.groups(kind), dtype=np.int64)
        members = self._ranks[kind]
        if not self.cluster.mixed:
            return members
        own = np.isin(members[:, 0], self.pipeline[:, pipeline_rank])
        return members[own]

    def transfer(self, sender: int, receiver: int, nbytes: float) -> float:
        """Seconds that a message from one pipeline rank to another takes, in the slowest pipeline."""
        key = (f"{sender} to {receiver}", "pp", nbytes)
        known = self._times.get(key)
        if known is None:
            name = f"pp {sender} {receiver}"
            if name not in self._groups:
                self._groups[name] = self._distinct(self.pipeline[:, [sender, receiver]])
            known = self._times[key] = self._slowest("send_recv", "pp", nbytes, self._groups[name])
        return known

    def _slowest(self, op: str, kind: str, nbytes: float, groups: tuple[RankGroup, ...]) -> float:
        slowest = max((collective_time(op, nbytes, group) for group in groups), key=lambda each: each.time)
        self.sources[kind] = slowest.source
        return slowest.time

    def _pairs(self, kind: str, pipeline_rank: int) -> tuple[RankGroup, ...]:
        """Neighbours in the rings of a kind."""
        name = f"{kind} {pipeline_rank} neighbours"
        if name not in self._groups:
            rings = self._members(kind, pipeline_rank)
            pairs = np.stack([rings, np.roll(rings, -1, axis=1)], axis=2).reshape(-1, 2)
            self._groups[name] = self._distinct(pairs)
        return self._groups[name]

    def _distinct(self, members: Ints) -> tuple[RankGroup, ...]:
        """One group of ranks for each way in which they sit: on how many nodes, how far apart, on which devices."""
        nodes = np.sort(self._node[members], axis=1)
        changes = np.diff(nodes, axis=1) != 0
        spread = 1 + changes.sum(axis=1)
        span = nodes[:, -1] - nodes[:, 0]
        # Groups whose nodes are the same number and as far apart differ by the switch blocks that they cross.
        ways = np.stack([spread, span, self._kind[members].max(axis=1), self._block(nodes)], axis=1)
        _, first = np.unique(ways, axis=0, return_index=True)
        return tuple(self._group(members[row].tolist()) for row in first.tolist())

    def _block(self, nodes: Ints) -> Ints:
        fabric = self.cluster.fabric
        crossed = np.zeros(len(nodes), dtype=np.int64)
        for tier in fabric.tiers if fabric is not None else ():
            if tier.nodes is not None:
                crossed += nodes[:, 0] // tier.nodes != nodes[:, -1] // tier.nodes
        return crossed

    def _group(self, members: list[int]) -> RankGroup:
        nodes = self._node[members]
        ids, counts = np.unique(nodes, return_counts=True)
        # The other devices of a node are in groups like this one, which use its ports at the same time.
        concurrent = max(1, int(self._width[nodes].min()) // int(counts.max())) if len(ids) > 1 else 1
        kinds = set(self._kind[members].tolist())
        if not self.cluster.mixed or len(kinds) > 1:
            return group_of(self.cluster, members, concurrent=concurrent)
        # Links of other kinds of nodes are none of a group that doesn't reach them.
        (kind,) = kinds
        first = int(np.argmax(self._kind == kind))
        return group_of(self._alike(kind), [member - first for member in members], concurrent=concurrent)

    def _alike(self, kind: int) -> Cluster:
        """One group of the cluster's nodes by itself."""
        if kind not in self._parts:
            self._parts[kind] = replace(self.cluster, groups=(self.cluster.groups[kind],))
        return self._parts[kind]


def _nodes(cluster: Cluster) -> tuple[Ints, Ints, Ints]:
    """By device: its node, how many devices that has, its group of nodes."""
    node, width, kind = [], [], []
    passed = 0
    for position, group in enumerate(cluster.groups):
        size = group.node.devices
        node.append(passed + np.repeat(np.arange(group.nodes), size))
        width.append(np.full(group.devices, size))
        kind.append(np.full(group.devices, position))
        passed += group.nodes
    return np.concatenate(node), np.concatenate(width), np.concatenate(kind)
