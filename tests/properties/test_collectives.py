"""Laws that hold for every collective on every link."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import perfmodel as pm
from perfmodel.hardware.files import index
from perfmodel.timing.collectives import OPS, collective_time, collective_times, group_of, network_of, torus_time

NODES = [name for name in sorted(index("node")) if pm.load_node(name).devices > 1]
CLUSTERS = ("dgx-h100", "dgx-a100", "amd-mi300x-platform", "server-l40s-8x", "gb200-nvl72", "intel-gaudi3-8x")
SIZES = np.logspace(1, 10.5, 400)


@pytest.mark.parametrize("name", NODES)
@pytest.mark.parametrize("op", OPS)
def test_time_grows_with_size_and_no_link_is_beaten(name, op):
    cluster = pm.load_cluster(name)
    network = network_of(cluster)
    if network.fabric is not None and network.fabric.torus is not None:
        return  # below
    counts = [2] if op == "send_recv" else sorted({2, cluster.devices})
    for count in counts:
        time = collective_times(op, SIZES, network=network, local=count).time
        assert np.all(np.diff(time) >= 0) and np.all(time > 0)
        # What each rank has to send at least: with a switch that adds, its data once.
        least = {"send_recv": 1.0, "broadcast": 1.0, "all_reduce": 1.0}.get(op, (count - 1) / count)
        assert np.all(time >= least * SIZES / cluster.node.interconnect.bandwidth)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(CLUSTERS),
    op=st.sampled_from(OPS),
    nbytes=st.floats(1, 1e10),
    nodes=st.integers(1, 30),
    local=st.integers(1, 8),
    factor=st.floats(1.0, 16.0),
)
def test_faster_links_are_never_slower(name, op, nbytes, nodes, local, factor):
    if nodes * local < 2:
        return
    if op == "send_recv":
        nodes, local = (2, 1) if nodes > 1 else (1, 2)
    plain = pm.load_cluster(name, nodes=30)
    node, fabric = plain.node, plain.fabric
    fast = pm.load_cluster(
        name,
        nodes=30,
        overrides={
            "node.interconnect.bandwidth": f"{node.interconnect.bandwidth / factor:.6g} B/s",
            "fabric.link.bandwidth": f"{fabric.bandwidth / factor:.6g} B/s",
        },
    )
    before, after = (
        collective_times(op, nbytes, network=network_of(cluster), local=local, nodes=nodes).time
        for cluster in (fast, plain)
    )
    assert after <= before * (1 + 1e-5)


@settings(max_examples=100, deadline=None)
@given(
    op=st.sampled_from(OPS),
    nbytes=st.floats(1, 1e10),
    shape=st.lists(st.integers(1, 16), min_size=1, max_size=3),
    wraps=st.lists(st.booleans(), min_size=3, max_size=3),
)
def test_a_closed_axis_is_never_slower_than_an_open_one(op, nbytes, shape, wraps):
    rings = tuple(wraps[: len(shape)])
    some = torus_time(op, nbytes, tuple(shape), rings, bandwidth=5e10, hop=1e-6)
    closed = torus_time(op, nbytes, tuple(shape), (True,) * len(shape), bandwidth=5e10, hop=1e-6)
    assert closed <= some
    assert some == torus_time(op, nbytes, (*shape, 1), (*rings, False), bandwidth=5e10, hop=1e-6)


def test_any_order_of_ranks_is_the_same_group():
    cluster = pm.load_cluster("dgx-h100", nodes=4)
    ranks = [0, 3, 9, 17, 25, 30]
    times = {collective_time("all_gather", 1e7, group_of(cluster, order)).time for order in (ranks, ranks[::-1])}
    assert len(times) == 1
