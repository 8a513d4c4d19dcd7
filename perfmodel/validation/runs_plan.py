"""The plan of a measured run, or the plans it may have had where the source doesn't say."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from perfmodel.errors import UnsupportedError
from perfmodel.parallel.plan import OVERLAPS, Plan
from perfmodel.validation.runs_schema import Layout, Record

__all__ = ["Choice", "plans"]

_SCHEDULES = {"1f1b": "1F1B", "interleaved_1f1b": "Interleaved1F1B", "gpipe": "GPipe"}
_CP_KINDS = {"p2p": "ring", "ring": "ring", "a2a": "all-to-all", "all_gather": "all-gather"}
_RECOMPUTE = {"none": ("none",), "selective": ("selective",), "full": ("full",)}
#: What an unknown recompute may have been: what needs the least time comes first.
_UNKNOWN = {"unknown": ("none", "selective", "full"), "custom": ("selective", "full")}
_16_BITS = ("fp16", "bf16")
#: Words of the sources for gradients that are added up in 32 bits.
_WIDE_GRADIENTS = ("fp32 grad", "fp32 master/grads")
#: What ``extra`` may say that changes nothing that a plan has.
_NEUTRAL = ("mp_mode", "scatter_gather_opt")
#: Sequences of a micro-batch that are tried where it's unknown.
_MICRO_BATCHES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The plans that a run may have had: one, if the source says enough.

    Attributes
    ----------
    plans : tuple of Plan
    unknown : tuple of str
        The fields in which they differ.
    notes : tuple of str
    """

    plans: tuple[Plan, ...]
    unknown: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def plans(record: Record, *, optimizer: bool) -> Choice:
    """The plans that a run may have had.

    Parameters
    ----------
    record : Record
    optimizer : bool
        Whether the step has one.

    Raises
    ------
    UnsupportedError
        If the source doesn't say how the devices are divided, or a plan can't have what it says.
    """
    layout = record.plan
    missing = [name for name in ("tp", "pp", "dp", "zero") if getattr(layout, name) is None]
    if missing:
        raise UnsupportedError(f"the source doesn't say {', '.join(missing)}")
    notes: list[str] = []
    fields = {
        **_degrees(record, notes),
        **_extra(layout, notes),
        "dtypes": _dtypes(record, optimizer=optimizer),
        "global_batch": record.global_batch,
    }
    unknown = []
    recomputes = _RECOMPUTE.get(record.recompute) or _UNKNOWN.get(record.recompute)
    if recomputes is None:
        raise UnsupportedError(
            f"recompute {record.recompute!r} isn't known; known are {', '.join((*_RECOMPUTE, *_UNKNOWN))}"
        )
    if len(recomputes) > 1:
        unknown.append("recompute")
    if "offload" in (record.recompute_note or ""):
        notes.append("offload of activations to the host is left out")
    micro_batches = _micro_batches(record)
    if record.micro_batch is None:
        unknown.append("micro_batch")
    found = tuple(
        Plan(**fields, micro_batch=micro_batch, recompute=recompute)
        for micro_batch, recompute in itertools.product(micro_batches, recomputes)
    )
    return Choice(plans=found, unknown=tuple(unknown), notes=tuple(notes))


def _micro_batches(record: Record) -> tuple[int, ...]:
    dp = record.plan.dp or 1
    if record.micro_batch is None:
        found = tuple(size for size in _MICRO_BATCHES if record.global_batch % (size * dp) == 0)
        if not found:
            raise UnsupportedError(
                f"global_batch {record.global_batch} isn't a multiple of dp {dp}, and micro_batch isn't stated"
            )
        return found
    if record.micro_batch != int(record.micro_batch):
        raise UnsupportedError(f"micro_batch {record.micro_batch:g}: a device has part of a sequence, and cp is 1")
    return (int(record.micro_batch),)


def _degrees(record: Record, notes: list[str]) -> dict[str, Any]:
    layout, model = record.plan, record.model
    fields: dict[str, Any] = {
        name: getattr(layout, name) for name in ("tp", "pp", "vpp", "cp", "ep", "dp", "zero") if getattr(layout, name)
    }
    fields["zero"] = 3 if layout.fsdp else layout.zero
    tp, pp = layout.tp or 1, layout.pp or 1
    fields["sp"] = bool(layout.sp) and tp > 1
    if layout.sp is None and tp > 1:
        notes.append("sequence parallelism not stated: none is taken")
    if pp > 1:
        name = layout.schedule or ("interleaved_1f1b" if layout.vpp > 1 else "1f1b")
        if name not in _SCHEDULES:
            raise UnsupportedError(f"schedule {name!r} isn't known; known are {', '.join(_SCHEDULES)}")
        fields["schedule"] = _SCHEDULES[name] if layout.vpp == 1 else "Interleaved1F1B"
    stages = pp * layout.vpp
    if model.layers % stages:
        fields["stage_layers"] = _uneven(model.layers, stages)
        notes.append(f"{model.layers} layers over {stages} stages: {_told(fields['stage_layers'])}, not stated")
    overlap = set(OVERLAPS) if record.runtime.async_tp else set(OVERLAPS) - {"tp"}
    fields["overlap"] = frozenset(overlap)
    return fields


def _uneven(layers: int, stages: int) -> tuple[int, ...]:
    """Layers of each stage: embedding and head count as a layer each where that comes out even."""
    if (layers + 2) % stages == 0:
        each = (layers + 2) // stages
        return (each - 1, *(each,) * (stages - 2), each - 1)
    base, more = divmod(layers, stages)
    return (base,) * (stages - more - 1) + (base + 1,) * more + (base,)


def _told(layers: tuple[int, ...]) -> str:
    runs = [(size, len(list(group))) for size, group in itertools.groupby(layers)]
    return " + ".join(f"{count} x {size}" if count > 1 else str(size) for size, count in runs)


def _extra(layout: Layout, notes: list[str]) -> dict[str, Any]:
    return dict(_read_extra(layout, dict(layout.extra or {}), notes))


def _read_extra(layout: Layout, extra: Mapping[str, Any], notes: list[str]) -> Iterator[tuple[str, Any]]:
    sharded = layout.fsdp or layout.zero == 3
    for name, value in extra.items():
        if name == "etp":
            yield "etp", int(value)
        elif name == "cp_comm":
            if value not in _CP_KINDS:
                raise UnsupportedError(f"cp_comm {value!r} isn't known; known are {', '.join(_CP_KINDS)}")
            yield "cp_kind", _CP_KINDS[value]
        elif name == "overlap" and value == "all comm overlap disabled":
            yield "overlap", frozenset()
        elif name == "fsdp_size" and sharded:
            if value != (layout.dp or 1) * layout.cp:
                yield "shard_group", int(value)
        elif name == "zero_group" and value != "all DP":
            if sharded:
                yield "shard_group", int(value)
            elif value != layout.dp:
                notes.append(f"ZeRO-{layout.zero} over groups of {value}: taken over all {layout.dp} ranks")
        elif name not in ("dp_outer", "zero_group", *_NEUTRAL):
            notes.append(f"plan.extra.{name} {value!r} has no effect here")


def _dtypes(record: Record, *, optimizer: bool) -> dict[str, str]:
    """Mixed precision as Micikevicius et al. 2018 have it, unless the source says that all is in 16 bits."""
    if record.precision not in _16_BITS:
        return {}
    told = " ".join(filter(None, (record.precision_note, record.optimizer, record.runtime_note))).lower()
    if "pure" in told:
        return {}
    found = {"optimizer": "float32"} if optimizer else {}
    if any(words in told for words in _WIDE_GRADIENTS):
        found["gradients"] = "float32"
    return found
