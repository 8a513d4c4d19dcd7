"""The device type and the file form."""

import re
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from perfmodel.errors import FileError, PerfModelError, UnsupportedError
from perfmodel.hardware import Device, check_file, load_device
from perfmodel.hardware.device import group_of
from perfmodel.ops.cost import FAMILIES

EXAMPLE = re.search(
    r"```yaml\n(.*?)```", (Path(__file__).parents[2] / "docs" / "hardware.md").read_text(encoding="utf-8"), re.DOTALL
)
assert EXAMPLE is not None
TEXT = EXAMPLE.group(1)


@pytest.fixture
def path(tmp_path):
    def write(text=TEXT):
        file = tmp_path / "device.yaml"
        file.write_text(text, encoding="utf-8")
        return file

    return write


def changed(old, new):
    assert old in TEXT
    return TEXT.replace(old, new, 1)


def test_the_example_of_the_docs_loads_and_is_short(path):
    device = load_device(path())
    assert len(TEXT.splitlines()) < 40
    assert device.name == "my-accelerator"
    assert device.peak("matrix", "bfloat16") == 400e12
    assert device.main_memory.capacity == 96e9
    assert device.asynchronous
    assert device.constants("matmul").latency == 3e-6
    assert device.sources["memory[0].bandwidth"].url == "https://example.com/brochure"
    assert device.power is None and device.prices == () and device.host_link is None


def test_everything_optional_is_read(path):
    text = changed(
        "citations:",
        "aliases: [mine]\n"
        "links:\n"
        "  - {name: ring, count: 6, bandwidth: {value: 50 GB/s, source: datasheet, cite: brochure, confidence: B}}\n"
        "host_link: {name: pcie, bandwidth: {value: 63 GB/s, source: datasheet, cite: brochure, confidence: B}}\n"
        "power:\n"
        "  tdp: {value: 700 W, source: datasheet, cite: brochure, confidence: B}\n"
        "  idle: {value: 90 W, source: measured, cite: brochure, confidence: B}\n"
        "price:\n"
        "  - {value: 3.6 USD/h, date: 2026-05, what: rent, source: measured, cite: brochure, confidence: B}\n"
        "citations:",
    ).replace(
        "  vector:\n    peak:",
        "    count: {value: 128, source: datasheet, cite: brochure, confidence: B}\n"
        "    clock: {value: 1.5 GHz, source: datasheet, cite: brochure, confidence: B}\n"
        "    tile: {m: 8, n: 128, k: 128}\n"
        "    sparse:\n"
        "      bf16: {value: 800 TFLOP/s, source: datasheet, cite: brochure, confidence: B}\n"
        "  vector:\n    peak:",
        1,
    )
    device = load_device(path(text))
    assert device.links[0].total == 300e9
    assert device.host_link is not None and device.host_link.total == 63e9
    assert device.power is not None and (device.power.tdp, device.power.idle) == (700, 90)
    assert (device.prices[0].rate, device.prices[0].date) == (0.001, "2026-05")
    matrix = device.compute["matrix"]
    assert (matrix.count, matrix.clock, matrix.tile) == (128, 1.5e9, (8, 128, 128))
    assert device.peak("matrix", "bfloat16") == 400e12  # the sparse peak is never used
    assert Device.from_dict(device.to_dict()) == device


def test_dict_form_is_versioned(path):
    form = load_device(path()).to_dict()
    assert Device.from_dict(form).to_dict() == form
    with pytest.raises(PerfModelError, match="version 99 can't be read"):
        Device.from_dict(form | {"version": 99})


def test_devices_are_frozen(path):
    with pytest.raises(FrozenInstanceError):
        load_device(path()).name = "other"  # type: ignore[misc]


def test_a_family_overrides_its_group(path):
    entry = "{value: 20%, source: assumed, confidence: D, note: x}"
    softmax = f"  softmax:\n    rate: {entry}\n    bandwidth: {entry}\n    latency: {entry.replace('20%', '1 us')}\n"
    device = load_device(path(changed("citations:", softmax + "citations:")))
    assert device.constants("softmax").rate == 0.2
    assert device.constants("norm").rate == 0.5


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_constants(path, family):
    device = load_device(path())
    assert device.constants(family) == device.calibration[group_of(family)]


def test_an_unknown_family_is_an_error(path):
    with pytest.raises(UnsupportedError, match="op family 'fft' is unknown"):
        load_device(path()).constants("fft")


def test_a_missing_arithmetic_names_what_exists_and_the_cure(path):
    device = load_device(path())
    with pytest.raises(UnsupportedError, match=r"no fp16 .* \(it has fp32, bf16\); use bfloat16 or float32"):
        device.peak("matrix", "float16")
    with pytest.raises(UnsupportedError, match="no tf32"):
        device.peak("matrix", "tf32")
    with pytest.raises(UnsupportedError, match="no unit 'tensor'; it has matrix, vector"):
        device.peak("tensor", "float32")


@pytest.mark.parametrize("dtype", ["int64", "int32", "int8", "uint8", "bool"])
def test_integers_of_element_wise_ops_run_at_the_rate_of_int32(path, dtype):
    assert load_device(path()).peak("vector", dtype) == 12.5e12


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("schema: device/1", "schema: node/1", "1:9: schema is 'node/1'; .*device/1"),
        ("name: my-accelerator", "name: My_Accelerator", "2:7: name: 'My_Accelerator' is not a name"),
        (
            "execution: asynchronous",
            "execution: asynchronus",
            "execution is 'asynchronus'; did you mean 'asynchronous'",
        ),
        ("runtimes: [compiled]", "runtimes: []", "runtimes is a list: list should have at least 1 item"),
        ("year: 2026", "year: 2026.5", "year is the number 2026.5, not a whole number"),
        (
            "      bf16: {value: 400",
            "      bf61: {value: 400",
            "13:7: unknown key 'bf61' in compute.matrix.peak; did you mean 'bf16'",
        ),
        ("  matmul:\n", "  matmull:\n", "unknown op family 'matmull'; did you mean 'matmul'"),
        ("value: 75%", "value: 175%", "calibration.matmul.rate.value: '175%' is more than the whole"),
        ("value: 400 TFLOP/s", "value: 400 TFLOP", "unit 'TFLOP' measures FLOP, not FLOP/s"),
        ("vendor: Example\n", "", "key 'vendor' is missing; add it"),
        ("vendor: Example", "vendor: ''", "vendor is '': string should have at least 1 character"),
    ],
)
def test_mistakes_are_refused(path, old, new, words):
    with pytest.raises(FileError, match=words):
        load_device(path(changed(old, new)))


def test_each_group_is_needed(path):
    start, end = TEXT.index("  attention:"), TEXT.index("  vector:\n    rate")
    with pytest.raises(FileError, match="calibration: group 'attention' is missing"):
        load_device(path(TEXT[:start] + TEXT[end:]))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "3.2 TB/s",
            "3.2 PB/s",
            r"memory\[0\].bandwidth: compute.matrix.peak.bf16 over this bandwidth is 0.125 FLOP/byte",
        ),
        ("3.2 TB/s", "3.2 GB/s", r"1.25e\+05 FLOP/byte, outside 1 to 2000; check both units and the factor of 1000"),
        ("3.2 TB/s", "3.2 kB/s", r"3.2 kB/s is outside 10 MB/s to 50 PB/s"),
        ("96 GB", "96 kB", r"memory\[0\].capacity: 96 kB is outside 16 MB to 100 TB"),
        ("400 TFLOP/s", "400 PFLOP/s", "compute.matrix.peak.bf16: 400 PFLOP/s is outside"),
        ("fp32: {value: 12.5 TFLOP/s", "fp32: {value: 12.5 PFLOP/s", "compute.vector.peak.bf16: 0.001 of fp32"),
        ("3 us", "3 s", "calibration.matmul.latency: 3 s is outside 1 ns to 10 ms"),
        ("75%", "0%", "calibration.matmul.rate: 0 is outside 0.001 to 1"),
    ],
)
def test_slips_by_a_thousand_are_caught(path, old, new, words):
    with pytest.raises(FileError, match=words):
        load_device(path(changed(old, new)))


def test_levels_go_from_far_to_near(path):
    number = "source: assumed, confidence: D, note: x"
    near = f"  - name: sram\n    capacity: {{value: 50 MB, {number}}}\n    bandwidth: {{value: 20 TB/s, {number}}}\n"
    assert [level.name for level in load_device(path(changed("calibration:", near + "calibration:"))).memory] == [
        "hbm",
        "sram",
    ]
    for old, new, words in [
        ("20 TB/s", "2 TB/s", "'sram' is slower than 'hbm'"),
        ("50 MB", "50 TB", "50 TB is outside"),
        ("name: sram", "name: hbm", "level 'hbm' comes twice"),
    ]:
        with pytest.raises(FileError, match=words):
            load_device(path(changed("calibration:", near.replace(old, new) + "calibration:")))


def test_check_grades_the_sources(path):
    summary, *warnings = check_file(path(changed("  brochure:", "  unused: {title: Unused}\n  brochure:")))
    assert summary == "my-accelerator: 16 numbers: 11 assumed, 5 datasheet; confidence B 31 %, D 69 %"
    assert warnings == [
        "citation 'unused' is not used by any number",
        "no power: energy can't be predicted",
        "no price: cost can't be predicted",
    ]
