"""A pipeline of 261,120 tasks: built, compiled, evaluated once and in 256 jitter scenarios, as JSON.

Both engines run in one process; the ratio of their rates is what to compare between machines. The
last figure is the closed form over 100,000 plans.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from perfmodel.schedule import StageTimes, pipeline, pipeline_tasks, pipeline_time
from perfmodel.simulate import jitter, simulate
from perfmodel.simulate.event import run_events
from perfmodel.simulate.maxplus import Evaluator, compile_levels

SCENARIOS, PLANS, REPEATS = 256, 100_000, 3


def best(call: Callable[[], Any]) -> tuple[float, Any]:
    """The least wall-clock time of a few calls, and the last result."""
    times = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - begun)
    return min(times), result


def main() -> None:
    times = StageTimes(
        forward=1.0, backward_input=1.0, backward_weight=1.0, transfer_forward=0.05, transfer_backward=0.05
    )

    def build() -> Any:
        return pipeline_tasks(pipeline("Interleaved1F1B", pp=64, micro_batches=512, stages_per_rank=2), times)

    built, tasks = best(build)
    compiled_in, compiled = best(lambda: compile_levels(tasks))
    one = Evaluator(compiled)
    one.duration[...] = tasks.duration[compiled.order]
    single, _ = best(one.run)
    whole, timeline = best(lambda: simulate(tasks))
    event, _ = best(lambda: run_events(tasks, tasks.duration))
    batch = Evaluator(compiled, 32, starts=False)
    batch.duration[...] = one.duration[:, None]
    batched, _ = best(batch.run)
    varied, spread = best(lambda: jitter(tasks, sigma=0.1, scenarios=SCENARIOS, seed=0))
    draw = np.random.default_rng(0)
    plans = {
        "pp": draw.integers(2, 17, PLANS),
        "chunks": draw.integers(2, 5, PLANS),
        "forward": draw.uniform(1, 2, PLANS),
        "backward_input": draw.uniform(1, 2, PLANS),
        "p2p": draw.uniform(0, 1, PLANS),
    }
    formula, _ = best(lambda: pipeline_time("Interleaved1F1B", micro_batches=plans["pp"] * 8, **plans))
    count = len(tasks)
    print(
        json.dumps(
            {
                "tasks": count,
                "levels": len(compiled.plan),
                "build_s": built,
                "compile_s": compiled_in,
                "simulate_s": whole,
                "makespan_s": timeline.makespan,
                "one_scenario_tasks_per_s": count / single,
                "batched_tasks_per_s": 32 * count / batched,
                "event_tasks_per_s": count / event,
                "max_plus_over_event": event / single,
                "jitter_scenarios": SCENARIOS,
                "jitter_s": varied,
                "jitter_tasks_per_s": SCENARIOS * count / varied,
                "jitter_p50_p90_s": spread.quantile([0.5, 0.9]).tolist(),
                "closed_form_plans_per_s": PLANS / formula,
                "peak_memory_MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
