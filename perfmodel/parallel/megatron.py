"""Megatron-LM's command line as fields of a plan."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from perfmodel.errors import UnsupportedError, suggestion

__all__ = ["plan_fields"]

_NUMBERS = {
    "tensor-model-parallel-size": "tp",
    "pipeline-model-parallel-size": "pp",
    "context-parallel-size": "cp",
    "expert-model-parallel-size": "ep",
    "expert-tensor-parallel-size": "etp",
    "micro-batch-size": "micro_batch",
    "global-batch-size": "global_batch",
    "num-virtual-stages-per-pipeline-rank": "vpp",
    "virtual-pipeline-model-parallel-size": "vpp",
}
_CP_KINDS = {"p2p": "ring", "all_gather": "all-gather", "a2a": "all-to-all"}
_SHARDING = {"no_shard": 0, "optim": 1, "optim_grads": 2, "optim_grads_params": 3}

#: Options without a value that change nothing that a plan says.
_NEUTRAL = (
    "use-distributed-optimizer-in-fp32", "overlap-param-gather-with-optimizer-step", "no-align-grad-reduce",
    "align-param-gather", "distribute-saved-activations", "use-megatron-fsdp", "use-custom-fsdp",
    "batch-p2p-communication", "no-async-tensor-model-parallel-allreduce",
)  # fmt: skip

#: An option with one of these in its name is about parallelism: not to know it would be a guess.
_ABOUT = ("parallel", "recompute", "overlap", "fsdp", "offload", "pipeline", "cp-comm", "batch-size", "distributed-opt",
          "sharding")  # fmt: skip


def plan_fields(args: str | Sequence[str]) -> dict[str, Any]:
    """Fields of :class:`perfmodel.parallel.plan.Plan` that the arguments give.

    Raises
    ------
    UnsupportedError
        For an argument about parallelism that isn't understood.
    """
    words = shlex.split(args) if isinstance(args, str) else list(args)
    options = _options(words)
    fields: dict[str, Any] = {}
    overlap: set[str] = set()
    dtypes: dict[str, str] = {}
    for name, value in options.items():
        if name in _NUMBERS:
            fields[_NUMBERS[name]] = _number(name, value)
        elif name == "sequence-parallel":
            fields["sp"] = True
        elif name == "cp-comm-type":
            if value not in _CP_KINDS:
                raise UnsupportedError(f"--cp-comm-type {value} isn't understood; known are {', '.join(_CP_KINDS)}")
            fields["cp_kind"] = _CP_KINDS[value]
        elif name == "use-distributed-optimizer":
            fields["zero"] = max(fields.get("zero", 0), 1)
        elif name == "use-torch-fsdp2":
            fields["zero"] = 3
        elif name == "data-parallel-sharding-strategy":
            if value not in _SHARDING:
                raise UnsupportedError(f"--{name} {value} isn't understood; known are {', '.join(_SHARDING)}")
            fields["zero"] = _SHARDING[value]
        elif name == "recompute-activations" or (name, value) == ("recompute-granularity", "selective"):
            fields["recompute"] = "selective"
        elif (name, value) == ("recompute-granularity", "full"):
            _check_full(options)
            fields["recompute"] = "full"
        elif name in ("recompute-method", "recompute-num-layers"):
            continue
        elif name == "overlap-grad-reduce":
            overlap.add("grad_reduce")
        elif name == "overlap-param-gather":
            overlap.add("param_gather")
        elif name == "tp-comm-overlap":
            overlap.add("tp")
        elif name == "optimizer-cpu-offload":
            fields["offload"] = ("optimizer",)
        elif name == "accumulate-allreduce-grads-in-fp32":
            dtypes["gradients"] = "float32"
        elif name == "use-tp-pp-dp-mapping":
            fields["order"] = "tp-cp-ep-pp-dp"
        elif name not in ("no-overlap-p2p-communication", "overlap-p2p-communication", *_NEUTRAL):
            _refuse_unknown(name)
    if "num-layers-per-virtual-pipeline-stage" in options:
        fields["vpp"] = _virtual_stages(options, fields.get("pp", 1))
    if "no-overlap-p2p-communication" not in options:
        overlap.add("p2p")
    if fields.get("vpp", 1) > 1:
        fields["schedule"] = "Interleaved1F1B"
    fields["overlap"] = frozenset(overlap)
    if dtypes:
        fields["dtypes"] = dtypes
    return fields


def _options(words: Sequence[str]) -> dict[str, str]:
    """Options with their value; an empty one for a switch."""
    found: dict[str, str] = {}
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if not word.startswith("--"):
            continue
        name, equals, value = word[2:].partition("=")
        if not equals and position < len(words) and not words[position].startswith("--"):
            value = words[position]
            position += 1
        found[name.replace("_", "-")] = value
    return found


def _number(name: str, value: str) -> int:
    if not value.isdigit() or int(value) < 1:
        raise UnsupportedError(f"--{name} {value or '(nothing)'} isn't a whole number of 1 or more; correct it")
    return int(value)


def _check_full(options: dict[str, str]) -> None:
    method, layers = options.get("recompute-method", "uniform"), options.get("recompute-num-layers", "1")
    if method != "uniform" or layers != "1":
        raise UnsupportedError(
            f"--recompute-method {method} --recompute-num-layers {layers} isn't understood; only 'uniform' with 1 "
            "layer is, or give Plan(recompute=n) for every n-th layer"
        )


def _virtual_stages(options: dict[str, str], pp: int) -> int:
    each = _number("num-layers-per-virtual-pipeline-stage", options["num-layers-per-virtual-pipeline-stage"])
    if "num-layers" not in options:
        raise UnsupportedError("--num-layers-per-virtual-pipeline-stage needs --num-layers; give it too")
    layers = _number("num-layers", options["num-layers"])
    if layers % (each * pp):
        raise UnsupportedError(
            f"--num-layers {layers} isn't a multiple of {each} layers a virtual stage × pp {pp} = {each * pp}; "
            "change one of them"
        )
    return layers // (each * pp)


def _refuse_unknown(name: str) -> None:
    known = [*_NUMBERS, "sequence-parallel", "cp-comm-type", "use-distributed-optimizer", "recompute-granularity",
             "recompute-activations", "overlap-grad-reduce", "overlap-param-gather", "tp-comm-overlap",
             "num-layers-per-virtual-pipeline-stage"]  # fmt: skip
    if name == "num-layers-per-virtual-pipeline-stage" or not any(word in name for word in _ABOUT):
        return
    hint = suggestion(name, known)
    raise UnsupportedError(f"--{name} is about parallelism and isn't understood; {hint or 'leave it out'}")
