"""The README's Python runs, and its output is what the command prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from perfmodel.cli import main

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
    pytest.importorskip("transformers")  # whose module paths the screen shows
    with pytest.raises(SystemExit):
        main(shown[1].split())
    for told, printed in zip(shown[2].splitlines(), capsys.readouterr().out.splitlines(), strict=True):
        assert printed.startswith(told.removesuffix("…").rstrip())
