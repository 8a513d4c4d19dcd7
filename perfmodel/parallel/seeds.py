"""Where the propagation of placements starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from perfmodel.parallel.placement import Layout
from perfmodel.symbols import Dim

__all__ = ["Seeds"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seeds:
    """Where propagation starts from.

    Attributes
    ----------
    parameters : mapping of int to Layout
        By number of the storage; in the dimensions of the parameter.
    inputs : mapping of int to Layout
        By number of the storage.
    sequence : bool
        Whether activations between blocks are sharded along the sequence over ``tp``.
    gathered_outputs : tuple of str
        Modules whose sharded output is gathered.
    local_modules : tuple of str
        Modules that run on local tensors: their input is replicated, and terms stay terms within.
    units : mapping of int to Dim
        Parts that a parameter can be split into over ``tp``, where there may be fewer than ranks (key-value heads):
        several ranks then hold the same part, and their gradients are summed.
    """

    parameters: Mapping[int, Layout]
    inputs: Mapping[int, Layout]
    sequence: bool = False
    gathered_outputs: tuple[str, ...] = ()
    local_modules: tuple[str, ...] = ()
    units: Mapping[int, Dim] = field(default_factory=dict)
