"""Where parameters lie: from styles by module name, or inferred from the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from perfmodel.errors import UnknownNameError, UnsupportedError
from perfmodel.graph.ir import Graph, Storage
from perfmodel.parallel.infer import Weights, find_weights
from perfmodel.parallel.placement import Placement, Shard
from perfmodel.parallel.seeds import Seeds
from perfmodel.parallel.tokens import sequence_shard, token_dims

__all__ = ["STYLES", "seeds_for"]

#: Styles of a tensor-parallel plan and what they do to a module's parameters. Names are those of
#: Hugging Face's ``base_model_tp_plan`` (transformers 5) and, shorter, of ``parallelize_module``.
STYLES = {
    "colwise": "columns",
    "colwise_rep": "columns, gathered",
    "colwise_gather_output": "columns, gathered",
    "packed_colwise": "packed columns",
    "rowwise": "rows",
    "rowwise_rep": "rows",
    "rowwise_split_input": "rows",
    "packed_rowwise": "rows",
    "embedding_rowwise": "rows",
    "embedding_colwise": "columns",
    "sequence": "sequence",
    "sequence_parallel": "sequence",
    "replicate": "whole",
    "replicated_with_grad_allreduce": "whole",
    "mla_kv_a_proj": "whole",
    "all_reduce": "whole",
    "local_params": "whole",
    "moe_tp_experts": "local",
    "moe_identity_expert": "whole",
    "grouped_gemm": "experts",
    "ep_dispatch_experts": "whole",
}


def seeds_for(
    graph: Graph,
    *,
    tp: int,
    sequence: bool,
    cp: int,
    ep: int,
    experts_over_tp: bool,
    styles: Mapping[str, str] | None,
    at: Mapping[str, Any],
) -> Seeds:
    """Placements of parameters and inputs to start from.

    Parameters
    ----------
    graph : Graph
    tp, cp, ep : int
        Degrees; a degree of 1 places nothing.
    sequence : bool
        Sequence parallelism over ``tp``.
    experts_over_tp : bool
        Whether experts are split over ``tp`` as other weights are.
    styles : mapping of str to str, optional
        Module or parameter pattern (``*`` is a layer) to one of :data:`STYLES`; inferred where it's ``None``.
    at : mapping of str to int
        Numbers for the symbols.

    Raises
    ------
    UnknownNameError
        For a style that isn't known.
    UnsupportedError
        If a pattern matches nothing, or there is nothing to split.
    """
    weights = find_weights(graph, at)
    layouts: dict[int, dict[str, Placement]] = {}
    gathered: list[str] = []
    local: list[str] = []
    if tp > 1:
        if styles is None:
            over_tp = _inferred(weights)
            if experts_over_tp and ep == 1:
                # A token's experts are summed before ranks are: the layer of experts runs on local tensors.
                local = sorted({graph.storages[number].module for number in weights.experts})
        else:
            over_tp, gathered, local, wants_sequence = _styled(graph, weights, styles)
            sequence = sequence or wants_sequence
        if not over_tp:
            raise UnsupportedError(
                f"tp={tp}: no weight of {graph.name} can be split; give placements such as "
                "{'layers.*.mlp.up_proj': 'colwise', 'layers.*.mlp.down_proj': 'rowwise'}"
            )
        for number, placement in over_tp.items():
            if experts_over_tp or number not in weights.experts:
                layouts.setdefault(number, {})["tp"] = placement
    if ep > 1:
        if not weights.experts:
            raise UnsupportedError(f"ep={ep}: {graph.name} has no routed experts (no grouped product); set ep=1")
        for number in weights.experts:
            layouts.setdefault(number, {})["ep"] = Shard(0, kind="expert")
    return Seeds(
        parameters=layouts,
        inputs=_inputs(graph) if cp > 1 else {},
        sequence=sequence and tp > 1,
        gathered_outputs=tuple(gathered),
        local_modules=tuple(local),
        units={
            number: weights.shapes[number][placement.dim] // placement.unit
            for number, layout in layouts.items()
            if isinstance(placement := layout.get("tp"), Shard) and placement.unit != 1 and not placement.packed
        },
    )


def _inferred(weights: Weights) -> dict[int, Placement]:
    found: dict[int, Placement] = dict(weights.columns)
    for number in weights.rows:
        found.setdefault(number, Shard(weights.linear[number][0]))
    for number, by_tokens in weights.embeddings.items():
        if by_tokens:
            found[number] = Shard(0)
    return {**_biases(weights, found), **found}


def _biases(weights: Weights, placed: Mapping[int, Placement]) -> dict[int, Placement]:
    """Parameters that meet sharded features, sharded as these."""
    found: dict[int, Placement] = {}
    for number, sources in weights.biases.items():
        shards = [placed[source] for source in sources if isinstance(placed.get(source), Shard)]
        columns = [p for p, s in zip(shards, sources, strict=False) if isinstance(p, Shard) and s in weights.columns]
        if columns:
            found[number] = replace(columns[0], dim=len(weights.shapes[number]) - 1)
    return found


def _styled(
    graph: Graph, weights: Weights, styles: Mapping[str, str]
) -> tuple[dict[int, Placement], list[str], list[str], bool]:
    placed: dict[int, Placement] = {}
    gathered: list[str] = []
    local: list[str] = []
    sequence = False
    modules = sorted({op.module for op, _ in graph.ops() if op.phase == "forward"})
    for pattern, style in styles.items():
        if style not in STYLES:
            raise UnknownNameError("style", style, STYLES, f"known are {', '.join(STYLES)}")
        what = STYLES[style]
        owned = [
            (number, storage)
            for number, storage in enumerate(graph.storages)
            if storage.role == "parameter" and (_matches(storage.module, pattern) or _matches(storage.name, pattern))
        ]
        paths = [module for module in modules if _matches(module, pattern)]
        if not owned and not paths:
            raise UnsupportedError(
                f"placements: {pattern!r} matches no module of {graph.name}; its modules are such as "
                f"{', '.join(sorted({s.module for s in graph.storages if s.role == 'parameter'})[:4])}"
            )
        if what == "columns, gathered":
            gathered += paths
        elif what == "local":
            local += paths
        elif what == "sequence":
            sequence = True
        for number, storage in owned:
            placement = _placed(what, number, storage, weights)
            if placement is not None:
                placed[number] = placement
    return placed, gathered, local, sequence


def _placed(what: str, number: int, storage: Storage, weights: Weights) -> Placement:
    columns = what.startswith(("columns", "packed columns"))
    if number in weights.embeddings and number not in weights.linear:
        return Shard(1 if columns else 0) if columns or what == "rows" else None
    if number in weights.linear:
        inputs, outputs = weights.linear[number]
        if columns:
            known = weights.columns.get(number)
            packed = what == "packed columns"
            return replace(known, packed=known.packed or packed) if known else Shard(outputs, packed=packed)
        return Shard(inputs) if what == "rows" else None
    if columns and storage.name.rpartition(".")[2] == "bias":
        source = next((s for s in weights.biases.get(number, ()) if s in weights.columns), None)
        return replace(weights.columns[source], dim=0) if source is not None else Shard(0)
    return None


def _matches(path: str, pattern: str) -> bool:
    """Whether a path ends in a pattern; ``*`` stands for a layer of any number.

    >>> _matches("model.layers.*+1.mlp.up_proj", "layers.*.mlp.up_proj")
    True
    """
    have, want = path.split("."), pattern.split(".")
    if len(have) < len(want):
        return False
    return all(
        w in ("*", h) and (w != "*" or h[:1] in "*0123456789") for h, w in zip(have[-len(want) :], want, strict=True)
    )


def _inputs(graph: Graph) -> dict[int, dict[str, Placement]]:
    """Inputs that hold tokens, sharded along the sequence over ``cp``."""
    batch, seq = token_dims(graph)
    found: dict[int, dict[str, Placement]] = {}
    for op, _ in graph.ops():
        for tensor in op.inputs.values():
            storage = graph.storages[tensor.storage]
            if storage.role == "input" and tensor.storage not in found:
                shard = sequence_shard(tensor.shape, batch, seq)
                if shard is not None:
                    found[tensor.storage] = {"cp": shard}
    return found
