"""The captured training step: torch-free graph, counting, folding, storing."""

from perfmodel.graph.count import CONVENTIONS, Coverage
from perfmodel.graph.depth import probe_depth, with_depth
from perfmodel.graph.fold import fold, unfold
from perfmodel.graph.fuse import fuse
from perfmodel.graph.ir import PHASES, ROLES, Block, Graph, Op, Ref, Storage
from perfmodel.graph.store import content_hash, load_graph, save_graph

__all__ = [
    "CONVENTIONS",
    "PHASES",
    "ROLES",
    "Block",
    "Coverage",
    "Graph",
    "Op",
    "Ref",
    "Storage",
    "content_hash",
    "fold",
    "fuse",
    "load_graph",
    "probe_depth",
    "save_graph",
    "unfold",
    "with_depth",
]
