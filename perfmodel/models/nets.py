"""Plain nets of PyTorch's own layers: feed-forward, recurrent, ``nn.Transformer``."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from perfmodel.errors import ShapeError, UnsupportedError
from perfmodel.models.dims_nets import FeedForwardDims, RecurrentDims, TranslatorDims
from perfmodel.models.layers import IGNORED_LABEL, LossAndLogits, dropout

__all__ = ["FeedForward", "Recurrent", "Translator", "build"]


class FeedForward(nn.Module):
    """Linear layers with ReLU between them; features in, mean cross-entropy of their classes out."""

    def __init__(self, dims: FeedForwardDims, *, return_logits: bool = False) -> None:
        super().__init__()
        self.return_logits = return_logits
        sizes = dims.sizes
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor | LossAndLogits:
        """The loss of one batch: ``[batch, features]`` and ``[batch]`` of int64."""
        *inner, last = self.layers
        for layer in inner:
            features = functional.relu(layer(features))
        logits = last(features)
        loss = functional.cross_entropy(logits, labels)
        return LossAndLogits(loss, logits) if self.return_logits else loss


class Recurrent(nn.Module):
    """A language model of LSTM or GRU layers; token ids in, mean next-token cross-entropy out."""

    def __init__(self, dims: RecurrentDims, *, return_logits: bool = False) -> None:
        super().__init__()
        self.return_logits = return_logits
        self.embed_tokens = nn.Embedding(dims.vocab_size, dims.embedding_size)
        make = nn.LSTM if dims.cell == "lstm" else nn.GRU
        self.layers = make(
            dims.embedding_size,
            dims.hidden_size,
            dims.num_hidden_layers,
            dropout=dims.dropout if dims.num_hidden_layers > 1 else 0.0,
            batch_first=True,
        )
        self.lm_head = nn.Linear(dims.hidden_size, dims.vocab_size)
        if dims.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        self.dropout = dropout(dims.dropout)

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor | LossAndLogits:
        """The loss of one batch, both ``[batch, seq]`` of int64.

        Label ``t`` is predicted from the tokens before ``t``; -100 doesn't count.
        """
        hidden, _ = self.layers(self.dropout(self.embed_tokens(input_ids)))
        logits = self.lm_head(self.dropout(hidden))
        shifted = functional.pad(labels, (0, 1), value=IGNORED_LABEL)[..., 1:].contiguous()
        loss = functional.cross_entropy(logits.view(-1, logits.shape[-1]), shifted.view(-1), ignore_index=IGNORED_LABEL)
        return LossAndLogits(loss, logits) if self.return_logits else loss


class Translator(nn.Module):
    """``nn.Transformer`` between embeddings and a head; source and target tokens in, mean cross-entropy out."""

    positions: Tensor

    def __init__(self, dims: TranslatorDims, *, return_logits: bool = False) -> None:
        super().__init__()
        self.dims = dims
        self.return_logits = return_logits
        self.embed_source = nn.Embedding(dims.vocab_size, dims.d_model)
        self.embed_target = nn.Embedding(dims.target_vocab_size, dims.d_model)
        self.transformer = nn.Transformer(
            d_model=dims.d_model,
            nhead=dims.nhead,
            num_encoder_layers=dims.num_encoder_layers,
            num_decoder_layers=dims.num_decoder_layers,
            dim_feedforward=dims.dim_feedforward,
            dropout=dims.dropout,
            batch_first=True,
        )
        self.lm_head = nn.Linear(dims.d_model, dims.target_vocab_size, bias=False)
        self.lm_head.weight = self.embed_target.weight
        self.dropout = dropout(dims.dropout)
        self.register_buffer("positions", _sinusoids(dims.max_position_embeddings, dims.d_model), persistent=False)

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor | LossAndLogits:
        """The loss of one batch.

        Parameters
        ----------
        input_ids, labels : Tensor
            ``[batch, seq]`` and ``[batch, target_seq]`` of int64; a label of -100 doesn't count. The
            decoder reads the labels shifted to the right.

        Raises
        ------
        ShapeError
            If a sequence is longer than the table of positions.
        """
        longest, lengths = self.dims.max_position_embeddings, (input_ids.shape[1], labels.shape[1])
        for length in lengths:
            if length > longest:
                raise ShapeError(f"a sequence of {length} tokens is longer than {longest} positions; give at most that")
        start = functional.pad(labels, (1, 0), value=0)[:, :-1]
        hidden = self.transformer(
            self._embedded(self.embed_source, input_ids),
            self._embedded(self.embed_target, start.masked_fill(start == IGNORED_LABEL, 0)),
            tgt_mask=nn.Transformer.generate_square_subsequent_mask(
                lengths[1], device=labels.device, dtype=self.lm_head.weight.dtype
            ),
            tgt_is_causal=True,
        )
        logits = self.lm_head(hidden)
        loss = functional.cross_entropy(logits.view(-1, logits.shape[-1]), labels.view(-1), ignore_index=IGNORED_LABEL)
        return LossAndLogits(loss, logits) if self.return_logits else loss

    def _embedded(self, embedding: nn.Module, tokens: Tensor) -> Tensor:
        hidden = embedding(tokens) * math.sqrt(self.dims.d_model)
        return self.dropout(hidden + self.positions[: tokens.shape[1]])  # type: ignore[no-any-return]


def _sinusoids(length: int, width: int) -> Tensor:
    """Vaswani et al. 2017, section 3.5."""
    inverse = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angles = torch.arange(length).unsqueeze(1) * inverse
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1).to(torch.get_default_dtype())


def build(
    dims: FeedForwardDims | RecurrentDims | TranslatorDims,
    *,
    gradient_checkpointing: bool = False,
    return_logits: bool = False,
) -> FeedForward | Recurrent | Translator:
    """A net in training mode.

    Raises
    ------
    UnsupportedError
        With ``gradient_checkpointing``: these have no layers of ours that could be recomputed.
    """
    if gradient_checkpointing:
        raise UnsupportedError(f"a {dims.family} model can't recompute its layers; set gradient_checkpointing=False")
    if isinstance(dims, FeedForwardDims):
        return FeedForward(dims, return_logits=return_logits)
    if isinstance(dims, RecurrentDims):
        return Recurrent(dims, return_logits=return_logits)
    return Translator(dims, return_logits=return_logits)
