"""The parts of an action, as :mod:`perfmodel.timing.stage` makes them and a step's task graph takes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from perfmodel.graph.ir import Graph, Op

__all__ = ["BEFORE", "NOTHING", "LayerTimes", "StageWork", "accumulation"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

#: A part that waits for nothing but its stream, and one that waits for what precedes the action.
NOTHING, BEFORE = -2, -1


@dataclass(frozen=True, slots=True, kw_only=True)
class StageWork:
    """An action as parts in the order in which they are issued.

    Attributes
    ----------
    main : ndarray of bool, shape [parts]
        Whether a part is in the chain of which each link waits for the one before.
    stream : tuple of str
        ``"compute"``, or the kind of group that communicates.
    kind : tuple of str
        The phase of compute (``"forward"``, …), or the kind of group.
    label, path : tuple of str
        What it is called, and the module that it belongs to.
    duration : ndarray of float64, shape [parts]
        Seconds.
    issue : ndarray of int64, shape [parts]
        Orders the parts of a stream.
    after : tuple of tuple of int
        For each part, others that it waits for; :data:`BEFORE` is the main part before the action.
    busy : mapping of str to float
        Seconds by kind of the main parts: phases of compute, and kinds of group whose collectives stand between.
    host, lead : float
        Seconds the host needs to issue it, and by how much it must be ahead for the device never to wait.
    """

    main: npt.NDArray[np.bool_]
    stream: tuple[str, ...]
    kind: tuple[str, ...]
    label: tuple[str, ...]
    path: tuple[str, ...]
    duration: Floats
    issue: Ints
    after: tuple[tuple[int, ...], ...]
    busy: Mapping[str, float]
    host: float
    lead: float

    @property
    def time(self) -> float:
        """Seconds of the main parts together: the action's time where nothing holds it up."""
        return float(self.duration[self.main].sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTimes:
    """Seconds of a micro-batch's forward and backward: of each layer in order, of what precedes and what follows."""

    layers: tuple[float, ...]
    before: float
    after: float


def accumulation(op: Op, graph: Graph) -> Iterator[Op]:
    """What adds the gradients that an op makes to those of the micro-batches before."""
    made = {ref.storage for ref in op.allocates if graph.storages[ref.storage].role == "gradient"}
    for tensor in op.outputs:
        if tensor.storage in made:
            yield Op(
                name="aten.add_",
                phase="backward",
                module=op.module,
                inputs={"self": tensor, "other": tensor},
                outputs=(tensor,),
                attrs={},
            )
