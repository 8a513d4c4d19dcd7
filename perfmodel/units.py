"""Quantities as people write them, to SI floats and back.

The parser is case-sensitive: ``b`` is a bit and ``B`` a byte, ``M`` is mega and
``m`` milli. Inside the library numbers are plain SI floats; units exist only in
files, on the command line and in reports.

>>> parse_quantity("3.35 TB/s", "bytes/s")
3350000000000.0
>>> parse_quantity("400 Gbit/s", "bytes/s")
50000000000.0
>>> parse_quantity("80 GiB", "bytes")
85899345920.0
>>> parse_quantity("75%", "fraction"), parse_quantity("15T", "count")
(0.75, 15000000000000.0)
>>> format_quantity(989.4e12, "FLOP/s")
'989.4 TFLOP/s'
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Context, Decimal
from fractions import Fraction
from functools import lru_cache

from perfmodel.errors import UnitError

__all__ = ["DIMENSIONS", "format_quantity", "parse_quantity"]

_DECIMAL = {"": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}
_SMALL = {"m": -3, "u": -6, "µ": -6, "μ": -6, "n": -9, "p": -12}  # both Unicode micros
_PER_TIME = {"s": Fraction(1), "min": Fraction(1, 60), "h": Fraction(1, 3600), "d": Fraction(1, 86400)}
_MASS = {"g": Fraction(1, 1000), "kg": Fraction(1), "t": Fraction(1000)}
_MAX_TEXT = 64
_SHOWN = 40


def _powers(exponents: Mapping[str, int]) -> dict[str, Fraction]:
    return {prefix: Fraction(10) ** exponent for prefix, exponent in exponents.items()}


def _units(prefixes: Mapping[str, Fraction], *names: str, scale: Fraction = Fraction(1)) -> dict[str, Fraction]:
    return {prefix + name: factor * scale for name in names for prefix, factor in prefixes.items()}


def _tables() -> dict[str, dict[str, Fraction]]:
    large = _powers(_DECIMAL)
    small = _powers(_SMALL)
    binary = {prefix: Fraction(1024) ** power for prefix, power in _BINARY.items()}
    both = large | binary
    data = _units(both, "B") | _units(both, "bit", "b", scale=Fraction(1, 8))
    time = _units(small | {"": Fraction(1)}, "s") | {unit: 1 / rate for unit, rate in _PER_TIME.items()}
    money = {"USD": Fraction(1), "kUSD": Fraction(1000), "MUSD": Fraction(10**6)}
    per_joule = {"J": Fraction(1), "kWh": Fraction(1, 3_600_000), "MWh": Fraction(1, 3_600_000_000)}
    return {
        "bytes": data,
        "bytes/s": {f"{unit}/s": factor for unit, factor in data.items()},
        "FLOP/s": _units(large, "FLOP/s", "FLOPS", "FLOPs/s", "OP/s", "OPS", "OPs/s"),
        "FLOP": _units(large, "FLOP", "FLOPs", "OP", "OPs"),
        "s": time,
        "W": _units(large | {"m": small["m"]}, "W"),
        "J": _units(large | {"m": small["m"]}, "J") | _units(large, "Wh", scale=Fraction(3600)),
        "Hz": _units(large, "Hz"),
        "USD": money,
        "USD/s": {f"{unit}/{per}": factor * rate for unit, factor in money.items() for per, rate in _PER_TIME.items()},
        "USD/J": {f"{unit}/{per}": factor * rate for unit, factor in money.items() for per, rate in per_joule.items()},
        "kg/J": {f"{unit}/{per}": mass * rate for unit, mass in _MASS.items() for per, rate in per_joule.items()},
        "number": {"": Fraction(1)},
        "count": {"": Fraction(1), "k": large["k"], "M": large["M"], "G": large["G"], "B": large["G"], "T": large["T"]},
        "fraction": {"": Fraction(1), "%": Fraction(1, 100)},
    }


_TABLES = _tables()

#: Names of the dimensions: the SI unit of what :func:`parse_quantity` returns.
DIMENSIONS = tuple(_TABLES)

_EXAMPLE = {
    "bytes": "80 GB (10^9) or 80 GiB (2^30)",
    "bytes/s": "3.35 TB/s for bytes or 400 Gbit/s for bits",
    "FLOP/s": "989.4 TFLOP/s",
    "FLOP": "6.5 PFLOP",
    "s": "3 us, 20 ms or 1.5 h",
    "W": "700 W",
    "J": "3.6 MJ or 1 kWh",
    "Hz": "1.83 GHz",
    "USD": "30000 USD",
    "USD/s": "2.95 USD/h",
    "USD/J": "0.12 USD/kWh",
    "kg/J": "369 g/kWh",
    "number": "132",
    "count": "15T, 300B or 4096",
    "fraction": "0.75 or 75%",
}

#: Units that :func:`format_quantity` chooses from, in the order of preference.
_SHOWN_UNITS: dict[str, tuple[str, ...]] = {
    "bytes": ("B", "kB", "MB", "GB", "TB", "PB", "EB"),
    "bytes/s": ("B/s", "kB/s", "MB/s", "GB/s", "TB/s", "PB/s", "EB/s"),
    "FLOP/s": tuple(f"{prefix}FLOP/s" for prefix in _DECIMAL),
    "FLOP": tuple(f"{prefix}FLOP" for prefix in _DECIMAL),
    "s": ("ps", "ns", "us", "ms", "s"),
    "W": ("mW", "W", "kW", "MW", "GW"),
    "J": ("mJ", "J", "kJ", "MJ", "GJ", "TJ"),
    "Hz": ("Hz", "kHz", "MHz", "GHz", "THz"),
    "USD": ("USD",),
    "USD/s": ("USD/h",),
    "USD/J": ("USD/kWh",),
    "kg/J": ("g/kWh",),
    "number": ("",),
    "count": ("", "k", "M", "B", "T"),
    "fraction": ("",),
}
#: Dimensions whose suffix sticks to the number: 15T, 75%.
_WITHOUT_UNIT = ("number", "count", "fraction")
_BINARY_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB")

_QUANTITY = re.compile(r"([+-]?(?:[0-9]+(?:_[0-9]+)*(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,9})?)\s*(.*)", re.DOTALL)
_NOT_FINITE = re.compile(r"[+-]?\.?(nan|inf|infinity)\b", re.IGNORECASE)


def parse_quantity(text: str | int | float, dimension: str) -> float:
    """The SI value of a quantity, e.g. ``"400 Gbit/s"`` as ``5e10`` bytes/s.

    Parameters
    ----------
    text : str, int or float
        What the user wrote. Where the dimension has a unit, a bare number is refused.
    dimension : str
        One of :data:`DIMENSIONS`. ``"number"`` is a bare number, ``"count"`` also
        takes ``k``, ``M``, ``B`` or ``G``, and ``T``; ``"fraction"`` lies between
        0 and 1, or is a percentage.

    Returns
    -------
    float
        The nearest float of the exact value; never negative, always finite.

    Raises
    ------
    UnitError
        If the text has no meaning, its unit is of another kind, or the value is
        negative, infinite or not a number.

    Examples
    --------
    >>> parse_quantity("8 gb", "bytes")
    Traceback (most recent call last):
    ...
    perfmodel.errors.UnitError: '8 gb': unknown unit 'gb'; units are case-sensitive, write GB for bytes or Gbit for bits
    """
    return _parsed(text, dimension) if isinstance(text, str) else _parse(text, dimension)


def _parse(text: str | int | float, dimension: str) -> float:
    table = _table(dimension)
    shown = _shown(text)
    if isinstance(text, bool) or not isinstance(text, (str, int, float)):
        raise UnitError(f"{shown} is not a quantity; write e.g. {_EXAMPLE[dimension]}")
    if isinstance(text, int) and abs(text) > 10**_MAX_TEXT:
        raise UnitError(f"the number is too large for a quantity; write e.g. {_EXAMPLE[dimension]}")
    written = text.strip() if isinstance(text, str) else repr(text)
    if len(written) > _MAX_TEXT:
        raise UnitError(f"{shown} is too long for a quantity; write e.g. {_EXAMPLE[dimension]}")
    if _NOT_FINITE.match(written):
        raise UnitError(f"{shown} is not a finite number; write e.g. {_EXAMPLE[dimension]}")
    match = _QUANTITY.fullmatch(written)
    if match is None:
        raise UnitError(f"{shown} is not a number with a unit; write e.g. {_EXAMPLE[dimension]}")
    number, unit = match.groups()
    if unit not in table:
        raise UnitError(f"{shown}: {_unit_problem(unit, dimension)}")
    if number.startswith("-") and Decimal(number) != 0:
        raise UnitError(f"{shown} is negative; write a number of zero or more")
    digits = Decimal(number)
    # A Fraction of 1e-9999 is a number of ten thousand digits; floats end long before.
    if digits != 0 and not -400 < digits.adjusted() < 400:
        raise UnitError(f"{shown} is outside the range of numbers; write e.g. {_EXAMPLE[dimension]}")
    exact = Fraction(digits) * table[unit]
    try:
        value = float(exact)
    except OverflowError:
        raise UnitError(f"{shown} is outside the range of numbers; write e.g. {_EXAMPLE[dimension]}") from None
    if dimension == "fraction" and value > 1:
        raise UnitError(f"{shown} is more than the whole; write a fraction such as {_EXAMPLE[dimension]}")
    return value


#: A catalogue of hardware says the same few things many times.
_parsed = lru_cache(maxsize=4096)(_parse)


def format_quantity(value: float, dimension: str, *, digits: int | None = None) -> str:
    """The text of an SI value, which :func:`parse_quantity` reads back.

    Parameters
    ----------
    value : float
        Zero or more, in the SI unit of ``dimension``.
    dimension : str
        One of :data:`DIMENSIONS`.
    digits : int, optional
        Significant digits. Without it, as many as bring back exactly ``value``,
        in the unit that makes the text shortest (``80 GiB`` rather than
        ``85.89934592 GB``).

    Raises
    ------
    UnitError
        If ``value`` is negative, infinite or not a number, or the dimension is unknown.

    Examples
    --------
    >>> format_quantity(85899345920, "bytes"), format_quantity(85899345920, "bytes", digits=3)
    ('80 GiB', '85.9 GB')
    >>> format_quantity(2.5e-6, "s"), format_quantity(0.803, "fraction")
    ('2.5 us', '0.803')
    """
    table = _table(dimension)
    value = float(value)
    if not math.isfinite(value) or value < 0:
        raise UnitError(f"{value!r} can't be written as a quantity; it must be finite and zero or more")
    if dimension == "fraction" and value > 1:
        raise UnitError(f"{value!r} is more than the whole; a fraction lies between 0 and 1")
    units = _SHOWN_UNITS[dimension]
    if value == 0:
        return _joined("0", _base_unit(dimension), dimension)
    exact = Fraction(value)
    # The largest unit of which there is at least one once rounded: 999.96 GB with 3 digits is 1 TB.
    one = 1 - Fraction(1, 2 * 10**digits) if digits is not None else Fraction(1)
    unit = units[0]
    for candidate in units:
        if exact / table[candidate] >= one:
            unit = candidate
    if digits is not None:
        return _joined(_rounded(exact / table[unit], digits), unit, dimension)
    texts = [_joined(_shortest(value, table[unit]), unit, dimension)]
    if dimension == "bytes":
        for candidate in _BINARY_UNITS:
            if 1 <= exact / table[candidate] < 1024:
                texts.append(_joined(_shortest(value, table[candidate]), candidate, dimension))
    return min(texts, key=len)


def _table(dimension: str) -> dict[str, Fraction]:
    try:
        return _TABLES[dimension]
    except KeyError:
        raise UnitError(f"unknown dimension {dimension!r}; known: {', '.join(DIMENSIONS)}") from None


def _base_unit(dimension: str) -> str:
    return dimension if dimension in ("FLOP/s", "FLOP", "s", "W", "J", "Hz") else _SHOWN_UNITS[dimension][0]


def _joined(number: str, unit: str, dimension: str) -> str:
    return f"{number}{unit}" if dimension in _WITHOUT_UNIT else f"{number} {unit}"


def _rounded(number: Fraction, digits: int) -> str:
    context = Context(prec=digits, Emax=10**6, Emin=-(10**6))
    quotient = context.divide(Decimal(number.numerator), Decimal(number.denominator))
    text = format(quotient, "f") if -6 <= quotient.adjusted() <= 21 else format(quotient.normalize(context), "E")
    if "." in text and "E" not in text:
        text = text.rstrip("0").rstrip(".")
    return text


def _shortest(value: float, scale: Fraction) -> str:
    """The number of fewest digits that is ``value`` again once it's parsed."""
    number = Fraction(value) / scale
    for digits in range(1, 25):
        text = _rounded(number, digits)
        try:
            if float(Fraction(Decimal(text)) * scale) == value:
                break
        except OverflowError:  # rounded up past the largest float
            continue
    return text


def _shown(text: object) -> str:
    if isinstance(text, int) and not isinstance(text, bool) and abs(text) > 10**_SHOWN:
        return "the number"
    shown = repr(text)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…'"


def _unit_problem(unit: str, dimension: str) -> str:
    """What is wrong with a unit that isn't one of the dimension, and the cure."""
    example = f"write e.g. {_EXAMPLE[dimension]}"
    if unit == "":
        return f"a unit is missing; {example}"
    shown = unit if len(unit) <= _SHOWN else f"{unit[:_SHOWN]}…"
    if re.match(r"[,.]\s*[0-9]", unit):
        return f"a number is written without separators and with one decimal point; {example}"
    kinds = [name for name, units in _TABLES.items() if unit in units and name not in _WITHOUT_UNIT]
    if kinds and dimension not in _WITHOUT_UNIT:
        return f"unit {shown!r} measures {kinds[0]}, not {dimension}; {example}"
    near = sorted({known for known in _TABLES[dimension] if known.lower() == unit.lower()})
    if near:
        return f"unknown unit {shown!r}; units are case-sensitive, write {_case_choice(near)}"
    return f"unknown unit {shown!r}; {example}"


def _case_choice(near: list[str]) -> str:
    """Words for the units that ``unit`` may have meant when its case is ignored."""
    byte = [known for known in near if "B" in known and "bit" not in known]
    bit = [known for known in near if "b" in known and "bit" not in known]
    if byte and bit:
        return f"{byte[0]} for bytes or {bit[0].replace('b', 'bit')} for bits"
    return " or ".join(near)
