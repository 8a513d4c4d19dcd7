"""Dimensions of a speech-to-text transformer: Whisper. Without PyTorch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from perfmodel.errors import UnsupportedError
from perfmodel.models.checks import check_choice
from perfmodel.models.dims import HIDDEN_ACTS
from perfmodel.models.records import Record, check_probabilities, check_sizes
from perfmodel.models.stacks import LayerStack

__all__ = ["SpeechDims"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeechDims(Record):
    """Whisper with its language-modelling head (Radford et al. 2022; names are those of WhisperConfig).

    Attributes
    ----------
    vocab_size, d_model, num_mel_bins : int
    encoder_layers, encoder_attention_heads, encoder_ffn_dim : int
    decoder_layers, decoder_attention_heads, decoder_ffn_dim : int
    max_source_positions : int
        Positions of the encoder; the audio is always padded to twice as many frames.
    max_target_positions : int
        Longest text.
    activation_function : str
    dropout, attention_dropout, activation_dropout : float
    pad_token_id, decoder_start_token_id : int
        What an ignored label becomes as the decoder's input, and the first of these inputs.
    """

    family: ClassVar[str] = "speech"

    vocab_size: int
    d_model: int
    encoder_layers: int
    encoder_attention_heads: int
    encoder_ffn_dim: int
    decoder_layers: int
    decoder_attention_heads: int
    decoder_ffn_dim: int
    num_mel_bins: int = 80
    max_source_positions: int = 1500
    max_target_positions: int = 448
    activation_function: str = "gelu"
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    pad_token_id: int = 50257
    decoder_start_token_id: int = 50258

    def __post_init__(self) -> None:
        check_sizes(
            self, "vocab_size", "d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim",
            "decoder_layers", "decoder_attention_heads", "decoder_ffn_dim", "num_mel_bins", "max_source_positions",
            "max_target_positions",
        )  # fmt: skip
        check_sizes(self, "pad_token_id", "decoder_start_token_id", least=0)
        check_choice("activation_function", self.activation_function, HIDDEN_ACTS)
        check_probabilities(self, "dropout", "attention_dropout", "activation_dropout")
        for name in ("pad_token_id", "decoder_start_token_id"):
            if getattr(self, name) >= self.vocab_size:
                raise UnsupportedError(
                    f"{name}={getattr(self, name)} is no token; give one below vocab_size={self.vocab_size}"
                )
        for name in ("encoder_attention_heads", "decoder_attention_heads"):
            if self.d_model % getattr(self, name):
                raise UnsupportedError(
                    f"{name}={getattr(self, name)} doesn't divide d_model={self.d_model}; give one that does"
                )

    @property
    def num_frames(self) -> int:
        """Frames of audio that the model takes; the second convolution halves them."""
        return 2 * self.max_source_positions

    @property
    def max_length(self) -> int:
        """Longest text."""
        return self.max_target_positions

    @property
    def stacks(self) -> tuple[LayerStack, ...]:
        """The encoder's layers and the decoder's."""
        return (
            LayerStack(path="encoder.layers", depth=self.encoder_layers),
            LayerStack(path="decoder.layers", depth=self.decoder_layers),
        )

    def with_depths(self, depths: Mapping[str, int]) -> SpeechDims:
        """The same model with another number of layers in one stack or both."""
        return dataclasses.replace(
            self,
            encoder_layers=depths.get("encoder.layers", self.encoder_layers),
            decoder_layers=depths.get("decoder.layers", self.decoder_layers),
        )

    def parameters(self) -> int:
        r"""Trainable numbers of the model with its head, which is tied; the encoder's sinusoids are none.

        With V vocabulary, D width, b mel bins, T text positions, L and M layers and widths F and G::

            attention = 4 D² + 3 D            keys have no bias
            encoder   = 3 b D + D + 3 D² + D  + L (attention + 2 D F + F + D + 4 D) + 2 D
            decoder   = V D + T D             + M (2 attention + 2 D G + G + D + 6 D) + 2 D

        Examples
        --------
        >>> from perfmodel.models import catalogue
        >>> catalogue.get("whisper-base").dims.parameters()
        71825920
        """
        width, attention = self.d_model, 4 * self.d_model**2 + 3 * self.d_model
        front = 3 * self.num_mel_bins * width + 3 * width**2 + 2 * width
        encoder = attention + self._mlp(self.encoder_ffn_dim) + self.encoder_ffn_dim + 5 * width
        decoder = 2 * attention + self._mlp(self.decoder_ffn_dim) + self.decoder_ffn_dim + 7 * width
        embeddings = (self.vocab_size + self.max_target_positions) * width
        return front + self.encoder_layers * encoder + embeddings + self.decoder_layers * decoder + 4 * width

    def closed_form_flops(self, bindings: Mapping[str, int]) -> float:
        """Model flops of a training step: 6 a weight and position that meets it, and 12 D a pair of positions.

        PaLM's formula (Chowdhery et al. 2022, appendix B) with audio and text told
        apart, as for an encoder-decoder of text; the convolutions of the front end
        count as weights at each of their outputs.
        """
        source, target, square = self.max_source_positions, bindings["seq"], self.d_model**2
        on_source = self.encoder_layers * (4 * square + self._mlp(self.encoder_ffn_dim))
        on_source += self.decoder_layers * 2 * square + 3 * square + 2 * 3 * self.num_mel_bins * self.d_model
        on_target = self.decoder_layers * (6 * square + self._mlp(self.decoder_ffn_dim))
        on_target += self.vocab_size * self.d_model
        pairs = self.encoder_layers * source**2 + self.decoder_layers * (target**2 + source * target)
        weights = 6 * (on_source * source + on_target * target)
        return float(bindings["batch"] * (weights + 12 * self.d_model * pairs))

    def _mlp(self, inner: int) -> int:
        return 2 * self.d_model * inner
