"""Where a plan's groups sit on clusters."""

from __future__ import annotations

import pytest

import perfmodel as pm
from perfmodel.timing.collectives import collective_time, group_of
from perfmodel.timing.placement import PlacedPlan

SIZE = float(2**26)


def placed(plan: pm.Plan, nodes: int, name: str = "dgx-h100") -> PlacedPlan:
    cluster = pm.load_cluster(name, nodes=nodes)
    return PlacedPlan(plan.on(cluster.devices), cluster)


def test_tensor_parallel_groups_stay_in_a_node_and_data_parallel_ones_dont() -> None:
    where = placed(pm.Plan(tp=8, pp=2), 4)
    (tensor,), (data,) = where.groups("tp"), where.groups("dp-cp")
    assert (tensor.ranks, tensor.local, tensor.nodes, tensor.concurrent) == (8, 8, 1, 1)
    # Each of a node's eight ranks reduces with its like on the other node.
    assert (data.ranks, data.local, data.nodes, data.concurrent) == (2, 1, 2, 8)


@pytest.mark.parametrize(("tp", "spread"), [(2, (2, 2, 1)), (4, (4, 1, 2)), (16, (8, 2, 1))])
def test_ways_to_sit(tp: int, spread: tuple[int, int, int]) -> None:
    where = placed(pm.Plan(tp=tp), 4)
    (group,) = where.groups("tp")
    assert group.nodes == (2 if tp == 16 else 1)
    (data,) = where.groups("dp-cp")
    assert data.ranks == 32 // tp
    assert data.local == max(8 // tp, 1)


def test_groups_that_sit_differently_count_by_the_slowest() -> None:
    # Groups of six over nodes of eight: some are within a node, some on two.
    where = placed(pm.Plan(tp=6), 3)
    found = where.groups("tp")
    assert {group.nodes for group in found} == {1, 2}
    times = [collective_time("all_reduce", SIZE, group).time for group in found]
    assert where.time("all_reduce", "tp", SIZE, 0) == max(times)


def test_transfers_go_from_pipeline_rank_to_pipeline_rank() -> None:
    across, within = placed(pm.Plan(pp=2, tp=8), 2), placed(pm.Plan(pp=2, tp=4), 1)
    assert across.transfer(0, 1, SIZE) > within.transfer(0, 1, SIZE)
    cluster = pm.load_cluster("dgx-h100", nodes=2)
    # All eight ranks of a node send at once, each over a port of its own.
    alone = collective_time("send_recv", SIZE, group_of(cluster, [0, 8], concurrent=8)).time
    assert across.transfer(0, 1, SIZE) == alone
    assert across.sources["pp"] in ("fitted", "borrowed", "assumed")


def test_a_ring_passes_on_to_a_neighbour() -> None:
    where = placed(pm.Plan(cp=8), 1)
    assert 0 < where.time("send_recv", "cp", SIZE, 0) < where.time("all_gather", "cp", 8 * SIZE, 0)


def test_unlike_nodes_use_their_own_links() -> None:
    cluster = pm.load_cluster("mixed-h100-a100")
    where = PlacedPlan(pm.Plan(tp=8, pp=3).on(cluster.devices), cluster)
    assert [where.devices(rank)[0].name for rank in range(3)] == [
        "nvidia-h100-sxm-80gb",
        "nvidia-a100-sxm-80gb",
        "nvidia-a100-sxm-80gb",
    ]
    fast, slow = where.time("all_reduce", "tp", SIZE, 0), where.time("all_reduce", "tp", SIZE, 1)
    assert fast == PlacedPlan(pm.Plan(tp=8, dp=1), pm.load_cluster("dgx-h100")).time("all_reduce", "tp", SIZE, 0)
    assert fast < slow
    both = PlacedPlan(pm.Plan(tp=8).on(cluster.devices), cluster)
    assert {device.name for device in both.devices(0)} == {"nvidia-h100-sxm-80gb", "nvidia-a100-sxm-80gb"}
    assert both.time("all_reduce", "tp", SIZE, 0) == slow
