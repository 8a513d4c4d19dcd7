"""``base:``: what is inherited, what isn't, and how a wrong base is refused."""

import pytest

from perfmodel.errors import FileError
from perfmodel.hardware import check_file, load_device
from perfmodel.hardware.inherit import MAX_BASES, resolve
from perfmodel.yamltext import node_text
from tests.hardware.mutations import H100

NUMBER = "{value: %s, source: assumed, confidence: D, note: here}"
HEAD = "schema: device/1\nname: part\nvalidated: not yet\n"


@pytest.fixture
def part(tmp_path):
    """Write a device based on ``whole``, the H100 in one file."""
    (tmp_path / "whole.yaml").write_text(H100, encoding="utf-8")

    def write(text, head=HEAD + "base: whole\n"):
        file = tmp_path / "part.yaml"
        file.write_text(head + text, encoding="utf-8")
        return file

    return write


def test_what_a_file_does_not_say_is_its_bases(part):
    base = load_device("nvidia-h100-sxm-80gb")
    device = load_device(part(""))
    assert (device.name, device.validated) == ("part", "not yet")
    assert device.compute == base.compute and device.memory == base.memory and device.calibration == base.calibration
    assert device.sources["memory[0].bandwidth"] == base.sources["memory[0].bandwidth"]


def test_mappings_are_merged_and_numbers_replaced_whole(part):
    bf16 = NUMBER % "900 TFLOP/s"
    device = load_device(part(f"compute: {{matrix: {{peak: {{bf16: {bf16}}}, sparse: null}}}}\n"))
    assert device.peak("matrix", "bfloat16") == 900e12
    assert device.peak("matrix", "float16") == 989.4e12
    source = device.sources["compute.matrix.peak.bf16"]
    assert (source.source, source.title, source.note) == ("assumed", "", "here")
    with pytest.raises(FileError, match=r"part.yaml:5:\d+: key 'value' is missing in compute.matrix.peak.bf16"):
        load_device(part("compute: {matrix: {peak: {bf16: {note: only a note}}}}\n"))


def test_lists_are_replaced_whole(part):
    level = f"memory:\n  - {{name: ddr5, capacity: {NUMBER % '64 GB'}, bandwidth: {NUMBER % '1 TB/s'}}}\n"
    assert [entry.name for entry in load_device(part(level)).memory] == ["ddr5"]


def test_null_removes(part):
    device = load_device(part("power: null\nhost_link: null\ncompute: {matrix: {peak: {fp8: null}, clock: null}}\n"))
    assert device.power is None and device.host_link is None and device.compute["matrix"].clock is None
    assert "fp8" not in device.compute["matrix"].peak


def test_what_identifies_or_dates_a_device_is_not_inherited(part):
    device = load_device(part(""))
    assert device.aliases == () and device.prices == ()
    for line in ("schema: device/1\n", "name: part\n", "validated: not yet\n"):
        with pytest.raises(FileError, match=f"key {line.split(':')[0]!r} is missing"):
            check_file(part("", head=HEAD.replace(line, "") + "base: whole\n"))


def test_citations_are_merged_and_unused_ones_dropped(part):
    path = part(
        "memory:\n  - {name: hbm3, capacity: {value: 64 GB, source: datasheet, cite: mine, confidence: B},\n"
        "     bandwidth: {value: 3 TB/s, source: datasheet, cite: lockwood, confidence: B}}\n"
        "citations: {mine: {title: My page}}\n"
    )
    sources = load_device(path).sources
    assert sources["memory[0].capacity"].title == "My page"
    assert "Lockwood" in sources["memory[0].bandwidth"].title
    assert set(resolve("device", path).root.value["citations"].value) >= {"mine", "lockwood", "mamf"}
    assert "nvidia-smi" not in resolve("device", path).root.value["citations"].value  # the old capacity cited it
    assert not [line for line in check_file(path) if "not used" in line]
    with pytest.raises(FileError, match=r"part.yaml:5:25: citations.lockwood is a word|key 'title' is missing"):
        load_device(part("citations: {lockwood: {url: other}}\n"))  # replaced, not mixed with the base's title


def test_bases_of_bases(part, tmp_path):
    (tmp_path / "bases").mkdir()
    (tmp_path / "bases" / "middle.yaml").write_text(f"base: ../whole.yaml\npower: {{tdp: {NUMBER % '350 W'}}}\n")
    path = part("", head=HEAD + "base: middle\n")
    resolved = resolve("device", path)
    assert [file.name for file in resolved.files] == ["part.yaml", "middle.yaml", "whole.yaml"]
    assert load_device(path).power.tdp == 350


def test_a_chain_may_not_be_endless(tmp_path):
    for number in range(MAX_BASES + 2):
        (tmp_path / f"d{number}.yaml").write_text(f"schema: device/1\nname: d{number}\nbase: d{number + 1}\n")
    with pytest.raises(FileError, match=rf"d{MAX_BASES}.yaml:3:7: more than {MAX_BASES} bases"):
        resolve("device", tmp_path / "d0.yaml")


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("hole", "part.yaml:4:7: unknown base 'hole'; did you mean 'whole'"),
        ("nvidia-h100-sxm-80", "did you mean 'nvidia-h100-sxm-80gb'"),
        ("../absent.yaml", "unknown base '../absent.yaml'; write the name of a device"),
        ("[a, b]", "part.yaml:4:7: base is not a name"),
        ("''", "base is not a name"),
    ],
)
def test_a_base_that_is_none_is_refused(part, base, words):
    with pytest.raises(FileError, match=words.replace("[", r"\[").replace(".", r"\.")):
        load_device(part("", head=HEAD + f"base: {base}\n"))


def test_a_base_of_another_kind_is_refused(part, tmp_path):
    (tmp_path / "other.yaml").write_text("schema: node/1\nname: other\n", encoding="utf-8")
    with pytest.raises(FileError, match=r"part.yaml:4:7: .*other.yaml has schema 'node/1'"):
        load_device(part("", head=HEAD + "base: other\n"))


def test_a_family_file_is_checked_as_far_as_it_goes(tmp_path):
    folder = tmp_path / "bases"
    folder.mkdir()
    path = folder / "family.yaml"
    entry = "{value: 50%, source: measured, cite: mine, confidence: B}"
    good = f"schema: device/1\ncalibration:\n  matmul:\n    rate: {entry}\ncitations: {{mine: {{title: Mine}}}}\n"
    path.write_text(good, encoding="utf-8")
    assert check_file(path) == ["family: a base, checked as far as it goes"]
    for old, new, words in [
        ("mine: {title", "my: {title", r"family.yaml:4:\d+: 'mine' is not in citations"),
        ("rate:", "rat:", "unknown key 'rat' in calibration.matmul; did you mean 'rate'"),
        ("50%", "50 W", "'50 W'"),
        (", confidence: B", "", "key 'confidence' is missing in calibration.matmul.rate"),
    ]:
        path.write_text(good.replace(old, new), encoding="utf-8")
        with pytest.raises(FileError, match=words):
            check_file(path)


def test_a_changed_base_is_read_again(part, tmp_path):
    path = part("")
    assert load_device(path).power.tdp == 700
    (tmp_path / "whole.yaml").write_text(H100.replace("700 W", "1234 W"), encoding="utf-8")
    assert load_device(path).power.tdp == 1234


def test_the_resolved_text_says_where_inherited_lines_come_from(part, tmp_path):
    path = part(f"power: {{tdp: {NUMBER % '350 W'}}}\n")
    text = node_text(resolve("device", path).root)
    lines = text.splitlines()
    assert lines[:2] == ["schema: device/1", "name: part"]
    assert "  tdp: {value: 350 W, source: assumed, confidence: D, note: here}" in lines
    assert any(line.startswith("vendor: NVIDIA  # whole.yaml:") for line in lines)
    alone = tmp_path / "alone" / "device.yaml"
    alone.parent.mkdir()
    alone.write_text(text, encoding="utf-8")
    one, other = load_device(alone).to_dict(), load_device(path).to_dict()
    assert one | {"path": ""} == other | {"path": ""}
