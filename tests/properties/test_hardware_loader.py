"""Whatever a file holds, the loader answers with a device or with one line of a PerfModelError."""

import string
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from perfmodel.errors import PerfModelError
from perfmodel.hardware import Device, check_file, load_device
from perfmodel.hardware.inherit import resolve
from perfmodel.yamlfile import parse_yaml
from perfmodel.yamltext import yaml_text

SHIPPED = Path(__file__).parents[2] / "hardware_specs" / "devices" / "nvidia-a100-sxm-80gb.yaml"
ROOT = resolve("device", SHIPPED).root  # merged over its bases, so that one file says everything
VALID = yaml_text(ROOT.plain()).encode("utf-8")
TREE = ROOT.plain()


def dumped(tree) -> bytes:
    text = yaml.dump(tree, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), allow_unicode=True)
    return text.encode("utf-8", "surrogatepass")


SOME = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def verdict(folder, content: bytes) -> Device | None:
    path = folder / "device.yaml"
    path.write_bytes(content)
    try:
        device = load_device(path)
    except PerfModelError as error:
        words = str(error)
        assert "\n" not in words and "\r" not in words
        assert words.startswith(str(path)) and len(words) < 2000
        return None
    check_file(path)
    return device


def places(tree, at=()):
    """Every place in nested dicts and lists."""
    yield at
    members = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, member in members:
        yield from places(member, (*at, key))


def with_changed(tree, at, change):
    """A copy of ``tree`` in which ``change`` was applied to the value at ``at``."""
    if not at:
        return change(tree)
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[at[0]] = with_changed(tree[at[0]], at[1:], change)
    return copy


PLACES = list(places(TREE))[1:]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        [
            "1e999",
            ".nan",
            "-3 TB/s",
            "3 TB/s",
            "0 W",
            "3 us",
            "NO",
            "1" * 5000,
            "١ TB/s",
            "{",
            "&a",
            "*a",
            "!!x",
            "a: b",
        ]
    ),
)
nested = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=10), inner, max_size=4)),
    max_leaves=15,
)


def test_the_unchanged_file_is_a_device(tmp_path):
    assert verdict(tmp_path, VALID) is not None


@SOME
@given(st.binary(max_size=300))
@example(b"\xff\xfe")
@example(b"? " * 2000)
@example(b"[" * 50_000)
@example(b"- " * 50_000)
@example(b"a: " * 5000)
@example(b"&a [*a]")
def test_random_bytes(tmp_path, content):
    assert verdict(tmp_path, content) is None


@SOME
@given(st.text(alphabet=string.printable + "é€\u2028\ufeff\x85", max_size=300))
def test_random_text(tmp_path, text):
    assert verdict(tmp_path, text.encode("utf-8", "surrogatepass")) is None


@SOME
@given(st.integers(0, len(VALID) - 1), st.integers(0, 40), st.binary(max_size=8))
def test_bytes_cut_out_and_put_in(tmp_path, start, length, inserted):
    verdict(tmp_path, VALID[:start] + inserted + VALID[start + length :])


@SOME
@given(st.dictionaries(st.text(max_size=10), nested, max_size=5))
def test_random_structures(tmp_path, tree):
    assert verdict(tmp_path, dumped(tree)) is None


@SOME
@given(st.sampled_from(PLACES), nested)
def test_any_value_replaced(tmp_path, at, value):
    changed = with_changed(TREE, at, lambda old: value)
    verdict(tmp_path, dumped(changed))


@pytest.mark.parametrize("at", [at for at in PLACES if isinstance(at[-1], str)], ids=lambda at: ".".join(map(str, at)))
def test_any_key_misspelt_is_refused_or_was_free_to_choose(tmp_path, at):
    def misspell(mapping):
        return {(f"{key}x" if key == at[-1] else key): value for key, value in mapping.items()}

    device = verdict(tmp_path, dumped(with_changed(TREE, at[:-1], misspell)))
    assert device is None


@SOME
@given(st.floats(1e-2, 1e2))
def test_a_plausible_change_of_bandwidth_is_read_exactly(tmp_path, factor):
    bandwidth = 2.039e12 * factor
    if not 0.4e12 < bandwidth < 7.22e12:  # the bounds of plausibility, and the level before
        bandwidth = 1e12
    at = ("memory", 0, "bandwidth", "value")
    device = verdict(tmp_path, dumped(with_changed(TREE, at, lambda old: f"{bandwidth!r} B/s")))
    assert device is not None and device.main_memory.bandwidth == bandwidth


plain_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
plain_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(allow_nan=False, allow_infinity=False),
    plain_text,
    st.sampled_from(
        ["NO", "null", "~", "", " x", "x ", "-", "- a", "a: b", "#", "1e3", "12:30", "0x1F", "'", "*a", "3.35 TB/s"]
    ),
)
plain_trees = st.recursive(
    plain_scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(plain_text, inner, max_size=4)),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(plain_text, plain_trees, min_size=1, max_size=5))
def test_what_is_written_reads_back(tree):
    assert parse_yaml(yaml_text(tree), "f").plain() == tree


@SOME
@given(st.sampled_from([at for at in PLACES if at and "value" in at]), st.text(max_size=12))
def test_an_override_is_read_or_refused_in_one_line(at, text):
    device = load_device(SHIPPED)
    path = ".".join(str(step) for step in at[:-1])
    try:
        changed = device.override({path: text})
    except PerfModelError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert changed.overrides == {path: text}
