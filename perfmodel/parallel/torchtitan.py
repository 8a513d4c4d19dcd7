"""torchtitan's job configuration as fields of a plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perfmodel.errors import UnknownNameError, UnsupportedError

__all__ = ["plan_fields"]

_PARALLELISM = (
    "data_parallel_replicate_degree", "data_parallel_shard_degree", "fsdp_reshard_after_forward",
    "tensor_parallel_degree", "disable_loss_parallel", "enable_async_tensor_parallel", "pipeline_parallel_degree",
    "pipeline_parallel_schedule", "pipeline_parallel_microbatch_size", "pipeline_parallel_layers_per_stage",
    "context_parallel_degree", "context_parallel_rotate_method", "expert_parallel_degree",
    "expert_tensor_parallel_degree",
)  # fmt: skip
_ROTATE = {"allgather": "all-gather", "alltoall": "ring"}


def plan_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of :class:`perfmodel.parallel.plan.Plan` that the configuration gives.

    Parameters
    ----------
    config : mapping
        With the tables ``parallelism``, ``training`` and ``activation_checkpoint``; others are left alone.

    Raises
    ------
    UnknownNameError
        For a key of ``parallelism`` that torchtitan doesn't have.
    UnsupportedError
        For a value that a plan can't say.
    """
    table = dict(config.get("parallelism", {}))
    for key in table:
        if key not in _PARALLELISM:
            raise UnknownNameError("key of [parallelism]", key, _PARALLELISM)
    training = config.get("training", {})
    tp, pp = table.get("tensor_parallel_degree", 1), table.get("pipeline_parallel_degree", 1)
    cp = table.get("context_parallel_degree", 1)
    replicate, shard = table.get("data_parallel_replicate_degree", 1), table.get("data_parallel_shard_degree", -1)
    fields: dict[str, Any] = {"tp": tp, "sp": tp > 1, "pp": pp, "cp": cp, "sequence_gather": "keep"}
    rotate = table.get("context_parallel_rotate_method", "allgather")
    if rotate not in _ROTATE:
        raise UnknownNameError("context_parallel_rotate_method", str(rotate), _ROTATE)
    # Its "alltoall" sends one block of keys and values on in each step: a ring.
    if cp > 1:
        fields["cp_kind"] = _ROTATE[rotate]
    fields["ep"] = table.get("expert_parallel_degree", 1)
    if fields["ep"] > 1:
        fields["etp"] = table.get("expert_tensor_parallel_degree", 1)
    if shard == -1 or shard > 1 or cp > 1:
        fields["zero"] = 3
        if replicate > 1 and shard == -1:
            raise UnsupportedError(
                f"data_parallel_replicate_degree={replicate} with data_parallel_shard_degree=-1: the size of a "
                "sharding group depends on the number of devices; give data_parallel_shard_degree"
            )
        if replicate > 1:
            fields["shard_group"] = shard * cp
    if shard != -1:
        fields["dp"] = replicate * shard
    reshard = table.get("fsdp_reshard_after_forward", "default")
    if reshard not in ("default", "always", "never"):
        raise UnknownNameError("fsdp_reshard_after_forward", str(reshard), ("default", "always", "never"))
    fields["reshard_after_forward"] = reshard == "always" or (reshard == "default" and pp == 1)
    if pp > 1:
        fields["schedule"] = table.get("pipeline_parallel_schedule", "Interleaved1F1B")
        fields["vpp"] = 1 if fields["schedule"] in ("1F1B", "GPipe") else 2
    _batch(fields, table, training)
    fields["recompute"] = _recompute(config.get("activation_checkpoint", {}))
    dtypes = {"gradients": "mixed_precision_reduce", "parameters": "mixed_precision_param"}
    chosen = {kind: training[key] for kind, key in dtypes.items() if key in training}
    if chosen:
        fields["dtypes"] = {**chosen, **({"communication": chosen["gradients"]} if "gradients" in chosen else {})}
    return fields


def _batch(fields: dict[str, Any], table: Mapping[str, Any], training: Mapping[str, Any]) -> None:
    local = training.get("local_batch_size", training.get("batch_size"))
    if fields["pp"] > 1:
        # A pipeline cuts the local batch into micro-batches.
        fields["micro_batch"] = table.get("pipeline_parallel_microbatch_size", 1)
        if local is not None and "dp" in fields:
            fields["global_batch"] = local * fields["dp"]
    elif local is not None:
        fields["micro_batch"] = local
    if training.get("global_batch_size", -1) > 0:
        fields["global_batch"] = training["global_batch_size"]


def _recompute(table: Mapping[str, Any]) -> str | int:
    mode = table.get("mode", "none")
    if mode in ("none", "full"):
        return str(mode)
    option = str(table.get("selective_ac_option", "2"))
    if mode == "selective" and option.isdigit():
        return int(option)
    raise UnsupportedError(
        f"activation_checkpoint mode {mode!r} with option {option!r} isn't understood: a plan recomputes whole layers, "
        "every n-th, attention's core, or modules; give one of these"
    )
