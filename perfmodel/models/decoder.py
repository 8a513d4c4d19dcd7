"""A decoder with a language-modelling head: GPT-2, Llama, and what lies between."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from perfmodel.errors import UnsupportedError
from perfmodel.models.dims import TransformerDims
from perfmodel.models.layers import (
    IGNORED_LABEL,
    Attention,
    FeedForward,
    LossAndLogits,
    Rotary,
    RotaryEmbedding,
    attention_mask_4d,
    check_length,
    dropout,
    make_norm,
    run_layer,
)

__all__ = ["Decoder", "DecoderLayer", "build"]


class DecoderLayer(nn.Module):
    """Pre-norm attention and feed-forward, each added to the residual."""

    def __init__(self, dims: TransformerDims, *, gradient_checkpointing: bool) -> None:
        super().__init__()
        self.attention_norm = make_norm(dims)
        self.attention = Attention(dims)
        self.mlp_norm = make_norm(dims)
        self.mlp = FeedForward(dims)
        self.dropout = dropout(dims.resid_pdrop)
        self.gradient_checkpointing = gradient_checkpointing

    def forward(self, hidden: Tensor, mask: Tensor | None, rotary: Rotary | None) -> Tensor:
        """``[batch, seq, hidden]`` in and out."""
        return run_layer(self._body, self.gradient_checkpointing and self.training, hidden, mask, rotary)

    def _body(self, hidden: Tensor, mask: Tensor | None, rotary: Rotary | None) -> Tensor:
        hidden = hidden + self.dropout(self.attention(self.attention_norm(hidden), mask, rotary))
        return hidden + self.dropout(self.mlp(self.mlp_norm(hidden)))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Token ids in, mean next-token cross-entropy out.

    Parameters
    ----------
    dims : TransformerDims
        Of family ``"decoder"``.
    gradient_checkpointing : bool
        Recompute each layer in backward.
    return_logits : bool
        Return :class:`LossAndLogits` instead of the loss alone.
    """

    def __init__(
        self, dims: TransformerDims, *, gradient_checkpointing: bool = False, return_logits: bool = False
    ) -> None:
        super().__init__()
        if dims.family != "decoder":
            raise UnsupportedError(f"dimensions of family {dims.family!r} don't make a decoder; build an encoder")
        self.dims = dims
        self.return_logits = return_logits
        self.embed_tokens = nn.Embedding(dims.vocab_size, dims.hidden_size, padding_idx=dims.pad_token_id)
        if dims.position_embedding == "learned":
            self.embed_positions = nn.Embedding(dims.max_position_embeddings, dims.hidden_size)
        else:
            self.rotary = RotaryEmbedding(dims)
        self.dropout = dropout(dims.embd_pdrop)
        self.layers = nn.ModuleList(
            DecoderLayer(dims, gradient_checkpointing=gradient_checkpointing) for _ in range(dims.num_hidden_layers)
        )
        self.norm = make_norm(dims)
        self.lm_head = nn.Linear(dims.hidden_size, dims.vocab_size, bias=False)
        if dims.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(
        self, input_ids: Tensor, labels: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor | LossAndLogits:
        """The loss of one batch.

        Parameters
        ----------
        input_ids, labels : Tensor
            ``[batch, seq]`` of int64. Label ``t`` is predicted from the tokens before ``t``; -100 doesn't count.
        attention_mask : Tensor, optional
            ``[batch, seq]``, nonzero where there is a token. Without it attention
            is causal and gets no mask tensor.

        Raises
        ------
        ShapeError
            If the sequence is longer than the learned positions.
        """
        length = input_ids.shape[1]
        check_length(self.dims, length)
        hidden = self.embed_tokens(input_ids)
        rotary: Rotary | None = None
        if self.dims.position_embedding == "learned":
            hidden = hidden + self.embed_positions(torch.arange(length, device=input_ids.device).unsqueeze(0))
        else:
            rotary = self.rotary(hidden)
        mask = None if attention_mask is None else attention_mask_4d(attention_mask, causal=True)
        hidden = self.dropout(hidden)
        for layer in self.layers:
            hidden = layer(hidden, mask, rotary)
        logits = self.lm_head(self.norm(hidden))
        loss = _next_token_loss(logits, labels)
        return LossAndLogits(loss, logits) if self.return_logits else loss


def _next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    logits = logits.float()
    shifted = functional.pad(labels, (0, 1), value=IGNORED_LABEL)[..., 1:].contiguous()
    return functional.cross_entropy(logits.view(-1, logits.shape[-1]), shifted.view(-1), ignore_index=IGNORED_LABEL)


def build(dims: TransformerDims, *, gradient_checkpointing: bool = False, return_logits: bool = False) -> Decoder:
    """A decoder in training mode; see :class:`Decoder`."""
    return Decoder(dims, gradient_checkpointing=gradient_checkpointing, return_logits=return_logits)
