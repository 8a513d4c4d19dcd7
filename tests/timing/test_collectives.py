"""Collectives: where ranks sit, what the library picks, how times move with the hardware."""

import math
from pathlib import Path

import numpy as np
import pytest

import perfmodel as pm
from perfmodel.errors import FileError, UnknownNameError, UnsupportedError
from perfmodel.hardware import check_file
from perfmodel.timing.collectives import (
    OPS,
    bus_factor,
    collective_time,
    collective_times,
    group_of,
    link_capacity,
    link_loads,
    network_of,
    regular_group,
    transfer_path,
)

SIZES = (512.0, 64e3, 1e6, 16e6, 1e9)


@pytest.fixture(scope="module")
def h100():
    return pm.load_cluster("dgx-h100", nodes=16)


def seconds(op, nbytes, cluster, ranks, **options):
    return collective_time(op, nbytes, group_of(cluster, ranks), **options).time


def test_a_group_knows_its_nodes_and_the_switches_above_them(h100):
    inside, spread, pair = group_of(h100, range(8)), group_of(h100, range(0, 128, 8)), group_of(h100, (7, 8))
    assert (inside.ranks, inside.local, inside.nodes) == (8, 8, 1)
    assert (spread.ranks, spread.local, spread.nodes) == (16, 1, 16)
    assert (pair.ranks, pair.local, pair.nodes) == (2, 1, 2)
    assert regular_group(h100, 16, 8) == spread
    large = pm.load_cluster("dgx-h100", nodes=128)
    # A leaf joins 32 nodes: neighbours across its edge meet one tier higher.
    assert [group_of(large, (8 * a, 8 * b)).tier for a, b in ((0, 31), (31, 32), (0, 127))] == [0, 1, 1]


@pytest.mark.parametrize(
    ("ranks", "words"),
    [((), "without ranks"), ((0, 128), "isn't in dgx-h100"), ((-1, 0), "device -1"), ((3, 3), "twice")],
)
def test_a_group_that_cannot_be_is_refused(h100, ranks, words):
    with pytest.raises(UnsupportedError, match=words):
        group_of(h100, ranks)


def test_what_nccl_picks(h100):
    def picked(op, nbytes, ranks):
        found = collective_time(op, nbytes, group_of(h100, ranks))
        return found.algorithm, found.protocol

    assert picked("all_reduce", 1e3, range(8)) == ("ring", "LL")
    assert picked("all_reduce", 5e5, range(8)) == ("ring", "LL128")
    assert picked("all_reduce", 1e9, range(8)) == ("nvls", "Simple")
    assert picked("all_reduce", 1e9, range(2)) == ("ring", "Simple")  # NVLS needs more than two
    assert picked("all_gather", 1e9, range(8)) == ("ring", "Simple")
    assert picked("all_to_all", 1e3, range(8)) == ("pairwise", "LL")
    assert picked("all_reduce", 1e4, range(128))[0] == "tree"
    assert picked("all_reduce", 1e9, range(16)) == ("ring", "Simple")
    without = pm.load_cluster("dgx-a100")
    assert collective_time("all_reduce", 1e9, group_of(without, range(8))).algorithm == "ring"


def test_an_algorithm_can_be_asked_for(h100):
    group = group_of(h100, range(16))
    best = collective_time("all_reduce", 1e8, group)
    ring = collective_time("all_reduce", 1e8, group, algorithm="ring")
    tree = collective_time("all_reduce", 1e8, group, algorithm="tree")
    assert (ring.algorithm, tree.algorithm) == ("ring", "tree")
    assert best.time == min(ring.time, tree.time)
    with pytest.raises(UnsupportedError, match="all_gather has no algorithm 'tree'"):
        collective_time("all_gather", 1e8, group, algorithm="tree")
    with pytest.raises(UnsupportedError, match="nvls can't run all_reduce"):
        collective_time("all_reduce", 1e8, group, algorithm="nvls")


def test_hierarchical_is_its_three_parts(h100):
    whole = seconds("all_reduce", 1e9, h100, range(128), algorithm="hierarchical")
    across = collective_time("all_reduce", 1e9 / 8, group_of(h100, range(0, 128, 8), concurrent=8)).time
    inside = [seconds(op, 1e9, h100, range(8)) for op in ("reduce_scatter", "all_gather")]
    assert whole == pytest.approx(across + sum(inside), rel=1e-12)


def test_one_rank_alone_takes_no_time(h100):
    for op in OPS:
        found = collective_time(op, 1e9, group_of(h100, (5,)))
        assert (found.time, found.busbw) == (0.0, 0.0)


@pytest.mark.parametrize("op", OPS)
def test_arrays_give_what_single_calls_give(h100, op):
    groups = [group_of(h100, range(2))] if op == "send_recv" else [group_of(h100, range(n)) for n in (2, 8, 16, 128)]
    found = collective_times(
        op,
        np.array(SIZES)[:, None],
        network=network_of(h100),
        local=[group.local for group in groups],
        nodes=[group.nodes for group in groups],
    )
    assert found.time.shape == (len(SIZES), len(groups))
    for row, nbytes in enumerate(SIZES):
        for column, group in enumerate(groups):
            one = collective_time(op, nbytes, group)
            assert one.time == found.time[row, column]
            assert (one.algorithm, one.protocol) == (found.algorithm[row, column], found.protocol[row, column])
            assert math.isnan(found.low[row, column]) == (one.low is None)


def test_bandwidth_and_latency_of_the_files_carry_through_the_constants():
    def node(**changes):
        cluster = pm.load_cluster(
            "dgx-h100", overrides={f"node.interconnect.{key}": value for key, value in changes.items()}
        )
        return [seconds("all_gather", nbytes, cluster, range(8)) for nbytes in (512, 4e9)]

    small, large = node()
    _, fast = node(bandwidth="900 GB/s")
    slow, _ = node(latency="1.2 us")
    assert fast == pytest.approx(large / 2, rel=0.02)
    constants = pm.load_node("dgx-h100").collectives.ops["all_gather"]
    assert slow - small == pytest.approx(7 * constants.step * 0.6e-6, rel=1e-6)


def test_a_few_ranks_of_a_node_have_their_own_ports_only(h100):
    alone = seconds("all_gather", 1e9, h100, range(0, 16, 8))
    beside = collective_time("all_gather", 1e9, group_of(h100, range(0, 16, 8), concurrent=8)).time
    assert beside == pytest.approx(alone, rel=1e-12)  # eight ports for eight devices
    all_eight = seconds("all_gather", 1e9, h100, range(16))
    assert alone > 3 * all_eight
    # One port for two cards: two groups at once halve what each has.
    pair = pm.load_cluster("workstation-pair")
    one, two = (collective_time("all_reduce", 1e9, group_of(pair, (0, 2), concurrent=count)).time for count in (1, 2))
    assert two == pytest.approx(2 * one, rel=0.01)


def test_oversubscription_and_further_switches():
    def cluster(fabric, nodes=64):
        return pm.load_cluster("dgx-h100", nodes=nodes, fabric=fabric)

    free, tight = cluster("infiniband-ndr-fat-tree"), cluster("infiniband-ndr-fat-tree-4to1")
    near, far = range(16), (*range(8), *range(504, 512))
    assert seconds("all_gather", 4e9, tight, near) == pytest.approx(seconds("all_gather", 4e9, free, near))
    ratio = seconds("all_gather", 4e9, tight, far) / seconds("all_gather", 4e9, free, far)
    assert 3 < ratio < 4.01
    assert seconds("all_gather", 1e3, free, far) > seconds("all_gather", 1e3, free, near)


def test_a_port_is_no_faster_than_the_fabric_and_the_node_allow():
    fast = pm.load_cluster("dgx-a100", nodes=2, fabric="infiniband-xdr-fat-tree")
    own = pm.load_cluster("dgx-a100", nodes=2, fabric="infiniband-hdr-fat-tree")
    slow = pm.load_cluster("dgx-a100", nodes=2, fabric="infiniband-edr-fat-tree")
    times = [seconds("all_gather", 1e9, cluster, (0, 8)) for cluster in (fast, own, slow)]
    assert times[0] == pytest.approx(times[1], rel=0.01) and times[2] > 1.9 * times[1]


def test_pairs_of_links_and_what_crosses_them():
    node = pm.load_cluster("azure-nc96ads-a100-v4")
    two, four = (collective_time("all_reduce", 5e8, group_of(node, range(n))) for n in (2, 4))
    assert 180e9 < two.busbw < 300e9
    assert 20e9 < four.busbw < 31.5e9  # PCIe 4


def test_a_mixed_cluster_goes_at_the_pace_of_the_slower_nodes():
    mixed = pm.load_cluster("mixed-h100-a100")
    a100 = pm.load_cluster("dgx-a100", nodes=12, fabric="infiniband-hdr-rail")
    assert seconds("all_reduce", 1e9, mixed, range(96)) == seconds("all_reduce", 1e9, a100, range(96))


def test_sources_and_intervals(h100):
    def found(op, cluster, ranks, nbytes=1e8):
        return collective_time(op, nbytes, group_of(cluster, ranks))

    fitted = found("all_gather", h100, range(8))
    borrowed = found("all_gather", pm.load_cluster("aws-p5.48xlarge"), range(8))
    unseen = found("all_gather", h100, range(6))
    other = found("broadcast", h100, range(8))
    assumed = found("all_gather", h100, range(16))
    assert [one.source for one in (fitted, borrowed, unseen, other, assumed)] == [
        *("fitted", "borrowed", "fitted", "borrowed", "assumed")
    ]
    assert borrowed.time == fitted.time
    assert fitted.low < fitted.time < fitted.high
    assert borrowed.low < fitted.low and borrowed.high > fitted.high
    assert unseen.low < unseen.time < unseen.high
    assert assumed.low is None and assumed.high is None
    assert found("all_reduce", pm.load_cluster("server-a100-pcie-8x"), range(8)).low is None


def test_a_profiled_kernel_waits_for_the_last_rank(h100):
    group = group_of(h100, range(8))
    arrival = pm.load_node("dgx-h100").collectives.arrival
    small = collective_time("all_reduce", 1e4, group, timing="profiled")
    assert small.time == arrival > collective_time("all_reduce", 1e4, group).time
    assert (
        collective_time("all_reduce", 1e9, group, timing="profiled").time
        == collective_time("all_reduce", 1e9, group).time
    )
    assert small.low < small.time < small.high


def test_gloo_on_processors():
    cluster = pm.load_cluster("cpu-epyc-16")
    found = collective_time("all_reduce", 1e8, group_of(cluster, range(cluster.devices)))
    assert found.algorithm == "gloo"
    assert 0 < found.busbw < cluster.node.network_bandwidth


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda g: collective_time("allreduce", 1.0, g), UnknownNameError, "did you mean 'all_reduce'"),
        (lambda g: collective_time("all_reduce", -1.0, g), UnsupportedError, "bytes are 0 or more"),
        (lambda g: collective_time("all_reduce", 1.0, g, timing="host"), UnknownNameError, "device, profiled"),
        (lambda g: collective_time("send_recv", 1.0, g), UnsupportedError, "its sender and receiver"),
        (lambda g: collective_times("all_reduce", 1.0, network=g.network, local=0), UnsupportedError, "1 or more"),
        (
            lambda g: collective_times("all_reduce", 1.0, network=g.network, local=1, nodes=2),
            UnsupportedError,
            "load a",
        ),
    ],
)
def test_mistakes_are_one_line_with_a_cure(call, error, words):
    group = group_of(pm.load_cluster("dgx-h100"), range(8))
    with pytest.raises(error, match=words) as caught:
        call(group)
    assert "\n" not in str(caught.value)


def test_bus_factors_are_those_of_nccl_tests():
    assert [bus_factor(op, 8) for op in OPS] == [1.75, 0.875, 0.875, 0.875, 1.0, 1.0]


def test_paths_inside_and_between_nodes():
    cluster = pm.load_cluster("dgx-h100", nodes=64, fabric="infiniband-ndr-fat-tree-4to1")
    assert transfer_path(cluster, 1, 2) == ("node0.device1.nvlink4.out", "node0.device2.nvlink4.in")
    near, far = transfer_path(cluster, 1, 9), transfer_path(cluster, 1, 505)
    assert near == ("node0.port1.out", "node1.port1.in")
    assert far[0] == "node0.port1.out" and far[-1] == "node63.port1.in" and len(far) > 2
    assert [name.rpartition(".")[2] for name in far[1:-1]] == ["up", "down"]
    ports = 8 * link_capacity(cluster, near[0])
    reached = cluster.fabric.tiers[0].nodes
    assert link_capacity(cluster, far[1]) == pytest.approx(reached * ports / 4)
    assert transfer_path(pm.load_cluster("mi300x-cluster", nodes=1), 0, 3) == ("node0.device0-device3.xgmi",)
    for mistake in (lambda: transfer_path(cluster, 3, 3), lambda: transfer_path(cluster, 0, 512)):
        with pytest.raises(UnsupportedError):
            mistake()
    with pytest.raises(UnsupportedError, match="take names from transfer_path"):
        link_capacity(cluster, "node0.cable")


def test_a_torus_goes_the_shorter_way_round():
    pod = pm.load_cluster("google-tpu-v4-pod")
    shape = pod.fabric.torus.shape(pod.devices)
    last = shape[-1]
    assert len(transfer_path(pod, 0, last - 1)) == 1  # the ring closes
    assert len(transfer_path(pod, 0, last // 2)) == last // 2
    assert len(transfer_path(pod, 0, last + 1)) == 2
    assert link_capacity(pod, transfer_path(pod, 0, 1)[0]) == pod.fabric.bandwidth * pod.fabric.efficiency


def test_ranks_that_are_apart_on_an_axis_share_its_links():
    pod = pm.load_cluster("google-tpu-v4-pod")
    length = pod.fabric.torus.shape(pod.devices)[-1]
    whole, spread = (group_of(pod, range(0, length, step)) for step in (1, 4))
    assert (spread.shape[-1], spread.strides[-1], spread.wraps[-1]) == (length // 4, 4, True)
    large = [collective_time("all_gather", 4e9, group).time for group in (whole, spread)]
    assert large[1] == pytest.approx(4 * large[0], rel=0.4)  # a quarter of the bandwidth, less of the array to send
    # Four hops from one rank to the next: the way round is as long.
    small = [collective_time("all_gather", 8.0, group).time for group in (whole, spread)]
    assert small[1] == pytest.approx(small[0])
    for ranks in ((0, 1, 3), (0, 1, length)):
        with pytest.raises(UnsupportedError, match="don't form an even box"):
            group_of(pod, ranks)
    ends = group_of(pod, (0, length - 1))  # neighbours, since the axis closes
    assert collective_time("send_recv", 8.0, ends).time == pod.fabric.hop


@pytest.mark.parametrize("op", ["all_reduce", "all_gather", "all_to_all", "send_recv", "broadcast"])
def test_loads_take_no_longer_on_their_links_than_the_collective(h100, op):
    ranks = range(0, 16, 8) if op == "send_recv" else range(16)
    loads = link_loads(op, 1e9, h100, ranks)
    busiest = max(load.nbytes / load.capacity for load in loads)
    assert busiest <= 1.01 * seconds(op, 1e9, h100, ranks)
    ports = [load.nbytes for load in loads if ".port" in load.name and load.name.endswith("out")]
    if op in ("all_reduce", "all_gather"):  # a ring leaves each node once, over all ports alike
        assert sum(ports) == pytest.approx(2 * 1e9 * bus_factor(op, 16))
        assert len(set(np.round(ports))) == 1


MISTAKES = {
    "unknown operation 'all_gater'; did you mean 'all_gather'?": ("    all_gather:", "    all_gater:"),
    "outside": ("    all_gather:\n      startup: {value: ", "    all_gather:\n      startup: {value: 9 s, note: was "),
    "is more than the whole": ("large: {value: 0.", "large: {value: 7."),
    "every range but the last says below:": ("below: 8 MiB, ", ""),
    "exchange them": ("low: -0.", "low: 9."),
    "collectives of one device": ("devices: {value: 8,", "devices: {value: 1,"),
}


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes_in_a_file_are_found_with_line_and_column(words, tmp_path):
    text = Path(pm.load_node("dgx-h100").path).read_text(encoding="utf-8")
    right, wrong = MISTAKES[words]
    assert right in text
    changed = text.replace(right, wrong, 1)
    if words == "collectives of one device":
        start = changed.index("interconnect:")
        changed = changed[:start] + changed[changed.index("nics:") :]
    path = tmp_path / "dgx-h100.yaml"
    path.write_text(changed, encoding="utf-8")
    with pytest.raises(FileError, match=r"dgx-h100\.yaml:\d+:\d+: ") as caught:
        check_file(path)
    assert words in str(caught.value)


def test_no_operation_has_more_than_six_constants():
    for name in ("dgx-a100", "dgx-h100", "dgx-b200", "server-l40s-8x", "workstation-arc-pro-b60-4x"):
        for constants in pm.load_node(name).collectives.ops.values():
            values = [constants.startup, constants.step, constants.small, constants.fill, constants.large]
            assert len([value for value in (*values, constants.multicast, constants.contention) if value]) <= 6
