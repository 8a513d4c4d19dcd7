"""From PyTorch's symbolic sizes (SymPy) to ours."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import sympy
import torch
from torch._dynamo.source import ConstantSource
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

from perfmodel.errors import CaptureError
from perfmodel.symbols import Dim, maximum, minimum, symbol

__all__ = ["SymbolTable"]

_COMPARISONS = {
    sympy.Eq: "==",
    sympy.Ne: "!=",
    sympy.StrictLessThan: "<",
    sympy.LessThan: "<=",
    sympy.StrictGreaterThan: ">",
    sympy.GreaterThan: ">=",
}


class SymbolTable:
    """The symbols of one capture.

    Parameters
    ----------
    hints : Mapping[str, int]
        Name of each symbol and the value at which the capture runs. Branches
        that depend on a symbol take the hint's side and become guards.
    """

    def __init__(self, hints: Mapping[str, int]) -> None:
        # Sizes 0 and 1 aren't special: a branch on them becomes a guard instead of an assumption.
        self.shape_env = ShapeEnv(specialize_zero_one=False)
        self.sizes: dict[str, torch.SymInt] = {}
        self._names: dict[sympy.Symbol, str] = {}
        self._known: dict[sympy.Basic, Dim] = {}
        for name, hint in hints.items():
            source = ConstantSource(name)
            sym = self.shape_env.create_symbol(
                hint, source=source, dynamic_dim=DimDynamic.DYNAMIC, do_not_specialize_zero_one=True
            )
            self._names[sym] = name
            self.sizes[name] = self.shape_env.create_symintnode(sym, hint=hint, source=source)

    def dim(self, size: int | torch.SymInt) -> Dim:
        """A size of PyTorch's as a size of ours.

        Raises
        ------
        CaptureError
            If the size depends on data (``nonzero`` and the like).
        """
        if isinstance(size, int):
            return size
        if isinstance(size, (torch.SymFloat, torch.SymBool)):
            raise CaptureError(
                f"a size of the model is a {type(size).__name__} ({size}); only integer sizes are captured"
            )
        return self._from_sympy(size.node.expr)

    def guards(self) -> tuple[str, ...]:
        """Conditions on the symbols under which the capture is right, as Python comparisons."""
        texts = (self._condition(guard.expr) for guard in self.shape_env.guards)
        return tuple(dict.fromkeys(text for text in texts if text != "True"))

    def _from_sympy(self, expr: sympy.Basic) -> Dim:
        known = self._known.get(expr)
        if known is None:
            known = self._known[expr] = self._convert(expr)
        return known

    def _convert(self, expr: sympy.Basic) -> Dim:
        if isinstance(expr, sympy.Integer):
            return int(expr)
        if isinstance(expr, sympy.Rational):
            return Fraction(int(expr.p), int(expr.q))
        if isinstance(expr, sympy.Symbol):
            if expr not in self._names:
                raise CaptureError(
                    f"a shape depends on the data ({expr}); replace nonzero(), unique() or boolean indexing "
                    "in the module by an op whose result has a known shape"
                )
            return symbol(self._names[expr])
        args = [self._from_sympy(arg) for arg in expr.args]
        kind = type(expr).__name__
        if isinstance(expr, sympy.Add):
            return sum(args[1:], args[0])
        if isinstance(expr, sympy.Mul):
            result: Any = 1
            for arg in args:
                result = result * arg
            return result
        if isinstance(expr, sympy.Pow) and isinstance(args[1], int) and args[1] >= 0:
            return args[0] ** args[1]
        if kind in ("FloorDiv", "CleanDiv", "IntTrueDiv"):
            return args[0] // args[1]
        if kind in ("Mod", "PythonMod"):
            return args[0] % args[1]
        if kind == "Max":
            return _fold_left(maximum, args)
        if kind == "Min":
            return _fold_left(minimum, args)
        raise CaptureError(f"a size of the model is {expr}, and {kind} isn't understood in sizes")

    def _condition(self, expr: sympy.Basic) -> str:
        if expr is sympy.true:
            return "True"
        for kind, text in _COMPARISONS.items():
            if isinstance(expr, kind):
                left, right = (self._from_sympy(arg) for arg in expr.args)
                return f"{left} {text} {right}"
        if isinstance(expr, (sympy.And, sympy.Or)):
            word = " and " if isinstance(expr, sympy.And) else " or "
            return "(" + word.join(self._condition(arg) for arg in expr.args) + ")"
        if isinstance(expr, sympy.Not):
            return f"not ({self._condition(expr.args[0])})"
        raise CaptureError(f"the module branches on {expr}, which isn't a comparison of sizes")


def _fold_left(function: Any, args: list[Dim]) -> Dim:
    result = args[0]
    for arg in args[1:]:
        result = function(result, arg)
    return result
