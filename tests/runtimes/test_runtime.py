"""Runtimes as data."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest

from perfmodel.errors import FileError, UnknownNameError
from perfmodel.hardware import device_names, load_device
from perfmodel.runtimes import HostCost, Runtime, load_runtime, runtime_names

FOLDER = Path(__file__).parents[2] / "perfmodel" / "runtimes"


@pytest.mark.parametrize("name", runtime_names())
def test_every_runtime_loads_round_trips_and_has_a_source_for_every_number(name: str) -> None:
    runtime = load_runtime(name)
    assert runtime.name == name
    assert Runtime.from_dict(runtime.to_dict()) == runtime
    assert set(runtime.sources) == {f"host.{field.name}" for field in fields(HostCost)}
    assert all(source.title or source.note for source in runtime.sources.values())


def test_devices_name_runtimes_that_exist() -> None:
    for device in device_names():
        assert set(load_device(device).runtimes) <= set(runtime_names()), device


def test_a_runtime_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        load_runtime("eager").name = "mine"  # type: ignore[misc]


def test_another_version_is_refused() -> None:
    with pytest.raises(FileError, match="version 3"):
        Runtime.from_dict({**load_runtime("eager").to_dict(), "version": 3})


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'eager'"):
        load_runtime("eagre")


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        (FOLDER / "eager.yaml").read_text(encoding="utf-8").replace("name: eager", "name: mine"), encoding="utf-8"
    )
    assert load_runtime(path).name == "mine"
    assert load_runtime(str(path)).host == load_runtime("eager").host


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("optimizer:", "optimiser:", r"runtime\.yaml:\d+:1: unknown key 'optimiser'; did you mean 'optimizer'"),
        ("value: 8 us", "value: 8 GB", r"runtime\.yaml:\d+:\d+: .*GB"),
        ("value: 8 us", "value: -8 us", r"runtime\.yaml:\d+:\d+: "),
        ("attention: as-captured", "attention: unfusd", r"did you mean 'unfused'"),
        ("traffic: eager", "traffic: fusd", r"did you mean 'fused'"),
        ("traffic: eager\n", "", r"key 'traffic' is missing"),
        ("  view:", "  # view:", r"key 'view' is missing"),
    ],
)
def test_a_mistake_is_one_line_with_its_place(old: str, new: str, message: str, tmp_path: Path) -> None:
    text = (FOLDER / "eager.yaml").read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "runtime.yaml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(FileError, match=message) as caught:
        load_runtime(path)
    assert "\n" not in str(caught.value)
