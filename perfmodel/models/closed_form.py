"""The field's one-line count of a model's flops, to hold captured counts against."""

from __future__ import annotations

from perfmodel.graph.ir import Graph
from perfmodel.models.families import dims_from_dict

__all__ = ["closed_form_flops"]


def closed_form_flops(graph: Graph) -> float | None:
    """Model flops of a training step by the formula of the model's family.

    Parameters
    ----------
    graph : Graph
        Of a model by name; its bindings give the sizes.

    Returns
    -------
    float or None
        ``None`` for a module whose dimensions aren't known, or a family without such a formula.
    """
    if "dims" not in graph.meta:
        return None
    return dims_from_dict(graph.meta["dims"]).closed_form_flops(graph.bindings)
