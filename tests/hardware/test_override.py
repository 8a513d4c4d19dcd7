"""Hypothetical devices: single values changed by dotted path."""

import json

import pytest

import perfmodel as pm
from perfmodel.errors import UnsupportedError
from perfmodel.hardware import Device, load_device
from perfmodel.hardware.override import parse_assignment

H100 = load_device("h100")


@pytest.mark.parametrize(
    ("path", "value", "read"),
    [
        ("memory.hbm.bandwidth", "4 TB/s", lambda d: d.memory[0].bandwidth == 4e12),
        ("memory[0].bandwidth", "4TB/s", lambda d: d.memory[0].bandwidth == 4e12),
        ("memory.bandwidth", "4 TB/s", lambda d: d.memory[0].bandwidth == 4e12),
        ("memory.l2.capacity", "100 MB", lambda d: d.memory[1].capacity == 1e8),
        ("links.nvlink4.bandwidth", "100 GB/s", lambda d: d.links[0].bandwidth == 1e11),
        ("links.count", 9, lambda d: d.links[0].count == 9),
        ("host_link.bandwidth", "250 GB/s", lambda d: d.host_link.bandwidth == 2.5e11),
        ("compute.matrix.peak.bf16", "2 PFLOP/s", lambda d: d.peak("matrix", "bfloat16") == 2e15),
        ("compute.matrix.peak.fp4", "4 PFLOP/s", lambda d: d.peak("matrix", "fp4") == 4e15),
        ("calibration.matmul.rate", "90%", lambda d: d.constants("matmul").rate == 0.9),
        ("calibration.matmul.rate", 0.9, lambda d: d.constants("matmul").rate == 0.9),
        ("power.idle", "50 W", lambda d: d.power.idle == 50),
        ("price[0]", "2 USD/h", lambda d: d.prices[0].rate == 2 / 3600 and d.prices[0].date == H100.prices[0].date),
        ("year", "2027", lambda d: d.year == 2027),
        ("execution", "synchronous", lambda d: not d.asynchronous),
        ("runtimes", ["eager"], lambda d: d.runtimes == ("eager",)),
        ("power", None, lambda d: d.power is None),
        ("compute.matrix.peak.fp8", "null", lambda d: "fp8" not in d.compute["matrix"].peak),
    ],
)
def test_a_value_is_changed(path, value, read):
    changed = H100.override({path: value})
    assert read(changed)
    assert changed.compute != H100.compute or not read(H100)
    assert changed.overrides == {path: value}
    assert load_device("h100", overrides={path: value}) == changed
    assert Device.from_dict(json.loads(json.dumps(changed.to_dict()))).overrides == {path: value}


def test_it_is_an_assumption_that_says_what_was_there():
    source = H100.override({"memory.hbm.bandwidth": "4 TB/s"}).sources["memory[0].bandwidth"]
    assert (source.source, source.confidence, source.title) == ("assumed", "D", "")
    assert source.note == "override; was 3.35 TB/s (datasheet)"
    assert H100.override({"power.idle": "50 W"}).sources["power.idle"].note == "override; was not stated"


def test_overrides_add_up():
    twice = H100.override({"memory.bandwidth": "4 TB/s"}).override({"power.tdp": "1 kW"})
    assert twice.main_memory.bandwidth == 4e12 and twice.power is not None and twice.power.tdp == 1000
    assert set(twice.overrides) == {"memory.bandwidth", "power.tdp"}
    assert twice.override({"memory.bandwidth": "5 TB/s"}).main_memory.bandwidth == 5e12


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("memory.hbm2.bandwidth", "4 TB/s", "no entry 'hbm2'; did you mean 'hbm'"),
        ("memory.hbm.bandwith", "4 TB/s", "no 'bandwith' in memory.hbm; did you mean 'bandwidth'"),
        ("memory.hbm.bandwidth", "4 TB", "'4 TB': unit 'TB' measures bytes, not bytes/s"),
        ("memory.hbm.bandwidth", 4e12, "a unit is missing"),
        ("memory.hbm.bandwidth", "4 PB/s", "check both units and the factor of 1000"),
        ("memory.hbm.bandwidth", "0 B/s", "is outside"),
        ("memory.hbm.bandwidth.value", "4 TB/s", "memory.hbm.bandwidth is a value; end the path there"),
        ("memory.hbm", "4 TB/s", "is not a single value; go on with one of name, capacity, bandwidth"),
        ("memory[7].capacity", "4 GB", "there are 2 entries; count from 0"),
        ("price.2026", "4 USD/h", "no entry '2026'"),
        ("compute.tensor.peak.bf16", "4 TFLOP/s", "no 'tensor' in compute"),
        ("power.idel", None, "no 'idel' in power; did you mean 'idle'"),
        ("power.idle", None, "there is nothing to remove"),
        ("name", "New Name", "'New Name' is not a name"),
        ("year", "soon", "year is text 'soon'"),
        ("", "3", "is not a path"),
    ],
)
def test_a_wrong_override_is_refused(path, value, words):
    with pytest.raises(UnsupportedError) as caught:
        H100.override({path: value})
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_device_without_a_file_has_nothing_to_override():
    with pytest.raises(UnsupportedError, match="wasn't loaded from a file"):
        Device.from_dict(H100.to_dict() | {"path": ""}).override({"power.tdp": "1 kW"})


def test_assignments_of_the_command_line():
    assert parse_assignment("device.power.tdp = 1 kW") == ("device.power.tdp", "1 kW")
    for text in ("device.power.tdp", "=3", "a=", ""):
        with pytest.raises(UnsupportedError, match="is not path=value"):
            parse_assignment(text)


def test_a_prediction_names_the_overrides(tmp_path):
    graph = pm.capture("gpt2", batch=2, seq_len=64, layers=1, optimizer=None, implementation="reference")
    plain = pm.predict(graph, "h100", runtime="graph-replay")
    faster = pm.predict(graph, H100.override({"memory.hbm.bandwidth": "6 TB/s"}), runtime="graph-replay")
    assert faster.step_time < plain.step_time
    assert "nvidia-h100-sxm-80gb with overrides: memory.hbm.bandwidth = 6 TB/s" in faster.notes
