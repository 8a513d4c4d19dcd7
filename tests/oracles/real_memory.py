"""Peak memory of a real CPU step, from the profiler's allocation events."""

from __future__ import annotations

from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def real_peaks(
    model: torch.nn.Module, inputs: dict[str, torch.Tensor], make_optimizer: Any = torch.optim.AdamW
) -> list[int]:
    """Peak bytes of the first and of the second optimizer step, resident tensors included."""
    optimizer = make_optimizer(model.parameters())
    peaks = []
    for _ in range(2):
        resident = _resident(model, optimizer, inputs)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            result = model(**inputs)
            loss = result if isinstance(result, torch.Tensor) else result.loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            del result, loss
        live = peak = 0
        for _, size in sorted(_allocations(recorded)):
            live += size
            peak = max(peak, live)
        peaks.append(resident + peak)
    return peaks


def _resident(model: torch.nn.Module, optimizer: torch.optim.Optimizer, inputs: dict[str, torch.Tensor]) -> int:
    states = [
        value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)
    ]
    tensors = [*model.parameters(), *model.buffers(), *inputs.values(), *states]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def _allocations(recorded: Any) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []

    def walk(event: Any) -> None:
        if event.tag.name == "Allocation":
            found.append((event.start_time_ns, event.extra_fields.alloc_size))
        for child in event.children:
            walk(child)

    for root in recorded.profiler.kineto_results.experimental_event_tree():
        walk(root)
    assert found, "the profiler recorded no allocation"
    return found
