"""Attention as one op, and dropout as the device runs it.

PyTorch picks a kernel by device, type, mask and dropout, and decomposes
scaled-dot-product attention on devices without one. A capture must not depend on
the machine it runs on, so attention is recorded as ``perfmodel.attention`` and
``perfmodel.attention_backward``; what kernel runs is decided later, by the
:class:`perfmodel.runtimes.Runtime`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as functional

__all__ = ["as_one_op", "dropout_as"]

_ARGUMENTS = "Tensor? attn_mask, float dropout_p, bool is_causal, float? scale, bool enable_gqa"


@functools.cache
def _ops() -> Any:
    torch.library.define(
        "perfmodel::attention", f"(Tensor query, Tensor key, Tensor value, {_ARGUMENTS}) -> (Tensor, Tensor)"
    )
    torch.library.define(
        "perfmodel::attention_backward",
        "(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor out, Tensor logsumexp, "
        f"{_ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
    )

    @torch.library.register_fake("perfmodel::attention")
    def _(query: Any, _key: Any, value: Any, *_settings: Any) -> Any:
        # Fused kernels write the output as [batch, length, heads, head_dim], so that
        # merging the heads afterwards costs no copy.
        *batch, heads, length, _ = query.shape
        out = query.new_empty(*batch, length, heads, value.shape[-1]).transpose(-2, -3)
        logsumexp = query.new_empty(*batch, heads, length, dtype=torch.float32)
        return out, logsumexp

    @torch.library.register_fake("perfmodel::attention_backward")
    def _(_grad_out: Any, query: Any, key: Any, value: Any, *_saved: Any) -> Any:
        return tuple(_interleaved(tensor) for tensor in (query, key, value))

    return torch.ops.perfmodel


def _interleaved(tensor: torch.Tensor) -> torch.Tensor:
    *batch, heads, length, dim = tensor.shape
    return tensor.new_empty(*batch, length, heads, dim).transpose(-2, -3)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, attn_mask: Any, *settings: Any) -> Any:
        out, logsumexp = _ops().attention(query, key, value, attn_mask, *settings)
        ctx.save_for_backward(query, key, value, attn_mask, out, logsumexp)
        ctx.settings = settings
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        query, key, value, attn_mask, out, logsumexp = ctx.saved_tensors
        results = _ops().attention_backward(grads[0], query, key, value, out, logsumexp, attn_mask, *ctx.settings)
        return (*results, None, None, None, None, None)


@contextlib.contextmanager
def as_one_op() -> Iterator[None]:
    """While active, ``F.scaled_dot_product_attention`` is recorded as one op.

    A mask that is trained (requires a gradient) is left to PyTorch: its fused
    kernels don't produce that gradient either.
    """
    original = functional.scaled_dot_product_attention

    def attention(
        query: Any,
        key: Any,
        value: Any,
        attn_mask: Any = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Any:
        if query.dim() < 3 or (attn_mask is not None and attn_mask.requires_grad):
            return original(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        return _Attention.apply(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)

    functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original


@contextlib.contextmanager
def dropout_as(kind: str) -> Iterator[None]:
    """While active, dropout is recorded as an accelerator (``"neutral"``) or a CPU runs it.

    An accelerator runs ``native_dropout``, which keeps a mask of bytes; a CPU
    multiplies by noise in the input's own type. Both return the input itself
    where nothing is dropped, which PyTorch's decomposition for symbolic sizes doesn't.
    """
    op = torch.ops.aten.dropout.default
    kernels = dict(op.py_kernels)
    op.py_kernels.clear()
    if kind == "neutral":
        op.py_kernels[torch._C.DispatchKey.CompositeImplicitAutograd] = _native_dropout
    op._dispatch_cache.clear()
    try:
        yield
    finally:
        op.py_kernels.clear()
        op.py_kernels.update(kernels)
        op._dispatch_cache.clear()


def _native_dropout(tensor: torch.Tensor, p: float, train: bool) -> torch.Tensor:
    if not train or p == 0:
        return tensor
    return torch.ops.aten.native_dropout(tensor, p, train)[0]  # type: ignore[no-any-return]
