"""Listings: records, conditions, order, the copy kept on disk."""

import json

import pytest

from perfmodel.errors import FileError, UnknownNameError, UnsupportedError
from perfmodel.hardware import device_names, load_device
from perfmodel.hardware.listing import dimension_of, field, fields, matching, records, sorted_by


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PERFMODEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PERFMODEL_HARDWARE", raising=False)
    return tmp_path / "cache"


def test_the_kept_copy_is_what_loading_gives(cache):
    first = records()
    assert [record["name"] for record in first] == list(device_names())
    assert first[0] == json.loads(json.dumps(load_device(first[0]["name"]).to_dict()))
    kept = list(cache.glob("hardware-devices-*.json"))
    assert len(kept) == 1
    assert records() == json.loads(json.dumps(first))
    kept[0].write_text('[{"name": "from the copy"}]')
    assert records() == [{"name": "from the copy"}]
    kept[0].write_text("damaged")
    assert records() == first


def test_a_new_or_changed_file_is_seen(tmp_path, monkeypatch, cache):
    folder = tmp_path / "mine"
    folder.mkdir()
    monkeypatch.setenv("PERFMODEL_HARDWARE", str(folder))
    before = {record["name"] for record in records()}
    text = "schema: device/1\nname: mine\nbase: nvidia-h100-sxm-80gb\nvalidated: no\nyear: %d\n"
    (folder / "mine.yaml").write_text(text % 2030)
    assert {record["name"] for record in records()} - before == {"mine"}
    (folder / "mine.yaml").write_text(text % 20310)
    with pytest.raises(FileError, match="mine.yaml:5:7: year is '20310'"):
        records()
    (folder / "mine.yaml").unlink()
    assert {record["name"] for record in records()} == before
    assert len(list(cache.glob("*.json"))) == 1
    monkeypatch.setenv("PERFMODEL_HARDWARE", str(tmp_path / "absent"))
    with pytest.raises(FileError, match="is not a folder"):
        records()


def test_an_unwritable_cache_is_no_obstacle(monkeypatch):
    monkeypatch.setenv("PERFMODEL_CACHE", "/proc/nowhere")
    assert len(records("fabrics")) > 10


@pytest.mark.parametrize("what", ["nodes", "fabrics", "clusters"])
def test_other_kinds(what):
    found = records(what)
    assert len(found) > 10 and all(record["name"] for record in found)
    with pytest.raises(UnknownNameError, match="did you mean 'devices'"):
        records("device")


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("kind=gpu", lambda d: "gpu" in d.kind),
        ("kind!=gpu", lambda d: "gpu" not in d.kind),
        ("vendor = amd", lambda d: "AMD" in d.vendor),
        ("year>=2024", lambda d: d.year >= 2024),
        ("year<2020", lambda d: d.year < 2020),
        ("memory.capacity>=80GB", lambda d: d.main_memory.capacity >= 80e9),
        ("memory.hbm.bandwidth > 3 TB/s", lambda d: any(m.name == "hbm" and m.bandwidth > 3e12 for m in d.memory)),
        ("compute.matrix.peak.bf16>500TFLOP/s", lambda d: d.compute["matrix"].peak.get("bf16", 0) > 500e12),
        ("power.tdp<=75W", lambda d: d.power is not None and d.power.tdp <= 75),
        ("calibration.matmul.rate>0.8", lambda d: d.calibration["matmul"].rate > 0.8),
        ("runtimes=compiled", lambda d: any("compiled" in name for name in d.runtimes)),
        ("year=2022", lambda d: d.year == 2022),
    ],
)
def test_conditions(condition, holds):
    expected = {name for name in device_names() if holds(load_device(name))}
    assert {record["name"] for record in matching(records(), [condition])} == expected
    assert 0 < len(expected) < len(device_names())


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("kind", "'kind' is not a condition"),
        ("power.tpd>3W", "no entry has a field 'power.tpd'; did you mean 'power.tdp'"),
        ("power.tdp>3", "a unit is missing"),
        ("kind>gpu", "is not a number"),
        ("memory.capacity>80TB/s", "measures bytes/s, not bytes"),
    ],
)
def test_conditions_that_are_none(condition, words):
    with pytest.raises(UnsupportedError, match=words):
        matching(records(), [condition])


def test_order():
    rates = [field(record, "memory.bandwidth") for record in sorted_by(records(), "-memory.bandwidth")]
    assert rates == sorted(rates, reverse=True)
    idle = [field(record, "power.idle") for record in sorted_by(records(), "power.idle")]
    known = [value for value in idle if value is not None]
    assert idle[: len(known)] == sorted(known) and set(idle[len(known) :]) == {None}
    names = [record["name"] for record in sorted_by(records(), "-name")]
    assert names == sorted(names, reverse=True)
    with pytest.raises(UnsupportedError, match="no entry has a field 'nme'; did you mean 'name'"):
        sorted_by(records(), "nme")


def test_every_field_is_found():
    record = records()[0]
    for path in fields(record):
        field(record, path)  # no path of a record is an error
    assert field(record, "memory.9.capacity") is None
    assert field(record, "nothing.at.all") is None
    assert "memory.hbm.bandwidth" in fields(load_device("h100").to_dict())


def test_dimensions():
    assert dimension_of("links.nvlink4.bandwidth") == "bytes/s"
    assert dimension_of("calibration.softmax.latency") == "s"
    assert dimension_of("failures.device") == "s"
    assert dimension_of("prices.0.rate") == "USD/s"
    assert dimension_of("name") is None
