"""``Plan``: how a training step is laid out over a cluster."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perfmodel.dtypes import item_size
from perfmodel.errors import FileError, UnknownNameError, UnsupportedError
from perfmodel.parallel.groups import DIMENSIONS, rank_groups

__all__ = ["CP_KINDS", "DTYPE_KINDS", "OVERLAPS", "RECOMPUTE", "SCHEDULES", "Plan"]

_VERSION = 1

#: How attention sees the keys of a sequence that is split over ``cp``: blocks go round (Liu et al. 2023), all are
#: gathered (Llama 3, section 3.3.2), or heads are exchanged for tokens (DeepSpeed-Ulysses).
CP_KINDS = ("ring", "all-gather", "all-to-all")

#: Pipeline schedules by their names in ``torch.distributed.pipelining``; those of the second group have several
#: stages a rank.
SCHEDULES = (
    *("GPipe", "1F1B"),
    *("Interleaved1F1B", "LoopedBFS", "InterleavedZeroBubble", "ZBVZeroBubble", "DualPipeV"),
)
_ONE_STAGE = ("GPipe", "1F1B")
_TWO_STAGES = ("ZBVZeroBubble", "DualPipeV")

#: What is recomputed in backward. ``selective`` is Megatron-LM's: attention's core (Korthikanti et al. 2022, sec. 5).
RECOMPUTE = ("none", "selective", "full")

#: What a type can be asked for.
DTYPE_KINDS = ("compute", "parameters", "gradients", "optimizer", "communication")

#: Communication that may run beside compute.
OVERLAPS = ("grad_reduce", "param_gather", "tp", "p2p")

_OFFLOADS = ("activations", "optimizer")
_DEGREES = ("tp", "pp", "vpp", "cp", "ep")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a step is laid out. Names are the field's; a degree of 1 is off.

    Parameters
    ----------
    tp : int
        Tensor parallelism.
    sp : bool
        Sequence parallelism: activations between blocks are split along the sequence over ``tp``.
    pp, vpp : int
        Pipeline stages, and virtual stages a rank.
    cp : int
        Context parallelism: every activation is split along the sequence.
    cp_kind : str
        One of :data:`CP_KINDS`.
    ep : int
        Expert parallelism, over the data-parallel ranks.
    etp : int, optional
        Tensor parallelism of the experts: ``tp`` or 1; ``tp`` if left out.
    dp : int, optional
        Data parallelism; :meth:`on` derives it from the number of devices.
    zero : int
        What is sharded over the data-parallel ranks: 1 the optimizer's state, 2 gradients too, 3 parameters too (FSDP).
    reshard_after_forward : bool
        With ``zero=3``: whether parameters are gathered again in backward.
    shard_group : int, optional
        With ``zero=3``: ranks that share one copy of the parameters, the others replicate it (hybrid sharding).
    micro_batch : int
        Sequences that a rank runs at once.
    global_batch : int, optional
        Sequences of a step; one micro-batch for each data-parallel rank if left out.
    schedule : str
        One of :data:`SCHEDULES`.
    stage_layers : tuple of int, optional
        Layers of each of the ``pp * vpp`` stages, in the order in which a micro-batch passes them.
    recompute : str or int or tuple of str
        One of :data:`RECOMPUTE`; ``n``: every n-th layer in full; or patterns of modules such as ``"layers.*.mlp"``.
    offload : tuple of str
        What lives in the host's memory: ``"optimizer"``, ``"activations"``.
    dtypes : mapping of str to str
        PyTorch names for :data:`DTYPE_KINDS`; as captured where one is missing.
    overlap : frozenset of str
        Which of :data:`OVERLAPS` run beside compute.
    sequence_gather : {"again", "keep"}
        With ``sp``: whether a gathered sequence is dropped after forward and gathered again for the gradient of the
        weights (Megatron-LM), or kept (DTensor).
    bucket : int
        Bytes of gradients that are reduced in one call; 25 MiB is the default of ``DistributedDataParallel``.
    order : str
        How ranks are numbered, the innermost dimension first, as Megatron-LM's ``RankGenerator`` has it.

    Raises
    ------
    UnknownNameError, UnsupportedError
        For a value that no plan can have.

    Examples
    --------
    >>> plan = Plan(tp=8, pp=2, micro_batch=1, global_batch=64).on(64)
    >>> plan.dp, plan.micro_batches
    (4, 16)
    """

    tp: int = 1
    sp: bool = False
    pp: int = 1
    vpp: int = 1
    cp: int = 1
    cp_kind: str = "ring"
    ep: int = 1
    etp: int | None = None
    dp: int | None = None
    zero: int = 0
    reshard_after_forward: bool = True
    shard_group: int | None = None
    micro_batch: int = 1
    global_batch: int | None = None
    schedule: str = "1F1B"
    stage_layers: tuple[int, ...] | None = None
    recompute: str | int | tuple[str, ...] = "none"
    offload: tuple[str, ...] = ()
    dtypes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    overlap: frozenset[str] = frozenset(OVERLAPS)
    sequence_gather: str = "again"
    bucket: int = 25 * 2**20
    order: str = "tp-cp-ep-dp-pp"

    def __post_init__(self) -> None:
        for name in (*_DEGREES, "micro_batch", "bucket"):
            _check_count(name, getattr(self, name))
        for name in ("dp", "etp", "shard_group", "global_batch"):
            if getattr(self, name) is not None:
                _check_count(name, getattr(self, name))
        for name in ("sp", "reshard_after_forward"):
            if not isinstance(getattr(self, name), bool):
                raise UnsupportedError(f"{name}={getattr(self, name)!r} is neither true nor false; write one of them")
        _check_name("cp_kind", self.cp_kind, CP_KINDS)
        _check_name("schedule", self.schedule, SCHEDULES)
        _check_name("sequence_gather", self.sequence_gather, ("again", "keep"))
        if isinstance(self.zero, bool) or self.zero not in (0, 1, 2, 3):
            raise UnsupportedError(f"zero={self.zero!r} is no stage of ZeRO; give 0, 1, 2 or 3")
        for kind in self.offload:
            _check_name("offload", kind, _OFFLOADS)
        for kind in self.overlap:
            _check_name("overlap", kind, OVERLAPS)
        for kind, dtype in self.dtypes.items():
            _check_name("dtypes", kind, DTYPE_KINDS)
            item_size(dtype)
        if isinstance(self.recompute, str):
            _check_name("recompute", self.recompute, RECOMPUTE)
        elif isinstance(self.recompute, int):
            _check_count("recompute", self.recompute)
        if sorted(self.order.split("-")) != sorted(DIMENSIONS):
            raise UnsupportedError(
                f"order={self.order!r} must name each of {', '.join(DIMENSIONS)} once, the innermost first; "
                "e.g. 'tp-cp-ep-dp-pp'"
            )
        self._check_combination()

    def _check_combination(self) -> None:
        if self.sp and self.tp == 1:
            raise UnsupportedError("sp=True splits the sequence over tp, and tp is 1; set tp or leave sp out")
        if self.ep > 1 and self.tp > 1 and not self.sp:
            raise UnsupportedError(
                f"ep={self.ep} with tp={self.tp} needs sp=True: without it every rank of tp would send the same tokens"
            )
        if self.etp is not None and self.etp not in (1, self.tp):
            raise UnsupportedError(f"etp={self.etp} is neither 1 nor tp={self.tp}; give one of them")
        if self.vpp > 1 and self.schedule in _ONE_STAGE:
            raise UnsupportedError(
                f"vpp={self.vpp} with schedule {self.schedule}, which has one stage a rank; use 'Interleaved1F1B'"
            )
        if self.pp > 1 and self.schedule in _TWO_STAGES and self.vpp != 2:
            raise UnsupportedError(f"schedule {self.schedule} has two stages a rank, and vpp is {self.vpp}; set vpp=2")
        if self.shard_group is not None and self.zero != 3:
            raise UnsupportedError(f"shard_group is for zero=3, and zero is {self.zero}; leave it out")
        if self.stage_layers is not None:
            if len(self.stage_layers) != self.pp * self.vpp:
                raise UnsupportedError(
                    f"stage_layers has {len(self.stage_layers)} stages; pp {self.pp} × vpp {self.vpp} = "
                    f"{self.pp * self.vpp} are needed"
                )
            for layers in self.stage_layers:
                if isinstance(layers, bool) or not isinstance(layers, int) or layers < 0:
                    raise UnsupportedError(f"stage_layers has {layers!r}; give numbers of layers of 0 or more")
        if self.dp is not None:
            self._check_data_parallel(self.dp)

    def _check_data_parallel(self, dp: int) -> None:
        data = dp * self.cp
        inner = data * self.tp
        experts = self.ep * self.expert_tp
        if inner % experts:
            raise UnsupportedError(
                f"ep {self.ep} × etp {self.expert_tp} = {experts} doesn't divide tp {self.tp} × cp {self.cp} × dp {dp} "
                f"= {inner}; change ep"
            )
        if self.shard_group is not None and data % self.shard_group:
            raise UnsupportedError(
                f"shard_group={self.shard_group} doesn't divide dp {dp} × cp {self.cp} = {data}; give a divisor of it"
            )
        if self.global_batch is not None and self.global_batch % (self.micro_batch * dp):
            raise UnsupportedError(
                f"global_batch {self.global_batch} isn't a multiple of micro_batch {self.micro_batch} × dp {dp} = "
                f"{self.micro_batch * dp}; change one of them"
            )

    # -- what follows from it -----------------------------------------------------

    @property
    def expert_tp(self) -> int:
        """Tensor parallelism of the experts."""
        return self.tp if self.etp is None else self.etp

    @property
    def data_parallel(self) -> int:
        """The data-parallel degree.

        Raises
        ------
        UnsupportedError
            If it's neither given nor derived yet.
        """
        if self.dp is None:
            raise UnsupportedError("dp isn't known; give it, or the number of devices with plan.on(devices)")
        return self.dp

    @property
    def devices(self) -> int:
        """Devices that the plan takes."""
        return self.tp * self.cp * self.pp * self.data_parallel

    @property
    def micro_batches(self) -> int:
        """Micro-batches that a data-parallel rank runs in a step."""
        if self.global_batch is None:
            return 1
        return self.global_batch // (self.micro_batch * self.data_parallel)

    @property
    def shard_ranks(self) -> int:
        """Ranks that share one copy of what ``zero`` shards."""
        return self.shard_group or self.data_parallel * self.cp

    def on(self, devices: int) -> Plan:
        """The plan on a number of devices: ``dp`` is what the other dimensions leave.

        Raises
        ------
        UnsupportedError
            If the product of the degrees isn't the number of devices.
        """
        _check_count("devices", devices)
        product = self.tp * self.pp * self.cp * (self.dp or 1)
        spelled = f"tp {self.tp} × pp {self.pp} × cp {self.cp}"
        if self.dp is not None:
            if product != devices:
                raise UnsupportedError(
                    f"{spelled} × dp {self.dp} = {product} ranks, the cluster has {devices}; change a degree, or leave "
                    "dp out"
                )
            return self
        if devices % product:
            raise UnsupportedError(
                f"{spelled} = {product} ranks don't divide the cluster's {devices}; change a degree or the devices"
            )
        return dataclasses.replace(self, dp=devices // product)

    def groups(self, kind: str) -> tuple[tuple[int, ...], ...]:
        """Ranks that communicate with each other, for one kind of group.

        Parameters
        ----------
        kind : str
            ``"tp"``, ``"cp"``, ``"dp"``, ``"pp"``, ``"dp-cp"`` (that reduces gradients), ``"shard"`` and
            ``"replicate"`` (of hybrid sharding), ``"ep"``, ``"etp"`` and ``"edp"`` (that reduces gradients of experts).

        Examples
        --------
        >>> Plan(tp=2, pp=2, dp=2).groups("dp")
        ((0, 2), (1, 3), (4, 6), (5, 7))
        """
        return rank_groups(
            kind,
            order=self.order.split("-"),
            sizes={"tp": self.tp, "cp": self.cp, "dp": self.data_parallel, "pp": self.pp},
            experts={"etp": self.expert_tp, "ep": self.ep},
            shard=self.shard_ranks,
        )

    # -- other forms --------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; :meth:`from_dict` is the inverse."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values["overlap"] = sorted(self.overlap)
        values["dtypes"] = dict(self.dtypes)
        for name in ("stage_layers", "offload", "recompute"):
            if isinstance(values[name], tuple):
                values[name] = list(values[name])
        return {"version": _VERSION, **values}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """A plan from plain values.

        Raises
        ------
        UnknownNameError
            For a key that a plan doesn't have.
        FileError
            For another version.
        """
        values = dict(data)
        version = values.pop("version", _VERSION)
        if version != _VERSION:
            raise FileError(f"plan version {version!r}; this perfmodel reads version {_VERSION}")
        names = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in names:
                raise UnknownNameError("key of a plan", str(key), names, f"keys are {', '.join(names)}")
        for name in ("stage_layers", "offload", "recompute"):
            if isinstance(values.get(name), list):
                values[name] = tuple(values[name])
        if "overlap" in values:
            values["overlap"] = frozenset(values["overlap"])
        return cls(**values)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """A plan from a YAML file of form ``plan/1``, whose keys are the parameters.

        Raises
        ------
        FileError
            With line, column and cure.
        """
        from perfmodel.parallel.plan_file import load_plan

        return load_plan(path)

    @classmethod
    def from_megatron(cls, args: str | Sequence[str]) -> Plan:
        """A plan from Megatron-LM's command line; arguments that aren't about parallelism are left alone.

        >>> Plan.from_megatron("--tensor-model-parallel-size 8 --sequence-parallel --num-layers 80").sp
        True

        Raises
        ------
        UnsupportedError
            For an argument about parallelism that isn't understood.
        """
        from perfmodel.parallel.megatron import plan_fields

        return cls(**plan_fields(args))

    @classmethod
    def from_torchtitan(cls, config: Mapping[str, Any]) -> Plan:
        """A plan from torchtitan's job configuration (the tables of its TOML file).

        >>> Plan.from_torchtitan({"parallelism": {"tensor_parallel_degree": 8}}).tp
        8

        Raises
        ------
        UnknownNameError, UnsupportedError
            For a name or value that isn't understood.
        """
        from perfmodel.parallel.torchtitan import plan_fields

        return cls(**plan_fields(config))

    def check(self, model: Any, devices: int | None = None) -> Plan:
        """The plan for a model on a number of devices, or why it can't be.

        Parameters
        ----------
        model : Graph or TransformerDims
        devices : int, optional
            ``dp`` is derived from it.

        Raises
        ------
        UnsupportedError
            With the product or remainder that fails.
        """
        from perfmodel.parallel.feasible import check_plan

        plan = self if devices is None else self.on(devices)
        check_plan(plan, model)
        return plan


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UnsupportedError(f"{name}={value!r} must be a whole number of 1 or more; correct it")


def _check_name(kind: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
        raise UnknownNameError(kind, str(value), known, f"known are {', '.join(known)}")
