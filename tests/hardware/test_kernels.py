"""The section ``kernels:`` of device files."""

from __future__ import annotations

from pathlib import Path

import pytest

from perfmodel.errors import FileError
from perfmodel.hardware import Device, device_names, load_device

ENTRY = """
kernels:
  matmul:
    bf16:
      data: "a test, 10 rows"
      date: "2026-11"
      model: "tiles/cublas-hopper"
      constants:
        rate: {value: 80%, source: fitted, cite: test, confidence: B}
        launch: {value: 5000, source: fitted, cite: test, confidence: B}
        gap: {value: 12 us, source: fitted, cite: test, confidence: B}
      residuals:
        - {below: 20 us, low: -0.1, high: 0.2, count: 5}
        - {low: -0.1, high: 0.1, count: 5}
"""
CITATIONS = """
citations:
  test: {title: "a test", url: "https://example.org"}
"""


def load(folder: Path, entry: str = ENTRY) -> Device:
    file = folder / "own.yaml"
    text = "schema: device/1\nname: own\nbase: amd-mi210\nyear: 2026\nvalidated: never\n"
    file.write_text(text + entry + CITATIONS)
    return load_device(file)


def test_constants_are_read_into_si(tmp_path: Path) -> None:
    kernel = load(tmp_path).kernels["matmul"]["bf16"]
    assert dict(kernel.values) == {"rate": 0.8, "launch": 5000.0, "gap": pytest.approx(12e-6)}
    assert (kernel.data, kernel.date, kernel.model) == ("a test, 10 rows", "2026-11", "tiles/cublas-hopper")
    assert [entry.below for entry in kernel.residuals] == [pytest.approx(20e-6), None]


def test_a_type_without_its_own_takes_those_of_any(tmp_path: Path) -> None:
    device = load(tmp_path, ENTRY.replace("    bf16:", "    any:"))
    assert device.kernel("matmul", "fp8") is device.kernels["matmul"]["any"]
    assert load(tmp_path).kernel("matmul", "fp8") is None
    assert device.kernel("batched_matmul", "bf16") is None


def test_every_constant_has_its_source(tmp_path: Path) -> None:
    source = load(tmp_path).sources["kernels.matmul.bf16.constants.rate"]
    assert (source.source, source.title) == ("fitted", "a test")


def test_constants_survive_json_and_can_be_overridden(tmp_path: Path) -> None:
    device = load(tmp_path)
    assert Device.from_dict(device.to_dict()) == device
    changed = device.override({"kernels.matmul.bf16.constants.rate": "90%"})
    assert changed.kernels["matmul"]["bf16"].values["rate"] == 0.9


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  matmul:", "  matmull:", "unknown family of kernels 'matmull'; did you mean 'matmul'"),
        ("    bf16:", "    bf61:", "unknown type 'bf61'; did you mean 'bf16'"),
        ("rate:", "rat:", "unknown constant 'rat'; did you mean 'rate'"),
        ("value: 80%", "value: 180%", "fraction"),
        ("value: 12 us", "value: 12", "check the unit and the factor of 1000"),
        ("value: 12 us", "value: 12 ms", "outside 0 to 0.01"),
        ("low: -0.1, high: 0.2", "low: 0.3, high: 0.2", "low is above high"),
        ("{below: 20 us, ", "{", "every range but the last says below:"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(FileError, match=message) as caught:
        load(tmp_path, ENTRY.replace(old, new, 1))
    assert str(caught.value).startswith(str(tmp_path / "own.yaml:"))


def test_six_constants_are_fitted_at_most(tmp_path: Path) -> None:
    names = ("bandwidth", "cache", "throttle", "store")
    extra = "".join(f"        {name}: {{value: 0.5, source: fitted, cite: test, confidence: B}}\n" for name in names)
    with pytest.raises(FileError, match="7 constants are fitted; 6 at most"):
        load(tmp_path, ENTRY.replace("      residuals:\n", extra + "      residuals:\n"))


def test_every_model_of_the_catalogue_can_be_built() -> None:
    from perfmodel.errors import UnsupportedError
    from perfmodel.timing.matmul import model_of

    built = 0
    for device in map(load_device, device_names()):
        for family in ("matmul", "batched_matmul", "grouped_matmul"):
            for dtype, kernel in device.kernels.get(family, {}).items():
                try:
                    model_of(device, dtype, kernel.model)
                except UnsupportedError as error:
                    # An older or a smaller chip of the family may lack the arithmetic.
                    assert " arithmetic in its matrix unit" in str(error)
                    continue
                built += 1
    assert built > 50
