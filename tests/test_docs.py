"""The documentation runs: Python, command lines, files; its links, labels and keys are right."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import perfmodel as pm
from perfmodel.cli import main
from perfmodel.errors import FileError
from perfmodel.hardware import check_file
from perfmodel.ops import registry

DOCS = Path(__file__).parents[1] / "docs"
CHAPTERS = sorted(path.name for path in DOCS.glob("*.md"))
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


class Block(NamedTuple):
    """A fenced block: its language, its text, the line on which the text begins."""

    language: str
    text: str
    line: int


def text_of(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def blocks(page: str) -> Iterator[Block]:
    text = text_of(page)
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        yield Block(match[1], match[2], text.count("\n", 0, match.start(2)) + 1)


def rows(page: str, heading: str) -> list[list[str]]:
    """Cells of the first table under a heading, without its header."""
    section = f"\n{text_of(page)}".split(f"\n{heading}\n", 1)[1]
    table = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)
    assert table is not None
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[0].splitlines()[2:]]


def codes(cells: list[list[str]]) -> set[str]:
    """What is written as code in the first column."""
    return {code for row in cells for code in re.findall(r"`([^`]+)`", row[0])}


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("docs-cache")


@pytest.fixture(autouse=True)
def surroundings(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERFMODEL_CACHE", str(cache))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.delenv("PERFMODEL_HARDWARE", raising=False)
    monkeypatch.chdir(tmp_path)
    # Rules that a chapter registers must not stay.
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))


class Reader:
    """Does what a reader of a chapter does: types the commands, saves the files, runs the Python."""

    def __init__(self, page: str, capsys: pytest.CaptureFixture[str]) -> None:
        self._page = page
        self._capsys = capsys
        self._names: dict[str, Any] = {"__name__": "docs"}

    def python(self, block: Block) -> None:
        # Empty lines in front, so that a traceback names the line of the page.
        code = compile("\n" * (block.line - 1) + block.text, str(DOCS / self._page), "exec")
        exec(code, self._names)

    def yaml(self, block: Block) -> None:
        name = re.search(r"^name: (\S+)$", block.text, re.MULTILINE)
        assert name is not None, f"{self._page}:{block.line}: a file without a name"
        Path(f"{name[1]}.yaml").write_text(block.text, encoding="utf-8")

    def console(self, block: Block) -> None:
        """Each ``$ perfmodel …`` exits as ``# exit code N`` says (else 0) and prints the lines below it."""
        commands = re.split(r"^\$ ", block.text, flags=re.MULTILINE)
        assert commands[0] == "", f"{self._page}:{block.line}: a console block begins with a command"
        for command in commands[1:]:
            line, *shown = command.splitlines()
            expected = re.search(r"# exit code (\d+)$", line)
            code, printed = self._run(line)
            assert code == (int(expected[1]) if expected else 0), f"{line}\n{printed}"
            assert "Traceback" not in printed
            for told in shown:
                assert told in printed.splitlines(), f"{line} prints\n{printed}"

    def _run(self, line: str) -> tuple[int, str]:
        program, *arguments = shlex.split(line, comments=True)
        assert program == "perfmodel", line
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        told = self._capsys.readouterr()
        return int(stop.value.code or 0), told.out + told.err


@pytest.mark.parametrize("page", CHAPTERS)
def test_a_chapter_runs_from_top_to_bottom(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    for needs, package in (("--plot", "matplotlib"), ("import peft", "peft"), ("from transformers", "transformers")):
        if needs in text_of(page):
            pytest.importorskip(package)
    reader = Reader(page, capsys)
    does = {"python": reader.python, "console": reader.console, "yaml": reader.yaml, "": lambda block: None}
    for block in blocks(page):
        does[block.language](block)


@pytest.mark.parametrize("page", PAGES)
def test_every_fence_is_closed_and_every_link_leads_somewhere(page: str) -> None:
    text = text_of(page)
    assert len(re.findall(r"^```", text, re.MULTILINE)) == 2 * len(list(blocks(page)))
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)]+)\)", prose):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        found = (DOCS / page).parent / file if file else DOCS / page
        assert found.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_index_lists_every_page() -> None:
    linked = set(re.findall(r"\]\(([^)#]+)\)", text_of("index.md")))
    assert linked == set(PAGES) - {"index.md"}


def labels(text: str) -> set[str]:
    """What stands in front of the lines of an output; continuation lines have nothing there."""
    return {line[2:14].strip() for line in text.splitlines() if re.match(r"  \S", line)}


def test_every_line_of_the_outputs_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    from perfmodel.report.text import graph_text, prediction_text

    small = pm.capture("gpt2", batch=2, seq_len=32, layers=2, optimizer="adamw", implementation="reference")
    p = pm.predict(small, "nvidia-h100-sxm-80gb", runtime="eager")
    printed = labels(prediction_text(p, p.train(steps=10)))
    assert "host" in printed
    assert codes(rows("prediction.md", "## The output, line by line")) == printed | {"batch"}

    pm.save_graph(small, "small.json")
    with pytest.raises(SystemExit):
        main(["predict", "small.json", "--on", "nvidia-h100-sxm-80gb", "--largest-batch"])
    assert "batch" in labels(capsys.readouterr().out)

    explained = codes(rows("capture.md", "## A model by name"))
    assert explained == labels(graph_text(small, pm.closed_form_flops(small))) | {"no rule"}


def test_the_explained_values_are_all_there_are() -> None:
    from perfmodel.graph import CONVENTIONS, ROLES
    from perfmodel.timing.device import BOUNDS

    small = pm.capture("gpt2", batch=2, seq_len=32, layers=2, optimizer="adamw", implementation="reference")
    p = pm.predict(small, "nvidia-h100-sxm-80gb", runtime="eager")
    assert codes(rows("prediction.md", "## JSON")) == set(p.to_dict())
    assert codes(rows("prediction.md", "### Bound by")) == {*BOUNDS, "no rule"} - {"none"}
    assert codes(rows("memory.md", "## What memory is for")) == set(ROLES)
    assert codes(rows("runtimes.md", "# Runtimes")) == set(pm.runtime_names())
    assert {name.strip('"') for name in codes(rows("counting.md", "## Conventions"))} == set(CONVENTIONS)


def test_the_models_chapter_tells_every_family_and_config() -> None:
    from perfmodel.models import catalogue, from_config
    from perfmodel.models.families import FAMILIES
    from perfmodel.models.inputs import SYMBOLS, batch_inputs

    table = {row[0].strip("`"): row for row in rows("models.md", "## The catalogue")}
    assert set(table) == set(FAMILIES)
    for entry in map(catalogue.get, catalogue.names()):
        _, _, sizes, origin = table[entry.dims.family]
        shapes = [shape for shape, _ in batch_inputs(entry.dims).values()]
        needed = [size for size in SYMBOLS[1:] if any(size in shape for shape in shapes)]
        assert sizes == (", ".join(f"`{size}`" for size in needed) or "none"), entry.name
        assert ("Hugging Face" in origin) == (FAMILIES[entry.dims.family].config is not None)
    listed = re.search(r"^These values of `model_type` are understood: (.+?)\.", text_of("models.md"), re.M)
    assert listed is not None
    assert re.findall(r"`(\w+)`", listed[1]) == sorted(from_config.READERS)


def test_the_fine_tuning_chapter_tells_every_adapter_and_optimizer() -> None:
    from perfmodel.graph.capture import OPTIMIZERS
    from perfmodel.models.adapters import ADAPTERS

    told = {row[0].strip("`"): row[1].strip("`") for row in rows("fine-tuning.md", "## Adapters")}
    assert told == {kind: f"pm.{cls.__name__}" for kind, cls in ADAPTERS.items()}
    assert codes(rows("fine-tuning.md", "## Optimizers")) == set(OPTIMIZERS)


DEVICE_MISTAKES = {
    "bandwidth: {value: 3.2 TB/s": "bandwith: {value: 3.2 TB/s",
    "value: 400 TFLOP/s": "value: 400 tflop/s",
    "calibration:\n": "memory: []\ncalibration:\n",
    "3.2 TB/s, source: datasheet, cite: brochure": "3.2 TB/s, source: datasheet",
    "3.2 TB/s": "3.2 GB/s",
}


@pytest.mark.parametrize("right", DEVICE_MISTAKES)
def test_the_errors_of_the_hardware_chapter_are_real(right: str) -> None:
    example = next(block.text for block in blocks("hardware.md") if block.language == "yaml")
    assert len(example.splitlines()) < 40
    file = Path("my-accelerator.yaml")
    file.write_text(example, encoding="utf-8")
    check_file(file)
    assert example.count(right) == 1
    file.write_text(example.replace(right, DEVICE_MISTAKES[right]), encoding="utf-8")
    with pytest.raises(FileError) as caught:
        check_file(file)
    assert str(caught.value) in text_of("hardware.md").splitlines()
