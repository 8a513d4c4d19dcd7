"""Where a plan's groups of ranks sit on a cluster, and what their collectives take there.

Rank i of a plan is device i of the cluster, counted through the first node, then the second, and
so on; :attr:`perfmodel.parallel.plan.Plan.order` says which dimension is innermost.
"""

from __future__ import annotations


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
    """

    def __init__(self, plan: Plan, cluster: Cluster) -> None:
        self.plan = plan
        self.cluster = cluster
        self.pipeline: Ints = np.array(plan.groups("pp"), dtype=np.int64)
        self._node, self._width, self._kind = _nodes(cluster)
        self._groups: dict[str, tuple[RankGroup, ...]] = {}
        self._times: dict[tuple[str, str, float], float] = {}

    def devices(self, pipeline_rank: int) -> tuple[Device, ...]:
        """The kinds of devices that run a pipeline rank; several where its peers are on unlike nodes."""
        kinds = np.unique(self._kind[self.pipeline[:, pipeline_rank]])
        return tuple(self.cluster.groups[kind].node.device for kind in kinds.tolist())

    def time(self, op: str, kind: str, nbytes: float) -> float:
        """Seconds of a collective in the slowest of the groups of a kind.

        Parameters
        ----------
        op : str
            As :func:`perfmodel.timing.collectives.collective_time` has it.
        kind : str
            As :meth:`perfmodel.parallel.plan.Plan.groups` has it.
        nbytes : float
        """
        key = (op, kind, nbytes)
        known = self._times.get(key)
        if known is None:
            groups = self._pairs(kind) if op == "send_recv" else self.groups(kind)
            known = self._times[key] = max(collective_time(op, nbytes, group).time for group in groups)
        return known

    def groups(self, kind: str) -> tuple[RankGroup, ...]:
        """The groups of a kind, one of each way in which they sit."""
        known = self._groups.get(kind)
        if known is None:
            known = self._groups[kind] = self._distinct(np.array(self.plan.groups(kind), dtype=np.int64))
        return known

    def transfer(self, sender: int, receiver: int, nbytes: float) -> float:
        """Seconds that a message from one pipeline rank to another takes, in the slowest pipeline."""
        key = (f"{sender} to {receiver}", "pp", nbytes)
        known = self._times.get(key)
        if known is None:
            name = f"pp {sender} {receiver}"
            if name not in self._groups:
                self._groups[name] = self._distinct(self.pipeline[:, [sender, receiver]])
            times = [collective_time("send_recv", nbytes, group).time for group in self._groups[name]]
            known = self._times[key] = max(times)
        return known

    def _pairs(self, kind: str) -> tuple[RankGroup, ...]:
        """Neighbours in the rings of a kind."""
        name = f"{kind} neighbours"
        if name not in self._groups:
            rings = np.array(self.plan.groups(kind), dtype=np.int64)
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
        if len(ids) == 1:
            return group_of(self.cluster, members)
        # The other devices of a node are in groups like this one, which use its ports at the same time.
        width = int(self._width[nodes].min())
        return group_of(self.cluster, members, concurrent=max(1, width // int(counts.max())))


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
