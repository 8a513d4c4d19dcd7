"""Weights of four bits: plain PyTorch for real numbers, one op in a capture.

NormalFloat of four bits with block-wise scales, which may be quantised to eight bits
themselves (Dettmers et al., QLoRA, 2023, sections 2 and 3, appendix E). Layout as
bitsandbytes': two weights a byte, the first in the upper half.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as functional

from perfmodel.errors import CaptureError

__all__ = ["NF4", "dequantize_4bit", "dequantize_as_one_op", "linear_4bit"]

_one_op = ContextVar("dequantisation is one op", default=False)

#: The sixteen values of NormalFloat4 (Dettmers et al., 2023, appendix E).
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip

#: Scales that share a scale of their own, where they are quantised too (QLoRA, section 3).
_SCALES_PER_BLOCK = 256

#: Quantised scales: values of the 256 codes, scale of each block of scales, and what is added to all.
Nested = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def dequantize_4bit(
    packed: torch.Tensor,
    absmax: torch.Tensor,
    *,
    shape: Sequence[int],
    dtype: torch.dtype,
    nested: Nested | None = None,
    block: int = 64,
) -> torch.Tensor:
    """Weights from their four-bit codes. No gradient flows.

    Parameters
    ----------
    packed : torch.Tensor of uint8
        Half as many bytes as weights.
    absmax : torch.Tensor, shape [weights / block]
        Scale of each block; float32, or uint8 codes where ``nested`` is given.
    shape, dtype
        Of the weights.
    nested : tuple of three tensors, optional
        ``code`` (float32, [256]), ``absmax`` (float32, one for 256 scales) and ``offset`` (float32, [])
        of quantised scales: a scale is ``code[c] * absmax + offset``.
    block : int
        Weights that share a scale.

    Raises
    ------
    CaptureError
        If the sizes don't fit each other.
    """
    weights = 1
    for size in shape:
        weights = weights * size
    if 2 * packed.numel() != weights or weights % block or absmax.numel() != weights // block:
        raise CaptureError(
            f"{packed.numel()} bytes and {absmax.numel()} scales don't make weights of shape {tuple(shape)} in "
            f"blocks of {block}; give weights / 2 bytes and weights / {block} scales"
        )
    with torch.no_grad():
        if _one_op.get():
            return _op()(packed, absmax, *(nested or (None, None, None)), list(shape), dtype, block)  # type: ignore[no-any-return]
        scales = absmax if nested is None else _scales(absmax, *nested)
        table = torch.tensor(NF4, device=packed.device)
        codes = torch.stack((packed >> 4, packed & 15), -1).flatten().long()
        values: torch.Tensor = table[codes].view(-1, block) * scales[:, None]
        return values.view(*shape).to(dtype)


def linear_4bit(
    x: torch.Tensor,
    packed: torch.Tensor,
    absmax: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    shape: Sequence[int],
    nested: Nested | None = None,
    block: int = 64,
) -> torch.Tensor:
    """``x @ W.T + bias`` with a frozen weight of four bits, ``shape = (out, in)``.

    The weight is made in the type of ``x``, forward and again backward, and isn't
    kept between the two, as in bitsandbytes' ``MatMul4Bit``. Gradients flow to
    ``x`` and ``bias``.
    """
    return _Linear.apply(x, bias, packed, absmax, nested, tuple(shape), block)  # type: ignore[no-any-return]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Any, bias: Any, packed: Any, absmax: Any, nested: Nested | None, shape: Any, block: int
    ) -> Any:
        ctx.save_for_backward(packed, absmax, *(nested or ()))
        ctx.settings = {"shape": shape, "block": block, "dtype": x.dtype}
        weight = dequantize_4bit(packed, absmax, nested=nested, **ctx.settings)
        return functional.linear(x, weight, None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        packed, absmax, *nested = ctx.saved_tensors
        for_x = for_bias = None
        if ctx.needs_input_grad[0]:
            # Within a region of autocast the gradient has another type than x.
            settings = {**ctx.settings, "dtype": grads[0].dtype}
            weight = dequantize_4bit(packed, absmax, nested=tuple(nested) or None, **settings)
            for_x = grads[0] @ weight
        if ctx.needs_input_grad[1]:
            for_bias = grads[0].flatten(0, -2).sum(0)
        return for_x, for_bias, None, None, None, None, None


@contextlib.contextmanager
def dequantize_as_one_op() -> Iterator[None]:
    """While active, :func:`dequantize_4bit` is recorded as one op."""
    token = _one_op.set(True)
    try:
        yield
    finally:
        _one_op.reset(token)


@functools.cache
def _op() -> Any:
    torch.library.define(
        "perfmodel::dequantize_4bit",
        "(Tensor packed, Tensor absmax, Tensor? code, Tensor? outer_absmax, Tensor? offset, SymInt[] shape, "
        "ScalarType dtype, int block) -> Tensor",
    )

    @torch.library.register_fake("perfmodel::dequantize_4bit")
    def _(packed: Any, _absmax: Any, _code: Any, _outer: Any, _offset: Any, shape: Any, dtype: Any, _block: Any) -> Any:
        return packed.new_empty(shape, dtype=dtype)

    return torch.ops.perfmodel.dequantize_4bit


def _scales(codes: torch.Tensor, code: torch.Tensor, outer: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    block_of = torch.arange(codes.numel(), device=codes.device) // _SCALES_PER_BLOCK
    return code[codes.long()] * outer[block_of] + offset
