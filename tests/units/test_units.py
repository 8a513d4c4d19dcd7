"""Quantities in, SI floats out, and back."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfmodel.errors import UnitError
from perfmodel.units import DIMENSIONS, format_quantity, parse_quantity


@pytest.mark.parametrize(
    ("text", "dimension", "value"),
    [
        ("3.35 TB/s", "bytes/s", 3.35e12),
        ("3.35TB/s", "bytes/s", 3.35e12),
        ("400 Gbit/s", "bytes/s", 50e9),
        ("400 Gb/s", "bytes/s", 50e9),
        ("64 GiB/s", "bytes/s", 64 * 2**30),
        ("80 GiB", "bytes", 80 * 2**30),
        ("80 GB", "bytes", 80e9),
        ("81559 MiB", "bytes", 81559 * 2**20),
        ("8 kbit", "bytes", 1000),
        ("989.4 TFLOP/s", "FLOP/s", 989.4e12),
        ("989.4 TFLOPS", "FLOP/s", 989.4e12),
        ("624 TOP/s", "FLOP/s", 624e12),
        ("3 us", "s", 3e-6),
        ("3 µs", "s", 3e-6),
        ("3 μs", "s", 3e-6),
        ("1.5 h", "s", 5400),
        ("700 W", "W", 700),
        ("10.2 kW", "W", 10200),
        ("1 kWh", "J", 3.6e6),
        ("1.83 GHz", "Hz", 1.83e9),
        ("3.6 USD/h", "USD/s", 0.001),
        ("0.36 USD/kWh", "USD/J", 1e-7),
        ("15T", "count", 15e12),
        ("300B", "count", 300e9),
        ("4096", "count", 4096),
        (4096, "count", 4096),
        ("1_000", "count", 1000),
        ("0.75", "fraction", 0.75),
        ("75%", "fraction", 0.75),
        (0.75, "fraction", 0.75),
        (1, "fraction", 1.0),
        ("2.5e-3", "number", 0.0025),
        ("-0 W", "W", 0.0),
    ],
)
def test_reads_what_people_write(text, dimension, value):
    assert parse_quantity(text, dimension) == value


@pytest.mark.parametrize(
    ("text", "dimension", "words"),
    [
        ("8 gb/s", "bytes/s", "unknown unit 'gb/s'.*write GB/s for bytes or Gbit/s for bits"),
        ("80 KB", "bytes", "write kB for bytes or kbit for bits"),
        ("700 w", "W", "write W"),
        ("989 tflops", "FLOP/s", "TFLOPS"),
        ("3 GB", "bytes/s", "unit 'GB' measures bytes, not bytes/s; write e.g. 3.35 TB/s"),
        ("3 GHz", "W", "measures Hz, not W"),
        ("989 TFLOPs", "FLOP/s", "measures FLOP, not FLOP/s"),
        ("3.35", "bytes/s", "a unit is missing; write e.g."),
        (3.35e12, "bytes/s", "a unit is missing"),
        ("700 horses", "W", "unknown unit 'horses'; write e.g. 700 W"),
        ("-3 W", "W", "is negative"),
        (-1, "count", "is negative"),
        ("nan W", "W", "not a finite number"),
        (math.nan, "fraction", "not a finite number"),
        (math.inf, "number", "not a finite number"),
        ("-.inf", "W", "not a finite number"),
        ("1e999 W", "W", "outside the range of numbers"),
        ("1e308 EB", "bytes", "outside the range of numbers"),
        ("1e-999999999 W", "W", "outside the range of numbers"),
        ("1,000 W", "W", "without separators"),
        ("1.2.3 W", "W", "one decimal point"),
        ("300b", "count", "write B"),
        ("75", "fraction", "more than the whole"),
        ("101%", "fraction", "more than the whole"),
        ("", "W", "not a number with a unit"),
        ("W", "W", "not a number with a unit"),
        ("٣ W", "W", "not a number with a unit"),
        (True, "number", "not a quantity"),
        ("1 " + "x" * 100, "W", "too long"),
        (10**400, "number", "too large"),
    ],
)
def test_refuses_with_a_cure(text, dimension, words):
    with pytest.raises(UnitError, match=words) as caught:
        parse_quantity(text, dimension)
    assert "\n" not in str(caught.value)


def test_an_unknown_dimension_names_the_known_ones():
    with pytest.raises(UnitError, match="unknown dimension 'furlong'; known: bytes"):
        parse_quantity("3 m", "furlong")


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_only_finite_values_are_written(value):
    with pytest.raises(UnitError):
        format_quantity(value, "W")


@pytest.mark.parametrize(
    ("value", "dimension", "digits", "text"),
    [
        (3.35e12, "bytes/s", None, "3.35 TB/s"),
        (80 * 2**30, "bytes", None, "80 GiB"),
        (80 * 2**30, "bytes", 3, "85.9 GB"),
        (80e9, "bytes", None, "80 GB"),
        (2.95 / 3600, "USD/s", None, "2.95 USD/h"),
        (15e12, "count", None, "15T"),
        (0.0, "bytes", 3, "0 B"),
        (0.0, "USD/s", None, "0 USD/h"),
        (999.6e9, "bytes/s", 3, "1 TB/s"),
        (300.0, "s", 3, "300 s"),
        (1.234e-6, "s", 2, "1.2 us"),
        (0.8034, "fraction", 2, "0.8"),
    ],
)
def test_writes_as_people_do(value, dimension, digits, text):
    assert format_quantity(value, dimension, digits=digits) == text


@given(st.sampled_from(DIMENSIONS), st.floats(min_value=0, allow_nan=False, allow_infinity=False))
def test_round_trip_is_exact(dimension, value):
    if dimension == "fraction":
        value = min(value, 1.0)
    assert parse_quantity(format_quantity(value, dimension), dimension) == value


@given(st.sampled_from(DIMENSIONS), st.floats(min_value=1e-30, max_value=1e30), st.integers(1, 12))
def test_rounding_keeps_the_digits_asked_for(dimension, value, digits):
    if dimension == "fraction":
        value = min(value, 1.0)
    text = format_quantity(value, dimension, digits=digits)
    assert parse_quantity(text, dimension) == pytest.approx(value, rel=0.51 * 10 ** (1 - digits))
    assert len(re.sub(r"^0\.0*|[^0-9]|[eE].*", "", text.split()[0])) <= max(digits, 22)


@given(st.one_of(st.text(max_size=80), st.floats(), st.integers(), st.booleans()), st.sampled_from(DIMENSIONS))
def test_anything_is_a_value_or_a_unit_error(text, dimension):
    try:
        value = parse_quantity(text, dimension)
    except UnitError as error:
        assert "\n" not in str(error)
    else:
        assert value >= 0 and math.isfinite(value)


@given(st.sampled_from(["TB/s", "Gbit/s", "GiB/s"]), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_order_of_numbers_is_order_of_values(unit, a, b):
    assert (a <= b) == (parse_quantity(f"{a!r} {unit}", "bytes/s") <= parse_quantity(f"{b!r} {unit}", "bytes/s"))
