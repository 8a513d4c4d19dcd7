"""Constants of collective operations, as the rest of the library sees them: plain SI floats, frozen.

They belong to a link: the interconnect of a node, or a fabric between nodes. What they mean is said by the
formulas of :mod:`perfmodel.timing.collectives`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["COLLECTIVES", "CollectiveConstants", "Collectives", "Residual"]

#: Operations that have constants.
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "send_recv")


@dataclass(frozen=True, slots=True, kw_only=True)
class Residual:
    """Quantiles of ``log(measured / predicted)`` on rows that the constants weren't fitted on.

    Attributes
    ----------
    below : float or None
        For messages of fewer bytes; ``None``: for all larger ones.
    low, high : float
        Between them lie 90 % of the rows, each end with the finite-sample correction of split-conformal prediction.
    count : int
        How many rows.
    """

    below: float | None
    low: float
    high: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveConstants:
    """At most six constants of one operation on one link, and how far off they are.

    Attributes
    ----------
    startup : float
        Seconds that any operation takes, however small.
    step : float
        Latency of one step (from one rank to the next), as a multiple of the link's own latency.
    small : float
        Fraction of the link's bandwidth that the protocol for small messages reaches.
    fill : float
        Further seconds until the protocol for large messages streams.
    large : float
        Fraction of the link's bandwidth that the protocol for large messages reaches.
    multicast : float, optional
        The same where the switch reduces and broadcasts (NVLS); only all-reduce has it.
    contention : float, optional
        Where devices share the host's bridges: the power of ``2 / ranks`` with which bandwidth falls.
    residuals : tuple of Residual
        By size, for the numbers of ranks that were measured.
    unseen : tuple of Residual
        For others: each number of ranks predicted from the rest.
    profiled : tuple of Residual
        Of profiled kernels.
    """

    startup: float
    step: float
    small: float
    fill: float
    large: float
    multicast: float | None = None
    contention: float | None = None
    residuals: tuple[Residual, ...] = ()
    unseen: tuple[Residual, ...] = ()
    profiled: tuple[Residual, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Collectives:
    """What measurements say about the collectives of a link.

    Attributes
    ----------
    data, date : str
        What was fitted, and when.
    ranks : tuple of int
        Numbers of ranks that were measured.
    ops : mapping of str to CollectiveConstants
        Keyed by :data:`COLLECTIVES`.
    arrival : float, optional
        Seconds that a profiled kernel lasts at least, since it waits for the last rank to arrive.
    """

    data: str
    date: str
    ranks: tuple[int, ...]
    ops: Mapping[str, CollectiveConstants]
    arrival: float | None = None
