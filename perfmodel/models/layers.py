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
from perfmodel.models.attention import Attention, projection
from perfmodel.models.dims import TransformerDims
from perfmodel.models.masks import attention_mask_4d
from perfmodel.models.norms import make_norm

__all__ = [
    "IGNORED_LABEL",
    "Attention",
    "FeedForward",
    "LossAndLogits",
    "activation",
    "attention_mask_4d",
    "check_length",
    "dropout",
    "make_norm",
    "run_layer",
]

#: Positions with this label don't count in the loss.
IGNORED_LABEL = -100


class LossAndLogits(NamedTuple):
    """What a model returns when asked for its logits too.

    A training script that keeps the model's output keeps the logits alive
    through backward, which raises its peak memory.
    """

    loss: Tensor
    logits: Tensor


class FeedForward(nn.Module):
    """``down(act(up(x)))``, or gated ``down(act(gate(x)) * up(x))`` (Shazeer 2020, eq. 6).

    Parameters
    ----------
    dims : TransformerDims
    intermediate_size : int, optional
        Inner width other than the dimensions'.
    """

    def __init__(self, dims: TransformerDims, *, intermediate_size: int | None = None) -> None:
        super().__init__()
        inner = intermediate_size or dims.intermediate_size
        self.gated = dims.gated_mlp
        self.fused = self.gated and dims.projection == "fused"
        if self.fused:
            self.gate_up_proj = projection(dims, dims.hidden_size, 2 * inner, bias=dims.mlp_bias)
        else:
            if self.gated:
                self.gate_proj = projection(dims, dims.hidden_size, inner, bias=dims.mlp_bias)
            self.up_proj = projection(dims, dims.hidden_size, inner, bias=dims.mlp_bias)
        self.down_proj = projection(dims, inner, dims.hidden_size, bias=dims.mlp_bias)
        self.act = activation(dims.hidden_act)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[batch, seq, hidden]`` in and out."""
        if self.fused:
            gate, up = self.gate_up_proj(hidden).chunk(2, dim=-1)
            return self.down_proj(up * self.act(gate))  # type: ignore[no-any-return]
        if self.gated:
            return self.down_proj(self.act(self.gate_proj(hidden)) * self.up_proj(hidden))  # type: ignore[no-any-return]
        return self.down_proj(self.act(self.up_proj(hidden)))  # type: ignore[no-any-return]


def dropout(probability: float) -> nn.Module:
    """Dropout; nothing at all at probability 0, where ``nn.Dropout`` can still be traced as a copy."""
    return nn.Dropout(probability) if probability else nn.Identity()


def _gelu_new(x: Tensor) -> Tensor:
    # Hendrycks & Gimpel 2016, the tanh approximation, one kernel an operation as in GPT-2's code.
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


def _gelu_fast(x: Tensor) -> Tensor:
    # The same approximation in GPT-NeoX-20B's order.
    return 0.5 * x * (1.0 + torch.tanh(x * math.sqrt(2.0 / math.pi) * (1.0 + 0.044715 * x * x)))


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_fast": _gelu_fast,
    "gelu_new": _gelu_new,
    "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The activation of a Hugging Face name in :data:`perfmodel.models.dims.HIDDEN_ACTS`."""
    return _ACTIVATIONS[name]


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
