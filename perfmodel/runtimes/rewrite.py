"""Turn a captured graph into the one that a runtime executes."""

from __future__ import annotations

from perfmodel.graph.fuse import fuse
from perfmodel.graph.ir import Graph
from perfmodel.runtimes.attention import unfuse_attention
from perfmodel.runtimes.optimizer import merge_optimizer
from perfmodel.runtimes.runtime import Runtime

__all__ = ["rewrite"]


def rewrite(graph: Graph, runtime: Runtime) -> Graph:
    """The graph as ``runtime`` runs it: kind of attention, kind of optimizer kernel, ops fused or not.

    Raises
    ------
    UnsupportedError
        If the runtime asks for something that can't be made of what was captured.
    """
    if runtime.attention == "unfused":
        graph = unfuse_attention(graph)
    if runtime.optimizer in ("foreach", "fused") and graph.meta.get("optimizer") is not None:
        graph = merge_optimizer(graph, runtime.optimizer)
    if runtime.traffic == "fused":
        graph = fuse(graph)
    return graph
