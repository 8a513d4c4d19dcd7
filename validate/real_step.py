"""A real training step of a small model: its time by phase, its peak memory, its op classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from perfmodel.models.build import build
from perfmodel.models.dims import TransformerDims

__all__ = ["PHASES", "Case", "Training"]

#: What :meth:`Training.step` times.
PHASES = ("forward", "backward", "optimizer")

_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
_IGNORED_LABEL = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model and the step that it is trained by."""

    name: str
    dims: TransformerDims
    optimizer: str
    batch: int
    seq_len: int


class Training:
    """A model with its optimizer and an endless supply of random batches."""

    def __init__(self, case: Case) -> None:
        torch.manual_seed(0)
        self.case = case
        self.module, _ = build(case.dims, dtype="float32", device="cpu")
        self.optimizer = _OPTIMIZERS[case.optimizer](self.module.parameters())

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
            "labels": tokens.where(chosen, torch.tensor(_IGNORED_LABEL)),
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
