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
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as functional

from perfmodel.errors import CaptureError

__all__ = ["as_one_op", "attention_hint", "dropout_as"]

_ARGUMENTS = (
    "Tensor? attn_mask, float dropout_p, bool is_causal, float? scale, bool enable_gqa, SymInt? window, float? visible"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Hints:
    window: int | None = None
    visible: float | None = None


_hints: ContextVar[_Hints] = ContextVar("attention hints", default=_Hints())  # noqa: B039  (frozen)


@contextlib.contextmanager
def attention_hint(*, window: int | None = None, visible: float | None = None) -> Iterator[None]:
    """While active, attention is captured as by a kernel that skips what nobody sees.

    It changes what a capture records, nothing that PyTorch computes: a module that
    runs for real gives its mask as well (which is then an operand that is read).

    Parameters
    ----------
    window : int, optional
        Keys that a query sees at most, itself included (``sliding_window`` of
        Hugging Face's configs); to both sides where attention isn't causal.
    visible : float, optional
        Share of all query-key pairs that packed documents leave visible,
        causality included.

    Raises
    ------
    CaptureError
        If a value is out of range.

    Examples
    --------
    >>> with attention_hint(window=4096):
    ...     pass  # torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    """
    if window is not None and window < 1:
        raise CaptureError(f"a window of {window} keys hides all of them; give at least 1, or None for no window")
    if visible is not None and not 0 < visible <= 1:
        raise CaptureError(
            f"visible is the share of query-key pairs that are seen, not {visible}; give 0 < visible <= 1"
        )
    if torch.compiler.is_compiling():
        # Dynamo doesn't follow context variables, and a compiled module has no use for what only a capture reads.
        yield
        return
    outer = _hints.get()
    token = _hints.set(
        _Hints(window=outer.window if window is None else window, visible=outer.visible if visible is None else visible)
    )
    try:
        yield
    finally:
        _hints.reset(token)


@functools.cache
def _ops() -> Any:
    torch.library.define(
        "perfmodel::attention", f"(Tensor query, Tensor key, Tensor value, {_ARGUMENTS}) -> (Tensor, Tensor)"
    )
    saved = "Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor out, Tensor logsumexp"
    torch.library.define("perfmodel::attention_backward", f"({saved}, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)")
    # The fourth result is the gradient of a mask that is trained, such as T5's bias by distance.
    torch.library.define(
        "perfmodel::attention_bias_backward", f"({saved}, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor)"
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

    @torch.library.register_fake("perfmodel::attention_bias_backward")
    def _(_grad_out: Any, query: Any, key: Any, value: Any, _out: Any, _lse: Any, mask: Any, *_settings: Any) -> Any:
        return (*(_interleaved(tensor) for tensor in (query, key, value)), mask.new_empty(mask.shape))

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
        trained = ctx.needs_input_grad[3]
        op = _ops().attention_bias_backward if trained else _ops().attention_backward
        results = op(grads[0], query, key, value, out, logsumexp, attn_mask, *ctx.settings)
        return (*results, *(() if trained else (None,)), *(None for _ in ctx.settings))


@contextlib.contextmanager
def as_one_op() -> Iterator[None]:
    """While active, ``F.scaled_dot_product_attention`` is recorded as one op.

    A mask that is trained gets its gradient as PyTorch's memory-efficient kernel makes it: for every
    sequence and head, which are summed up afterwards (``preprocess_mask`` in
    ``aten/src/ATen/native/transformers/attention.cpp`` expands it).
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
        if query.dim() < 3:
            return original(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        if attn_mask is not None and attn_mask.requires_grad:
            attn_mask = attn_mask.expand(*query.shape[:-1], key.shape[-2])
        hints = _hints.get()
        settings = (dropout_p, is_causal, scale, enable_gqa, hints.window, hints.visible)
        return _Attention.apply(query, key, value, attn_mask, *settings)

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
