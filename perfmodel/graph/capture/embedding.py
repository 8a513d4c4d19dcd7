"""Embedding bags with the by-products that a GPU's kernel makes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch._subclasses.fake_impls import op_implementations_dict
from torch._subclasses.fake_tensor import FakeTensorMode

__all__ = ["bags_as_on_a_gpu"]

_MAXIMUM = 2  # ``mode`` of embedding_bag


@contextlib.contextmanager
def bags_as_on_a_gpu() -> Iterator[None]:
    """While active, ``_embedding_bag`` has the results of the GPU's kernel.

    On a CPU a sum needs no list of the bag of each index, so PyTorch's fake tensors
    have none, where a GPU writes it, keeps it and reads it in backward
    (``aten/src/ATen/native/cuda/EmbeddingBag.cu``).
    """
    op = torch.ops.aten._embedding_bag.default
    original = op_implementations_dict[op]
    op_implementations_dict[op] = _shapes
    # PyTorch remembers shapes of results by op and operands, whichever kernel they are of.
    FakeTensorMode.cache_clear()
    try:
        yield
    finally:
        op_implementations_dict[op] = original
        FakeTensorMode.cache_clear()


def _shapes(
    fake: FakeTensorMode,
    _op: Any,
    weight: Any,
    indices: Any,
    offsets: Any,
    _scale_grad_by_freq: bool = False,
    mode: int = 0,
    _sparse: bool = False,
    _per_sample_weights: Any = None,
    include_last_offset: bool = False,
    _padding_idx: int = -1,
) -> tuple[torch.Tensor, ...]:
    bags = offsets.shape[0] - include_last_offset
    width = weight.shape[1]
    with fake:
        return (
            weight.new_empty(bags, width),
            indices.new_empty(indices.shape[0]),
            indices.new_empty(offsets.shape[0]),
            indices.new_empty((bags, width) if mode == _MAXIMUM else (0,)),
        )
