"""Wheel, sdist and editable install: each finds its data files, none ships the tests as a package."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "Makefile", "constraints.txt")
FOLDERS = ("perfmodel", "hardware_specs", "tests", "docs", "examples")
SCRIPT = """
import pathlib, perfmodel
names = perfmodel.device_names()
print(pathlib.Path(perfmodel.__file__).resolve().parent)
print(len(names), len(perfmodel.runtime_names()), len(perfmodel.model_names()))
for name in names: perfmodel.load_device(name)
for name in perfmodel.runtime_names(): perfmodel.load_runtime(name)
"""


def run(*command: object, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, cwd=cwd, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, so that building writes nothing into the checkout."""
    copy = tmp_path_factory.mktemp("source")
    for name in PARTS:
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy / name)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    return copy


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source)
    return {"wheel": next(out.glob("*.whl")), "sdist": next(out.glob("*.tar.gz"))}


def installed_in(where: Path, *what: object) -> tuple[Path, list[int]]:
    """Install into a fresh environment that sees this one's packages after its own; perfmodel's place and counts."""
    run(sys.executable, "-m", "venv", "--without-pip", where)
    python = where / "bin" / "python"
    own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (own / "zz-shared.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", *what)
    place, counts = run(python, "-c", SCRIPT, cwd=where).splitlines()
    return Path(place), [int(count) for count in counts.split()]


@pytest.fixture(scope="module")
def in_checkout() -> list[int]:
    return [int(count) for count in run(sys.executable, "-c", SCRIPT, cwd=ROOT).splitlines()[1].split()]


@pytest.mark.parametrize("kind", ["wheel", "sdist", "editable"])
def test_data_files_are_found(
    kind: str, built: dict[str, Path], source: Path, in_checkout: list[int], tmp_path: Path
) -> None:
    # An editable build needs more than hatchling itself, which an isolated build fetches.
    what = ("-e", source) if kind == "editable" else ("--no-build-isolation", built[kind])
    place, counts = installed_in(tmp_path / "env", *what)
    assert place.is_relative_to((source if kind == "editable" else tmp_path / "env").resolve())
    assert counts == in_checkout
    assert min(counts) > 0


def test_the_wheel_holds_the_package_and_nothing_else(built: dict[str, Path]) -> None:
    names = zipfile.ZipFile(built["wheel"]).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"perfmodel"}
    assert "perfmodel/py.typed" in names
    assert any(name.startswith("perfmodel/_hardware_specs/devices/") for name in names)
    assert not any("__pycache__" in name for name in names)
