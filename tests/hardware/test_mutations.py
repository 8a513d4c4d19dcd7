"""Every wrong file is refused with one line that says where, quickly and in little memory."""

import copy
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from perfmodel.errors import FileError
from perfmodel.hardware import check_file, device_files
from perfmodel.hardware.inherit import resolve
from perfmodel.hardware.schema import DeviceFile
from perfmodel.yamlfile import parse_yaml, validate
from perfmodel.yamltext import yaml_text
from tests.hardware.mutations import H100, hand_made

MUTATIONS = hand_made()
ROOT = Path(__file__).parents[2]
HEAVY = [name for name in MUTATIONS if re.search(r"10,000|huge|bomb|binary|list of lists|100,000|as long", name)]


def refused(path, content):
    """The message about a file of this content, and the CPU seconds that it took (a busy machine isn't its fault)."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    start = time.process_time()
    with pytest.raises(FileError) as caught:
        check_file(path)
    return str(caught.value), time.process_time() - start


def test_there_are_two_hundred_and_the_right_file_passes(tmp_path):
    assert len(MUTATIONS) >= 200
    assert len({str(content) for content in MUTATIONS.values()}) == len(MUTATIONS)
    (tmp_path / "device.yaml").write_text(H100, encoding="utf-8")
    assert check_file(tmp_path / "device.yaml")


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_file_is_refused_with_its_place(tmp_path, name):
    path = tmp_path / "device.yaml"
    words, seconds = refused(path, MUTATIONS[name])
    assert re.match(rf"{re.escape(str(path))}:\d+:\d+: \S", words), words
    assert len(words.splitlines()) == 1 and len(words) < 600
    assert seconds < 1


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("link of both directions", "50 GB/s, source", "50 GB/s is not a nvlink4 link, which carries 25 GB/s in one"),
        ("link in Gbit/s", "25 Gbit/s", "3.125 GB/s is not a nvlink4 link"),
        ("sparse bf16", "bf16: {value: 1978.9", "this is the figure with sparsity"),
        ("sparse fp8", "fp8: {value: 3957.8", "4 times bf16, where twice is usual"),
        ("no vector fp32", "      fp64: {value: 33.5", "no fp32, but losses and optimizers run in it"),
        ("hbm.capacity zero", "value: 0 MiB", "0 B is outside"),
        ("bandwidth misspelt", "bandwidt:", "unknown key 'bandwidt'"),
        ("hbm.bandwidth too large", "3.35 PB/s", "check both units and the factor of 1000"),
        ("matrix.bf16 too small", "989.4 GFLOP/s", "0.0005 of fp8; check both units"),
    ],
)
def test_the_place_is_the_line_with_the_mistake(tmp_path, name, line, message):
    words, _ = refused(tmp_path / "device.yaml", MUTATIONS[name])
    number = int(words.split(":")[1])
    assert message in words
    assert line in str(MUTATIONS[name]).splitlines()[number - 1]


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
def test_the_heaviest_files_take_a_second_and_300_mb_at_most(tmp_path):
    assert len(HEAVY) >= 9
    for number, name in enumerate(HEAVY):
        content = MUTATIONS[name]
        data = content if isinstance(content, bytes) else content.encode("utf-8")
        (tmp_path / f"{number}.yaml").write_bytes(data)
    script = (
        "import re, sys, time\n"
        "from perfmodel.errors import FileError\n"
        "from perfmodel.hardware import check_file\n"
        "for path in sys.argv[1:]:\n"
        "    start = time.process_time()\n"
        "    try:\n"
        "        check_file(path)\n"
        "        print('accepted', path)\n"
        "    except FileError:\n"
        "        print('refused', time.process_time() - start)\n"
        "status = open('/proc/self/status').read()\n"
        "print('peak', re.search(r'VmHWM:\\s*([0-9]+) kB', status)[1])\n"
    )
    files = [str(tmp_path / f"{number}.yaml") for number in range(len(HEAVY))]
    done = subprocess.run([sys.executable, "-c", script, *files], capture_output=True, text=True, cwd=ROOT, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [word for word, _ in lines] == ["refused"] * len(HEAVY) + ["peak"]
    assert max(float(seconds) for word, seconds in lines if word == "refused") < 1
    assert float(lines[-1][1]) * 1024 < 300e6


@pytest.mark.parametrize("length", [1, 2, 3])
def test_cyclic_bases_are_refused(tmp_path, length):
    for number in range(length):
        text = f"schema: device/1\nname: d{number}\nbase: d{(number + 1) % length}\n"
        (tmp_path / f"d{number}.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(FileError, match=r"d\d.yaml:3:7: bases go round in a circle: d0 -> .*d0; remove"):
        check_file(tmp_path / "d0.yaml")


def numbers(value, at=()):
    """Places of numbers with a source in plain dicts and lists."""
    if isinstance(value, dict) and "value" in value:
        yield at
    elif isinstance(value, (dict, list)):
        for key, member in value.items() if isinstance(value, dict) else enumerate(value):
            yield from numbers(member, (*at, key))


def test_a_slip_by_a_thousand_is_caught_nearly_everywhere():
    """In every shipped device, every number but counts and calibration, both ways."""
    missed, tried = [], 0
    for name, path in device_files().items():
        plain = resolve("device", path).root.plain()
        for at in numbers(plain):
            if at[0] in ("calibration", "kernels") or at[-1] == "count":
                continue
            for factor in (1000, 0.001):
                changed = copy.deepcopy(plain)
                number = changed
                for step in at:
                    number = number[step]
                digits, _, unit = str(number["value"]).partition(" ")
                number["value"] = f"{float(digits) * factor!r} {unit}"
                tried += 1
                try:
                    DeviceFile.model_validate(changed)
                except ValueError:
                    continue
                missed.append((name, at, factor))
    assert tried > 1000
    assert len(missed) <= 0.01 * tried, missed


def test_the_places_of_a_merged_file_are_those_of_its_parts(tmp_path):
    (tmp_path / "whole.yaml").write_text(H100, encoding="utf-8")
    head = "schema: device/1\nname: part\nbase: whole\nvalidated: no\n"
    part = tmp_path / "part.yaml"
    part.write_text(head + "power: {tdp: {value: 7 W, source: assumed, note: x}}\n", encoding="utf-8")
    with pytest.raises(FileError, match=r"part.yaml:5:14: key 'confidence' is missing in power.tdp"):
        check_file(part)
    part.write_text(head, encoding="utf-8")
    (tmp_path / "whole.yaml").write_text(H100.replace("3.35 TB/s", "3.35 TB"), encoding="utf-8")
    line = next(i for i, text in enumerate(H100.splitlines(), 1) if "3.35 TB/s" in text)
    with pytest.raises(FileError, match=rf"whole.yaml:{line}:\d+: memory\[0\].bandwidth.value: '3.35 TB'"):
        check_file(part)


def test_written_text_reads_back():
    for path in device_files().values():
        root = resolve("device", path).root
        text = yaml_text(root.plain())
        assert parse_yaml(text, "f").plain() == root.plain()
        assert validate(parse_yaml(text, "f"), DeviceFile) == validate(root, DeviceFile)
