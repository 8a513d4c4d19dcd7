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
        ``None`` for a module whose dimensions aren't known, a family without such a formula, or a model that is
        tuned by an adapter: the formula counts the gradients of all weights.
    """
    if "dims" not in graph.meta or "adapter" in graph.meta:
        return None
    once = dims_from_dict(graph.meta["dims"]).closed_form_flops(graph.bindings)
    return None if once is None else once * graph.meta.get("accumulate", 1)
