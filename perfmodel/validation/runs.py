"""Measured training runs against predictions: model, machine, plan and software of each record, and what they give.

A run that can't be predicted stays in the result, with the reason. Where the source leaves a setting open that
matters (recompute, the micro-batch), the run is predicted with each plausible value, and the fastest that fits in
memory is taken, as whoever ran it would; the row's notes say so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from perfmodel.errors import PerfModelError
from perfmodel.graph.ir import Graph
from perfmodel.hardware import Device
from perfmodel.models.step import capture
from perfmodel.parallel.plan import Plan
from perfmodel.predict import Prediction, predict
from perfmodel.runtimes import Runtime, load_runtime
from perfmodel.runtimes.optimizer import FUSED_KERNELS
from perfmodel.validation.rows import OK, UNSUPPORTED, Row
from perfmodel.validation.runs_machine import Machine, machine
from perfmodel.validation.runs_model import Trained, trained
from perfmodel.validation.runs_plan import Choice, plans
from perfmodel.validation.runs_schema import Record, Run

__all__ = ["RunRow", "predict_runs", "scored"]

_GB = 1e9
#: Grades of runs whose fields are good enough to score.
_SCORED_QUALITY = ("A", "B")
#: Words for software whose Adam is one fused kernel (apex, or the same in TransformerEngine and DeepSpeed).
_FUSED_OPTIMIZER = ("apex", "megatron", "transformerengine", "deepspeed", "distributed optimizer", "fusedadam")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow(Row):
    """A run and what was predicted for it.

    Attributes
    ----------
    group, family, device : str
    measured_memory_gb, predicted_memory_gb : float or None
        GB (1e9) of the device with the highest peak, as the source counts it and as tensors take.
    scored : bool
        Whether errors of summaries count it; see :func:`scored`.
    notes : str
        What was chosen or left out.
    """

    group: str = ""
    family: str = ""
    device: str = ""
    measured_memory_gb: float | None = None
    predicted_memory_gb: float | None = None
    scored: bool = False
    notes: str = ""


def predict_runs(runs: Sequence[Run], progress: Callable[[int], None] | None = None) -> list[RunRow]:
    """Predict each run; one that can't be is a row that says why.

    Parameters
    ----------
    runs : sequence of Run
    progress : callable, optional
        Called with the number of runs that are done.
    """
    predictor = _Predictor()
    counted = scored(runs)
    rows = []
    for done, run in enumerate(runs, 1):
        rows.append(_row(run, predictor, run.id in counted))
        if progress is not None:
            progress(done)
    return rows


def scored(runs: Iterable[Run]) -> set[str]:
    """Ids of the runs that summaries count.

    Those of quality A and B whose settings weren't inferred from the measurement. Of composed runs, whose time is
    linear in the number of micro-batches and nearly independent of data parallelism within one layout, the one of
    each layout with the most micro-batches and, of these, the least data parallelism.
    """
    found: dict[object, Run] = {}
    for run in runs:
        if run.record is None or run.circular or run.quality not in _SCORED_QUALITY:
            continue
        key = _layout(run.record) if run.composed else run.id
        known = found.get(key)
        if known is None or known.record is None or _weight(run.record) > _weight(known.record):
            found[key] = run
    return {run.id for run in found.values()}


def _layout(record: Record) -> object:
    plan = dataclasses.replace(record.plan, dp=None, extra=None)
    return record.device, record.model, record.precision, plan, record.micro_batch, record.recompute


def _weight(record: Record) -> tuple[float, int]:
    dp = record.plan.dp or 1
    return record.global_batch / ((record.micro_batch or 1) * dp), -dp


def _row(run: Run, predictor: _Predictor, counted: bool) -> RunRow:
    row = RunRow(
        id=run.id,
        group=run.group,
        family=run.family,
        device=run.device,
        measured_s=run.measured_s,
        measured_memory_gb=run.measured_memory_gb,
        scored=counted,
    )
    if run.record is None:
        return dataclasses.replace(row, status=UNSUPPORTED, reason=run.problem)
    try:
        found, notes = predictor.predict(run.record)
    except PerfModelError as error:
        return dataclasses.replace(row, status=UNSUPPORTED, reason=str(error))
    except Exception as error:
        # A fault of ours in one run must not take the others along; it's told like any other reason.
        reason = " ".join(f"fault in perfmodel, please report it: {type(error).__name__}: {error}".split())
        return dataclasses.replace(row, status=UNSUPPORTED, reason=reason[:300])
    low, high = found.interval or (None, None)
    return dataclasses.replace(
        row,
        status=OK,
        predicted_s=found.step_time,
        low_s=low,
        high_s=high,
        predicted_memory_gb=found.peak / _GB,
        notes="; ".join(notes),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What is kept of a prediction; the whole would hold its graph and timeline."""

    step_time: float
    interval: tuple[float, float] | None
    peak: float
    capacity: float
    fits: bool
    device: str


class _Predictor:
    """Keeps graphs, which runs share that differ in batch and length only, and predictions of equal runs."""

    def __init__(self) -> None:
        self._graphs: dict[object, Graph] = {}
        self._found: dict[object, _Found | PerfModelError] = {}

    def predict(self, record: Record) -> tuple[_Found, list[str]]:
        """The prediction of a run, and what was chosen for it.

        Raises
        ------
        PerfModelError
            Why there is none.
        """
        where = machine(record)
        what = trained(record)
        choice = plans(record, optimizer=what.optimizer is not None)
        software, said = _software(record, where.device, what.optimizer)
        notes = [*what.notes, *where.notes, *choice.notes, *said]
        found: list[tuple[Plan, _Found]] = []
        failed: list[PerfModelError] = []
        for plan in choice.plans:
            result = self._one(record, what, where, plan, software)
            if isinstance(result, PerfModelError):
                failed.append(result)
            else:
                found.append((plan, result))
        if not found:
            raise failed[0]
        plan, best = _best(found)
        if choice.unknown:
            notes.append(_chosen(choice, plan, fits=best.fits))
        if not best.fits:
            notes.append(f"needs {best.peak / _GB:.4g} GB, and {best.device} has {best.capacity / _GB:.4g}")
        return best, notes

    def _one(
        self, record: Record, what: Trained, where: Machine, plan: Plan, software: Runtime
    ) -> _Found | PerfModelError:
        place = (record.device, record.devices, record.devices_per_node, record.fabric, record.precision)
        key = (what, record.model.seq_len, place, repr(plan), software.name)
        known = self._found.get(key)
        if known is None:
            try:
                step = self._graph(what, plan.micro_batch, record.model.seq_len)
                known = _kept(predict(step, where.machine, plan, runtime=software))
            except PerfModelError as error:
                known = error
            self._found[key] = known
        return known

    def _graph(self, what: Trained, batch: int, seq_len: int) -> Graph:
        # Sizes of one take other branches.
        key = (what.entry.dims, what.entry.dtype, what.optimizer, batch == 1, seq_len == 1)
        graph = self._graphs.get(key)
        if graph is None or graph.broken_guards({"batch": batch, "seq": seq_len}):
            graph = capture(
                what.entry, optimizer=what.optimizer, batch=batch, seq_len=seq_len, implementation="reference"
            )
            self._graphs[key] = graph
        return graph.at(batch=batch, seq=seq_len)


def _kept(prediction: Prediction) -> _Found:
    return _Found(
        step_time=prediction.step_time,
        interval=prediction.interval,
        peak=prediction.memory.peak,
        capacity=prediction.capacity,
        fits=prediction.fits,
        device=prediction.device,
    )


def _best(found: Sequence[tuple[Plan, _Found]]) -> tuple[Plan, _Found]:
    fitting = [each for each in found if each[1].fits]
    if fitting:
        return min(fitting, key=lambda each: each[1].step_time)
    return min(found, key=lambda each: each[1].peak)


def _chosen(choice: Choice, plan: Plan, *, fits: bool) -> str:
    told = ", ".join(f"{name} {getattr(plan, name)}" for name in choice.unknown)
    many = len(choice.plans)
    why = f"the fastest of {many} plans that fits in memory" if fits else f"of {many} plans, none of which fits"
    return f"left open by the source: {told} is taken, {why}"


def _software(record: Record, device: Device, optimizer: str | None) -> tuple[Runtime, list[str]]:
    notes = []
    told = " ".join(filter(None, (record.runtime_note, record.optimizer, record.precision_note))).lower()
    compiled = record.runtime.compile or (record.runtime.compile is None and "xla" in told)
    name = "compiled" if compiled and "compiled" in device.runtimes else device.runtimes[0]
    if record.flash_attention is None:
        notes.append("kind of attention not stated: fused is taken")
    fused = any(words in told for words in _FUSED_OPTIMIZER)
    return _runtime(
        name, record.flash_attention is False, fused, optimizer is None or optimizer in FUSED_KERNELS
    ), notes


@lru_cache(maxsize=32)
def _runtime(name: str, unfused_attention: bool, fused_optimizer: bool, can_fuse: bool) -> Runtime:
    runtime = load_runtime(name)
    told = [runtime.name]
    if unfused_attention:
        runtime = dataclasses.replace(runtime, attention="unfused")
        told.append("attention unfused")
    kind = "fused" if fused_optimizer else runtime.optimizer
    if kind == "fused" and not can_fuse:
        kind = "as-captured"
    if kind != runtime.optimizer:
        runtime = dataclasses.replace(runtime, optimizer=kind)
        told.append(f"optimizer {kind}")
    return dataclasses.replace(runtime, name=", ".join(told))
