"""Measured training runs as files hold them: a YAML list, one record a run.

A record that can't be read is kept with the reason, since no measurement may vanish in silence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from perfmodel.errors import FileError, suggestion

__all__ = [
    "LatentAttention",
    "Layout",
    "Measured",
    "Mixture",
    "Model",
    "Network",
    "Record",
    "Run",
    "Software",
    "read_runs",
]

# libyaml's loader is some ten times faster than PyYAML's own, and not everywhere.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_MOST_BYTES = 2**26
#: What changes the prediction must be known; what is only told about a run needn't be.
_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Routed experts: how many, how many a token goes to, their inner width; the block that all tokens go through."""

    __pydantic_config__ = _STRICT

    experts: int
    top_k: int
    moe_ffn: int
    shared_experts: int = 0
    shared_ffn: int = 0
    dense_layers: int = 0


@dataclass(frozen=True, kw_only=True)
class LatentAttention:
    """Ranks of the latent vectors, and widths of the parts of a head."""

    __pydantic_config__ = _STRICT

    q_lora: int | None
    kv_lora: int
    qk_nope: int
    qk_rope: int
    v: int


@dataclass(frozen=True, kw_only=True)
class Model:
    """Dimensions of the model; ``mlm_positions_per_seq``: positions that a BERT's head sees."""

    __pydantic_config__ = _STRICT

    name: str
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    vocab: int
    seq_len: int
    gated_mlp: bool
    activation: str
    tied_embeddings: bool
    attention: str
    pos_embedding: str
    bias: bool
    head_dim: int | None = None
    params: float | None = None
    moe: Mixture | None = None
    mla: LatentAttention | None = None
    mlm_positions_per_seq: int | None = None
    mtp_layers: int | None = None


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Degrees of parallelism; ``None`` where the source doesn't say. ``extra`` is what else it says."""

    __pydantic_config__ = _STRICT

    tp: int | None
    pp: int | None
    dp: int | None
    zero: int | None
    vpp: int = 1
    cp: int = 1
    ep: int = 1
    sp: bool | None = None
    fsdp: bool = False
    schedule: str | None = None
    extra: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Network:
    """Links in a node and between nodes, in the source's words; Gbit/s of a node in one direction."""

    intra: str = ""
    inter: str = ""
    inter_gbit_per_node: float | None = None


@dataclass(frozen=True, kw_only=True)
class Software:
    """What the source says about compilation, asynchronous tensor parallelism and scaling of 8-bit types."""

    compile: bool | None = None
    async_tp: bool | None = None
    fp8_recipe: str | None = None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Seconds of an optimizer step; GB (1e9) of a device and what they count."""

    step_time_s: float
    step_time_from: str = ""
    peak_memory_gb: float | None = None
    memory_kind: str | None = None


@dataclass(frozen=True, kw_only=True)
class Record:
    """A run. Batches are in sequences, ``global_batch`` of a whole step."""

    device: str
    devices: int
    devices_per_node: int
    model: Model
    precision: str
    plan: Layout
    micro_batch: float | None
    global_batch: int
    recompute: str
    measured: Measured
    task: str = "pretrain"
    optimizer: str = ""
    precision_note: str | None = None
    recompute_note: str | None = None
    flash_attention: bool | None = None
    runtime: Software = Software()
    runtime_note: str | None = None
    fabric: Network = Network()


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A measurement with its place, and its record where it can be read.

    Attributes
    ----------
    id, group, family, device : str
        A group is one source; a family gathers groups that share hardware, software or runs.
    place : str
        ``path:line``.
    quality : str
        ``A``: what matters is there; ``B``: one value inferred or rounded; ``C``: several missing.
    composed : bool
        Put together by the source from measured micro-batches, not run as a whole.
    circular : bool
        Dimensions or settings were inferred from the measurement.
    measured_s, measured_memory_gb : float or None
    record : Record or None
    problem : str
        Why there is no record.
    """

    id: str
    group: str
    family: str
    device: str
    place: str
    quality: str = ""
    composed: bool = False
    circular: bool = False
    measured_s: float | None = None
    measured_memory_gb: float | None = None
    record: Record | None = None
    problem: str = ""


def read_runs(paths: Iterable[str | Path]) -> list[Run]:
    """The runs of some files, in their order.

    Raises
    ------
    FileError
        If a file is missing, not a YAML list of mappings, or an ``id`` is missing or comes twice in a file.
    """
    return [run for path in paths for run in _read(Path(path))]


def _read(path: Path) -> list[Run]:
    runs: list[Run] = []
    lines: dict[str, int] = {}
    for line, values in _records(path):
        place = f"{path}:{line}"
        if not isinstance(values, Mapping):
            raise FileError(f"{place}: a {type(values).__name__}, not a run; write one mapping for each run")
        name = values.get("id")
        if not isinstance(name, str) or not name:
            raise FileError(f"{place}: the run has no id; give it one")
        if name in lines:
            raise FileError(f"{place}: run {name!r} is in line {lines[name]} already; give it another id")
        lines[name] = line
        runs.append(_run(name, values, place))
    return runs


def _records(path: Path) -> list[tuple[int, Any]]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FileError(f"{path}: can't be read: {error.strerror or error}; check the path") from None
    if len(data) > _MOST_BYTES:
        raise FileError(f"{path}: holds more than {_MOST_BYTES >> 20} MiB; split it")
    try:
        loader = _Loader(data)
        root = loader.get_single_node()
        if not isinstance(root, yaml.SequenceNode):
            raise FileError(f"{path}:1: not a list; write a run a line: - {{id: …, device: …}}")
        return [(item.start_mark.line + 1, loader.construct_document(item)) for item in root.value]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f":{mark.line + 1}:{mark.column + 1}" if mark is not None else ""
        raise FileError(f"{path}{where}: not YAML: {error.problem or error.context}; correct the line") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise FileError(f"{path}: not YAML: {' '.join(str(error).split())[:200]}; correct the file") from None


def _run(name: str, values: Mapping[str, Any], place: str) -> Run:
    measured = values.get("measured")
    time, memory = (
        _positive(measured.get(key)) if isinstance(measured, Mapping) else None
        for key in ("step_time_s", "peak_memory_gb")
    )
    run = Run(
        id=name,
        group=str(values.get("group") or ""),
        family=str(values.get("family") or ""),
        device=str(values.get("device") or ""),
        place=place,
        quality=str(values.get("quality") or ""),
        composed=values.get("source_kind") == "composed",
        circular=values.get("circular") is True,
        measured_s=time,
        measured_memory_gb=memory,
    )
    try:
        record = _RECORDS.validate_python({key: values[key] for key in _KEYS if key in values})
    except ValidationError as error:
        return dataclasses.replace(run, problem=_problem(error))
    if time is None:
        return dataclasses.replace(run, problem="measured.step_time_s isn't a positive number")
    return dataclasses.replace(run, record=record)


def _positive(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if 0 < value < float("inf") else None


def _problem(error: ValidationError) -> str:
    """The first thing that is wrong, in one line."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(step) for step in first["loc"])
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        known = [field.name for field in dataclasses.fields(_PARTS.get(str(first["loc"][0]), Record))]
        return f"{where} isn't known, and may change the prediction; " + (
            suggestion(str(first["loc"][-1]), known) or f"known are {', '.join(known)}"
        )
    if first["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{where} is missing"
    text: Callable[[Any], str] = repr
    return f"{where} is {text(first['input'])[:60]}: {first['msg'][0].lower()}{first['msg'][1:]}"


_PARTS: dict[str, Any] = {"model": Model, "plan": Layout}
_RECORDS: TypeAdapter[Record] = TypeAdapter(Record)
_KEYS = tuple(field.name for field in dataclasses.fields(Record))
