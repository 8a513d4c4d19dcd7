"""The field's one-line count of a transformer's flops, to hold captured counts against."""

from __future__ import annotations

from perfmodel.graph.ir import Graph
from perfmodel.models.dims import TransformerDims

__all__ = ["closed_form_flops"]


def closed_form_flops(graph: Graph) -> float | None:
    """Model flops of a training step, ``tokens * (6 N + 12 L H Q T)``.

    N: parameters in matrix products, the head once and embeddings not; L layers,
    H heads, Q head size, T sequence length (Chowdhery et al. 2022, PaLM, appendix
    B). Forward and backward; causal attention by its full square.

    Parameters
    ----------
    graph : Graph
        Of a model by name; its bindings give batch and sequence.

    Returns
    -------
    float or None
        ``None`` for a module whose dimensions aren't known.
    """
    if "dims" not in graph.meta:
        return None
    dims = TransformerDims.from_dict(graph.meta["dims"])
    batch, seq = graph.bindings["batch"], graph.bindings["seq"]
    attention = 12 * dims.num_hidden_layers * dims.num_attention_heads * dims.head_dim * seq
    return float(batch * seq * (6 * dims.matmul_parameters() + attention))
