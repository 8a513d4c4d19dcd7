"""Sizes: exact, readable back, the same for numbers and arrays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfmodel.errors import PerfModelError
from perfmodel.symbols import Expr, ceil_div, evaluate, maximum, minimum, parse, symbol, symbols_of

LEAVES = st.one_of(st.integers(0, 50), st.sampled_from(["b", "s"]).map(symbol))


def combine(children: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    pairs = st.tuples(children, children)
    return st.one_of(
        pairs.map(lambda p: p[0] + p[1]),  # type: ignore[operator]
        pairs.map(lambda p: p[0] * p[1]),  # type: ignore[operator]
        pairs.map(lambda p: p[0] - p[1]),  # type: ignore[operator]
        st.tuples(children, st.integers(1, 9)).map(lambda p: p[0] // p[1]),  # type: ignore[operator]
        st.tuples(children, st.integers(1, 9)).map(lambda p: p[0] % p[1]),  # type: ignore[operator]
        st.tuples(children, st.integers(1, 9)).map(lambda p: ceil_div(p[0], p[1])),
        pairs.map(lambda p: maximum(p[0], p[1])),
        pairs.map(lambda p: minimum(p[0], p[1])),
    )


EXPRESSIONS = st.recursive(LEAVES, combine, max_leaves=6)


@given(EXPRESSIONS, st.integers(1, 40), st.integers(1, 40))
def test_text_reads_back_as_the_same_size(size: object, b: int, s: int) -> None:
    again = parse(str(size))
    assert again == size
    assert evaluate(again, {"b": b, "s": s}) == evaluate(size, {"b": b, "s": s})


@given(EXPRESSIONS, st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=5))
def test_arrays_are_many_numbers(size: object, points: list[tuple[int, int]]) -> None:
    b, s = (np.array(column, dtype=np.int64) for column in zip(*points, strict=True))
    many = np.broadcast_to(np.asarray(evaluate(size, {"b": b, "s": s})), b.shape)
    assert many.tolist() == [evaluate(size, {"b": int(x), "s": int(y)}) for x, y in points]


@given(EXPRESSIONS, EXPRESSIONS, st.integers(1, 40), st.integers(1, 40))
def test_arithmetic_is_that_of_numbers(left: object, right: object, b: int, s: int) -> None:
    at = {"b": b, "s": s}
    x, y = evaluate(left, at), evaluate(right, at)
    assert evaluate(left + right, at) == x + y  # type: ignore[operator]
    assert evaluate(left * right, at) == x * y  # type: ignore[operator]
    assert evaluate(left - right, at) == x - y  # type: ignore[operator]


def test_sums_collapse() -> None:
    b, s = symbol("b"), symbol("s")
    assert str(sum([b * s * 4] * 100)) == "400*b*s"
    assert (b * s * 8) // (b * s) == 8
    assert (b * 6) // 3 == b * 2
    assert b - b == 0
    assert symbols_of(b * s // 7) == {"b", "s"}


def test_half_a_square_is_exact() -> None:
    s = symbol("s")
    assert evaluate(s * (s + 1) / 2, {"s": 10**9 + 1}) == (10**9 + 1) * (10**9 + 2) // 2


@pytest.mark.parametrize(
    "text", ["b +", "b.c", "f(b)", "__import__('os')", "b ** -1", "b[0]", "1 if b else 2", "(" * 5000, "'x'"]
)
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(PerfModelError):
        parse(text)


def test_a_symbol_without_a_value_and_a_truth_that_is_not_known() -> None:
    with pytest.raises(PerfModelError, match="'b' has no value"):
        evaluate(symbol("b"), {})
    with pytest.raises(TypeError, match="not known"):
        bool(symbol("b"))
    assert isinstance(symbol("b"), Expr)


def test_a_number_is_divided_by_a_size() -> None:
    remainder = 17 % symbol("s")
    assert evaluate(remainder, {"s": 5}) == 2
    assert parse(str(remainder)) == remainder
