"""The catalogue against what other tools write about the same devices.

``hardware_crosscheck.csv`` holds figures of other projects' device tables. Where ours
differs by more than 2.5 %, ``crosscheck_explained.yaml`` says why, and who is right.
"""

import csv
from pathlib import Path

import pytest

from perfmodel.hardware import load_device
from perfmodel.yamlfile import parse_yaml

DATA = Path(__file__).parents[3] / "shared" / "data" / "hardware_crosscheck.csv"
EXPLAINED = Path(__file__).with_name("crosscheck_explained.yaml")
TOLERANCE = 0.025

NAMES = {
    "v100-sxm2-16gb": "nvidia-v100-sxm-16gb",
    "v100-sxm2-32gb": "nvidia-v100-sxm-32gb",
    "t4": "nvidia-t4",
    "a10g": "nvidia-a10g",
    "a40": "nvidia-a40",
    "l4": "nvidia-l4",
    "l40s": "nvidia-l40s",
    "a100-sxm4-40gb": "nvidia-a100-sxm-40gb",
    "a100-sxm4-80gb": "nvidia-a100-sxm-80gb",
    "a100-pcie-40gb": "nvidia-a100-pcie-40gb",
    "a100-pcie-80gb": "nvidia-a100-pcie-80gb",
    "h100-sxm5-80gb": "nvidia-h100-sxm-80gb",
    "h100-pcie-80gb": "nvidia-h100-pcie-80gb",
    "h200-sxm-141gb": "nvidia-h200",
    "b200-sxm": "nvidia-b200",
    "gb200": "nvidia-gb200",
    "b300-sxm": "nvidia-b300",
    "rtx3090": "nvidia-rtx-3090",
    "rtx4090": "nvidia-rtx-4090",
    "rtx5090": "nvidia-rtx-5090",
    "mi210": "amd-mi210",
    "mi250x": "amd-mi250x",
    "mi300x": "amd-mi300x",
    "mi325x": "amd-mi325x",
    "mi355x": "amd-mi355x",
    "tpu-v2": "google-tpu-v2",
    "tpu-v3": "google-tpu-v3",
    "tpu-v4": "google-tpu-v4",
    "tpu-v5e": "google-tpu-v5e",
    "tpu-v5p": "google-tpu-v5p",
    "tpu-v6e": "google-tpu-v6e",
    "tpu-v7": "google-tpu-v7x",
    "gaudi2": "intel-gaudi2",
    "gaudi3": "intel-gaudi3",
    "trainium1": "aws-trainium1",
    "trainium2": "aws-trainium2",
}

#: Figures of other tools that are known to be wrong.
ERRORS_OF_OTHERS = {
    ("nvidia-l4", "mem_bw_gbs"): 3350,
    ("nvidia-l4", "bf16"): 242,
    ("nvidia-l4", "int8"): 485,
    ("nvidia-h100-sxm-80gb", "fp32"): 33.5,
    ("nvidia-b200", "mem_gb"): 80,
    ("nvidia-b300", "int8"): 4500,
    ("nvidia-v100-sxm-16gb", "mem_gb"): 32,
    ("nvidia-a10g", "bf16"): 125,
    ("amd-mi210", "int8"): 362,
    ("amd-mi250x", "int8"): 766,
}

#: Figures about which sources disagree: the catalogue says so, and why it took its own.
DISPUTED = [
    ("nvidia-b300", "compute.matrix.peak.bf16"),
    ("nvidia-b300", "compute.matrix.peak.fp8"),
    ("nvidia-b300", "compute.matrix.peak.fp4"),
    ("nvidia-b300", "compute.matrix.peak.int8"),
    ("nvidia-b300", "memory[0].capacity"),
    ("nvidia-b300", "memory[0].bandwidth"),
    ("nvidia-b300", "power.tdp"),
    ("nvidia-b200", "memory[0].capacity"),
    ("nvidia-b200", "memory[0].bandwidth"),
    ("nvidia-l4", "memory[0].bandwidth"),
    ("intel-gaudi3", "compute.matrix.clock"),
]


@pytest.fixture(autouse=True)
def no_user_folders(monkeypatch):
    monkeypatch.delenv("PERFMODEL_HARDWARE", raising=False)


def ours(name, field):
    """The candidates for a field of the cross-check: sizes are given in powers of ten or of two, at will."""
    device = load_device(name)
    if field == "mem_gb":
        return (device.main_memory.capacity / 1e9, device.main_memory.capacity / 2**30)
    if field == "l2_mb":
        (cache,) = (level for level in device.memory if level.name == "l2")
        return (cache.capacity / 1e6, cache.capacity / 2**20)
    if field == "mem_bw_gbs":
        return (device.main_memory.bandwidth / 1e9,)
    if field == "sm_count":
        return (device.compute["vector"].count,)
    if field == "tdp_w":
        return (device.power.tdp,)
    return (device.compute["vector" if field == "fp32" else "matrix"].peak[field] / 1e12,)


def difference(name, field, theirs):
    return min(abs(value - theirs) / theirs for value in ours(name, field))


def crosscheck():
    if not DATA.is_file():
        pytest.skip(f"{DATA.name} is not beside this checkout (../shared/data)")
    with DATA.open(encoding="utf-8") as stream:
        return [
            (NAMES[row["device"]], row["field"], row["source"], float(row["theirs"])) for row in csv.DictReader(stream)
        ]


def explained():
    entries = parse_yaml(EXPLAINED.read_text(encoding="utf-8"), EXPLAINED.name).plain()["differences"]
    assert all(entry["why"].strip() for entry in entries)
    keys = [(entry["device"], entry["field"], entry["source"], float(entry["theirs"])) for entry in entries]
    assert len(set(keys)) == len(keys)
    return set(keys)


def test_every_difference_is_explained():
    rows = crosscheck()
    assert len(rows) > 350
    different = {row for row in rows if difference(*row[:2], row[3]) > TOLERANCE}
    assert sorted(different - explained()) == []


def test_every_explanation_has_a_difference():
    rows = set(crosscheck())
    for device, field, source, theirs in sorted(explained()):
        assert (device, field, source, theirs) in rows
        assert difference(device, field, theirs) > TOLERANCE


@pytest.mark.parametrize(("name", "field"), ERRORS_OF_OTHERS)
def test_known_errors_of_others_are_not_ours(name, field):
    assert difference(name, field, ERRORS_OF_OTHERS[name, field]) > 0.05


@pytest.mark.parametrize(("name", "place"), DISPUTED)
def test_disputed_figures_say_so(name, place):
    assert "disputed" in load_device(name).sources[place].note.lower()
