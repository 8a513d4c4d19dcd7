"""What a prediction says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from perfmodel.errors import UnsupportedError
from perfmodel.graph.count import Coverage
from perfmodel.memory import MemoryProfile
from perfmodel.memory_ranks import RankMemory
from perfmodel.parallel.plan import Plan
from perfmodel.schedule.step import step_tasks
from perfmodel.schedule.timed import TimedProgram
from perfmodel.simulate import Timeline, simulate

__all__ = ["Breakdown", "OpTime", "Prediction", "Training"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpTime:
    """One stored op of the step and where its time goes.

    Attributes
    ----------
    name, phase, module : str
        As in the graph.
    family : str
        Op class (:data:`perfmodel.ops.FAMILIES`).
    times : int
        How often it runs in a step.
    time : float
        Seconds of one run on the device.
    bound : str
        What limits it: matrix, vector, memory, latency or none.
    matrix_flops, vector_flops, bytes : float
        Of one run; what a fused attention skips behind a causal mask isn't counted.
    """

    name: str
    phase: str
    module: str
    family: str
    times: int
    time: float
    bound: str
    matrix_flops: float
    vector_flops: float
    bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """Where the step's time goes, in seconds; under a plan that of the busiest pipeline rank.

    Attributes
    ----------
    time : Mapping[str, float]
        ``compute`` (forward, backward, recompute), ``optimizer``, communication that nothing hides by dimension of
        the plan (``tp``, ``cp``, ``ep``, ``dp``, ``pp``), ``bubble`` (waiting for other stages), ``host`` (waiting
        for the host to issue ops); sums to the step time.
    communication : Mapping[str, float]
        By dimension, hidden or not.
    phase : Mapping[str, float]
        On one device from the end of the phase before to its own end; under a plan the computing of each, and
        ``waiting``. Sums to the step time.
    module, op_class, bound : Mapping[str, float]
        Busy time of the device, by module (layers of a stack together), op
        class and what the ops are bound by; each sums to ``device_busy``.
    device_busy, host_busy, device_idle : float
        The device computing, the host issuing, and the device waiting for the host.
    """

    time: Mapping[str, float]
    communication: Mapping[str, float]
    phase: Mapping[str, float]
    module: Mapping[str, float]
    op_class: Mapping[str, float]
    bound: Mapping[str, float]
    device_busy: float
    host_busy: float
    device_idle: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How long a whole training run takes, without failures and stops.

    Attributes
    ----------
    steps : float
        Optimizer steps.
    time : float
        Seconds.
    samples, tokens : float
        Sequences and tokens seen; ``tokens`` is 0 where the step has no sequence length.
    """

    steps: float
    time: float
    samples: float
    tokens: float

    @property
    def days(self) -> float:
        """Time in days of 24 hours."""
        return self.time / 86400

    def to_dict(self) -> dict[str, float]:
        """Plain JSON types."""
        return {"steps": self.steps, "time_s": self.time, "samples": self.samples, "tokens": self.tokens}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What one training step costs on a device, or on a cluster under a plan.

    Attributes
    ----------
    model, device, runtime : str
        What was predicted; of a cluster, the kinds of its devices.
    system : str
        The cluster and its nodes; the device where there is one.
    plan : Plan or None
        How the step is laid out; ``None`` on one device.
    devices : int
    sequences : int or None
        Sequences (or samples) of a step, over all data-parallel ranks; ``None`` if the graph has no symbol ``batch``.
    bindings : Mapping[str, int]
        Batch, sequence and other sizes; under a plan those of a micro-batch.
    micro_steps : int
        Times that a batch is run in a step, their gradients added up; under a plan its micro-batches.
    step_time : float
        Seconds an optimizer step takes.
    engine : str
        What gave the step time: ``"queues"`` of one device, ``"closed form"``, ``"max-plus"`` or ``"event"``.
    interval : tuple of float or None
        Stated uncertainty of the step time; ``None`` until it can be derived
        from residuals on measured runs.
    mfu, hfu : float
        Model and hardware flops utilisation: matrix flops over what the matrix
        unit could do in the step time. ``mfu`` counts the model's own flops
        (PaLM, appendix B: no recompute; causal attention by its full square),
        ``hfu`` all that are executed, recompute included, same square.
    compute_dtype : str
        Type of most matrix flops; the peak of both utilisations is this type's.
    model_flops, hardware_flops : float
        The numerators.
    memory, first_step_memory : MemoryProfile
        Of a steady step, and of the first, which makes the optimizer's state. Under a plan both are a steady
        step's on the pipeline rank that comes nearest to its capacity.
    ranks : tuple of RankMemory
        Of each pipeline rank; none on one device.
    capacity : float
        Bytes of the device's main memory.
    fits : bool
        Whether both peaks are within the capacity.
    breakdown : Breakdown
    coverage : Coverage
        Share of the step that has counting rules.
    parameters : int
        Of the model, tied ones once.
    ops : tuple of OpTime
        Every stored op; under a plan those of the busiest pipeline rank.
    op_ends : ndarray of float64, shape [ops of a step]
        Seconds from the step's begin at which each executed op was complete, layers spelled out; under a plan each
        action of the schedule and the optimizer, on the rank whose memory is told.
    notes : tuple of str
        What a reader must know before believing the numbers.
    timed : TimedProgram
        What :attr:`timeline` is made of.
    """

    model: str
    device: str
    runtime: str
    system: str
    plan: Plan | None
    devices: int
    sequences: int | None
    bindings: Mapping[str, int]
    micro_steps: int
    step_time: float
    engine: str
    interval: tuple[float, float] | None
    mfu: float
    hfu: float
    compute_dtype: str
    model_flops: float
    hardware_flops: float
    memory: MemoryProfile
    first_step_memory: MemoryProfile
    ranks: tuple[RankMemory, ...]
    capacity: float
    fits: bool
    breakdown: Breakdown
    coverage: Coverage
    parameters: int
    ops: tuple[OpTime, ...]
    op_ends: npt.NDArray[np.float64]
    notes: tuple[str, ...]
    timed: TimedProgram = field(repr=False, compare=False)

    @property
    def timeline(self) -> Timeline:
        """When everything happens on the ranks of one pipeline; their peers do the same at the same time.

        Lanes are the compute, the host, and the communication of each kind; spans carry module paths.
        ``timeline.save("step.json")`` writes a trace for Perfetto. Made anew at each call.

        Raises
        ------
        UnsupportedError
            For a step that was captured with accumulated micro-steps.
        """
        if self.plan is None and self.micro_steps > 1:
            raise UnsupportedError(
                f"{self.model} was captured with {self.micro_steps} accumulated micro-steps, which have no timeline; "
                "capture one, and predict it with Plan(global_batch=…)"
            )
        return simulate(step_tasks(self.timed.parts(spelled=True)))

    @property
    def memory_curve(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Memory over time: seconds and live bytes of every allocation and release of a steady step."""
        return self.op_ends[self.memory.op_index], self.memory.curve

    @property
    def samples_per_second(self) -> float | None:
        """Sequences (or samples) a second; ``None`` if the graph has no symbol ``batch``."""
        return None if self.sequences is None else self.sequences / self.step_time

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens a second; ``None`` if the graph has no symbols ``batch`` and ``seq``."""
        samples, seq = self.samples_per_second, self.bindings.get("seq")
        return None if samples is None or seq is None else samples * seq

    def train(
        self,
        *,
        tokens: float | None = None,
        samples: float | None = None,
        epochs: float | None = None,
        steps: float | None = None,
    ) -> Training:
        """Time of a whole run, stated in exactly one way.

        Parameters
        ----------
        tokens, samples, steps : float
            How much to train. ``samples`` is also the size of the data set
            where ``epochs`` is given.
        epochs : float
            Passes over ``samples``.

        Raises
        ------
        UnsupportedError
            If the amount is missing, given twice, not positive, or the graph
            has no symbol to convert it with.
        """
        given = {
            k: v
            for k, v in {"tokens": tokens, "samples": samples, "epochs": epochs, "steps": steps}.items()
            if v is not None
        }
        if set(given) not in ({"tokens"}, {"samples"}, {"steps"}, {"samples", "epochs"}):
            raise UnsupportedError(
                "give one of tokens, samples, steps, or epochs with samples (the data set's size); "
                f"got {', '.join(given) or 'none'}"
            )
        for name, value in given.items():
            number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
            if not number or not np.isfinite(value) or value <= 0:
                raise UnsupportedError(f"{name} must be a positive number, not {value!r}")
        batch, seq = self.sequences, self.bindings.get("seq")
        if steps is None and batch is None:
            raise UnsupportedError(
                f"{self.model} has no size called 'batch' to turn {', '.join(given)} into steps; give steps"
            )
        if tokens is not None and seq is None:
            raise UnsupportedError(
                f"{self.model} has no size called 'seq' to turn tokens into steps; give samples or steps"
            )
        if steps is None:
            assert batch is not None
            once = tokens / (seq or 1) if tokens is not None else samples or 0
            # A data loader ends each epoch with its last, smaller batch.
            steps = float(np.ceil(once / batch)) * (epochs or 1)
        seen = steps * (batch or 0)
        return Training(steps=steps, time=steps * self.step_time, samples=seen, tokens=seen * (seq or 0))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, without the list of ops."""
        return {
            "version": 1,
            "model": self.model,
            "device": self.device,
            "runtime": self.runtime,
            "system": self.system,
            "devices": self.devices,
            "plan": None if self.plan is None else self.plan.to_dict(),
            "sizes": dict(self.bindings),
            "sequences": self.sequences,
            "micro_steps": self.micro_steps,
            "step_time_s": self.step_time,
            "engine": self.engine,
            "interval_s": self.interval,
            "samples_per_second": self.samples_per_second,
            "tokens_per_second": self.tokens_per_second,
            "mfu": self.mfu,
            "hfu": self.hfu,
            "flops_convention": "PaLM: model flops without recompute, causal attention by its full square",
            "compute_dtype": self.compute_dtype,
            "model_flops": self.model_flops,
            "hardware_flops": self.hardware_flops,
            "parameters": self.parameters,
            "fits": self.fits,
            "capacity_bytes": self.capacity,
            "memory": self.memory.to_dict(),
            "memory_curve": _thinned(*self.memory_curve),
            "first_step_memory": self.first_step_memory.to_dict(),
            "ranks": [rank.to_dict() for rank in self.ranks],
            "breakdown_s": {
                "time": dict(self.breakdown.time),
                "communication": dict(self.breakdown.communication),
                "phase": dict(self.breakdown.phase),
                "module": dict(self.breakdown.module),
                "op_class": dict(self.breakdown.op_class),
                "bound": dict(self.breakdown.bound),
                "device_busy": self.breakdown.device_busy,
                "host_busy": self.breakdown.host_busy,
                "device_idle": self.breakdown.device_idle,
            },
            "coverage": {
                "ops": self.coverage.ops,
                "bytes": self.coverage.bytes,
                "flop_counter": self.coverage.flop_counter,
                "missing": dict(self.coverage.missing),
            },
            "notes": list(self.notes),
        }


def _thinned(times: npt.NDArray[np.float64], sizes: npt.NDArray[np.float64]) -> dict[str, list[float]]:
    """At most 500 points, each the largest of its span, so that the peak stays."""
    spans = np.array_split(np.arange(len(sizes)), min(500, len(sizes)))
    kept = [int(span[np.argmax(sizes[span])]) for span in spans]
    return {"time_s": times[kept].tolist(), "bytes": sizes[kept].tolist()}
