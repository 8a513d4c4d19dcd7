"""Fake tensors in the place of a module's own, and its own back afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils.weak import WeakIdKeyDictionary

__all__ = ["fake_attributes", "fakes_in"]


@contextlib.contextmanager
def fakes_in(module: torch.nn.Module, fake: FakeTensorMode) -> Iterator[list[torch.nn.Parameter]]:
    """Put fake tensors in the place of parameters and buffers; yields the trainable ones; puts all back."""
    memo = WeakIdKeyDictionary()
    # Whatever forward leaves in the module (a cache of positions, a counter) goes too: it would be fake.
    kept: list[tuple[torch.nn.Module, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
        (part, dict(vars(part)), dict(part._parameters), dict(part._buffers)) for part in module.modules()
    ]

    def stand_in(tensor: torch.Tensor) -> Any:
        if tensor not in memo:
            with fake:
                made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
            if isinstance(tensor, torch.nn.Parameter):
                made = torch.nn.Parameter(made, requires_grad=tensor.requires_grad)
            memo[tensor] = made
        return memo[tensor]

    try:
        for part, _, parameters, buffers in kept:
            for own, table in ((parameters, part._parameters), (buffers, part._buffers)):
                table.update({name: stand_in(tensor) for name, tensor in own.items() if tensor is not None})
        yield [parameter for parameter in module.parameters() if parameter.requires_grad]
    finally:
        for part, attributes, parameters, buffers in kept:
            vars(part).clear()
            vars(part).update(attributes)
            for own, whole in ((parameters, part._parameters), (buffers, part._buffers)):
                whole.clear()
                whole.update(own)


@contextlib.contextmanager
def fake_attributes(module: torch.nn.Module, fake: FakeTensorMode) -> Iterator[None]:
    """The same for tensors that a graph module holds as plain attributes (make_fx constants)."""
    kept = [
        (part, key, value)
        for part in module.modules()
        for key, value in vars(part).items()
        if isinstance(value, torch.Tensor)
    ]
    try:
        for part, key, value in kept:
            if not isinstance(value, FakeTensor):
                with fake:
                    setattr(part, key, torch.empty_strided(value.shape, value.stride(), dtype=value.dtype))
        yield
    finally:
        for part, key, value in kept:
            setattr(part, key, value)
