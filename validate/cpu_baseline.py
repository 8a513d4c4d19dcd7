"""Measure this machine's CPU, predict three small models on it, run them, and show both.

::

    python validate/cpu_baseline.py [-o RESULT.json] [--device DEVICE.yaml]

The CPU is described by micro-benchmarks alone: the rate of one large product, the
bandwidth of a copy, the time of a tiny op. No constant is fitted to a model, so
the error is that of a plain roofline. Micro-benchmarks and models take turns in
rounds: what drifts on the machine drifts for both.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from real_step import PHASES, Case, Training
from this_cpu import MICRO, RUNTIME, BenchmarkSizes, device_text, last_level_cache, machine, micro_benchmarks

import perfmodel as pm
from perfmodel.errors import PerfModelError, UnsupportedError
from perfmodel.graph.count import count
from perfmodel.models import catalogue
from perfmodel.models.dims import TransformerDims
from perfmodel.report.text import seconds, table
from perfmodel.units import format_quantity, parse_quantity

__all__ = ["CASES", "baseline", "like", "main", "report"]


def like(model: str, layers: int, **changes: Any) -> TransformerDims:
    """The dimensions of a published model, made small; dropout and the rest stay its own."""
    return replace(catalogue.get(model).dims, num_hidden_layers=layers, **changes)


_SMALL = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 64}

CASES = (
    Case(
        name="gpt2-like",
        dims=like("gpt2", 4, **_SMALL, intermediate_size=1024),
        optimizer="adamw",
        batch=8,
        seq_len=128,
    ),
    Case(
        name="bert-like-mlm",
        dims=like("bert-base-uncased", 4, **_SMALL, intermediate_size=1024),
        optimizer="adam",
        batch=8,
        seq_len=128,
    ),
    # A short vocabulary: here the layers take the time, not the head.
    Case(
        name="llama-like-gqa",
        dims=like(
            "llama-3.1-8b",
            4,
            hidden_size=512,
            num_attention_heads=8,
            num_key_value_heads=2,
            head_dim=64,
            intermediate_size=1408,
            vocab_size=8192,
        ),
        optimizer="adamw",
        batch=4,
        seq_len=256,
    ),
)


def baseline(
    cases: Sequence[Case],
    sizes: BenchmarkSizes,
    device_file: Path,
    *,
    rounds: int = 4,
    steps: int = 4,
    warmup: int = 3,
    say: Callable[[str], None] = lambda _text: None,
) -> dict[str, Any]:
    """Measure, predict, run; plain JSON types.

    Parameters
    ----------
    cases : sequence of Case
    sizes : BenchmarkSizes
    device_file : Path
        Where the machine's description is written.
    rounds, steps : int
        Rounds in which micro-benchmarks and models take turns, timed steps of a model in each.
    warmup : int
        Untimed steps of a model in the first round; a later one has one.
    say : callable
        Called with what happens next.
    """
    where, load = machine(), os.getloadavg()[0]
    say("making models and buffers")
    benches = micro_benchmarks(sizes)
    trainings = [Training(case) for case in cases]
    graphs = [pm.capture(t.module, kwargs=t.batch(), optimizer=t.case.optimizer, dispatch="cpu") for t in trainings]
    known = [_families(graph) for graph in graphs]
    micro: dict[str, list[float]] = {name: [] for name in benches}
    times: list[list[tuple[float, float, float]]] = [[] for _ in cases]
    profiles: list[list[tuple[int, dict[str, float]]]] = [[] for _ in cases]
    for turn in range(rounds):
        say(f"round {turn + 1} of {rounds}: micro-benchmarks")
        for name, bench in benches.items():
            bench()
            micro[name] += [bench() for _ in range(3)]
        for training, known_ops, timed, profiled in zip(trainings, known, times, profiles, strict=True):
            say(f"round {turn + 1} of {rounds}: {training.case.name}")
            for _ in range(1 if turn else warmup):
                training.step(training.batch())
            timed += [training.step(training.batch()) for _ in range(steps)]
            profiled.append(training.profiled(known_ops))

    constants = {name: statistics.median(values) for name, values in micro.items()}
    if constants["last-level cache"] < constants["main memory"]:
        raise UnsupportedError("copies in the cache were slower than in main memory; run it again on a quiet machine")
    device_file.write_text(device_text(constants, sizes, where), encoding="utf-8")
    device, runtime = pm.load_device(device_file), pm.load_runtime(RUNTIME)
    models = [
        _compared(case, pm.predict(graph, device, runtime=runtime), runtime, timed, profiled)
        for case, graph, timed, profiled in zip(cases, graphs, times, profiles, strict=True)
    ]
    return {
        "schema": "cpu-baseline/1",
        "perfmodel": pm.__version__,
        "machine": where,
        "load": {"before": load, "after": os.getloadavg()[0]},
        "method": {"rounds": rounds, "steps_a_round": steps, "warmup": warmup, "sizes": asdict(sizes)},
        "micro": {name: {**_spread(values), "unit": MICRO[name]} for name, values in micro.items()},
        "models": models,
    }


def _families(graph: pm.Graph) -> dict[str, str]:
    """Op class by the profiler's name of an op, of the ops that run a kernel."""
    return {
        c.op.name.replace("aten.", "aten::"): c.cost.family
        for c in count(graph)
        if c.cost is not None and c.op.name.startswith("aten.") and c.cost.family not in ("view", "host")
    }


def _compared(
    case: Case,
    prediction: pm.Prediction,
    runtime: pm.Runtime,
    timed: Sequence[tuple[float, float, float]],
    profiled: Sequence[tuple[int, Mapping[str, float]]],
) -> dict[str, Any]:
    measured = _spread([sum(phases) for phases in timed])
    predicted_phases = {phase: prediction.breakdown.phase.get(phase, 0.0) for phase in PHASES}
    phases = {
        phase: {"measured_s": statistics.median(values), "predicted_s": predicted_phases[phase]}
        for phase, values in zip(PHASES, zip(*timed, strict=True), strict=True)
    }
    predicted_classes: dict[str, float] = {}
    for op in prediction.ops:
        if op.family not in ("view", "host", "no rule"):
            spent = (op.time + runtime.host.op) * op.times
            predicted_classes[op.family] = predicted_classes.get(op.family, 0.0) + spent
    classes = {
        family: {
            "profiled_s": statistics.median(times.get(family, 0.0) for _, times in profiled),
            "predicted_s": predicted,
        }
        for family, predicted in predicted_classes.items()
    }
    peak = max(peak for peak, _ in profiled)
    return {
        "model": case.name,
        "optimizer": case.optimizer,
        "batch": case.batch,
        "seq_len": case.seq_len,
        "dims": case.dims.to_dict(),
        "parameters": prediction.parameters,
        "measured_s": measured,
        "predicted_s": prediction.step_time,
        "error": prediction.step_time / measured["median"] - 1,
        "phases": phases,
        "memory": {
            "measured_bytes": peak,
            "predicted_bytes": prediction.memory.peak,
            "error": prediction.memory.peak / peak - 1,
        },
        "op_classes": classes,
        "coverage": prediction.coverage.ops,
        "missing": dict(prediction.coverage.missing),
    }


def _spread(values: Sequence[float]) -> dict[str, Any]:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "quartiles": [low, high], "count": len(values)}


# -- for people ---------------------------------------------------------------------------


def report(result: Mapping[str, Any]) -> str:
    """The result of :func:`baseline` as tables."""
    where, load = result["machine"], result["load"]
    settings = ", ".join(f"{key}={value}" for key, value in where["environment"].items()) or "none set"
    constants = [
        (
            name,
            _value(values["median"], values["unit"]),
            " to ".join(_value(q, values["unit"]) for q in values["quartiles"]),
        )
        for name, values in result["micro"].items()
    ]
    steps, phases, classes = [], [], []
    for model in result["models"]:
        measured, memory = model["measured_s"], model["memory"]
        quartiles = " to ".join(seconds(q) for q in measured["quartiles"])
        steps.append(
            (
                model["model"], f"{seconds(measured['median'])} [{quartiles}]", seconds(model["predicted_s"]),
                f"{model['error']:+.1%}", _value(memory["measured_bytes"], "bytes"),
                _value(memory["predicted_bytes"], "bytes"), f"{memory['error']:+.2%}",
            )
        )  # fmt: skip
        phases += [(model["model"], phase, *_both(times, "measured_s")) for phase, times in model["phases"].items()]
        by_miss = sorted(
            model["op_classes"].items(), key=lambda item: -abs(item[1]["predicted_s"] - item[1]["profiled_s"])
        )
        classes += [(model["model"], family, *_both(times, "profiled_s")) for family, times in by_miss]
    missing = sorted({name for model in result["models"] for name in model["missing"]})
    return "\n".join(
        [
            f"{where['cpu']}, {where['threads']} threads, torch {where['torch']}, {where['date']}; "
            f"load {load['before']:.2f} before, {load['after']:.2f} after",
            f"allocator and thread settings of the environment: {settings}",
            "",
            table(("micro-benchmark", "median", "quartiles"), constants),
            "(bytes read and written; fresh memory is not used by the prediction)",
            "",
            table(
                ("model", "step, measured [quartiles]", "predicted", "error", "peak memory", "predicted", "error"),
                steps,
            ),
            *([f"ops without a rule: {', '.join(missing)}"] if missing else []),
            "",
            table(("model", "phase", "measured", "predicted", "error"), phases),
            "",
            "by op class, the largest difference first (profiled: with the profiler's own cost in each op)",
            table(("model", "op class", "profiled", "predicted", "error"), classes),
        ]
    )


def _both(times: Mapping[str, float], measured: str) -> tuple[str, str, str]:
    real, predicted = times[measured], times["predicted_s"]
    return seconds(real), seconds(predicted), f"{predicted / real - 1:+.0%}" if real else "not run"


def _value(value: float, dimension: str) -> str:
    return format_quantity(value, dimension, digits=3)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit code."""
    parser = argparse.ArgumentParser(description="Predict three small models on this CPU, run them, show both.")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.json", help="write the result as JSON")
    parser.add_argument("--device", type=Path, metavar="FILE.yaml", help="keep the description of this machine")
    parser.add_argument(
        "--cache", metavar="SIZE", help="size of the last-level cache, e.g. '32 MiB'; else asked of Linux"
    )
    options = parser.parse_args(arguments)
    try:
        cache = int(parse_quantity(options.cache, "bytes")) if options.cache else last_level_cache()
        sizes = BenchmarkSizes(cache=cache)
        # Neither buffer of a copy may be served from the cache.
        sizes = replace(sizes, buffer=max(sizes.buffer, 4 * cache))
        with tempfile.TemporaryDirectory() as folder:
            device_file = options.device or Path(folder) / "this-cpu.yaml"
            result = baseline(CASES, sizes, device_file, say=lambda text: print(text, file=sys.stderr, flush=True))
    except PerfModelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report(result))
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
