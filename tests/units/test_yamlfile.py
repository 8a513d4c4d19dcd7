"""Reading YAML: what it means, and where errors point."""

from typing import Annotated

import pytest
import yaml
from pydantic import Field

from perfmodel import yamlfile
from perfmodel.errors import FileError
from perfmodel.sourced import SourcedBandwidth, SourcedCount, SourcedFile, quantity
from perfmodel.yamlfile import MAX_BYTES, FileModel, load_model, parse_yaml


class Level(FileModel):
    name: str
    bandwidth: SourcedBandwidth


class Described(SourcedFile):
    memory: list[Level]
    year: int | None = None
    ratio: float = 1.0
    on: bool = False
    units: SourcedCount | None = None
    levels: dict[str, Level] = Field(default_factory=dict)
    delay: Annotated[float, quantity("s")] = 0.0


GOOD = """memory:
  - name: hbm
    bandwidth: {value: 3.35 TB/s, source: datasheet, cite: sheet, confidence: A}
citations:
  sheet: {title: Sheet}
"""


@pytest.fixture
def load(tmp_path):
    def write_and_load(text):
        path = tmp_path / "file.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_model(path, Described)

    return write_and_load


def message(load, text):
    with pytest.raises(FileError) as caught:
        load(text)
    words = str(caught.value)
    assert "\n" not in words
    return words[words.index("file.yaml") :]


def test_loads(load):
    file = load(GOOD + "year: 2022\nratio: 3.35e12\non: true\ndelay: 3 us\n")
    assert (file.memory[0].bandwidth.value, file.year, file.ratio, file.on, file.delay) == (
        3.35e12,
        2022,
        3.35e12,
        True,
        3e-6,
    )


def test_a_byte_order_mark_and_windows_lines_do_no_harm(load):
    assert load(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode()).memory[0].name == "hbm"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("NO", "NO"),
        ("yes", "yes"),
        ("on", "on"),
        ("12:30:45", "12:30:45"),
        ("2024-01-01", "2024-01-01"),
        ("0x1F", "0x1F"),
        ("010", "010"),
        ("1_000", "1_000"),
        ("3.35e12", 3.35e12),
        ("3.35E+12", 3.35e12),
        (".5", 0.5),
        ("-7", -7),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", None),
        (".nan", ".nan"),
        (".inf", ".inf"),
        ("1e999", "1e999"),
        ("'12'", "12"),
        ('"true"', "true"),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_scalars_mean_what_they_look_like(text, value):
    found = parse_yaml(f"key: {text}", "f").plain()["key"]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            GOOD.replace("bandwidth:", "bandwith:"),
            "3:5: unknown key 'bandwith' in memory[0]; did you mean 'bandwidth'?",
        ),
        (GOOD + "zzz: 1\n", "6:1: unknown key 'zzz'; known keys: citations, memory, year"),
        (GOOD + "memory: []\n", "6:1: key 'memory' comes twice, first at 1:1; remove one of them"),
        ("levels:\n  a: {nam: x}\n" + GOOD, "2:7: unknown key 'nam' in levels.a; did you mean 'name'?"),
        (GOOD.replace("TB/s", "tb/s"), "3:24: memory[0].bandwidth.value: '3.35 tb/s': unknown unit 'tb/s'"),
        (GOOD.replace("3.35 TB/s", ".nan"), "3:24: memory[0].bandwidth.value: '.nan' is not a finite number"),
        (GOOD.replace("3.35 TB/s", "-3.35 TB/s"), "3:24: memory[0].bandwidth.value: '-3.35 TB/s' is negative"),
        (GOOD.replace("3.35 TB/s", "[1]"), "3:24: memory[0].bandwidth.value: [1] is not a quantity"),
        (GOOD.replace("cite: sheet", "cite: shet"), "'shet' is not in citations:; did you mean 'sheet'?"),
        (GOOD.replace("cite: sheet, ", ""), "memory[0].bandwidth: a datasheet number needs cite:"),
        (
            GOOD.replace("source: datasheet, cite: sheet", "source: assumed"),
            "memory[0].bandwidth: an assumed number needs note:",
        ),
        (GOOD.replace("datasheet", "datashet"), "memory[0].bandwidth.source is 'datashet'; did you mean 'datasheet'?"),
        (GOOD.replace("confidence: A", "confidence: Z"), "confidence is 'Z'; write A or B or C or D"),
        (GOOD.replace("name: hbm", "name: 12"), "2:11: memory[0].name is the number 12, not text; put it in quotes"),
        (GOOD.replace("  - name: hbm\n  ", "  -"), "2:6: key 'name' is missing in memory[0]; add it"),
        (GOOD + "year: NO\n", "6:7: year is text 'NO', not a whole number; write a whole number"),
        (GOOD + "ratio: .nan\n", "6:8: ratio is text '.nan', not a number; write a number"),
        (GOOD + "on: yes\n", "6:5: on is text 'yes', not true or false; write true or false"),
        (
            GOOD + "units: {value: 1.5, source: assumed, note: x, confidence: D}\n",
            "units.value: 1.5 is not a whole number",
        ),
        ("memory:\n" + GOOD[GOOD.index("citations") :], "1:8: memory is empty; write a list"),
        ("memory: {}\n", "1:9: memory is a mapping, not a list; write a list"),
        ("", "1:1: the file is empty"),
        ("# only a comment\n", "1:1: the file is empty"),
        ("- 1\n", "1:1: the file is not a mapping"),
        ("a: [1, 2\n", "2:1: not YAML"),
        ("a:\n\t- b\n", "2:1: not YAML"),
        ("a: b: c\n", "1:5: not YAML"),
        ("a: &x 1\n", "1:4: anchors and aliases (& and *) are not read"),
        ("a: *x\n", "1:4: anchors and aliases (& and *) are not read"),
        ("a: !!python/name:os.system x\n", "1:4: tags (tag:yaml.org,2002:python/name:os.system) are not read"),
        ("a: 1\n---\nb: 2\n", "2:1: a second document"),
        ("? [a]\n: 1\n", "1:3: a key is a list or a mapping"),
        ("a: 1\néé: \x01\n", "2:5: U+0001 is a character that YAML doesn't allow"),
        (b"a: 1\nbb: \xc3(\n", "2:5: not UTF-8 text"),
        (b"a" * (MAX_BYTES + 1), "larger than 262144 bytes"),
        ("a: " + "[" * 900, "1:53: nested deeper than 50 levels"),
        ("a: " + "[" * 10_000, "nested deeper than 50 levels"),  # where depends on the release of libyaml
        ("a: " + "{a: " * 10_000, "nested deeper than 50 levels"),
        ("\n".join(" " * n + "a:" for n in range(200)), "51:51: nested deeper than 50 levels"),
    ],
)
def test_errors_say_where_what_and_the_cure(load, text, words):
    assert words in message(load, text)


def test_the_first_of_several_problems_is_shown_and_the_rest_counted(load):
    words = message(load, "zzz: 1\nyyy: 2\n")
    assert words.startswith("file.yaml:1:1: unknown key 'zzz'") and words.endswith("(and 2 more)")


def test_a_message_is_one_line_whatever_the_keys_are(load):
    assert message(load, 'levels:\n  "a\\r\\nb\\u2028c": null\n' + GOOD).startswith("file.yaml:2:")


@pytest.mark.parametrize("loader", [yaml.SafeLoader, getattr(yaml, "CSafeLoader", yaml.SafeLoader)])
@pytest.mark.parametrize(
    "text",
    ["a: [1", "a: '", "%", '"\\uD800": 1', 'a: "\\U00110000"', 'a: "\\UFFFFFFFF"', "a: *", "- a\n b: [", "a: \t@"],
)
def test_both_yaml_parsers_refuse_in_our_words(monkeypatch, loader, text):
    monkeypatch.setattr(yamlfile, "_Loader", loader)
    with pytest.raises(FileError, match="^f:?[0-9:]*: ") as caught:
        parse_yaml(text, "f")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("loader", [yaml.SafeLoader, getattr(yaml, "CSafeLoader", yaml.SafeLoader)])
def test_both_yaml_parsers_read_the_same(monkeypatch, loader):
    monkeypatch.setattr(yamlfile, "_Loader", loader)
    root = parse_yaml(GOOD + "year: 2022\nratio: 1e3\ntext: |\n  two\n  lines\n", "f")
    assert root.plain()["memory"][0]["bandwidth"]["cite"] == "sheet"
    assert root.plain()["year"] == 2022 and root.plain()["text"] == "two\nlines\n"
    assert (root.value["year"].line, root.value["year"].column) == (6, 7)


@pytest.mark.parametrize(
    ("path", "words"),
    [(".", "is a directory"), ("nowhere.yaml", "no such file"), ("a\0b\nc.yaml", "no such file")],
)
def test_paths_that_are_no_files(path, words):
    with pytest.raises(FileError, match=words) as caught:
        load_model(path, Described)
    assert "\n" not in str(caught.value)


def test_every_number_has_its_source(load):
    sources = load(GOOD).sources()
    assert {path: (source.source, source.title) for path, source in sources.items()} == {
        "memory[0].bandwidth": ("datasheet", "Sheet")
    }


def test_unused_citations_are_found(load):
    assert load(GOOD + "  other: {title: Other}\n").unused_citations() == ["other"]
