"""Cut a row of costs into parts that cost alike."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["balanced"]


def balanced(weights: Sequence[float], parts: int) -> tuple[int, ...]:
    """Sizes of contiguous parts of which the heaviest is as light as possible.

    >>> balanced([5, 1, 1, 1, 1, 5], 3)
    (1, 4, 1)
    """
    low, high = max(weights), sum(weights)
    for _ in range(100):
        middle = (low + high) / 2
        if low < middle < high and _parts_needed(weights, middle) > parts:
            low = middle
        else:
            high = middle
    sizes: list[int] = []
    position = 0
    limit = high * (1 + 1e-12)
    for part in range(parts):
        left = parts - part - 1
        size, total = 1, weights[position]
        while position + size < len(weights) - left and (left == 0 or total + weights[position + size] <= limit):
            total += weights[position + size]
            size += 1
        sizes.append(size)
        position += size
    return tuple(sizes)


def _parts_needed(weights: Sequence[float], limit: float) -> int:
    parts, total = 1, 0.0
    for weight in weights:
        if total + weight > limit:
            parts, total = parts + 1, 0.0
        total += weight
    return parts
