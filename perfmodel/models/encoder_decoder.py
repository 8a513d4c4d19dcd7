"""An encoder-decoder with relative positions: T5.

Op for op what Hugging Face's transformers run with ``attn_implementation="sdpa"``,
as in :mod:`perfmodel.models.layers`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from perfmodel.models.dims_encoder_decoder import EncoderDecoderDims
from perfmodel.models.layers import IGNORED_LABEL, activation, dropout, run_layer

__all__ = ["EncoderDecoder", "EncoderDecoderOutput", "build", "shifted_right"]


class EncoderDecoderOutput(NamedTuple):
    """What a model with an encoder returns when asked for more than its loss.

    As in Hugging Face's, the encoder's hidden states are among it: a script that
    keeps the output keeps them until backward is over.
    """

    loss: Tensor
    logits: Tensor
    encoder_last_hidden_state: Tensor


class Norm(nn.Module):
    """Root-mean-square norm whose product with the inverse root is taken before rounding (T5's)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        """``[..., width]`` in and out, in the type of the weight."""
        variance = hidden.to(torch.float32).pow(2).mean(-1, keepdim=True)
        hidden = hidden * torch.rsqrt(variance + self.eps)
        if self.weight.dtype in (torch.float16, torch.bfloat16):
            hidden = hidden.to(self.weight.dtype)
        return self.weight * hidden


class RelativeAttention(nn.Module):
    """Attention with a bias on the scores and no scaling, of a sequence to itself or to ``source``."""

    def __init__(self, dims: EncoderDecoderDims, *, causal: bool, learns_bias: bool, trains_zeros: bool) -> None:
        super().__init__()
        width = dims.num_heads * dims.d_kv
        self.dims = dims
        self.causal = causal
        # A recomputed layer needs an input with a gradient, so that T5 asks for one of its zeros.
        self.trains_zeros = trains_zeros
        self.q_proj = nn.Linear(dims.d_model, width, bias=False)
        self.k_proj = nn.Linear(dims.d_model, width, bias=False)
        self.v_proj = nn.Linear(dims.d_model, width, bias=False)
        self.o_proj = nn.Linear(width, dims.d_model, bias=False)
        self.bias = nn.Embedding(dims.relative_attention_num_buckets, dims.num_heads) if learns_bias else None

    def forward(
        self, hidden: Tensor, mask: Tensor | None, bias: Tensor | None, source: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """``[batch, seq, d_model]`` and the bias ``[1, heads, queries, keys]`` to use in the next layer too."""
        states = hidden if source is None else source
        query = self._heads(self.q_proj(hidden))
        key, value = self._heads(self.k_proj(states)), self._heads(self.v_proj(states))
        if bias is None:
            bias = self._position_bias(query, key)
        out = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=self._mask(query, key, bias, mask),
            dropout_p=self.dims.dropout_rate if self.training else 0.0,
            scale=1.0,
        )
        out = out.transpose(1, 2).contiguous().reshape(*hidden.shape[:-1], -1)
        return self.o_proj(out), bias

    def _heads(self, states: Tensor) -> Tensor:
        return states.view(*states.shape[:-1], -1, self.dims.d_kv).transpose(1, 2)

    def _position_bias(self, query: Tensor, key: Tensor) -> Tensor:
        queries, keys = query.shape[2], key.shape[2]
        if self.bias is None:
            zeros = torch.zeros((1, self.dims.num_heads, queries, keys), device=query.device, dtype=query.dtype)
            if self.trains_zeros and self.training:
                zeros.requires_grad = True
            return zeros
        at = torch.arange(queries, dtype=torch.long, device=query.device)[:, None]
        to = torch.arange(keys, dtype=torch.long, device=query.device)[None, :]
        values: Tensor = self.bias(self._bucket(to - at))
        return values.permute([2, 0, 1]).unsqueeze(0)

    def _bucket(self, distance: Tensor) -> Tensor:
        """Exact near by, logarithmic further off (Raffel et al. 2020, section 2.1)."""
        buckets: Any = 0
        count = self.dims.relative_attention_num_buckets
        if self.causal:
            distance = -torch.min(distance, torch.zeros_like(distance))
        else:
            count //= 2
            buckets = buckets + (distance > 0).to(torch.long) * count
            distance = torch.abs(distance)
        exact = count // 2
        growth = torch.log(distance.float() / exact) / math.log(self.dims.relative_attention_max_distance / exact)
        far = exact + (growth * (count - exact)).to(torch.long)
        far = torch.min(far, torch.full_like(far, count - 1))
        return buckets + torch.where(distance < exact, distance, far)  # type: ignore[no-any-return]

    def _mask(self, query: Tensor, key: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
        """What is added to the scores: in each layer anew, since it can't be shared once it holds the lowest number."""
        lowest = torch.finfo(key.dtype).min
        if mask is not None:
            bias = torch.where(mask, bias, lowest)
        elif self.causal:
            queries, keys = query.shape[2], key.shape[2]
            at = torch.arange(queries, device=key.device)[:, None]
            visible = (at >= torch.arange(keys, device=key.device)[None, :]).view(1, 1, queries, keys)
            bias = torch.where(visible, bias, lowest)
        return bias.contiguous()


class FeedForward(nn.Module):
    """``wo(relu(wi(x)))``, or gated ``wo(gelu(wi_0(x)) * wi_1(x))``, with dropout before ``wo``."""

    def __init__(self, dims: EncoderDecoderDims) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dims.d_model, dims.d_ff, bias=False) if dims.gated else None
        self.up_proj = nn.Linear(dims.d_model, dims.d_ff, bias=False)
        self.down_proj = nn.Linear(dims.d_ff, dims.d_model, bias=False)
        self.act = activation("gelu_new" if dims.gated else "relu")
        self.dropout = dropout(dims.dropout_rate)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[batch, seq, d_model]`` in and out."""
        if self.gate_proj is not None:
            hidden = self.act(self.gate_proj(hidden)) * self.up_proj(hidden)
        else:
            hidden = self.act(self.up_proj(hidden))
        return self.down_proj(self.dropout(hidden))  # type: ignore[no-any-return]


class Layer(nn.Module):
    """Pre-norm attention, in the decoder also to the encoder's output, and feed-forward."""

    def __init__(self, dims: EncoderDecoderDims, *, decoder: bool, first: bool, gradient_checkpointing: bool) -> None:
        super().__init__()
        self.attention_norm = Norm(dims.d_model, dims.layer_norm_epsilon)
        self.attention = RelativeAttention(dims, causal=decoder, learns_bias=first, trains_zeros=gradient_checkpointing)
        self.cross_attention: RelativeAttention | None = None
        if decoder:
            self.cross_attention_norm = Norm(dims.d_model, dims.layer_norm_epsilon)
            self.cross_attention = RelativeAttention(
                dims, causal=False, learns_bias=False, trains_zeros=gradient_checkpointing
            )
        self.mlp_norm = Norm(dims.d_model, dims.layer_norm_epsilon)
        self.mlp = FeedForward(dims)
        self.dropout = dropout(dims.dropout_rate)
        self.gradient_checkpointing = gradient_checkpointing

    def forward(self, *args: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Hidden states, self-attention's bias and cross-attention's, for the next layer.

        Parameters
        ----------
        args
            Hidden states ``[batch, seq, d_model]``, mask, bias (None in the first layer), and for a
            decoder the encoder's output, the mask of its padding and the bias of cross-attention.
        """
        recompute = self.gradient_checkpointing and self.training
        return run_layer(self._body, recompute, *args)  # type: ignore[return-value, arg-type]

    def _body(
        self,
        hidden: Tensor,
        mask: Tensor | None,
        bias: Tensor | None,
        source: Tensor | None,
        source_mask: Tensor | None,
        cross_bias: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        out, bias = self.attention(self.attention_norm(hidden), mask, bias, None)
        hidden = _finite(hidden + self.dropout(out))
        if self.cross_attention is not None:
            out, cross_bias = self.cross_attention(self.cross_attention_norm(hidden), source_mask, cross_bias, source)
            hidden = _finite(hidden + self.dropout(out))
        hidden = hidden + self.dropout(self.mlp(self.mlp_norm(hidden)))
        return _finite(hidden), bias, cross_bias


def _finite(hidden: Tensor) -> Tensor:
    """T5 overflows in float16, where its code clamps."""
    if hidden.dtype != torch.float16:
        return hidden
    largest = torch.finfo(hidden.dtype).max
    limit = torch.where(torch.isinf(hidden).any(), largest - 1000, largest)
    return torch.clamp(hidden, min=-limit, max=limit)


class Stack(nn.Module):
    """The encoder or the decoder."""

    def __init__(self, dims: EncoderDecoderDims, *, decoder: bool, gradient_checkpointing: bool) -> None:
        super().__init__()
        self.causal = decoder
        self.layers = nn.ModuleList(
            Layer(dims, decoder=decoder, first=index == 0, gradient_checkpointing=gradient_checkpointing)
            for index in range(dims.num_decoder_layers if decoder else dims.num_layers)
        )
        self.norm = Norm(dims.d_model, dims.layer_norm_epsilon)
        self.dropout = dropout(dims.dropout_rate)

    def forward(
        self, embedded: Tensor, mask: Tensor | None, source: Tensor | None, source_mask: Tensor | None
    ) -> Tensor:
        """``[batch, seq, d_model]`` in and out; masks are boolean, ``[batch, 1, queries, keys]``, or None."""
        hidden, bias, cross_bias = self.dropout(embedded), None, None
        for layer in self.layers:
            hidden, bias, cross_bias = layer(hidden, mask, bias, source, source_mask, cross_bias)
        return self.dropout(self.norm(hidden))  # type: ignore[no-any-return]


class EncoderDecoder(nn.Module):
    """Source and target tokens in, mean cross-entropy of the targets out.

    Parameters
    ----------
    dims : EncoderDecoderDims
    gradient_checkpointing : bool
        Recompute each layer in backward.
    return_logits : bool
        Return :class:`EncoderDecoderOutput` instead of the loss alone.
    """

    def __init__(
        self, dims: EncoderDecoderDims, *, gradient_checkpointing: bool = False, return_logits: bool = False
    ) -> None:
        super().__init__()
        self.dims = dims
        self.return_logits = return_logits
        self.embed_tokens = nn.Embedding(dims.vocab_size, dims.d_model)
        self.encoder = Stack(dims, decoder=False, gradient_checkpointing=gradient_checkpointing)
        self.decoder = Stack(dims, decoder=True, gradient_checkpointing=gradient_checkpointing)
        self.lm_head = nn.Linear(dims.d_model, dims.vocab_size, bias=False)
        if dims.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(
        self, input_ids: Tensor, labels: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor | EncoderDecoderOutput:
        """The loss of one batch.

        Parameters
        ----------
        input_ids, labels : Tensor
            ``[batch, seq]`` and ``[batch, target_seq]`` of int64; a label of -100 doesn't count.
            The decoder reads the labels shifted to the right.
        attention_mask : Tensor, optional
            ``[batch, seq]``, nonzero where there is a source token.
        """
        mask = source_mask = None
        if attention_mask is not None:
            mask = source_padding(attention_mask, input_ids.shape[1])
            source_mask = source_padding(attention_mask, labels.shape[1])
        source = self.encoder(self.embed_tokens(input_ids), mask, None, None)
        targets = shifted_right(labels, self.dims.decoder_start_token_id, self.dims.pad_token_id)
        hidden = self.decoder(self.embed_tokens(targets), None, source, source_mask)
        if self.dims.tie_word_embeddings:
            hidden = hidden * self.dims.d_model**-0.5
        logits = self.lm_head(hidden)
        loss = functional.cross_entropy(logits.view(-1, logits.size(-1)), labels.view(-1), ignore_index=IGNORED_LABEL)
        return EncoderDecoderOutput(loss, logits, source) if self.return_logits else loss


def shifted_right(labels: Tensor, start: int, pad: int) -> Tensor:
    """What the decoder reads to predict ``labels`` ``[batch, target_seq]``: a start token, then all but the last."""
    shifted = labels.new_zeros(labels.shape)
    shifted[..., 1:] = labels[..., :-1].clone()
    shifted[..., 0] = start
    return shifted.masked_fill_(shifted == IGNORED_LABEL, pad)


def source_padding(padding: Tensor, queries: int) -> Tensor:
    """Boolean ``[batch, 1, queries, seq]`` from ``[batch, seq]``: no query sees padding of the source."""
    positions = torch.arange(queries, device=padding.device)
    return (positions[:, None] >= 0) & padding.to(torch.bool)[:, None, None, :]


def build(
    dims: EncoderDecoderDims, *, gradient_checkpointing: bool = False, return_logits: bool = False
) -> EncoderDecoder:
    """An encoder-decoder in training mode; see :class:`EncoderDecoder`."""
    return EncoderDecoder(dims, gradient_checkpointing=gradient_checkpointing, return_logits=return_logits)
