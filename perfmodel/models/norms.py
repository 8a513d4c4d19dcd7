"""Norms as Hugging Face's transformers run them: where the weight is multiplied decides what backward keeps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from perfmodel.models.dims import TransformerDims

__all__ = ["RMSNorm", "make_norm"]


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32 (Zhang & Sennrich 2019, eq. 4, as Llama runs it)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        """``[..., width]`` in and out, in the type of ``hidden``."""
        dtype = hidden.dtype
        return self.weight * self._normed(hidden.to(torch.float32)).to(dtype)

    def _normed(self, hidden: Tensor) -> Tensor:
        variance = hidden.pow(2).mean(-1, keepdim=True)
        return hidden * torch.rsqrt(variance + self.eps)


class RMSNormFloat32(RMSNorm):
    """The weight multiplies in float32: backward keeps the normed values in that type (OLMo-2, gpt-oss)."""

    def forward(self, hidden: Tensor) -> Tensor:
        """``[..., width]`` in and out, in the type of ``hidden``."""
        return (self.weight * self._normed(hidden.to(torch.float32))).to(hidden.dtype)


class RMSNormUnitOffset(RMSNorm):
    """The weight is stored as its distance from one, and multiplies in float32 (Gemma)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__(width, eps)
        nn.init.zeros_(self.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[..., width]`` in and out, in the type of ``hidden``."""
        return (self._normed(hidden.float()) * (1.0 + self.weight.float())).type_as(hidden)


_NORMS: dict[str, Callable[[int, float], nn.Module]] = {
    "layernorm": lambda width, eps: nn.LayerNorm(width, eps=eps),
    "rmsnorm": RMSNorm,
    "rmsnorm_float32": RMSNormFloat32,
    "rmsnorm_unit_offset": RMSNormUnitOffset,
}


def make_norm(dims: TransformerDims, width: int | None = None) -> nn.Module:
    """The norm that the dimensions ask for, of ``hidden_size`` or another width."""
    return _NORMS[dims.norm](width or dims.hidden_size, dims.norm_eps)
