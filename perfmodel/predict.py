"""``predict``: the one place where the arrows of the design are wired together.

::

    Graph × Plan ──shard──▶ Program ──rewrite (Runtime)──▶ Program ──cut──▶ stages
    Program × Devices ──timing──▶ times of ops;   collectives × Cluster ──timing──▶ times of transfers
    times + schedule ──▶ TaskGraph ──simulate──▶ Timeline
    stages + schedule ──memory──▶ memory of each rank
    all of them ──▶ Prediction

Kernels are fused and merged after sharding, since a compiler sees what a rank runs. On one device there is
nothing to shard, and the tasks are the ops themselves, in two queues.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from perfmodel.breakdown import action_ends, breakdown_of, rank_shares
from perfmodel.dtypes import compute_name
from perfmodel.errors import CoverageError, UnknownNameError, UnsupportedError
from perfmodel.graph.count import Counted, Coverage, count, coverage, total_flops
from perfmodel.graph.ir import Graph
from perfmodel.hardware import Cluster, Device, Node
from perfmodel.hardware.machine import as_cluster, load_machine
from perfmodel.memory import MemoryProfile, memory_profile
from perfmodel.memory_ranks import RankMemory, rank_memories
from perfmodel.notes import device_notes, listed, plan_notes
from perfmodel.parallel.plan import Plan
from perfmodel.parallel.shard import shard
from perfmodel.parallel.stages import stages
from perfmodel.predict_device import device_breakdown, run_queues, timed_device
from perfmodel.prediction import Prediction
from perfmodel.runtimes import Runtime, load_runtime, rewrite
from perfmodel.schedule.step import StepParts, regular_step, step_tasks
from perfmodel.schedule.timed import TimedProgram, tables_of
from perfmodel.simulate import Timeline, simulate
from perfmodel.timing.placement import PlacedPlan

__all__ = ["Engine", "Prediction", "predict"]

Engine = Literal["auto", "closed form", "simulation"]
Machine = Device | Node | Cluster | str | os.PathLike[str]


def predict(
    step: Graph,
    machine: Machine,
    plan: Plan | None = None,
    *,
    runtime: Runtime | str | None = None,
    strict: bool = False,
    engine: Engine = "auto",
) -> Prediction:
    """Predict a training step on one device, or on a cluster under a plan.

    Parameters
    ----------
    step : Graph
        From :func:`perfmodel.capture`; its bindings say batch and sequence. Under a plan it's what one
        data-parallel rank does with a micro-batch.
    machine : Device, Node, Cluster, str or path
        A name is looked up among devices, clusters and nodes; a YAML file may describe any of them.
    plan : Plan, optional
        How the step is laid out over the devices. Only for one device it may be left out.
    runtime : Runtime or str, optional
        What the software does: ``"eager"``, ``"compiled"``, ``"graph-replay"``, … or a YAML file.
        The first that the device's file lists if left out; the prediction names it.
    strict : bool
        Refuse a graph that has ops without a rule.
    engine : {"auto", "closed form", "simulation"}
        How a plan's step time is found: ``"auto"`` takes the closed form where all stages take the same time and
        nothing runs beside their compute, else the simulation. The prediction says which it was.

    Returns
    -------
    Prediction

    Raises
    ------
    UnknownNameError
        No such machine, runtime or engine.
    UnsupportedError
        The plan can't be on this machine or for this model; several devices and no plan; the device doesn't have the
        runtime, or no rate for a type that the step computes in.
    CoverageError
        With ``strict``, if an op has no rule.
    """
    if engine not in get_args(Engine):
        raise UnknownNameError("engine", str(engine), get_args(Engine))
    cluster = as_cluster(machine if isinstance(machine, Device | Node | Cluster) else load_machine(machine))
    software = _software(cluster, runtime)
    if plan is None:
        return _predict_device(step, cluster, software, strict)
    plan = plan.check(step, cluster.devices)
    _refuse_what_is_not_modelled(plan, step)

    program = shard(step, plan)
    program = replace(program, graph=rewrite(program.graph, software))
    timed = TimedProgram(
        program=program,
        stages=stages(program),
        placed=PlacedPlan(plan, cluster),
        tables=tables_of(program, [group.node.device for group in cluster.groups], software),
        software=software,
    )
    parts = timed.parts()
    timeline = simulate(step_tasks(parts))
    step_time, used = _step_time(parts, timeline, engine)
    memories = rank_memories(program, timed.stages, timed.schedule, _capacities(timed))
    return _prediction(timed, cluster, parts, timeline, step_time, used, memories, strict)


def _software(cluster: Cluster, runtime: Runtime | str | None) -> Runtime:
    devices = [group.node.device for group in cluster.groups]
    software = runtime if isinstance(runtime, Runtime) else load_runtime(runtime or devices[0].runtimes[0])
    for device in devices:
        if software.like not in device.runtimes:
            raise UnsupportedError(
                f"{device.name} doesn't run {software.name!r}; its runtimes: {', '.join(device.runtimes)}"
            )
    return software


def _refuse_what_is_not_modelled(plan: Plan, step: Graph) -> None:
    if plan.offload:
        raise UnsupportedError(f"offload of {', '.join(plan.offload)} isn't modelled; leave offload out of the plan")
    if step.meta.get("accumulate", 1) > 1:
        raise UnsupportedError(
            f"{step.name} was captured with {step.meta['accumulate']} accumulated micro-steps, and a plan has micro-"
            "batches of its own; capture one, and give the plan a global_batch"
        )


def _step_time(parts: StepParts, timeline: Timeline, engine: Engine) -> tuple[float, str]:
    regular = None if engine == "simulation" else regular_step(parts)
    if regular is not None:
        return regular, "closed form"
    if engine == "closed form":
        raise UnsupportedError(
            "the step has no closed form: stages take unlike times, or communication runs beside their compute; "
            "use engine='simulation' or 'auto'"
        )
    return timeline.makespan, timeline.engine


def _capacities(timed: TimedProgram) -> list[float]:
    """Of each pipeline rank the smallest among its peers."""
    ranks = range(timed.program.plan.pp)
    return [min(device.main_memory.capacity for device in timed.placed.devices(rank)) for rank in ranks]


def _predict_device(step: Graph, cluster: Cluster, software: Runtime, strict: bool) -> Prediction:
    if cluster.devices > 1:
        raise UnsupportedError(
            f"{cluster.name} has {cluster.devices} devices; give a plan for them, e.g. Plan(dp={cluster.devices})"
        )
    graph = rewrite(step, software)
    timed = timed_device(step, graph, cluster, software)
    (table,) = timed.tables.values()
    covered = _covered(graph, table.counted, strict)
    micro_steps = int(graph.meta.get("accumulate", 1))
    queues, phases = run_queues(timed)
    breakdown, ops = device_breakdown(timed, queues, phases)
    steady, first = memory_profile(graph), memory_profile(graph, first_step=True)
    capacity = cluster.device.main_memory.capacity
    # Model flops are those of the step as captured: a kernel that recomputes doesn't make the model larger.
    model_flops = float(total_flops(table.counted if graph is step else list(count(step)), recompute=False))
    hardware_flops = float(total_flops(table.counted))
    dtype = _compute_dtype(table.counted)
    peak = cluster.device.peak("matrix", dtype) * queues.step_time
    return Prediction(
        model=graph.name,
        device=cluster.device.name,
        runtime=software.name,
        system=cluster.name,
        plan=None,
        devices=1,
        sequences=None if "batch" not in graph.bindings else graph.bindings["batch"] * micro_steps,
        bindings=dict(graph.bindings),
        micro_steps=micro_steps,
        step_time=queues.step_time,
        engine="queues",
        interval=None,
        mfu=model_flops / peak,
        hfu=hardware_flops / peak,
        compute_dtype=compute_name(dtype),
        model_flops=model_flops,
        hardware_flops=hardware_flops,
        memory=steady,
        first_step_memory=first,
        ranks=(),
        capacity=capacity,
        fits=max(steady.peak, first.peak) <= capacity,
        breakdown=breakdown,
        coverage=covered,
        parameters=graph.parameters(),
        ops=ops,
        op_ends=queues.end,
        notes=device_notes(graph, covered, [cluster.device], software),
        timed=timed,
    )


def _prediction(
    timed: TimedProgram,
    cluster: Cluster,
    parts: StepParts,
    timeline: Timeline,
    step_time: float,
    engine: str,
    ranks: tuple[RankMemory, ...],
    strict: bool,
) -> Prediction:
    program, plan, software = timed.program, timed.program.plan, timed.software
    table = timed.tables[cluster.groups[0].node.device.name]
    covered = _covered(program.graph, table.counted, strict)
    shares = rank_shares(parts, timeline)
    busiest = min(range(plan.pp), key=lambda rank: shares[rank]["bubble"])
    breakdown, ops = breakdown_of(timed, parts, timeline, shares[busiest], busiest)
    fullest = max(ranks, key=lambda rank: rank.peak / rank.capacity)
    memory = _profile(fullest)
    model_flops = _step_flops(list(count(program.source)), plan, plan.data_parallel, recompute=False)
    hardware_flops = _step_flops(table.counted, plan, plan.devices // plan.pp, recompute=True)
    dtype = _compute_dtype(table.counted)
    peak = step_time * sum(group.devices * group.node.device.peak("matrix", dtype) for group in cluster.groups)
    devices = list({group.node.device.name: group.node.device for group in cluster.groups}.values())
    return Prediction(
        model=program.source.name,
        device=", ".join(device.name for device in devices),
        runtime=software.name,
        system=" + ".join(f"{group.nodes} × {group.node.name}" for group in cluster.groups),
        plan=plan,
        devices=cluster.devices,
        sequences=plan.micro_batch * plan.micro_batches * plan.data_parallel,
        bindings=dict(program.source.bindings),
        micro_steps=plan.micro_batches,
        step_time=step_time,
        engine=engine,
        interval=None,
        mfu=model_flops / peak,
        hfu=hardware_flops / peak,
        compute_dtype=compute_name(dtype),
        model_flops=model_flops,
        hardware_flops=hardware_flops,
        memory=memory,
        first_step_memory=memory,
        ranks=ranks,
        capacity=fullest.capacity,
        fits=all(rank.fits for rank in ranks),
        breakdown=breakdown,
        coverage=covered,
        parameters=program.source.parameters(),
        ops=ops,
        op_ends=action_ends(parts, timeline, fullest.rank),
        notes=(
            *device_notes(program.source, covered, devices, software),
            *plan_notes(plan, program.source, timed.placed.sources),
        ),
        timed=timed,
    )


def _covered(graph: Graph, counted: Sequence[Counted], strict: bool) -> Coverage:
    covered = coverage(counted)
    if strict and covered.missing:
        raise CoverageError(
            f"{graph.name} has ops without a rule: {listed(covered.missing)}; register one with perfmodel.ops.register"
        )
    return covered


def _step_flops(counted: Sequence[Counted], plan: Plan, ranks: int, *, recompute: bool) -> float:
    """Matrix flops of a step on so many ranks that do the same: each micro-batch's, and the optimizer's once."""
    whole = float(total_flops(counted, recompute=recompute))
    once = float(total_flops(counted, recompute=recompute, phase="optimizer"))
    return ((whole - once) * plan.micro_batches + once) * ranks


def _profile(rank: RankMemory) -> MemoryProfile:
    """A pipeline rank's memory in the form of one device's."""
    return MemoryProfile(
        peak=rank.peak,
        at_peak=rank.at_peak,
        activations_at_peak={
            f"stage {stage}, {count} micro-batches": count * rank.activations[stage]
            for stage, count in rank.live.items()
            if count
        },
        peak_phase=rank.phase,
        peak_module=rank.module,
        peak_op=rank.op,
        resident=rank.resident,
        curve=rank.curve,
        op_index=np.arange(len(rank.curve)),
        first_step=False,
    )


def _compute_dtype(counted: Sequence[Counted]) -> str:
    amounts: dict[str, float] = {}
    for c in counted:
        if c.cost is not None and c.cost.matrix_flops and c.op.phase != "optimizer":
            amounts[c.cost.dtype] = amounts.get(c.cost.dtype, 0.0) + float(c.cost.matrix_flops) * c.times
    if not amounts:
        raise UnsupportedError(
            "the step has no matrix product, so MFU has no meaning; perfmodel predicts models with at least one"
        )
    return max(amounts, key=lambda name: amounts[name])
