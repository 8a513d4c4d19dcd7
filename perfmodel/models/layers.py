"""What decoders and encoders are made of.

Op for op what Hugging Face's transformers run with ``attn_implementation="sdpa"``,
so that both give the same counts and the same memory: an expression here isn't
simplified where that would change what PyTorch launches or keeps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from perfmodel.errors import ShapeError
from perfmodel.models.dims import RopeScaling, TransformerDims

__all__ = [
    "IGNORED_LABEL",
    "Attention",
    "FeedForward",
    "LossAndLogits",
    "Rotary",
    "RotaryEmbedding",
    "activation",
    "attention_mask_4d",
    "check_length",
    "dropout",
    "make_norm",
    "run_layer",
]

#: Positions with this label don't count in the loss.
IGNORED_LABEL = -100

#: Widest head for which grouped key-value heads are left to the attention kernel.
_WIDEST_GROUPED_HEAD = 256

Rotary = tuple[Tensor, Tensor]


class LossAndLogits(NamedTuple):
    """What a model returns when asked for its logits too.

    A training script that keeps the model's output keeps the logits alive
    through backward, which raises its peak memory.
    """

    loss: Tensor
    logits: Tensor


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32 (Zhang & Sennrich 2019, eq. 4, as Llama runs it)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        """``[..., width]`` in and out, in the type of ``hidden``."""
        dtype = hidden.dtype
        hidden = hidden.to(torch.float32)
        variance = hidden.pow(2).mean(-1, keepdim=True)
        hidden = hidden * torch.rsqrt(variance + self.eps)
        return self.weight * hidden.to(dtype)


class Conv1D(nn.Module):
    """GPT-2's linear layer: the weight is stored ``[in, out]``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        flat = hidden.view(-1, hidden.size(-1))
        return torch.addmm(self.bias, flat, self.weight).view(*hidden.shape[:-1], self.bias.shape[0])


class RotaryEmbedding(nn.Module):
    """Cosines and sines of rotary positions, once a step for all layers (Su et al. 2021, eq. 15)."""

    inverse_wavelengths: Tensor

    def __init__(self, dims: TransformerDims) -> None:
        super().__init__()
        exponents = torch.arange(0, dims.head_dim, 2, dtype=torch.float) / dims.head_dim
        inverse = 1.0 / (dims.rope_theta**exponents)
        if dims.rope_scaling is not None:
            inverse = _stretch(inverse, dims.rope_scaling)
        self.register_buffer("inverse_wavelengths", inverse, persistent=False)
        self.scaling = 1.0

    @torch.no_grad()
    def forward(self, hidden: Tensor) -> Rotary:
        """Both ``[1, seq, head_dim]``, for ``hidden`` of ``[batch, seq, ...]`` and in its type."""
        positions = torch.arange(hidden.shape[1], device=hidden.device).unsqueeze(0)
        angles = positions[..., None].float() * self.inverse_wavelengths.to(device=hidden.device, dtype=torch.float)
        angles = torch.cat((angles, angles), dim=-1)
        # The product by one is launched all the same.
        cos, sin = angles.cos() * self.scaling, angles.sin() * self.scaling
        return cos.to(hidden.dtype), sin.to(hidden.dtype)


def _stretch(inverse: Tensor, scaling: RopeScaling) -> Tensor:
    """Frequencies of Llama 3.1 (``apply_scaling`` of its reference code)."""
    wavelength = 2 * math.pi / inverse
    length = scaling.original_max_position_embeddings
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    blend = (length / wavelength - low) / (high - low)
    blended = (1 - blend) * inverse / scaling.factor + blend * inverse
    stretched = torch.where(wavelength > length / low, inverse / scaling.factor, blended)
    return torch.where(wavelength < length / high, inverse, stretched)


def _rotate(states: Tensor, rotary: Rotary) -> Tensor:
    """Rotate pairs (i, i + head_dim/2) of ``[batch, heads, seq, head_dim]`` by tables of ``[1, 1, seq, head_dim]``."""
    cos, sin = rotary
    # In this order: it decides the memory layout of the gradient, and with it whether backward copies it.
    return (states * cos) + (_quarter_turn(states) * sin)


def _quarter_turn(states: Tensor) -> Tensor:
    half = states.shape[-1] // 2
    return torch.cat((-states[..., half:], states[..., :half]), dim=-1)


class Attention(nn.Module):
    """Self-attention with grouped key-value heads, through ``scaled_dot_product_attention``."""

    def __init__(self, dims: TransformerDims) -> None:
        super().__init__()
        self.causal = dims.family == "decoder"
        self.head_dim = dims.head_dim
        self.groups = dims.num_attention_heads // dims.num_key_value_heads
        self.dropout = dims.attn_pdrop
        query_width, key_width = dims.num_attention_heads * dims.head_dim, dims.num_key_value_heads * dims.head_dim
        self.fused = dims.projection == "conv1d"
        if self.fused:
            self.qkv_proj: nn.Module = Conv1D(dims.hidden_size, 3 * query_width)
        else:
            self.q_proj = nn.Linear(dims.hidden_size, query_width, bias=dims.attention_bias)
            self.k_proj = nn.Linear(dims.hidden_size, key_width, bias=dims.attention_bias)
            self.v_proj = nn.Linear(dims.hidden_size, key_width, bias=dims.attention_bias)
        self.o_proj = _projection(dims, query_width, dims.hidden_size, bias=dims.attention_bias)

    def forward(self, hidden: Tensor, mask: Tensor | None, rotary: Rotary | None) -> Tensor:
        """``[batch, seq, hidden]`` in and out; ``mask`` is a boolean ``[batch, 1, seq, seq]`` or None."""
        query, key, value = (self._heads(part) for part in self._project(hidden))
        if rotary is not None:
            rotary = rotary[0].unsqueeze(1), rotary[1].unsqueeze(1)
            query, key = _rotate(query, rotary), _rotate(key, rotary)
        grouped = self.groups > 1
        if grouped and not (mask is None and self.head_dim <= _WIDEST_GROUPED_HEAD):
            key, value, grouped = self._repeat(key), self._repeat(value), False
        out = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=self.causal and mask is None,
            scale=self.head_dim**-0.5,
            enable_gqa=grouped,
        )
        out = out.transpose(1, 2).contiguous().reshape(*hidden.shape[:-1], -1)
        return self.o_proj(out)  # type: ignore[no-any-return]

    def _project(self, hidden: Tensor) -> tuple[Tensor, ...]:
        if self.fused:
            fused: Tensor = self.qkv_proj(hidden)
            return fused.chunk(3, dim=-1)
        return self.q_proj(hidden), self.k_proj(hidden), self.v_proj(hidden)

    def _heads(self, states: Tensor) -> Tensor:
        return states.view(*states.shape[:-1], -1, self.head_dim).transpose(1, 2)

    def _repeat(self, states: Tensor) -> Tensor:
        """A copy of each key-value head for every query head that uses it."""
        batch, heads, length, width = states.shape
        copies = states[:, :, None, :, :].expand(batch, heads, self.groups, length, width)
        return copies.reshape(batch, heads * self.groups, length, width)


class FeedForward(nn.Module):
    """``down(act(up(x)))``, or gated ``down(act(gate(x)) * up(x))`` (Shazeer 2020, eq. 6)."""

    def __init__(self, dims: TransformerDims) -> None:
        super().__init__()
        self.gated = dims.gated_mlp
        if self.gated:
            self.gate_proj = _projection(dims, dims.hidden_size, dims.intermediate_size, bias=dims.mlp_bias)
        self.up_proj = _projection(dims, dims.hidden_size, dims.intermediate_size, bias=dims.mlp_bias)
        self.down_proj = _projection(dims, dims.intermediate_size, dims.hidden_size, bias=dims.mlp_bias)
        self.act = activation(dims.hidden_act)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[batch, seq, hidden]`` in and out."""
        if self.gated:
            return self.down_proj(self.act(self.gate_proj(hidden)) * self.up_proj(hidden))  # type: ignore[no-any-return]
        return self.down_proj(self.act(self.up_proj(hidden)))  # type: ignore[no-any-return]


def _projection(dims: TransformerDims, inputs: int, outputs: int, *, bias: bool) -> nn.Module:
    return Conv1D(inputs, outputs) if dims.projection == "conv1d" else nn.Linear(inputs, outputs, bias=bias)


def make_norm(dims: TransformerDims) -> nn.Module:
    """The norm of ``hidden_size`` that the dimensions ask for."""
    if dims.norm == "rmsnorm":
        return RMSNorm(dims.hidden_size, dims.norm_eps)
    return nn.LayerNorm(dims.hidden_size, eps=dims.norm_eps)


def dropout(probability: float) -> nn.Module:
    """Dropout; nothing at all at probability 0, where ``nn.Dropout`` can still be traced as a copy."""
    return nn.Dropout(probability) if probability else nn.Identity()


def _gelu_new(x: Tensor) -> Tensor:
    # Hendrycks & Gimpel 2016, the tanh approximation, one kernel an operation as in GPT-2's code.
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_new": _gelu_new,
    "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The activation of a Hugging Face name in :data:`perfmodel.models.dims.HIDDEN_ACTS`."""
    return _ACTIVATIONS[name]


def attention_mask_4d(padding: Tensor, *, causal: bool) -> Tensor:
    """Which key each query may attend to.

    Parameters
    ----------
    padding : Tensor
        ``[batch, seq]``, nonzero where there is a token. Its contents aren't
        looked at: a mask of ones takes the path of a mask with padding.
    causal : bool
        Whether keys after the query are hidden too.

    Returns
    -------
    Tensor
        Boolean, ``[batch, 1, seq, seq]``.
    """
    positions = torch.arange(padding.shape[-1], device=padding.device)
    queries = positions[:, None]
    allowed = positions <= queries if causal else queries >= 0
    return allowed & padding.to(torch.bool)[:, None, None, :]


def check_length(dims: TransformerDims, length: int) -> None:
    """Refuse a sequence that the learned positions don't reach.

    Raises
    ------
    ShapeError
    """
    if dims.position_embedding == "learned" and length > dims.max_position_embeddings:
        raise ShapeError(
            f"a sequence of {length} tokens is longer than the {dims.max_position_embeddings} learned positions; "
            f"give at most {dims.max_position_embeddings}"
        )


def run_layer(layer: Callable[..., Tensor], recompute: bool, *args: object) -> Tensor:
    """Run a layer's body; with ``recompute`` keep only its inputs and run it again in backward."""
    if recompute:
        return checkpoint(layer, *args, use_reentrant=False)  # type: ignore[no-any-return]
    return layer(*args)
