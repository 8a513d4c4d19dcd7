"""Rotary positions (Su et al. 2021, RoFormer, arXiv:2104.09864)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from perfmodel.models.dims import TransformerDims
from perfmodel.models.dims_rope import LinearRopeScaling, RopeScaling, YarnRopeScaling

__all__ = ["Rotary", "RotaryEmbedding", "rotate", "rotate_interleaved", "rotate_part", "yarn_temperature"]

#: Cosines and sines.
Rotary = tuple[Tensor, Tensor]


class RotaryEmbedding(nn.Module):
    """Cosines and sines of rotary positions, once a step for all layers (Su et al. 2021, eq. 15).

    Parameters
    ----------
    dims : TransformerDims
    local : bool
        The tables of layers with a sliding window, where these have their own.
    """

    inverse_wavelengths: Tensor

    def __init__(self, dims: TransformerDims, *, local: bool = False) -> None:
        super().__init__()
        theta = dims.rope_local_base_freq if local and dims.rope_local_base_freq is not None else dims.rope_theta
        exponents = torch.arange(0, dims.rotary_dim, 2, dtype=torch.float) / dims.rotary_dim
        inverse = 1.0 / (theta**exponents)
        self.scaling = 1.0
        self.in_float32 = dims.rope_in_float32
        match None if local else dims.rope_scaling:
            case RopeScaling() as scaling:
                inverse = _stretch(inverse, scaling)
            case LinearRopeScaling() as scaling:
                inverse = inverse / scaling.factor
            case YarnRopeScaling() as scaling:
                inverse = _yarn(inverse, scaling, dims)
                self.scaling = _yarn_scale(scaling)
        self.register_buffer("inverse_wavelengths", inverse, persistent=False)

    @torch.no_grad()
    def forward(self, hidden: Tensor) -> Rotary:
        """Both ``[1, seq, rotary_dim]``, for ``hidden`` of ``[batch, seq, ...]``, in its type or float32."""
        positions = torch.arange(hidden.shape[1], device=hidden.device).unsqueeze(0)
        angles = positions[..., None].float() * self.inverse_wavelengths.to(device=hidden.device, dtype=torch.float)
        angles = torch.cat((angles, angles), dim=-1)
        # The product by one is launched all the same.
        cos, sin = angles.cos() * self.scaling, angles.sin() * self.scaling
        return (cos, sin) if self.in_float32 else (cos.to(hidden.dtype), sin.to(hidden.dtype))


def _stretch(inverse: Tensor, scaling: RopeScaling) -> Tensor:
    """Frequencies of Llama 3.1 (``apply_scaling`` of its reference code)."""
    wavelength = 2 * math.pi / inverse
    length = scaling.original_max_position_embeddings
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    blend = (length / wavelength - low) / (high - low)
    blended = (1 - blend) * inverse / scaling.factor + blend * inverse
    stretched = torch.where(wavelength > length / low, inverse / scaling.factor, blended)
    return torch.where(wavelength < length / high, inverse, stretched)


def _yarn(inverse: Tensor, scaling: YarnRopeScaling, dims: TransformerDims) -> Tensor:
    """Frequencies of YaRN (Peng et al. 2023, arXiv:2309.00071, section 3.2, "NTK-by-parts")."""
    width, length = dims.rotary_dim, scaling.original_max_position_embeddings

    def dimension(turns: float) -> float:
        """The dimension that turns so often within the first training's length."""
        return width * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(dims.rope_theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    steps = torch.arange(width // 2, dtype=torch.float)
    stretched = torch.clamp((steps - low) / (high - low if high != low else 0.001), 0, 1)
    return inverse / scaling.factor * stretched + inverse * (1 - stretched)


def _mscale(factor: float, weight: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _yarn_scale(scaling: YarnRopeScaling) -> float:
    """Factor of the tables."""
    if scaling.mscale and scaling.mscale_all_dim:
        return _mscale(scaling.factor, scaling.mscale) / _mscale(scaling.factor, scaling.mscale_all_dim)
    return _mscale(scaling.factor)


def yarn_temperature(dims: TransformerDims) -> float:
    """DeepSeek's factor of the attention scores besides the root of the head's width."""
    scaling = dims.rope_scaling
    if isinstance(scaling, YarnRopeScaling) and scaling.mscale_all_dim:
        return _mscale(scaling.factor, scaling.mscale_all_dim) ** 2
    return 1.0


def rotate(states: Tensor, rotary: Rotary) -> Tensor:
    """Rotate pairs (i, i + width/2) of ``[batch, heads, seq, width]`` by tables of ``[1, 1, seq, width]``."""
    cos, sin = rotary
    # In this order: it decides the memory layout of the gradient, and with it whether backward copies it.
    return (states * cos) + (_quarter_turn(states) * sin)


def rotate_part(states: Tensor, rotary: Rotary, width: int) -> Tensor:
    """Rotate the first ``width`` dimensions of each head; the rest is copied beside them."""
    return torch.cat([rotate(states[..., :width], rotary), states[..., width:]], dim=-1)


def rotate_interleaved(states: Tensor, rotary: Rotary) -> Tensor:
    """Rotate neighbours (2i, 2i + 1), and leave the pairs' halves apart as in :func:`rotate`."""
    cos, sin = (table[..., : table.shape[-1] // 2] for table in rotary)
    even, odd = states[..., 0::2], states[..., 1::2]
    return torch.cat([even * cos - odd * sin, odd * cos + even * sin], dim=-1)


def _quarter_turn(states: Tensor) -> Tensor:
    half = states.shape[-1] // 2
    return torch.cat((-states[..., half:], states[..., :half]), dim=-1)
