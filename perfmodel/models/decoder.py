"""A decoder with a language-modelling head: GPT-2, Llama, Gemma, Mixtral, DeepSeek-V3 and their like."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from perfmodel.errors import UnsupportedError
from perfmodel.models.attention import Attention
from perfmodel.models.dims import TransformerDims
from perfmodel.models.layers import IGNORED_LABEL, FeedForward, LossAndLogits, check_length, dropout, run_layer
from perfmodel.models.masks import additive, attention_mask_4d, band_mask_4d, causal_mask_4d
from perfmodel.models.mla import LatentAttention
from perfmodel.models.moe import MixtureOfExperts
from perfmodel.models.norms import make_norm
from perfmodel.models.rotary import Rotary, RotaryEmbedding

__all__ = ["Decoder", "DecoderLayer", "build"]


class DecoderLayer(nn.Module):
    """Attention and feed-forward, added to the residual one after the other or together.

    Parameters
    ----------
    dims : TransformerDims
    index : int
        Number of the layer, from 0: it decides on its window and its experts.
    gradient_checkpointing : bool
    """

    def __init__(self, dims: TransformerDims, index: int, *, gradient_checkpointing: bool) -> None:
        super().__init__()
        norms = dims.norm_placement
        self.parallel = dims.block != "sequential"
        self.attention_norm = make_norm(dims) if norms != "output" else nn.Identity()
        self.attention: nn.Module = (
            Attention(dims, window=dims.window(index)) if dims.mla is None else LatentAttention(dims, dims.mla)
        )
        self.attention_output_norm = make_norm(dims) if norms != "input" else nn.Identity()
        self.mlp_norm: nn.Module | None = make_norm(dims) if norms != "output" else nn.Identity()
        if dims.block == "parallel_shared_norm":
            self.mlp_norm = None
        self.mlp: nn.Module = (
            MixtureOfExperts(dims, dims.moe) if dims.moe is not None and dims.routes(index) else FeedForward(dims)
        )
        self.mlp_output_norm = make_norm(dims) if norms != "input" else nn.Identity()
        self.dropout = dropout(dims.resid_pdrop)
        self.gradient_checkpointing = gradient_checkpointing

    def forward(self, hidden: Tensor, mask: Tensor | None, rotary: Rotary | None) -> Tensor:
        """``[batch, seq, hidden]`` in and out."""
        return run_layer(self._body, self.gradient_checkpointing and self.training, hidden, mask, rotary)

    def _body(self, hidden: Tensor, mask: Tensor | None, rotary: Rotary | None) -> Tensor:
        normed = self.attention_norm(hidden)
        attended = self.dropout(self.attention_output_norm(self.attention(normed, mask, rotary)))
        if self.parallel:
            fed = self.dropout(self.mlp(normed if self.mlp_norm is None else self.mlp_norm(hidden)))
            return attended + fed + hidden  # type: ignore[no-any-return]
        hidden = hidden + attended
        normed = hidden if self.mlp_norm is None else self.mlp_norm(hidden)
        return hidden + self.dropout(self.mlp_output_norm(self.mlp(normed)))  # type: ignore[no-any-return]


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

    embedding_scale: Tensor

    def __init__(
        self, dims: TransformerDims, *, gradient_checkpointing: bool = False, return_logits: bool = False
    ) -> None:
        super().__init__()
        if dims.family != "decoder":
            raise UnsupportedError(f"dimensions of family {dims.family!r} don't make a decoder; build an encoder")
        self.dims = dims
        self.return_logits = return_logits
        self.embed_tokens = nn.Embedding(dims.vocab_size, dims.hidden_size, padding_idx=dims.pad_token_id)
        if dims.scale_embeddings:
            self.register_buffer("embedding_scale", torch.tensor(dims.hidden_size**0.5), persistent=False)
        if dims.position_embedding == "learned":
            self.embed_positions = nn.Embedding(dims.max_position_embeddings + dims.position_offset, dims.hidden_size)
        else:
            self.rotary = RotaryEmbedding(dims)
            if dims.rope_local_base_freq is not None:
                self.local_rotary = RotaryEmbedding(dims, local=True)
        self.dropout = dropout(dims.embd_pdrop)
        self.layers = nn.ModuleList(
            DecoderLayer(dims, index, gradient_checkpointing=gradient_checkpointing)
            for index in range(dims.num_hidden_layers)
        )
        self.norm = make_norm(dims)
        self.lm_head = nn.Linear(dims.hidden_size, dims.vocab_size, bias=dims.lm_head_bias)
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
            is causal and gets no mask tensor, unless its window is shorter than the sequence.

        Raises
        ------
        ShapeError
            If the sequence is longer than the learned positions.
        """
        check_length(self.dims, input_ids.shape[1])
        hidden = self._embed(input_ids)
        windows = [self.dims.window(index) for index in range(self.dims.num_hidden_layers)]
        # Once a step for all layers of a kind.
        masks = {window: self._mask(hidden, attention_mask, window) for window in dict.fromkeys(windows)}
        rotaries = self._rotaries(hidden, masks)
        hidden = self.dropout(hidden)
        for layer, window in zip(self.layers, windows, strict=True):
            hidden = layer(hidden, masks[window], rotaries[window])
        logits = self.lm_head(self.norm(hidden))
        cap = self.dims.final_logit_softcapping
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        loss = _next_token_loss(logits, labels)
        return LossAndLogits(loss, logits) if self.return_logits else loss

    def _embed(self, input_ids: Tensor) -> Tensor:
        hidden: Tensor = self.embed_tokens(input_ids)
        if self.dims.scale_embeddings:
            hidden = hidden * self.embedding_scale.to(self.embed_tokens.weight.dtype)
        if self.dims.position_embedding == "learned":
            positions = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)
            hidden = hidden + self.embed_positions(positions + self.dims.position_offset)
        return hidden

    def _mask(self, hidden: Tensor, padding: Tensor | None, window: int | None) -> Tensor | None:
        """``[batch, 1, seq, seq]`` as attention takes it, or None where causality is all."""
        materialised = self.dims.attn_logit_softcapping is not None or self.dims.attention_sinks
        narrow = window is not None and hidden.shape[1] >= window
        mask: Tensor | None = None
        if window is not None and (narrow or materialised or padding is not None):
            mask = band_mask_4d(hidden, window)
        elif materialised:
            mask = causal_mask_4d(hidden)
        if padding is not None:
            tokens = padding.to(torch.bool)[:, None, None, :]
            mask = attention_mask_4d(padding, causal=True) if mask is None else mask & tokens
        return additive(mask, hidden.dtype) if materialised and mask is not None else mask

    def _rotaries(self, hidden: Tensor, windows: Iterable[int | None]) -> dict[int | None, Rotary | None]:
        """The tables of each kind of layer."""
        if self.dims.position_embedding == "learned":
            return dict.fromkeys(windows)
        if self.dims.rope_local_base_freq is None:
            return dict.fromkeys(windows, self.rotary(hidden))
        return {window: (self.rotary if window is None else self.local_rotary)(hidden) for window in windows}


def _next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    logits = logits.float()
    shifted = functional.pad(labels, (0, 1), value=IGNORED_LABEL)[..., 1:].contiguous()
    return functional.cross_entropy(logits.view(-1, logits.shape[-1]), shifted.view(-1), ignore_index=IGNORED_LABEL)


def build(dims: TransformerDims, *, gradient_checkpointing: bool = False, return_logits: bool = False) -> Decoder:
    """A decoder in training mode; see :class:`Decoder`."""
    return Decoder(dims, gradient_checkpointing=gradient_checkpointing, return_logits=return_logits)
