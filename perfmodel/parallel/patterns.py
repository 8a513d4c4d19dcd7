"""Small things about numbers and module paths."""

from __future__ import annotations

import math
import re

__all__ = ["divisors", "matches"]


def divisors(number: int, *, above: int = 0) -> list[int]:
    """Divisors of a number, for messages.

    >>> divisors(12, above=2)
    [3, 4, 6, 12]
    """
    low = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return [d for d in sorted({*low, *(number // d for d in low)}) if d > above]


def matches(path: str, pattern: str) -> bool:
    """Whether a module path ends in a pattern, or lies below what does; ``*`` is a layer of any number.

    >>> matches("model.layers.*.mlp.up_proj", "layers.*.mlp")
    True
    """
    text = re.escape(pattern).replace(r"\*", r"(\d+|\*(\+\d+)?)")
    return re.search(rf"(^|\.){text}(\.|$)", path) is not None
