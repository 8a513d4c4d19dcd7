"""A vision transformer with a classifier: ViT.

Op for op what Hugging Face's transformers run with ``attn_implementation="sdpa"``,
as in :mod:`perfmodel.models.layers`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from perfmodel.models.dims_vision import VisionDims
from perfmodel.models.layers import LossAndLogits, activation, dropout, run_layer

__all__ = ["VisionTransformer", "build"]


class Attention(nn.Module):
    """Self-attention in both directions."""

    def __init__(self, dims: VisionDims) -> None:
        super().__init__()
        width = dims.hidden_size
        self.head_dim = width // dims.num_attention_heads
        self.dropout = dims.attention_probs_dropout_prob
        self.q_proj = nn.Linear(width, width, bias=dims.qkv_bias)
        self.k_proj = nn.Linear(width, width, bias=dims.qkv_bias)
        self.v_proj = nn.Linear(width, width, bias=dims.qkv_bias)
        self.o_proj = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[batch, positions, hidden]`` in and out."""
        query, key, value = (
            project(hidden).view(*hidden.shape[:-1], -1, self.head_dim).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = functional.scaled_dot_product_attention(
            query, key, value, dropout_p=self.dropout if self.training else 0.0, scale=self.head_dim**-0.5
        )
        out = out.transpose(1, 2).contiguous().reshape(*hidden.shape[:-1], -1)
        return self.o_proj(out)  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """``down(act(up(x)))``."""

    def __init__(self, dims: VisionDims) -> None:
        super().__init__()
        self.act = activation(dims.hidden_act)
        self.up_proj = nn.Linear(dims.hidden_size, dims.intermediate_size)
        self.down_proj = nn.Linear(dims.intermediate_size, dims.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[batch, positions, hidden]`` in and out."""
        return self.down_proj(self.act(self.up_proj(hidden)))  # type: ignore[no-any-return]


class Layer(nn.Module):
    """Pre-norm attention and feed-forward, each added to the residual."""

    def __init__(self, dims: VisionDims, *, gradient_checkpointing: bool) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dims.hidden_size, eps=dims.layer_norm_eps)
        self.attention = Attention(dims)
        self.mlp_norm = nn.LayerNorm(dims.hidden_size, eps=dims.layer_norm_eps)
        self.mlp = FeedForward(dims)
        self.dropout = dropout(dims.hidden_dropout_prob)
        self.gradient_checkpointing = gradient_checkpointing

    def forward(self, hidden: Tensor) -> Tensor:
        """``[batch, positions, hidden]`` in and out."""
        return run_layer(self._body, self.gradient_checkpointing and self.training, hidden)

    def _body(self, hidden: Tensor) -> Tensor:
        hidden = self.dropout(self.attention(self.attention_norm(hidden))) + hidden
        return self.dropout(self.mlp(self.mlp_norm(hidden))) + hidden  # type: ignore[no-any-return]


class Embeddings(nn.Module):
    """Patches as positions, one more for the class in front, each with its learned place."""

    def __init__(self, dims: VisionDims) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.randn(1, 1, dims.hidden_size))
        self.places = nn.Parameter(torch.randn(1, dims.num_patches + 1, dims.hidden_size))
        self.patches = nn.Conv2d(
            dims.num_channels, dims.hidden_size, kernel_size=dims.patch_size, stride=dims.patch_size
        )
        self.dropout = dropout(dims.hidden_dropout_prob)

    def forward(self, pixels: Tensor) -> Tensor:
        """``[batch, channels, size, size]`` to ``[batch, patches + 1, hidden]``."""
        patches = self.patches(pixels).flatten(2).transpose(1, 2)
        hidden = torch.cat((self.class_token.expand(pixels.shape[0], -1, -1), patches), dim=1)
        return self.dropout(hidden + self.places)  # type: ignore[no-any-return]


class VisionTransformer(nn.Module):
    """Images in, mean cross-entropy of their classes out.

    Parameters
    ----------
    dims : VisionDims
    gradient_checkpointing : bool
        Recompute each layer in backward.
    return_logits : bool
        Return :class:`perfmodel.models.layers.LossAndLogits` instead of the loss alone.
    """

    def __init__(self, dims: VisionDims, *, gradient_checkpointing: bool = False, return_logits: bool = False) -> None:
        super().__init__()
        self.return_logits = return_logits
        self.embeddings = Embeddings(dims)
        self.layers = nn.ModuleList(
            Layer(dims, gradient_checkpointing=gradient_checkpointing) for _ in range(dims.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(dims.hidden_size, eps=dims.layer_norm_eps)
        self.classifier = nn.Linear(dims.hidden_size, dims.num_labels)

    def forward(self, pixel_values: Tensor, labels: Tensor) -> Tensor | LossAndLogits:
        """The loss of one batch.

        Parameters
        ----------
        pixel_values : Tensor
            ``[batch, channels, size, size]``, brought to the type of the parameters.
        labels : Tensor
            ``[batch]`` of int64.
        """
        hidden = self.embeddings(pixel_values.to(self.embeddings.patches.weight.dtype))
        for layer in self.layers:
            hidden = layer(hidden)
        logits = self.classifier(self.norm(hidden)[:, 0, :])
        loss = functional.cross_entropy(logits.view(-1, logits.shape[-1]), labels.view(-1))
        return LossAndLogits(loss, logits) if self.return_logits else loss


def build(dims: VisionDims, *, gradient_checkpointing: bool = False, return_logits: bool = False) -> VisionTransformer:
    """A vision transformer in training mode; see :class:`VisionTransformer`."""
    return VisionTransformer(dims, gradient_checkpointing=gradient_checkpointing, return_logits=return_logits)
