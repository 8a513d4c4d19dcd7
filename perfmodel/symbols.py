"""Sizes that may be symbols: exact polynomials over batch, sequence and the like.

A size (:data:`Dim`) is an ``int``, an :class:`Expr`, or, where a formula is
evaluated for many cases at once, a NumPy array. Formulas are written once with
``+ - * //`` and :func:`ceil_div`, :func:`maximum`, :func:`minimum`, and work on
all three.

An :class:`Expr` is a polynomial with rational coefficients over *atoms*: a
symbol, or a call of ``floordiv``, ``mod``, ``maximum`` or ``minimum``. Sums of a
whole graph collapse to a few terms, which is why a million cases cost
milliseconds.

>>> b, s = symbol("batch"), symbol("seq")
>>> e = (b * s) * 4096 + 2 * b * s
>>> str(e)
'4098*batch*seq'
>>> evaluate(e, {"batch": 2, "seq": 3})
24588
>>> parse("4098*batch*seq") == e
True
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from perfmodel.errors import PerfModelError

__all__ = [
    "Dim",
    "Expr",
    "ceil_div",
    "evaluate",
    "maximum",
    "minimum",
    "parse",
    "product",
    "symbol",
    "symbols_of",
]

#: A size: an int, an Expr, or an ndarray of sizes. Operators between the three can't be typed more closely.
Dim = Any
Coefficient = int | Fraction
Monomial = tuple[tuple["Atom", int], ...]
Atom = Any  # str or tuple: a symbol's name, or (function, argument, argument)

_FUNCTIONS = ("floordiv", "mod", "maximum", "minimum")


class Expr:
    """A polynomial over symbols and calls. Immutable and hashable; build it with :func:`symbol` and operators."""

    __slots__ = ("_hash", "terms")
    terms: tuple[tuple[Monomial, Coefficient], ...]

    def __init__(self, terms: Mapping[Monomial, Coefficient]) -> None:
        kept = [(monomial, _whole(c)) for monomial, c in terms.items() if c != 0]
        kept.sort(key=lambda term: _monomial_key(term[0]))
        self.terms = tuple(kept)
        self._hash = hash(self.terms)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Expr):
            return self._hash == other._hash and self.terms == other.terms
        if isinstance(other, (int, Fraction)):
            return self.terms == _as_expr(other).terms
        return NotImplemented

    def __add__(self, other: Dim) -> Dim:
        if isinstance(other, np.ndarray):
            return NotImplemented
        total = dict(self.terms)
        for monomial, c in _as_expr(other).terms:
            total[monomial] = total.get(monomial, 0) + c
        return _simplest(total)

    __radd__ = __add__

    def __neg__(self) -> Dim:
        return self * -1

    def __sub__(self, other: Dim) -> Dim:
        return self + (-1 * other)

    def __rsub__(self, other: Dim) -> Dim:
        return other + (-1 * self)

    def __mul__(self, other: Dim) -> Dim:
        if isinstance(other, (int, Fraction)):
            return _simplest({monomial: c * other for monomial, c in self.terms})
        if isinstance(other, np.ndarray):
            return NotImplemented
        total: dict[Monomial, Coefficient] = {}
        right = _as_expr(other)
        for left_monomial, a in self.terms:
            for right_monomial, b in right.terms:
                monomial = _times(left_monomial, right_monomial)
                total[monomial] = total.get(monomial, 0) + a * b
        return _simplest(total)

    __rmul__ = __mul__

    def __pow__(self, power: int) -> Dim:
        result: Dim = 1
        for _ in range(power):
            result = result * self
        return result

    def __truediv__(self, other: int | Fraction) -> Dim:
        if not isinstance(other, (int, Fraction)):
            raise TypeError("an Expr can be divided exactly by a number only; use // or ceil_div for sizes")
        return self * Fraction(1, 1) * (Fraction(1) / other)

    def __floordiv__(self, other: Dim) -> Dim:
        return _call("floordiv", self, other)

    def __rfloordiv__(self, other: Dim) -> Dim:
        return _call("floordiv", other, self)

    def __mod__(self, other: Dim) -> Dim:
        return _call("mod", self, other)

    def __rmod__(self, other: Dim) -> Dim:
        return _call("mod", other, self)

    def __bool__(self) -> bool:
        raise TypeError(f"the truth of the symbolic size {self} is not known; evaluate it first")

    def __str__(self) -> str:
        return _text(self)

    def __repr__(self) -> str:
        return f"Expr({_text(self)!r})"


def symbol(name: str) -> Expr:
    """The symbol ``name`` as a size."""
    if not name.isidentifier() or name in _FUNCTIONS:
        raise PerfModelError(f"symbol name {name!r} is not an identifier; use a name such as 'batch' or 'seq'")
    return Expr({((name, 1),): 1})


def product(sizes: Iterable[Dim]) -> Dim:
    """Product of sizes; 1 for none.

    >>> str(product([2, symbol("b"), 3]))
    '6*b'
    """
    total: Dim = 1
    for size in sizes:
        total = total * size
    return total


def ceil_div(a: Dim, b: Dim) -> Dim:
    """``a / b`` rounded up.

    >>> ceil_div(7, 2), str(ceil_div(symbol("s"), 8))
    (4, '-floordiv(-s, 8)')
    """
    return -((-1 * a) // b)


def maximum(a: Dim, b: Dim) -> Dim:
    """The larger of two sizes (element-wise for arrays)."""
    return _extreme("maximum", np.maximum, max, a, b)


def minimum(a: Dim, b: Dim) -> Dim:
    """The smaller of two sizes (element-wise for arrays)."""
    return _extreme("minimum", np.minimum, min, a, b)


def evaluate(size: Dim, values: Mapping[str, Any]) -> Any:
    """Put numbers or arrays in the place of symbols.

    Parameters
    ----------
    size : Dim
        What to evaluate; a plain number comes back as it is.
    values : mapping
        Symbol name to int or array. Arrays broadcast against each other.

    Returns
    -------
    int, Fraction or ndarray
        Exact for ints; for arrays computed in the arrays' own type (pass
        ``float64`` where a total may exceed 2**63).

    Raises
    ------
    PerfModelError
        If a symbol has no value.
    """
    if not isinstance(size, Expr):
        return size
    total: Any = 0
    for monomial, coefficient in size.terms:
        term: Any = coefficient
        for atom, power in monomial:
            value = _atom_value(atom, values)
            if isinstance(value, np.ndarray) and isinstance(term, Fraction):
                term = float(term)
            for _ in range(power):
                term = term * value
        total = total + term
    return _whole(total) if isinstance(total, Fraction) else total


def symbols_of(size: Dim) -> frozenset[str]:
    """Names of the symbols in a size.

    >>> sorted(symbols_of(parse("batch*floordiv(seq, 8)")))
    ['batch', 'seq']
    """
    names: set[str] = set()
    if isinstance(size, Expr):
        for monomial, _ in size.terms:
            for atom, _power in monomial:
                if isinstance(atom, str):
                    names.add(atom)
                else:
                    for argument in atom[1:]:
                        names |= symbols_of(argument)
    return frozenset(names)


def parse(text: str | int) -> Dim:
    """Read what ``str(Expr)`` wrote.

    >>> parse("3"), str(parse("2*seq**2 + floordiv(seq, 2)"))
    (3, 'floordiv(seq, 2) + 2*seq**2')

    Raises
    ------
    PerfModelError
        If the text is anything else than sums, products, powers and the four
        functions of sizes.
    """
    if isinstance(text, int):
        return text
    try:
        return _from_ast(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise PerfModelError(f"size {text!r} is not an expression of symbols, + - * // % ** and numbers") from None


def _from_ast(node: ast.expr) -> Dim:
    match node:
        case ast.Constant(value=int() as value):
            return value
        case ast.Name(id=name):
            return symbol(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -1 * _from_ast(operand)
        case ast.BinOp(left=left, op=op, right=right):
            if isinstance(op, ast.Pow):
                power = _from_ast(right)
                if not isinstance(power, int) or not 0 <= power <= 16:
                    raise ValueError
                return _from_ast(left) ** power
            a, b = _from_ast(left), _from_ast(right)
            if isinstance(op, ast.Div):
                if not isinstance(b, int) or b == 0:
                    raise ValueError
                return a * Fraction(1, b)
            operators: dict[type[ast.operator], Callable[[Dim, Dim], Dim]] = {
                ast.Add: lambda x, y: x + y,
                ast.Sub: lambda x, y: x - y,
                ast.Mult: lambda x, y: x * y,
                ast.FloorDiv: lambda x, y: x // y,
                ast.Mod: lambda x, y: x % y,
            }
            if type(op) in operators:
                return operators[type(op)](a, b)
        case ast.Call(func=ast.Name(id=name), args=[left, right]) if name in _FUNCTIONS:
            return _call(name, _from_ast(left), _from_ast(right))
    raise ValueError


def _whole(c: Any) -> Any:
    return c.numerator if isinstance(c, Fraction) and c.denominator == 1 else c


def _as_expr(value: Dim) -> Expr:
    if isinstance(value, Expr):
        return value
    if isinstance(value, (int, Fraction, np.integer)):
        number = int(value) if isinstance(value, np.integer) else value
        return Expr({(): number} if number else {})
    raise TypeError(f"a size is an int or an Expr, not {type(value).__name__}")


def _simplest(terms: Mapping[Monomial, Coefficient]) -> Dim:
    """An Expr, or a plain number where no symbol is left."""
    expr = Expr(terms)
    if not expr.terms:
        return 0
    if len(expr.terms) == 1 and expr.terms[0][0] == ():
        return expr.terms[0][1]
    return expr


def _times(left: Monomial, right: Monomial) -> Monomial:
    powers = dict(left)
    for atom, power in right:
        powers[atom] = powers.get(atom, 0) + power
    return tuple(sorted(powers.items(), key=lambda item: _atom_text(item[0])))


def _call(function: str, a: Dim, b: Dim) -> Dim:
    if not isinstance(a, Expr) and not isinstance(b, Expr):
        return _apply(function, a, b)
    if function in ("floordiv", "mod") and isinstance(a, Expr) and isinstance(b, int) and b:
        whole = all(isinstance(c, int) and c % b == 0 for _, c in a.terms)
        if whole:
            return _simplest({m: c // b for m, c in a.terms}) if function == "floordiv" else 0
    if function == "floordiv" and isinstance(b, Expr) and isinstance(a, Expr):
        exact = _exact_quotient(a, b)
        if exact is not None:
            return exact
    if function in ("maximum", "minimum") and a == b:
        return a
    return Expr({(((function, a, b), 1),): 1})


def _exact_quotient(a: Expr, b: Expr) -> Dim | None:
    """``a / b`` where ``b`` is a single term that divides every term of ``a``."""
    if len(b.terms) != 1:
        return None
    divisor, c = b.terms[0]
    result: dict[Monomial, Coefficient] = {}
    for monomial, coefficient in a.terms:
        powers = dict(monomial)
        for atom, power in divisor:
            powers[atom] = powers.get(atom, 0) - power
        quotient = Fraction(coefficient) / c
        if quotient.denominator != 1 or any(power < 0 for power in powers.values()):
            return None
        result[tuple((atom, power) for atom, power in powers.items() if power)] = quotient
    return _simplest(result)


def _apply(function: str, a: Any, b: Any) -> Any:
    if function == "floordiv":
        return a // b
    if function == "mod":
        return a % b
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return np.maximum(a, b) if function == "maximum" else np.minimum(a, b)
    return max(a, b) if function == "maximum" else min(a, b)


def _extreme(function: str, of_arrays: Any, of_numbers: Any, a: Dim, b: Dim) -> Dim:
    if isinstance(a, Expr) or isinstance(b, Expr):
        return _call(function, a, b)
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return of_arrays(a, b)
    return of_numbers(a, b)


def _atom_value(atom: Atom, values: Mapping[str, Any]) -> Any:
    if isinstance(atom, str):
        try:
            return values[atom]
        except KeyError:
            raise PerfModelError(f"symbol {atom!r} has no value; give one, e.g. {atom}=8") from None
    function, a, b = atom
    return _apply(function, evaluate(a, values), evaluate(b, values))


@lru_cache(maxsize=1 << 14)
def _atom_text(atom: Atom) -> str:
    if isinstance(atom, str):
        return atom
    return f"{atom[0]}({_text(atom[1])}, {_text(atom[2])})"


def _monomial_key(monomial: Monomial) -> tuple[Any, ...]:
    return (sum(power for _, power in monomial), [(_atom_text(atom), power) for atom, power in monomial])


def _text(size: Dim) -> str:
    if not isinstance(size, Expr):
        return str(size)
    parts: list[str] = []
    for monomial, c in size.terms:
        factors = [_atom_text(atom) + (f"**{power}" if power > 1 else "") for atom, power in monomial]
        numerator, denominator = (c, 1) if isinstance(c, int) else (c.numerator, c.denominator)
        if abs(numerator) != 1 or not factors:
            factors.insert(0, str(abs(numerator)))
        text = "*".join(factors) + (f"/{denominator}" if denominator != 1 else "")
        parts.append((" - " if numerator < 0 else " + ") + text)
    joined = "".join(parts)
    return joined[3:] if joined.startswith(" + ") else "-" + joined[3:]
