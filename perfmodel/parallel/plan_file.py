"""Plans as YAML files of form ``plan/1``."""

from __future__ import annotations

import os
from typing import Literal

from pydantic import Field

from perfmodel.errors import FileError, PerfModelError
from perfmodel.parallel.plan import Plan
from perfmodel.yamlfile import FileModel, load_model

__all__ = ["PlanFile", "load_plan"]


class PlanFile(FileModel):
    """The keys of a plan file; see :class:`perfmodel.parallel.plan.Plan` for what they mean."""

    schema_: Literal["plan/1"] = Field(alias="schema")
    tp: int = Field(default=1, ge=1)
    sp: bool = False
    pp: int = Field(default=1, ge=1)
    vpp: int = Field(default=1, ge=1)
    cp: int = Field(default=1, ge=1)
    cp_kind: Literal["ring", "all-gather", "all-to-all"] = "ring"
    ep: int = Field(default=1, ge=1)
    etp: int | None = Field(default=None, ge=1)
    dp: int | None = Field(default=None, ge=1)
    zero: int = Field(default=0, ge=0, le=3)
    reshard_after_forward: bool = True
    shard_group: int | None = Field(default=None, ge=1)
    micro_batch: int = Field(default=1, ge=1)
    global_batch: int | None = Field(default=None, ge=1)
    schedule: Literal[
        "GPipe", "1F1B", "Interleaved1F1B", "LoopedBFS", "InterleavedZeroBubble", "ZBVZeroBubble", "DualPipeV"
    ] = "1F1B"
    stage_layers: list[int] | None = None
    recompute: str | int | list[str] = "none"
    offload: list[Literal["optimizer", "activations"]] = Field(default_factory=list)
    dtypes: dict[str, str] = Field(default_factory=dict)
    overlap: list[Literal["grad_reduce", "param_gather", "tp", "p2p"]] | None = None
    sequence_gather: Literal["again", "keep"] = "again"
    bucket: int = Field(default=25 * 2**20, ge=1)
    order: str = "tp-cp-ep-dp-pp"


def load_plan(path: str | os.PathLike[str]) -> Plan:
    """Read a plan file.

    Raises
    ------
    FileError
        ``path:line:column: what; cure``, or ``path: what`` where several keys don't go together.
    """
    text = os.fspath(path)
    values = load_model(text, PlanFile).model_dump(exclude={"schema_"}, exclude_none=True)
    try:
        return Plan.from_dict(values)
    except PerfModelError as error:
        raise FileError(f"{text}: {error}") from None
