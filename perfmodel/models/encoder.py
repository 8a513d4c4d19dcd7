"""An encoder with a masked-language-modelling head: BERT."""

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
    activation,
    attention_mask_4d,
    check_length,
    dropout,
    make_norm,
    run_layer,
)

__all__ = ["Encoder", "EncoderLayer", "build"]


class EncoderLayer(nn.Module):
    """Attention and feed-forward, each added to the residual and then normed."""

    def __init__(self, dims: TransformerDims, *, gradient_checkpointing: bool) -> None:
        super().__init__()
        self.attention = Attention(dims)
        self.attention_norm = make_norm(dims)
        self.mlp = FeedForward(dims)
        self.mlp_norm = make_norm(dims)
        self.dropout = dropout(dims.resid_pdrop)
        self.gradient_checkpointing = gradient_checkpointing

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """``[batch, seq, hidden]`` in and out."""
        return run_layer(self._body, self.gradient_checkpointing and self.training, hidden, mask)

    def _body(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        hidden = self.attention_norm(self.dropout(self.attention(hidden, mask, None)) + hidden)
        return self.mlp_norm(self.dropout(self.mlp(hidden)) + hidden)  # type: ignore[no-any-return]


class EncoderEmbeddings(nn.Module):
    """Sum of token, token-type and position embeddings, normed."""

    positions: Tensor
    token_types: Tensor

    def __init__(self, dims: TransformerDims) -> None:
        super().__init__()
        self.tokens = nn.Embedding(dims.vocab_size, dims.hidden_size, padding_idx=dims.pad_token_id)
        self.types = nn.Embedding(dims.type_vocab_size, dims.hidden_size) if dims.type_vocab_size else None
        rows = dims.max_position_embeddings + dims.position_offset
        self.offset = dims.position_offset
        self.places = nn.Embedding(rows, dims.hidden_size, padding_idx=dims.pad_token_id if self.offset else None)
        self.norm = make_norm(dims)
        self.dropout = dropout(dims.embd_pdrop)
        self.register_buffer("positions", torch.arange(rows).unsqueeze(0), persistent=False)
        self.register_buffer("token_types", torch.zeros_like(self.positions), persistent=False)

    def forward(self, input_ids: Tensor, token_types: Tensor | None = None) -> Tensor:
        """``[batch, seq]`` of token ids and types to ``[batch, seq, hidden]``; without types, all are of type 0."""
        batch, length = input_ids.shape
        positions = self._unpadded(input_ids) if self.offset else self.positions[:, :length]
        hidden = self.tokens(input_ids)
        if self.types is not None:
            if token_types is None:
                token_types = self.token_types.expand(positions.shape[0], -1).gather(1, positions).expand(batch, length)
            hidden = hidden + self.types(token_types)
        hidden = hidden + self.places(positions)
        return self.dropout(self.norm(hidden))  # type: ignore[no-any-return]

    def _unpadded(self, input_ids: Tensor) -> Tensor:
        """Positions that leave out padding, which gets the row of its own token."""
        pad = self.offset - 1
        mask = input_ids.ne(pad).int()
        return (torch.cumsum(mask, dim=1).type_as(mask) * mask).long() + pad


class MaskedLanguageModelHead(nn.Module):
    """A transform of the hidden states, then logits over the vocabulary."""

    def __init__(self, dims: TransformerDims) -> None:
        super().__init__()
        self.dense = nn.Linear(dims.hidden_size, dims.hidden_size)
        self.act = activation(dims.hidden_act)
        self.norm = make_norm(dims)
        self.decoder = nn.Linear(dims.hidden_size, dims.vocab_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[batch, seq, hidden]`` to ``[batch, seq, vocab]``."""
        return self.decoder(self.norm(self.act(self.dense(hidden))))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """Token ids in, mean cross-entropy over the labelled tokens out.

    Parameters
    ----------
    dims : TransformerDims
        Of family ``"encoder"``.
    gradient_checkpointing : bool
        Recompute each layer in backward.
    return_logits : bool
        Return :class:`LossAndLogits` instead of the loss alone.
    """

    def __init__(
        self, dims: TransformerDims, *, gradient_checkpointing: bool = False, return_logits: bool = False
    ) -> None:
        super().__init__()
        if dims.family != "encoder":
            raise UnsupportedError(f"dimensions of family {dims.family!r} don't make an encoder; build a decoder")
        self.dims = dims
        self.return_logits = return_logits
        self.embeddings = EncoderEmbeddings(dims)
        self.layers = nn.ModuleList(
            EncoderLayer(dims, gradient_checkpointing=gradient_checkpointing) for _ in range(dims.num_hidden_layers)
        )
        self.head = MaskedLanguageModelHead(dims)
        if dims.tie_word_embeddings:
            self.head.decoder.weight = self.embeddings.tokens.weight

    def forward(
        self, input_ids: Tensor, labels: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor | LossAndLogits:
        """The loss of one batch.

        Parameters
        ----------
        input_ids, labels : Tensor
            ``[batch, seq]`` of int64; a label of -100 doesn't count.
        attention_mask : Tensor, optional
            ``[batch, seq]``, nonzero where there is a token. Without it attention gets no mask tensor.

        Raises
        ------
        ShapeError
            If the sequence is longer than the learned positions.
        """
        logits = self.head(self.encode(input_ids, attention_mask))
        # In the type of the logits: BERT's loss isn't raised to float32.
        loss = functional.cross_entropy(
            logits.view(-1, self.dims.vocab_size), labels.view(-1), ignore_index=IGNORED_LABEL
        )
        return LossAndLogits(loss, logits) if self.return_logits else loss

    def encode(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_types: Tensor | None = None
    ) -> Tensor:
        """Hidden states ``[batch, seq, hidden]``, all three inputs being ``[batch, seq]``.

        Raises
        ------
        ShapeError
            If the sequence is longer than the learned positions.
        """
        check_length(self.dims, input_ids.shape[1])
        hidden: Tensor = self.embeddings(input_ids, token_types)
        mask = None if attention_mask is None else attention_mask_4d(attention_mask, causal=False)
        for layer in self.layers:
            hidden = layer(hidden, mask)
        return hidden


def build(dims: TransformerDims, *, gradient_checkpointing: bool = False, return_logits: bool = False) -> Encoder:
    """An encoder in training mode; see :class:`Encoder`."""
    return Encoder(dims, gradient_checkpointing=gradient_checkpointing, return_logits=return_logits)
