"""What a reader must know before believing a prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from perfmodel.graph.count import Coverage
from perfmodel.graph.ir import Graph
from perfmodel.hardware import Device
from perfmodel.parallel.plan import Plan
from perfmodel.runtimes import Runtime

__all__ = ["device_notes", "listed", "plan_notes"]


def device_notes(graph: Graph, covered: Coverage, devices: Sequence[Device], software: Runtime) -> tuple[str, ...]:
    """About the capture, the devices and the runtime."""
    notes: list[str] = []
    if covered.missing:
        notes.append(f"no rule for {listed(covered.missing)}: their time is missing from the step time")
    for device in devices:
        notes.append(f"no interval: {device.validated}")
        if device.overrides:
            changed = ", ".join(f"{path} = {value}" for path, value in device.overrides.items())
            notes.append(f"{device.name} with overrides: {changed}")
        assumed = [
            name
            for name, source in device.sources.items()
            if source.source == "assumed" and name.startswith("calibration")
        ]
        if assumed:
            notes.append(f"{len(assumed)} calibration constants of {device.name} are assumed, not measured")
    answers = {place: n for place, n in graph.answers.items() if place != "optimizer"}
    if answers:
        notes.append(
            f"{sum(answers.values())} data-dependent answers were made up during capture, in {', '.join(answers)}"
        )
    if software.caveat:
        notes.append(software.caveat)
    neutral = graph.meta.get("dispatch") == "neutral"
    if neutral and _has_dropout(graph) and not all(device.asynchronous for device in devices):
        notes.append(
            "captured with an accelerator's dropout and attention; "
            "capture with dispatch='cpu' for what PyTorch runs on a CPU"
        )
    notes.append("memory counts tensors; the driver's context, workspaces and allocator rounding come on top")
    return tuple(notes)


def plan_notes(plan: Plan, graph: Graph, sources: Mapping[str, str]) -> tuple[str, ...]:
    """About the plan and the network.

    Parameters
    ----------
    plan : Plan
    graph : Graph
        As captured.
    sources : mapping of str to str
        Where the constants of collectives come from, by kind of group.
    """
    notes: list[str] = []
    for source, what in (("borrowed", "measured on another link of its kind"), ("assumed", "assumed, not measured")):
        kinds = [kind for kind, known in sources.items() if known == source]
        if kinds:
            notes.append(f"constants of the links that {', '.join(kinds)} use are {what}")
    if plan.devices > 1:
        notes.append("peers are alike, and compute isn't slowed by what communicates beside it")
    if plan.tp > 1 and "tp" in plan.overlap:
        notes.append("collectives of tp stand between the ops; overlap within an op isn't modelled")
    if plan.schedule == "DualPipeV" and plan.pp > 1:
        notes.append(
            "what an overlapped pair of forward and backward hides isn't modelled: they run one after the other"
        )
    if any(op.name == "aten._local_scalar_dense" and op.phase != "optimizer" for op, _ in graph.ops()):
        notes.append("the step reads answers back to the host; under a plan the wait for them isn't modelled")
    if plan.devices > 1:
        notes.append("library buffers of communicators and fragmentation come on top of the memory")
    return tuple(notes)


def listed(missing: Mapping[str, int]) -> str:
    """Ops without a rule, with how often they run."""
    return ", ".join(f"{name} (x{times})" for name, times in sorted(missing.items()))


def _has_dropout(graph: Graph) -> bool:
    return any(op.name == "aten.native_dropout" or op.attrs.get("dropout_p") for op, _ in graph.ops())
