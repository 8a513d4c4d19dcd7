"""A prediction as one screen of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perfmodel.graph.ir import Graph, holds
from perfmodel.graph.paths import layer_path
from perfmodel.prediction import Prediction, Training
from perfmodel.report.plan import plan_text, rank_lines, share_lines
from perfmodel.report.table import table

__all__ = ["amount", "graph_text", "ops_text", "prediction_text", "seconds", "table"]

_TOP = 8


def prediction_text(prediction: Prediction, training: Training | None = None) -> str:
    """One screen: time, utilisation, memory, where the time goes, what to beware of."""
    p = prediction
    sizes = ", ".join(f"{name} {value:,}" for name, value in p.bindings.items())
    rates = [f"{p.tokens_per_second:,.0f} tokens/s"] if p.tokens_per_second is not None else []
    rates += [f"{p.samples_per_second:,.4g} samples/s"] if p.samples_per_second is not None else []
    lines = [
        f"{p.model} on {p.device if p.plan is None else p.system} ({p.runtime}){': ' if sizes else ''}{sizes}",
        *([] if p.plan is None else [f"  plan        {plan_text(p.plan)}: {p.devices:,} devices"]),
        f"  step time   {seconds(p.step_time)}" + "".join(f"   {rate}" for rate in rates),
        "  interval    none: no measured residuals yet",
        f"  MFU         {p.mfu:.1%} of the {p.compute_dtype} matrix peak "
        "(PaLM: no recompute, causal attention by its full square)",
        f"  HFU         {p.hfu:.1%} (all executed matrix flops, same square)",
        f"  flops       {amount(p.model_flops)} model, {amount(p.hardware_flops)} executed",
        f"  parameters  {p.parameters:,}",
        *_memory_lines(p),
        *_time_lines(p),
        f"  coverage    {p.coverage.ops:.2%} of ops, {p.coverage.bytes:.2%} of bytes, "
        f"{p.coverage.flop_counter:.2%} of the calls that FlopCounterMode knows",
    ]
    if training is not None:
        tokens = f", {amount(training.tokens)} tokens" if training.tokens else ""
        lines.append(
            f"  training    {training.steps:,.0f} steps{tokens}: {seconds(training.time)} "
            f"= {training.days:,.4g} days without failures"
        )
    return "\n".join([*lines, *(f"  note        {note}" for note in p.notes)])


def graph_text(graph: Graph, closed_form: float | None = None) -> str:
    """What a captured graph holds.

    Parameters
    ----------
    graph : Graph
    closed_form : float, optional
        Matrix flops of a step by 6N + 12LHQT, to show beside the captured ones.
    """
    c = graph.coverage
    model_flops = graph.flops("matrix", recompute=False)
    lines = [
        f"{graph.name}: {', '.join(f'{name} {value:,}' for name, value in graph.bindings.items()) or 'fixed sizes'}",
        f"  source      {', '.join(_origin(graph.meta))}",
        f"  parameters  {graph.parameters():,} ({graph.parameters(trainable_only=True):,} trainable)",
        f"  ops         {graph.depth:,} a step, {sum(len(b.ops) for b in graph.blocks):,} stored",
        f"  flops       {amount(model_flops)} matrix (model), {amount(graph.flops('matrix'))} executed, "
        f"{amount(graph.flops('matrix', causal='half'))} with visible attention only, "
        f"{amount(graph.flops('vector'))} vector",
    ]
    if closed_form is not None:
        lines.append(f"  6N+12LHQT   {amount(closed_form)} (captured / closed form = {model_flops / closed_form:.4f})")
    lines += [
        f"  traffic     {amount(graph.bytes())}B read and written",
        f"  coverage    {c.ops:.2%} of ops, {c.bytes:.2%} of bytes",
        *_layer_lines(graph),
        f"  holds for   {_conditions(graph)}",
    ]
    if graph.answers:
        lines.append(
            "  answers     " + ", ".join(f"{n} made-up .item() in {place}" for place, n in graph.answers.items())
        )
    if c.missing:
        lines.append("  no rule     " + ", ".join(f"{name} (x{n})" for name, n in sorted(c.missing.items())))
    return "\n".join(lines)


def _origin(meta: Mapping[str, Any]) -> list[str]:
    """Whose modules ran, and how they are trained."""
    parts = [str(meta.get("implementation", "module")), f"optimizer {meta.get('optimizer')}"]
    parts += [f"adapter {meta['adapter']['kind']}"] if "adapter" in meta else []
    parts += [f"{meta['accumulate']} micro-steps"] if "accumulate" in meta else []
    return [*parts, *([f"autocast to {meta['autocast']}"] if "autocast" in meta else [])]


def _layer_lines(graph: Graph) -> list[str]:
    """How many of the layers of each stack are stored; all of them where each differs from its neighbours."""
    lines = []
    for stack, depth in graph.stacks.items():
        stored = sum(abs(b.step) for b in graph.blocks if b.stack == stack and b.ops[0].phase == "forward")
        stored //= graph.meta.get("accumulate", 1)
        if stored:
            lines.append(f"  layers      {stack}: {depth}, stored as {stored}")
    return lines


def _conditions(graph: Graph) -> str:
    """The guards that say something: those that some sizes of two and more break."""
    if not graph.guards:
        return "any size"
    samples = [dict.fromkeys(graph.symbols, size) for size in (2, 3, 8, 100, 1000, 10**6)]
    samples += [{**dict.fromkeys(graph.symbols, 2), name: size} for name in graph.symbols for size in (3, 512, 10**6)]
    telling = [guard for guard in graph.guards if any(not holds(guard, sizes) for sizes in samples)]
    rest = [guard for guard in graph.guards if guard not in telling]
    ones = {name: {**dict.fromkeys(graph.symbols, 8), name: 1} for name in graph.symbols}
    larger = [f"{name} >= 2" for name, sizes in ones.items() if any(not holds(guard, sizes) for guard in rest)]
    return " and ".join([*larger, *telling]) or "any size"


def ops_text(graph: Graph) -> str:
    """Every stored op in order: phase, module, name, results with type and shape, storages made and freed."""
    lines: list[str] = []
    for block in graph.blocks:
        if block.stack:
            last = f" to {block.span[-1 if block.step > 0 else 0]}" if block.count > 1 else ""
            group = f", {abs(block.step)} at a time" if abs(block.step) > 1 else ""
            lines.append(f"-- {layer_path(block.stack, block.first)}{last}{group}")
        for op in block.ops:
            results = ", ".join(f"{t.dtype}[{', '.join(map(str, t.shape))}]" for t in op.outputs)
            made = "".join(f" +{graph.storages[ref.storage].name}" for ref in op.allocates)
            freed = "".join(f" -{graph.storages[ref.storage].name}" for ref in op.frees)
            lines.append(f"{op.phase:10} {op.module or 'root'}: {op.name} -> {results or 'nothing'}{made}{freed}")
        if block.stack:
            lines.append("--")
    return "\n".join(lines)


def seconds(value: float) -> str:
    """A time as people say it.

    >>> seconds(0.01234), seconds(250000.0)
    ('12.3 ms', '69.4 h')
    """
    for limit, unit, factor in ((1e-3, "µs", 1e6), (1.0, "ms", 1e3), (600.0, "s", 1.0), (7200.0, "min", 1 / 60)):
        if value < limit:
            return f"{value * factor:.3g} {unit}"
    return f"{value / 3600:,.1f} h" if value < 30 * 86400 else f"{value / 86400:,.1f} days"


def amount(value: float) -> str:
    """A large number in four figures.

    >>> amount(210_822_764_691_456), amount(950)
    ('210.8 T', '950')
    """
    for limit, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.4g} {unit}"
    return f"{value:.4g}"


def _memory_lines(p: Prediction) -> list[str]:
    if p.plan is not None:
        return _plan_memory_lines(p)
    peak = max(p.memory.peak, p.first_step_memory.peak)
    verdict = "fits" if p.fits else "DOES NOT FIT"
    parts = {role: size for role, size in p.memory.at_peak.items() if size >= 0.0005 * p.memory.peak}
    composition = ", ".join(f"{role} {_gib(size)}" for role, size in parts.items())
    lines = [
        f"  memory      peak {_gib(peak)} of {_gib(p.capacity)}: {verdict} "
        f"(first step {_gib(p.first_step_memory.peak)})",
        f"              at the peak ({p.memory.peak_phase}, {p.memory.peak_module or 'root'}): {composition}",
    ]
    if p.memory.activations_at_peak:
        top = list(p.memory.activations_at_peak.items())[:3]
        lines.append(
            "              saved activations: " + ", ".join(f"{name or 'root'} {_gib(size)}" for name, size in top)
        )
    return lines


def _plan_memory_lines(p: Prediction) -> list[str]:
    verdict = "fits" if p.fits else "DOES NOT FIT"
    parts = {name: size for name, size in p.memory.at_peak.items() if size >= 0.0005 * p.memory.peak}
    composition = ", ".join(f"{name} {_gib(size)}" for name, size in parts.items())
    return [
        f"  memory      peak {_gib(p.memory.peak)} of {_gib(p.capacity)}: {verdict}",
        f"              at the peak ({p.memory.peak_phase}, {p.memory.peak_module or 'root'}): {composition}",
        *(rank_lines(p) if len(p.ranks) > 1 else []),
    ]


def _time_lines(p: Prediction) -> list[str]:
    b = p.breakdown
    lines = [f"  phases      {_shares(b.phase, p.step_time)}"]
    if p.plan is not None:
        lines = [*share_lines(p), *lines]
    elif b.device_idle > 0.005 * p.step_time:
        lines.append(
            f"  host        device waits {b.device_idle / p.step_time:.1%} of the step for the host to issue ops"
        )
    lines.append(f"  op classes  {_shares(b.op_class, b.device_busy)}")
    lines.append(f"  modules     {_shares(_parts(b.module), b.device_busy)}")
    lines.append(f"  bound by    {_shares(b.bound, b.device_busy)}")
    return lines


def _parts(modules: Mapping[str, float]) -> dict[str, float]:
    """Times of modules added up by the parts that a layer, or the model, is made of."""
    parts: dict[str, float] = {}
    for path, value in modules.items():
        names = path.split(".")
        keep = names.index("*") + 2 if "*" in names else 1
        part = ".".join(names[:keep])
        parts[part] = parts.get(part, 0.0) + value
    return dict(sorted(parts.items(), key=lambda item: -item[1]))


def _shares(table: Mapping[str, float], whole: float) -> str:
    entries = list(table.items())
    shown = [f"{name or 'root'} {value / whole:.1%}" for name, value in entries[:_TOP]]
    rest = sum(value for _, value in entries[_TOP:])
    return ", ".join([*shown, *([f"others {rest / whole:.1%}"] if rest > 0 else [])])


def _gib(size: float) -> str:
    return f"{size / 2**30:,.2f} GiB"
