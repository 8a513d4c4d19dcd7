"""Nodes, fabrics and clusters: the shipped ones, putting them together, their file forms."""

import json
from pathlib import Path

import pytest

import perfmodel as pm
from perfmodel.errors import FileError, PerfModelError, UnknownNameError, UnsupportedError
from perfmodel.hardware import Cluster, Fabric, Node, Torus, check_file, load_cluster, load_fabric, load_node
from perfmodel.hardware.files import hardware_roots, index
from perfmodel.hardware.standards import standard_rate

SPECS = Path(__file__).parents[2] / "hardware_specs"
FILES = sorted(path for kind in ("nodes", "fabrics", "clusters") for path in (SPECS / kind).glob("*.yaml"))
NODES, FABRICS, CLUSTERS = (sorted(index(kind)) for kind in ("node", "fabric", "cluster"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_shipped_file_is_right_and_named_after_what_it_describes(path):
    summary, *remarks = check_file(path)
    assert summary.startswith(f"{path.stem}: ") and remarks == []


def test_the_machines_that_people_think_of_are_there():
    wanted = (
        "dgx-1v dgx-2 dgx-a100 dgx-h100 dgx-h200 dgx-b200 dgx-b300 gb200-nvl72 gb300-nvl72 p4d p5 p5en a3-mega "
        "nd-h100-v5 hgx-h100 amd-mi300x-platform amd-mi355x-platform gaudi2-hls trn1 trn2 google-tpu-v5p-host "
        "amd-epyc-9654-1s amd-epyc-9654-2s workstation-rtx-4090-2x server-alveo-u55c-8x"
    )
    for name in wanted.split():
        assert load_node(name).devices >= 1
    links = {load_fabric(name).link for name in FABRICS}
    assert {f"infiniband-{rate}" for rate in ("edr", "hdr", "ndr", "xdr")} <= links
    assert {"slingshot-11", "omni-path-100", "ici", "efa-400", "roce-400", "ethernet-1", "ethernet-800"} <= links
    assert {load_fabric(name).topology for name in FABRICS} == {"switch", "fat-tree", "dragonfly", "torus"}
    assert any(load_cluster(name).mixed for name in CLUSTERS)


@pytest.mark.parametrize("name", NODES)
def test_a_node_is_no_faster_than_its_devices_links(name):
    node = load_node(name)
    assert Node.from_dict(json.loads(json.dumps(node.to_dict()))) == node
    assert node.path and node.fabric in FABRICS
    if node.interconnect is None or node.interconnect.topology == "host" or not node.device.links:
        return
    total = sum(link.total for link in node.device.links)
    assert node.interconnect.bandwidth <= 1.02 * total, "the links of one device, all together, in one direction"
    assert node.interconnect.bandwidth >= 0.4 * total


@pytest.mark.parametrize("name", FABRICS)
def test_a_fabric_carries_what_its_standard_does(name):
    fabric = load_fabric(name)
    assert Fabric.from_dict(json.loads(json.dumps(fabric.to_dict()))) == fabric
    if fabric.topology == "torus":
        assert standard_rate(fabric.link) is None
        generation = name.removeprefix("google-ici-")
        device = pm.load_device(f"google-tpu-{generation}")
        link = next(link for link in device.links if link.name == "ici")
        assert fabric.bandwidth == link.bandwidth and fabric.torus is not None
        assert link.count == 2 * len(fabric.torus.dims)
        return
    assert fabric.bandwidth == pytest.approx(standard_rate(fabric.link), rel=0.01)
    assert fabric.tier(1) == 0
    assert fabric.oversubscription(0) == 1


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_cluster_fits_its_fabric(name):
    cluster = load_cluster(name)
    assert Cluster.from_dict(json.loads(json.dumps(cluster.to_dict()))) == cluster
    assert cluster.fabric is not None
    if cluster.fabric.torus is not None:
        shape = cluster.fabric.torus.shape(cluster.devices)
        assert all(size <= limit for size, limit in zip(shape, sorted(cluster.fabric.torus.dims), strict=True))
    else:
        assert 0 <= cluster.fabric.tier(cluster.nodes) < len(cluster.fabric.tiers)


def test_a_cluster_of_nodes():
    cluster = pm.load_cluster("dgx-h100", nodes=16)
    assert (cluster.nodes, cluster.devices, cluster.device.name) == (16, 128, "nvidia-h100-sxm-80gb")
    assert cluster.fabric is not None and cluster.fabric.name == "infiniband-ndr-rail" and cluster.fabric.rails
    assert cluster.node.network_bandwidth == 8 * 50e9
    assert pm.load_cluster("hgx-h100").nodes == 1
    assert pm.load_cluster("dgx-h100", nodes=2, fabric="roce-100-rail").fabric.bandwidth == 12.5e9
    assert pm.load_cluster("dgx-h100-superpod").nodes == 128
    assert pm.load_cluster("dgx-h100-superpod", nodes=4).devices == 32


def test_a_mixed_cluster():
    cluster = load_cluster("mixed-h100-a100")
    assert [(group.name, group.nodes, group.devices) for group in cluster.groups] == [("fast", 4, 32), ("slow", 8, 64)]
    assert cluster.mixed and cluster.devices == 96
    with pytest.raises(UnsupportedError, match=r"nodes of several kinds \(dgx-h100, dgx-a100\)"):
        _ = cluster.device
    with pytest.raises(UnsupportedError, match="2 groups of nodes"):
        load_cluster("mixed-h100-a100", nodes=3)
    with pytest.raises(UnsupportedError, match="nodes are of several kinds"):
        load_cluster("mixed-h100-a100", overrides={"device.power.tdp": "1 kW"})


def test_prices_places_and_failures():
    cluster = load_cluster("llama3-16k")
    assert cluster.devices == 16384
    assert cluster.location is not None and cluster.location.pue == 1.08
    assert cluster.location.carbon == pytest.approx(0.369 / 3.6e6)
    assert cluster.failures is not None and cluster.failures.device is not None
    # 148 faulty devices and 72 faulty memories in 54 days.
    assert 54 * 86400 * 16384 / cluster.failures.device == pytest.approx(220, rel=0.01)
    assert cluster.prices[0].rate == pytest.approx(2.95 / 3600)


def test_overrides_reach_the_parts():
    changes = {
        "device.memory.hbm.bandwidth": "5 TB/s",
        "node.nics[0].count": 4,
        "node.interconnect.bandwidth": "900 GB/s",
        "fabric.link.bandwidth": "100 GB/s",
        "fabric.tiers.leaf.oversubscription": 2,
    }
    cluster = load_cluster("dgx-h100", nodes=64, overrides=changes)
    assert cluster.device.main_memory.bandwidth == 5e12
    assert cluster.node.nics[0].count == 4 and cluster.node.interconnect.bandwidth == 9e11
    assert cluster.fabric.bandwidth == 1e11 and cluster.fabric.oversubscription(1) == 2
    assert cluster.overrides == changes
    assert load_cluster("dgx-h100-superpod", overrides={"location.pue": 1.3}).location.pue == 1.3
    for changes, words in [
        ({"memory.bandwidth": "5 TB/s"}, "write device.…, node.… or fabric.… before the path"),
        ({"node.nic.count": 3}, "no 'nic' in the description; did you mean 'nics'"),
        ({"device.memory.bandwidth": "5 GB/s"}, "check both units"),
    ]:
        with pytest.raises(UnsupportedError, match=words):
            load_cluster("dgx-h100", overrides=changes)


def test_names_that_are_none():
    with pytest.raises(UnknownNameError, match="unknown cluster 'dgx-h10'; did you mean .*dgx-h100"):
        load_cluster("dgx-h10")
    with pytest.raises(UnknownNameError, match="unknown node 'dgx-h10'; did you mean"):
        load_node("dgx-h10")
    with pytest.raises(UnknownNameError, match="unknown fabric 'infiniband-nrd-rail'; did you mean"):
        load_cluster("dgx-h100", nodes=2, fabric="infiniband-nrd-rail")
    for nodes in (0, -1, 2.5, True):
        with pytest.raises(UnsupportedError, match="is not a number of nodes"):
            load_cluster("dgx-h100", nodes=nodes)


@pytest.mark.parametrize(
    ("devices", "shape", "rings"),
    [(4096, (16, 16, 16), 3), (512, (8, 8, 8), 3), (128, (4, 4, 8), 3), (64, (4, 4, 4), 3), (4, (1, 2, 2), 0)],
)
def test_slices_of_a_torus(devices, shape, rings):
    torus = Torus(dims=(16, 20, 28), wrap=4)
    assert torus.shape(devices) == shape
    assert sum(torus.wraps(size) for size in shape) == rings


def test_slices_that_are_none():
    with pytest.raises(UnsupportedError, match="don't make a box in a torus of 16 x 16"):
        Torus(dims=(16, 16), wrap=16).shape(2 * 131)
    assert Torus(dims=(16, 16), wrap=0).wraps(16) is False


def test_tiers():
    fabric = load_fabric("infiniband-ndr-fat-tree-4to1")
    leaf = fabric.tiers[0].nodes
    assert leaf is not None and fabric.tier(leaf) == 0 and fabric.tier(leaf + 1) == 1
    assert fabric.oversubscription(0) == 1 and fabric.oversubscription(1) == 4
    with pytest.raises(UnsupportedError, match="it has axes, not tiers"):
        load_fabric("google-ici-v4").tier(2)
    with pytest.raises(UnsupportedError, match="connects 48 nodes, not 49"):
        load_fabric("ethernet-10-switch").tier(49)


def test_a_folder_of_ones_own(tmp_path):
    """A hypothetical cluster is files in one folder that name each other."""
    device = tmp_path / "h900.yaml"
    device.write_text(
        "schema: device/1\nname: h900\nbase: nvidia-h100-sxm-80gb\nvalidated: no, it doesn't exist\n"
        "power: {tdp: {value: 900 W, source: assumed, confidence: D, note: a guess}}\n"
    )
    node = tmp_path / "big.yaml"
    node.write_text(
        "schema: node/1\nname: big\nbase: dgx-h100\ndevice: h900\n"
        "devices: {value: 16, source: assumed, confidence: D, note: twice as many}\n"
    )
    cluster = tmp_path / "mine.yaml"
    cluster.write_text("schema: cluster/1\nname: mine\nnode: big\nnodes: 3\n")
    loaded = load_cluster(cluster)
    assert (loaded.devices, loaded.device.power.tdp, loaded.fabric.name) == (48, 900, "infiniband-ndr-rail")
    assert check_file(cluster) == ["mine: 0 numbers"]
    cluster.write_text("schema: cluster/1\nname: mine\nnode: bug\nnodes: 3\n")
    with pytest.raises(UnknownNameError, match="unknown node 'bug'"):
        load_cluster(cluster)


def test_several_nodes_need_a_fabric(tmp_path):
    text = (SPECS / "nodes" / "desktop-pc.yaml").read_text().replace("fabric: ethernet-1-switch\n", "")
    (tmp_path / "alone.yaml").write_text(text.replace("desktop-pc", "alone").replace("aliases: [desktop]\n", ""))
    (tmp_path / "farm.yaml").write_text("schema: cluster/1\nname: farm\nnode: alone\nnodes: 2\n")
    with pytest.raises(
        UnsupportedError, match="farm has several nodes, but no fabric; name one of .*ethernet-1-switch"
    ):
        load_cluster(tmp_path / "farm.yaml")
    assert load_cluster(tmp_path / "farm.yaml", nodes=1).fabric is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("node: dgx-h100\n", "node: and nodes: go together"),
        ("nodes: 3\n", "write either node: and nodes:, or groups:"),
        ("node: dgx-h100\nnodes: 1\ngroups: [{node: dgx-h100, nodes: 2}]\n", "write either"),
        ("groups: [{node: a, nodes: 1}, {node: a, nodes: 2}]\n", r"groups\[1\]: group 'a' comes twice"),
        ("node: dgx-h100\nnodes: 0\n", "nodes is '0'"),
    ],
)
def test_cluster_files_that_contradict_themselves(tmp_path, text, words):
    path = tmp_path / "cluster.yaml"
    path.write_text("schema: cluster/1\nname: mine\n" + text)
    with pytest.raises(FileError, match=words):
        load_cluster(path)


def test_dict_forms_are_versioned():
    for kind, thing in ((Node, load_node("dgx-2")), (Fabric, load_fabric("efa-v2-fat-tree"))):
        with pytest.raises(PerfModelError, match="version 9 can't be read"):
            kind.from_dict(thing.to_dict() | {"version": 9})


def test_only_names_that_mean_several_devices_are_claimed_twice():
    for kind in ("device", "node", "fabric", "cluster"):
        entries = index(kind)
        claimed = [alias for entry in entries.values() for alias in entry.aliases]
        several = {"a100", "v100"} if kind == "device" else set()
        assert {name for name in claimed if claimed.count(name) > 1} == several
        assert not set(claimed) & set(entries)
    assert len(hardware_roots()) >= 1
