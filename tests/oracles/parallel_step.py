"""A training step as PyTorch runs it on one rank of a fake process group, recorded below DTensor."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import _resolve_process_group
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    parallelize_module,
)
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


@contextlib.contextmanager
def ranks(number: int) -> Iterator[None]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=number)
    try:
        yield
    finally:
        dist.destroy_process_group()


@dataclass
class Recorded:
    flops: int = 0
    collectives: Counter[tuple[str, int, int, str]] = field(default_factory=Counter)  # op, ranks, bytes, phase


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found = Recorded()
        self.phase = "forward"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(issubclass(t, DTensor) for t in types):
            return NotImplemented
        out = func(*args, **kwargs)
        name = func._opname
        if func.namespace in ("_c10d_functional", "c10d"):
            self._communicated(func.namespace, name, args)
        elif name == "_grouped_mm":  # no formula in flop_counter: each row meets one expert
            self.found.flops += 2 * args[0].shape[0] * args[0].shape[1] * args[1].shape[-1]
        elif name.startswith("_scaled_dot_product_flash_attention_for_cpu"):  # nor for this
            backward = name.endswith("backward")
            q, k, v = args[1:4] if backward else args[:3]
            (b, h, length, d), keys, dv = q.shape, k.shape[-2], v.shape[-1]
            self.found.flops += 2 * b * h * length * keys * ((3 * d + 2 * dv) if backward else (d + dv))
        elif func._overloadpacket in flop_registry:
            self.found.flops += flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
        return out

    def _communicated(self, namespace: str, name: str, args: Any) -> None:
        if name in ("wait_tensor", "_wrap_tensor_autograd"):
            return
        if namespace == "_c10d_functional":
            size = _size(args[0])
            if name.startswith("all_reduce"):
                what = ("all_reduce", _resolve_process_group(args[-1]).size(), size)
            elif name.startswith("all_gather_into_tensor"):
                what = ("all_gather", args[1], size * args[1])
            elif name.startswith("reduce_scatter_tensor"):
                what = ("reduce_scatter", args[2], size)
            else:
                what = (name, 0, size)
        else:
            group = next(a for a in args if isinstance(a, torch.ScriptObject) and "ProcessGroup" in str(a._type()))
            count = dist.ProcessGroup.unbox(group).size()
            what = {
                "_allgather_base_": lambda: ("all_gather", count, _size(args[0])),
                "_reduce_scatter_base_": lambda: ("reduce_scatter", count, _size(args[1])),
                "allreduce_": lambda: ("all_reduce", count, sum(_size(t) for t in args[0])),
            }.get(name, lambda: (name, count, 0))()
        self.found.collectives[(*what, self.phase)] += 1


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def record(module: nn.Module, loss_of: Callable[[nn.Module], torch.Tensor], context: Any = None) -> Recorded:
    """Flops and collectives of one forward and backward; the first step is not looked at."""

    def step(recorder: _Recorder | None) -> None:
        with context() if context else contextlib.nullcontext():
            loss = loss_of(module)
            if recorder is not None:
                recorder.phase = "backward"
            loss.backward()

    step(None)
    module.zero_grad()
    recorder = _Recorder()
    with recorder:
        step(recorder)
    return recorder.found


def shared_input(layouts: Any, *, keyword: str = "") -> PrepareModuleInput:
    """One DTensor for all projections that read it, so that their gradients are summed before they are reduced."""
    if keyword:
        return PrepareModuleInput(
            input_kwarg_layouts={keyword: layouts}, desired_input_kwarg_layouts={keyword: Replicate()}
        )
    return PrepareModuleInput(
        input_layouts=layouts, desired_input_layouts=tuple(None if x is None else Replicate() for x in layouts)
    )


class ConvColwise(ColwiseParallel):
    """Columns of GPT-2's ``Conv1D``, whose weight is stored ``[in, out]``."""

    def _apply(self, module: nn.Module, mesh: Any) -> nn.Module:
        def split(_name: str, part: nn.Module, where: Any) -> None:
            part.register_parameter("weight", nn.Parameter(distribute_tensor(part.weight, where, [Shard(1)])))
            part.register_parameter("bias", nn.Parameter(distribute_tensor(part.bias, where, [Shard(0)])))

        return _distributed(self, module, mesh, split)


class ConvRowwise(RowwiseParallel):
    """Rows of GPT-2's ``Conv1D``."""

    def _apply(self, module: nn.Module, mesh: Any) -> nn.Module:
        def split(_name: str, part: nn.Module, where: Any) -> None:
            part.register_parameter("weight", nn.Parameter(distribute_tensor(part.weight, where, [Shard(0)])))
            part.register_parameter("bias", nn.Parameter(distribute_tensor(part.bias, where, [Replicate()])))

        self.desired_input_layouts = (Shard(-1),)
        return _distributed(self, module, mesh, split)


def _distributed(style: Any, module: nn.Module, mesh: Any, split: Any) -> nn.Module:
    return distribute_module(
        module,
        mesh,
        split,
        partial(style._prepare_input_fn, style.input_layouts, style.desired_input_layouts),
        partial(style._prepare_output_fn, style.output_layouts, style.use_local_output),
    )


def parallelize(module: nn.Module, mesh: Any, styles: dict[str, Any]) -> None:
    """``parallelize_module`` with ``layers.*`` for every layer."""
    for layer in module.layers:
        own = {name.removeprefix("layers.*."): style for name, style in styles.items() if name.startswith("layers.*.")}
        parallelize_module(layer, mesh, own)
    parallelize_module(module, mesh, {name: s for name, s in styles.items() if not name.startswith("layers.*.")})
