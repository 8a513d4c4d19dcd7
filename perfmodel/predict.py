"""``predict``: the one place where the arrows of the design are wired together.

::

    Graph + Runtime ──rewrite──▶ Graph
    Graph ──count──▶ costs of ops
    costs × Device ──timing──▶ times of ops
    times + host costs ──queues──▶ step time
    Graph ──memory──▶ MemoryProfile
    all of them ──▶ Prediction
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from perfmodel.dtypes import compute_name
from perfmodel.errors import CoverageError, UnsupportedError
from perfmodel.graph.count import Counted, Coverage, count, coverage, total_flops
from perfmodel.graph.ir import Graph
from perfmodel.graph.paths import module_family
from perfmodel.hardware import Device, load_device
from perfmodel.memory import memory_profile
from perfmodel.prediction import Breakdown, OpTime, Prediction
from perfmodel.runtimes import Runtime, load_runtime, rewrite
from perfmodel.timing import OpTimes, OpWork, executed_matrix_flops, op_times, rates_of, two_queues

__all__ = ["Prediction", "predict"]

Floats = npt.NDArray[np.float64]


def predict(
    step: Graph,
    device: Device | str | os.PathLike[str],
    *,
    runtime: Runtime | str | None = None,
    strict: bool = False,
) -> Prediction:
    """Predict a training step of one device.

    Parameters
    ----------
    step : Graph
        From :func:`perfmodel.capture`; its bindings say batch and sequence.
    device : Device, str or path
        A device, a name of the catalogue, or a YAML file.
    runtime : Runtime or str, optional
        What the software does: ``"eager"``, ``"compiled"``, ``"graph-replay"``, … or a YAML file.
        The first that the device's file lists if left out; the prediction names it.
    strict : bool
        Refuse a graph that has ops without a rule.

    Returns
    -------
    Prediction

    Raises
    ------
    UnknownNameError
        No such device or runtime.
    UnsupportedError
        The device doesn't have the runtime, or no rate for a type that the step computes in.
    CoverageError
        With ``strict``, if an op has no rule.
    """
    machine = device if isinstance(device, Device) else load_device(device)
    software = (
        runtime if isinstance(runtime, Runtime) else load_runtime(machine.runtimes[0] if runtime is None else runtime)
    )
    if software.like not in machine.runtimes:
        raise UnsupportedError(
            f"{machine.name} doesn't run {software.name!r}; its runtimes: {', '.join(machine.runtimes)}"
        )
    graph = rewrite(step, software)
    counted = list(count(graph))
    covered = coverage(counted)
    if strict and covered.missing:
        raise CoverageError(
            f"{graph.name} has ops without a rule: {_listed(covered.missing)}; register one with perfmodel.ops.register"
        )

    known = [c.cost for c in counted if c.cost is not None]
    work = OpWork.from_costs(known)
    times = op_times(work, rates_of(machine, work))
    on_device = np.zeros(len(counted))
    on_device[[i for i, c in enumerate(counted) if c.cost is not None]] = times.time
    queues = _run_queues(graph, counted, on_device, software, machine)

    steady, first = memory_profile(graph), memory_profile(graph, first_step=True)
    capacity = machine.main_memory.capacity
    # Model flops are those of the step as captured: a kernel that recomputes doesn't make the model larger.
    model_flops = float(total_flops(counted if graph is step else list(count(step)), recompute=False))
    hardware_flops = float(total_flops(counted))
    dtype = _compute_dtype(counted)
    peak = machine.peak("matrix", dtype) * queues.step_time
    return Prediction(
        model=graph.name,
        device=machine.name,
        runtime=software.name,
        bindings=dict(graph.bindings),
        micro_steps=int(graph.meta.get("accumulate", 1)),
        step_time=queues.step_time,
        interval=None,
        mfu=model_flops / peak,
        hfu=hardware_flops / peak,
        compute_dtype=compute_name(dtype),
        model_flops=model_flops,
        hardware_flops=hardware_flops,
        memory=steady,
        first_step_memory=first,
        capacity=capacity,
        fits=max(steady.peak, first.peak) <= capacity,
        breakdown=_breakdown(counted, on_device, times, queues),
        coverage=covered,
        parameters=graph.parameters(),
        ops=_op_times(counted, on_device, times),
        op_ends=queues.ends,
        notes=_notes(graph, covered, machine, software),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Queues:
    step_time: float
    device_busy: float
    host_busy: float
    device_idle: float
    phase: Mapping[str, float]
    ends: Floats


def _run_queues(
    graph: Graph, counted: Sequence[Counted], on_device: Floats, software: Runtime, machine: Device
) -> _Queues:
    """Spell the folded step out as two queues: what the host issues and what the device executes."""
    host = np.array([_host_cost(c, software) for c in counted])
    blocking = np.array([c.op.name == "aten._local_scalar_dense" and c.op.phase != "optimizer" for c in counted])
    order, start = [], 0
    for block in graph.blocks:
        order.append(np.tile(np.arange(start, start + len(block.ops)), block.count))
        start += len(block.ops)
    sequence = np.concatenate(order)
    result = two_queues(
        host[sequence],
        on_device[sequence],
        blocking[sequence],
        start=software.host.step,
        synchronous=not machine.asynchronous,
    )
    phases = np.array([c.op.phase for c in counted])[sequence]
    # Recompute lies inside backward, so each op gives its phase the time since the op before it was complete.
    spans = np.diff(result.end, prepend=0.0)
    spans[-1] += result.step_time - result.end[-1]
    by_phase = {phase: float(spans[phases == phase].sum()) for phase in dict.fromkeys(phases.tolist())}
    return _Queues(
        step_time=result.step_time,
        device_busy=result.device_busy,
        host_busy=result.host_busy,
        device_idle=result.device_idle,
        phase=by_phase,
        ends=result.end,
    )


def _host_cost(counted: Counted, software: Runtime) -> float:
    """Seconds the host spends to issue an op."""
    cost = counted.cost
    if counted.op.name == "perfmodel.release" or not counted.op.launches:
        return 0.0
    if cost is not None and cost.family == "host":
        return software.host.sync if counted.op.phase != "optimizer" else software.host.view
    if cost is not None and cost.family == "view":
        return software.host.view
    kernels = 1 if cost is None else max(int(cost.kernels), 1)
    return software.host.op + (kernels - 1) * software.host.kernel


def _breakdown(counted: Sequence[Counted], on_device: Floats, times: OpTimes, queues: _Queues) -> Breakdown:
    spent = on_device * np.array([c.times for c in counted])
    bounds = iter(times.bound)
    module: dict[str, float] = {}
    op_class: dict[str, float] = {}
    bound: dict[str, float] = {}
    for c, seconds in zip(counted, spent.tolist(), strict=True):
        limit = "no rule" if c.cost is None else str(next(bounds))
        if seconds > 0:
            for table, key in (
                (module, module_family(c.op.module) or "(root)"),
                (op_class, c.cost.family if c.cost else "no rule"),
                (bound, limit),
            ):
                table[key] = table.get(key, 0.0) + seconds
    return Breakdown(
        phase=queues.phase,
        module=_sorted(module),
        op_class=_sorted(op_class),
        bound=_sorted(bound),
        device_busy=queues.device_busy,
        host_busy=queues.host_busy,
        device_idle=queues.device_idle,
    )


def _op_times(counted: Sequence[Counted], on_device: Floats, times: OpTimes) -> tuple[OpTime, ...]:
    bounds = iter(times.bound)
    result = []
    for c, seconds in zip(counted, on_device.tolist(), strict=True):
        cost = c.cost
        result.append(
            OpTime(
                name=c.op.name,
                phase=c.op.phase,
                module=module_family(c.op.module),
                family="no rule" if cost is None else cost.family,
                times=c.times,
                time=seconds,
                bound="no rule" if cost is None else str(next(bounds)),
                matrix_flops=0.0 if cost is None else executed_matrix_flops(cost),
                vector_flops=0.0 if cost is None else float(cost.vector_flops),
                bytes=0.0 if cost is None else float(cost.read + cost.written),
            )
        )
    return tuple(result)


def _compute_dtype(counted: Sequence[Counted]) -> str:
    amounts: dict[str, float] = {}
    for c in counted:
        if c.cost is not None and c.cost.matrix_flops:
            amounts[c.cost.dtype] = amounts.get(c.cost.dtype, 0.0) + float(c.cost.matrix_flops) * c.times
    if not amounts:
        raise UnsupportedError(
            "the step has no matrix product, so MFU has no meaning; perfmodel predicts models with at least one"
        )
    return max(amounts, key=lambda name: amounts[name])


def _notes(graph: Graph, covered: Coverage, machine: Device, software: Runtime) -> tuple[str, ...]:
    notes: list[str] = []
    if covered.missing:
        notes.append(f"no rule for {_listed(covered.missing)}: their time is missing from the step time")
    notes.append(f"no interval: {machine.validated}")
    if machine.overrides:
        changed = ", ".join(f"{path} = {value}" for path, value in machine.overrides.items())
        notes.append(f"{machine.name} with overrides: {changed}")
    assumed = sorted(
        name
        for name, source in machine.sources.items()
        if source.source == "assumed" and name.startswith("calibration")
    )
    if assumed:
        notes.append(f"{len(assumed)} calibration constants of {machine.name} are assumed, not measured")
    answers = {place: n for place, n in graph.answers.items() if place != "optimizer"}
    if answers:
        notes.append(
            f"{sum(answers.values())} data-dependent answers were made up during capture, in {', '.join(answers)}"
        )
    if software.caveat:
        notes.append(software.caveat)
    if not machine.asynchronous and graph.meta.get("dispatch") == "neutral" and _has_dropout(graph):
        notes.append(
            "captured with an accelerator's dropout and attention; "
            "capture with dispatch='cpu' for what PyTorch runs on a CPU"
        )
    notes.append("memory counts tensors; the driver's context, workspaces and allocator rounding come on top")
    return tuple(notes)


def _has_dropout(graph: Graph) -> bool:
    return any(op.name == "aten.native_dropout" or op.attrs.get("dropout_p") for op, _ in graph.ops())


def _listed(missing: Mapping[str, int]) -> str:
    return ", ".join(f"{name} (x{times})" for name, times in sorted(missing.items()))


def _sorted(table: dict[str, float]) -> dict[str, float]:
    return dict(sorted(table.items(), key=lambda item: -item[1]))
