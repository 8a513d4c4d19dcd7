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
import datetime
import json
import os
import platform
import statistics
import sys
import tempfile
import timeit
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import yaml
from torch.profiler import ProfilerActivity, profile

import perfmodel as pm
from perfmodel.errors import PerfModelError, UnsupportedError
from perfmodel.graph.count import count
from perfmodel.models import catalogue
from perfmodel.models.build import build
from perfmodel.models.dims import TransformerDims
from perfmodel.report.text import seconds, table
from perfmodel.units import format_quantity, parse_quantity

__all__ = ["CASES", "BenchmarkSizes", "Case", "baseline", "device_text", "main", "micro_benchmarks", "report"]

RUNTIME = "cpu-eager"
PHASES = ("forward", "backward", "optimizer")
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
IGNORED_LABEL = -100

#: What the micro-benchmarks give, and its dimension.
MICRO = {
    "product": "FLOP/s",
    "main memory": "bytes/s",
    "last-level cache": "bytes/s",
    "fresh memory": "bytes/s",
    "tiny vector op": "s",
    "tiny product": "s",
    "tiny attention": "s",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model and the step that it is trained by."""

    name: str
    dims: TransformerDims
    optimizer: str
    batch: int
    seq_len: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkSizes:
    """Side of the large product, bytes of a buffer in main memory, bytes of the last-level cache, calls of a tiny op."""

    product: int = 2048
    cache: int
    buffer: int = 256 * 2**20
    calls: int = 5_000


def _like(model: str, **changes: Any) -> TransformerDims:
    """The dimensions of a published model, made small; dropout and the rest stay its own."""
    return replace(catalogue.get(model).dims, num_hidden_layers=4, **changes)


_SMALL = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 64}

CASES = (
    Case(
        name="gpt2-like",
        dims=_like("gpt2", **_SMALL, intermediate_size=1024),
        optimizer="adamw",
        batch=8,
        seq_len=128,
    ),
    Case(
        name="bert-like-mlm",
        dims=_like("bert-base-uncased", **_SMALL, intermediate_size=1024),
        optimizer="adam",
        batch=8,
        seq_len=128,
    ),
    # A short vocabulary: here the layers take the time, not the head.
    Case(
        name="llama-like-gqa",
        dims=_like(
            "llama-3.1-8b", hidden_size=512, num_attention_heads=8, num_key_value_heads=2, head_dim=64,
            intermediate_size=1408, vocab_size=8192,
        ),
        optimizer="adamw",
        batch=4,
        seq_len=256,
    ),
)  # fmt: skip


# -- the machine -----------------------------------------------------------------


def last_level_cache() -> int:
    """Bytes of the last-level cache that the first CPU sees, as Linux states it.

    Raises
    ------
    UnsupportedError
        If the system doesn't say.
    """
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    if not sizes:
        raise UnsupportedError("this system doesn't state its cache sizes; give --cache, e.g. --cache '32 MiB'")
    return max(int(size.removesuffix("K")) * 1024 for size in sizes)


def machine() -> dict[str, Any]:
    """What a reader needs to know about where the numbers come from."""
    cpuinfo = Path("/proc/cpuinfo")
    fields = (
        [line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line] if cpuinfo.exists() else []
    )
    info = {key.strip(): value.strip() for key, value in fields}
    prefixes = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD", "OMP_", "MKL_", "KMP_")
    return {
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "vendor": info.get("vendor_id") or "unknown",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
        "environment": {key: value for key, value in sorted(os.environ.items()) if key.startswith(prefixes)},
    }


def micro_benchmarks(sizes: BenchmarkSizes) -> dict[str, Callable[[], float]]:
    """A function for each of :data:`MICRO` that measures it once. Buffers are made, and touched, here."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    def rate(amount: float, call: Callable[[], object], calls: int = 1) -> Callable[[], float]:
        return lambda: amount * calls / timeit.timeit(call, number=calls)

    def time_of(call: Callable[[], object]) -> Callable[[], float]:
        return lambda: timeit.timeit(call, number=sizes.calls) / sizes.calls

    side = sizes.product
    a, b, c = random(side, side), random(side, side), random(side, side)
    source, target = random(sizes.buffer // 4), random(sizes.buffer // 4)
    # Both buffers together take half of the cache, and are too large for the level before it.
    near_source, near_target = random(sizes.cache // 16), random(sizes.cache // 16)
    vector, square, heads = random(8), random(8, 8), random(1, 1, 8, 8)
    attention = torch.nn.functional.scaled_dot_product_attention
    return {
        "product": rate(2.0 * side**3, lambda: torch.mm(a, b, out=c)),
        "main memory": rate(2.0 * sizes.buffer, lambda: target.copy_(source)),
        "last-level cache": rate(sizes.cache / 2, lambda: near_target.copy_(near_source), calls=20),
        "fresh memory": rate(2.0 * sizes.buffer, source.clone),
        "tiny vector op": time_of(lambda: vector.mul_(1.0)),
        "tiny product": time_of(lambda: torch.mm(square, square)),
        "tiny attention": time_of(lambda: attention(heads, heads, heads, is_causal=True)),
    }


def device_text(micro: Mapping[str, float], sizes: BenchmarkSizes, where: Mapping[str, Any]) -> str:
    """The machine as a device file.

    Parameters
    ----------
    micro : mapping
        By the names of :data:`MICRO`, in SI.
    sizes : BenchmarkSizes
    where : mapping
        From :func:`machine`.
    """
    dispatch = pm.load_runtime(RUNTIME).host.op

    def measured(value: float, dimension: str, note: str) -> dict[str, Any]:
        text = format_quantity(value, dimension, digits=6)
        return {"value": text, "source": "measured", "cite": "micro", "confidence": "B", "note": note}

    def assumed(value: str, note: str) -> dict[str, Any]:
        return {"value": value, "source": "assumed", "confidence": "D", "note": note}

    def constants(tiny: str, rate: dict[str, Any]) -> dict[str, Any]:
        note = f"{tiny}: {format_quantity(micro[tiny], 's', digits=3)} a call, less the runtime's cost of an op"
        return {
            "rate": rate,
            "bandwidth": measured(1.0, "fraction", "the level's bandwidth is that of a copy as PyTorch runs it"),
            "latency": measured(max(micro[tiny] - dispatch, 0.0), "s", note),
        }

    product = measured(micro["product"], "FLOP/s", f"product of two {sizes.product} x {sizes.product} matrices")
    same = assumed(product["value"], "as the fp32 product; the same units")
    copied = "copy, bytes read and written"
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    content = {
        "schema": "device/1",
        "name": "this-cpu",
        "kind": "cpu",
        "vendor": where["vendor"],
        "architecture": where["cpu"],
        "year": int(where["date"][:4]),
        "validated": "only by the runs beside this file",
        "execution": "synchronous",
        "runtimes": [RUNTIME],
        "compute": {"matrix": {"peak": {"fp32": product}}, "vector": {"peak": {"fp32": same, "int32": same}}},
        "memory": [
            {
                "name": "main",
                "capacity": measured(physical, "bytes", "what the system reports"),
                "bandwidth": measured(micro["main memory"], "bytes/s", copied),
            },
            {
                "name": "last-level-cache",
                "capacity": measured(sizes.cache, "bytes", "what the system reports"),
                "bandwidth": measured(micro["last-level cache"], "bytes/s", copied),
            },
        ],
        "calibration": {
            "matmul": constants("tiny product", measured(1.0, "fraction", "the peak is a measured rate")),
            "attention": constants("tiny attention", assumed("100%", "as a large product")),
            "vector": constants("tiny vector op", assumed("25%", "as the catalogue's CPUs: no multiply-adds")),
        },
        "citations": {
            "micro": {
                "title": f"Micro-benchmarks of validate/cpu_baseline.py on {where['cpu']}, {where['threads']} threads, "
                f"torch {where['torch']}, {where['date']}"
            }
        },
    }
    return f"# This machine's CPU; year is that of the measurement.\n{_yaml(content)}"


def _yaml(content: Mapping[str, Any]) -> str:
    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:  # the format has no anchors
            return True

    return yaml.dump(dict(content), Dumper=Plain, sort_keys=False, width=120)


# -- a real model ------------------------------------------------------------------


class Training:
    """A model with its optimizer and an endless supply of random batches."""

    def __init__(self, case: Case) -> None:
        torch.manual_seed(0)
        self.case = case
        self.module, _ = build(case.dims, dtype="float32", device="cpu")
        self.optimizer = OPTIMIZERS[case.optimizer](self.module.parameters())

    def batch(self) -> dict[str, torch.Tensor]:
        """Random tokens; for an encoder padded to random lengths, with a label for 15 % of them."""
        shape = (self.case.batch, self.case.seq_len)
        tokens = torch.randint(1, self.case.dims.vocab_size, shape)
        if self.case.dims.family == "decoder":
            return {"input_ids": tokens, "labels": tokens.clone()}
        lengths = torch.randint(self.case.seq_len // 2, self.case.seq_len + 1, (self.case.batch, 1))
        real = torch.arange(self.case.seq_len) < lengths
        chosen = real & (torch.rand(shape) < 0.15)
        chosen[:, 0] = True
        return {
            "input_ids": tokens.where(real, torch.tensor(0)),
            "labels": tokens.where(chosen, torch.tensor(IGNORED_LABEL)),
            "attention_mask": real.long(),
        }

    def step(self, batch: Mapping[str, torch.Tensor]) -> tuple[float, float, float]:
        """Seconds of forward, of backward, and of optimizer, zero_grad and release of the output."""
        begun = perf_counter()
        result = self.module(**batch)
        forward = perf_counter()
        result.loss.backward()
        backward = perf_counter()
        self.optimizer.step()
        self.optimizer.zero_grad()
        del result
        return forward - begun, backward - forward, perf_counter() - backward

    def profiled(self, families: Mapping[str, str]) -> tuple[int, dict[str, float]]:
        """Peak bytes of a step, and its seconds by op class with the profiler's own cost in them.

        Parameters
        ----------
        families : mapping
            The op class of each op that counts, by the profiler's name of the op.
            An op inside another one counts for the outer.
        """
        batch = self.batch()
        states = [v for state in self.optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
        tensors = [*self.module.parameters(), *self.module.buffers(), *batch.values(), *states]
        resident = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            self.step(batch)
        times: dict[str, float] = {}
        for event in recorded.events() or ():
            family = families.get(event.name)
            if family and not any(parent.name in families for parent in _ancestors(event)):
                times[family] = times.get(family, 0.0) + event.cpu_time_total * 1e-6
        return resident + _peak_of_events(recorded), times


def _ancestors(event: Any) -> Iterable[Any]:
    while (event := event.cpu_parent) is not None:
        yield event


def _peak_of_events(recorded: Any) -> int:
    changes: list[tuple[int, int]] = []
    waiting = list(recorded.profiler.kineto_results.experimental_event_tree())
    while waiting:
        event = waiting.pop()
        if event.tag.name == "Allocation":
            changes.append((event.start_time_ns, event.extra_fields.alloc_size))
        waiting.extend(event.children)
    live = peak = 0
    for _, size in sorted(changes):
        live += size
        peak = max(peak, live)
    return peak


# -- both beside each other -----------------------------------------------------------


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
        op.name.replace("aten.", "aten::"): cost.family
        for op, cost, _ in count(graph)
        if cost is not None and op.name.startswith("aten.") and cost.family not in ("view", "host")
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
        sizes = BenchmarkSizes(cache=cache, buffer=max(BenchmarkSizes.buffer, 4 * cache))
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
