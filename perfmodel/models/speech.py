"""Speech to text: Whisper.

Op for op what Hugging Face's transformers run with ``attn_implementation="sdpa"``,
as in :mod:`perfmodel.models.layers`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from perfmodel.errors import ShapeError
from perfmodel.models.dims_speech import SpeechDims
from perfmodel.models.encoder_decoder import EncoderDecoderOutput, shifted_right
from perfmodel.models.layers import activation, dropout, run_layer

__all__ = ["SpeechToText", "build"]


class Attention(nn.Module):
    """Attention of a sequence to itself or to ``source``; queries are scaled before the product."""

    def __init__(self, dims: SpeechDims, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, dims.d_model // heads
        self.causal = causal
        self.dropout = dims.attention_dropout
        self.k_proj = nn.Linear(dims.d_model, dims.d_model, bias=False)
        self.v_proj = nn.Linear(dims.d_model, dims.d_model)
        self.q_proj = nn.Linear(dims.d_model, dims.d_model)
        self.o_proj = nn.Linear(dims.d_model, dims.d_model)

    def forward(self, hidden: Tensor, source: Tensor | None) -> Tensor:
        """``[batch, positions, d_model]`` in and out."""
        states = hidden if source is None else source
        query = self._heads(self.q_proj(hidden) * self.head_dim**-0.5)
        key, value = self._heads(self.k_proj(states)), self._heads(self.v_proj(states))
        out = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=self.causal,
            scale=1.0,
        )
        out = out.transpose(1, 2).contiguous().reshape(*hidden.shape[:-1], -1)
        return self.o_proj(out)  # type: ignore[no-any-return]

    def _heads(self, states: Tensor) -> Tensor:
        return states.view(states.shape[0], -1, self.heads, self.head_dim).transpose(1, 2).contiguous()


class FeedForward(nn.Module):
    """``down(act(up(x)))``."""

    def __init__(self, dims: SpeechDims, inner: int) -> None:
        super().__init__()
        self.act = activation(dims.activation_function)
        self.up_proj = nn.Linear(dims.d_model, inner)
        self.down_proj = nn.Linear(inner, dims.d_model)
        self.dropout = dropout(dims.activation_dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[batch, positions, d_model]`` in and out."""
        return self.down_proj(self.dropout(self.act(self.up_proj(hidden))))  # type: ignore[no-any-return]


class EncoderLayer(nn.Module):
    """Pre-norm attention and feed-forward over audio."""

    def __init__(self, dims: SpeechDims, *, gradient_checkpointing: bool) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dims.d_model)
        self.attention = Attention(dims, dims.encoder_attention_heads, causal=False)
        self.mlp_norm = nn.LayerNorm(dims.d_model)
        self.mlp = FeedForward(dims, dims.encoder_ffn_dim)
        self.dropout = dropout(dims.dropout)
        self.gradient_checkpointing = gradient_checkpointing

    def forward(self, hidden: Tensor) -> Tensor:
        """``[batch, positions, d_model]`` in and out."""
        return run_layer(self._body, self.gradient_checkpointing and self.training, hidden)

    def _body(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.dropout(self.attention(self.attention_norm(hidden), None))
        hidden = hidden + self.dropout(self.mlp(self.mlp_norm(hidden)))
        if hidden.dtype == torch.float16:
            limit = torch.finfo(hidden.dtype).max - 1000
            hidden = torch.clamp(hidden, min=-limit, max=limit)
        return hidden


class DecoderLayer(nn.Module):
    """Pre-norm attention over text, then over audio, and feed-forward."""

    def __init__(self, dims: SpeechDims, *, gradient_checkpointing: bool) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dims.d_model)
        self.attention = Attention(dims, dims.decoder_attention_heads, causal=True)
        self.cross_attention_norm = nn.LayerNorm(dims.d_model)
        self.cross_attention = Attention(dims, dims.decoder_attention_heads, causal=False)
        self.mlp_norm = nn.LayerNorm(dims.d_model)
        self.mlp = FeedForward(dims, dims.decoder_ffn_dim)
        self.dropout = dropout(dims.dropout)
        self.gradient_checkpointing = gradient_checkpointing

    def forward(self, hidden: Tensor, source: Tensor) -> Tensor:
        """``[batch, positions, d_model]`` in and out."""
        return run_layer(self._body, self.gradient_checkpointing and self.training, hidden, source)

    def _body(self, hidden: Tensor, source: Tensor) -> Tensor:
        hidden = hidden + self.dropout(self.attention(self.attention_norm(hidden), None))
        hidden = hidden + self.dropout(self.cross_attention(self.cross_attention_norm(hidden), source))
        return hidden + self.dropout(self.mlp(self.mlp_norm(hidden)))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """Mel spectrograms to hidden states, half as many as frames."""

    def __init__(self, dims: SpeechDims, *, gradient_checkpointing: bool) -> None:
        super().__init__()
        self.dims = dims
        self.conv1 = nn.Conv1d(dims.num_mel_bins, dims.d_model, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(dims.d_model, dims.d_model, kernel_size=3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(dims.max_source_positions, dims.d_model)
        self.embed_positions.requires_grad_(False)  # sinusoids
        self.layers = nn.ModuleList(
            EncoderLayer(dims, gradient_checkpointing=gradient_checkpointing) for _ in range(dims.encoder_layers)
        )
        self.norm = nn.LayerNorm(dims.d_model)
        self.dropout = dropout(dims.dropout)

    def forward(self, features: Tensor) -> Tensor:
        """``[batch, mel bins, frames]`` to ``[batch, positions, d_model]``."""
        hidden = functional.gelu(self.conv1(features))
        hidden = functional.gelu(self.conv2(hidden)).permute(0, 2, 1)
        places = self.embed_positions(torch.arange(self.dims.max_source_positions, device=hidden.device))
        hidden = self.dropout(hidden + places)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.norm(hidden)  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Tokens and the encoder's hidden states to hidden states."""

    def __init__(self, dims: SpeechDims, *, gradient_checkpointing: bool) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(dims.vocab_size, dims.d_model, dims.pad_token_id)
        self.embed_positions = nn.Embedding(dims.max_target_positions, dims.d_model)
        self.layers = nn.ModuleList(
            DecoderLayer(dims, gradient_checkpointing=gradient_checkpointing) for _ in range(dims.decoder_layers)
        )
        self.norm = nn.LayerNorm(dims.d_model)
        self.dropout = dropout(dims.dropout)

    def forward(self, input_ids: Tensor, source: Tensor) -> Tensor:
        """``[batch, seq]`` of int64 to ``[batch, seq, d_model]``."""
        hidden = self.embed_tokens(input_ids)
        positions = torch.arange(hidden.shape[1], device=hidden.device).unsqueeze(0).repeat(hidden.shape[0], 1)
        # An index and no embedding, as in the original, whose backward is another.
        hidden = self.dropout(hidden + self.embed_positions.weight[positions])
        for layer in self.layers:
            hidden = layer(hidden, source)
        return self.norm(hidden)  # type: ignore[no-any-return]


class SpeechToText(nn.Module):
    """Audio and its text in, mean cross-entropy of the text out.

    Parameters
    ----------
    dims : SpeechDims
    gradient_checkpointing : bool
        Recompute each layer in backward.
    return_logits : bool
        Return an :class:`perfmodel.models.encoder_decoder.EncoderDecoderOutput` instead of the loss alone.
    """

    def __init__(self, dims: SpeechDims, *, gradient_checkpointing: bool = False, return_logits: bool = False) -> None:
        super().__init__()
        self.dims = dims
        self.return_logits = return_logits
        self.encoder = Encoder(dims, gradient_checkpointing=gradient_checkpointing)
        self.decoder = Decoder(dims, gradient_checkpointing=gradient_checkpointing)
        self.lm_head = nn.Linear(dims.d_model, dims.vocab_size, bias=False)
        self.lm_head.weight = self.decoder.embed_tokens.weight

    def forward(self, input_features: Tensor, labels: Tensor) -> Tensor | EncoderDecoderOutput:
        """The loss of one batch.

        Parameters
        ----------
        input_features : Tensor
            ``[batch, mel bins, frames]`` in the type of the parameters; the audio is padded to all frames.
        labels : Tensor
            ``[batch, seq]`` of int64; a label of -100 doesn't count. The decoder reads them shifted to the right.

        Raises
        ------
        ShapeError
            If the text is longer than the model's positions.
        """
        longest = self.dims.max_target_positions
        if labels.shape[1] > longest:
            raise ShapeError(
                f"a text of {labels.shape[1]} tokens is longer than the {longest} learned positions; "
                f"give at most {longest}"
            )
        source = self.encoder(input_features)
        tokens = shifted_right(labels, self.dims.decoder_start_token_id, self.dims.pad_token_id)
        logits = self.lm_head(self.decoder(tokens, source))
        loss = functional.cross_entropy(logits.view(-1, self.dims.vocab_size), labels.reshape(-1))
        return EncoderDecoderOutput(loss, logits, source) if self.return_logits else loss


def build(dims: SpeechDims, *, gradient_checkpointing: bool = False, return_logits: bool = False) -> SpeechToText:
    """A speech-to-text model in training mode; see :class:`SpeechToText`."""
    return SpeechToText(dims, gradient_checkpointing=gradient_checkpointing, return_logits=return_logits)
