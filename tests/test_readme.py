"""The README's Python runs, and its output is what the command prints."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

import perfmodel as pm
from perfmodel.cli import main
from perfmodel.graph.capture import OPTIMIZERS

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERFMODEL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_python_blocks_run(block: str) -> None:
    exec(compile(block, "README.md", "exec"), {})


def test_the_screen_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    shown = re.search(r"\$ \.venv/bin/perfmodel (predict .*?)\n(.*?)```", README, re.DOTALL)
    assert shown is not None
    # A newcomer has no transformers yet, so the screen shows the reference modules.
    with pytest.raises(SystemExit):
        main([*shown[1].split(), "--implementation", "reference"])
    for told, printed in zip(shown[2].splitlines(), capsys.readouterr().out.splitlines(), strict=True):
        assert printed.startswith(told.removesuffix("…").rstrip())


def test_the_confidence_of_the_catalogue_is_as_told() -> None:
    found = Counter(source.confidence for name in pm.device_names() for source in pm.load_device(name).sources.values())
    told = {
        letter: int(count.replace(",", ""))
        for letter, count in re.findall(r"^\| ([A-D]): .*? \| ([\d,]+) \|", README, re.M)
    }
    assert told == dict(found)
    assert f"has {len(pm.device_names())} devices" in README


def test_the_models_are_as_many_as_told() -> None:
    assert re.search(r"^(\d+) models have a name", README, re.M)[1] == str(len(pm.model_names()))
    assert len(OPTIMIZERS) == 10 and "ten optimizers" in README
