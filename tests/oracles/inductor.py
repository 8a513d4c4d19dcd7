"""Bytes that TorchInductor counts for a training step when it compiles it."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch._dynamo
from torch._inductor import compile_fx, config, ir, metrics
from torch._inductor.graph import GraphLowering


def inductor_bytes(module: torch.nn.Module, *args: Any, scheduling: str, **kwargs: Any) -> tuple[int, int]:
    """``num_bytes_accessed`` of forward and of backward, kernels of libraries included.

    Inductor partitions, lowers and schedules the step, which decides the bytes; it writes no code, so
    that neither a compiler nor an accelerator is needed, and results are zeros.

    Parameters
    ----------
    scheduling : {"triton", "cpp"}
        Whose rules say which loops fuse: those of an accelerator's kernels or of a CPU's.
    """
    torch._dynamo.reset()
    metrics.reset()
    settings = {"force_disable_caches": True, "cpu_backend": scheduling}
    with pytest.MonkeyPatch.context() as patch, config.patch(settings):
        # Inductor counts only where its metrics are logged.
        patch.setattr(compile_fx, "inductor_metrics_log", logging.Logger("silent", logging.INFO))
        patch.setattr(GraphLowering, "compile_to_module", _schedule)
        loss = torch.compile(module, fullgraph=True, dynamic=False)(*args, **kwargs)
        forward = metrics.num_bytes_accessed
        (loss if isinstance(loss, torch.Tensor) else loss.loss).backward()
        backward = metrics.num_bytes_accessed - forward
    module.zero_grad()
    torch._dynamo.reset()
    return forward, backward


def _schedule(self: GraphLowering) -> SimpleNamespace:
    """In place of code generation: kernels are decided, and results are zeros of the right shape."""
    self.init_wrapper_code()
    self._update_scheduler()
    self.cache_key = self.cache_path = self.cache_linemap = None
    looks = [
        None if isinstance(out, ir.NoneAsConstantBuffer) else (tuple(map(int, out.get_size())), out.get_dtype())
        for out in self.graph_outputs
    ]

    def call(operands: list[Any]) -> list[torch.Tensor | None]:
        operands.clear()
        return [None if look is None else torch.zeros(look[0], dtype=look[1]) for look in looks]

    return SimpleNamespace(call=call, runner=None)
