"""Dimensions of an encoder-decoder transformer: T5. Without PyTorch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from perfmodel.models.checks import check_choice, check_flags
from perfmodel.models.records import Record, check_numbers, check_probabilities, check_sizes
from perfmodel.models.stacks import LayerStack

__all__ = ["EncoderDecoderDims"]

#: By name; ``gated-gelu`` is T5 1.1's, with the tanh approximation.
_FEED_FORWARDS = ("relu", "gated-gelu")


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderDecoderDims(Record):
    """T5 with a language-modelling head (Raffel et al. 2020; names are those of Hugging Face's T5Config).

    Attributes
    ----------
    vocab_size, d_model, d_kv, d_ff, num_heads : int
        ``num_heads * d_kv`` need not be ``d_model``.
    num_layers, num_decoder_layers : int
        Of the encoder and of the decoder.
    relative_attention_num_buckets, relative_attention_max_distance : int
        Of the bias by distance, which the first layer of each stack learns for all of them.
    feed_forward_proj : {"relu", "gated-gelu"}
    tie_word_embeddings : bool
        Whether the head uses the weight of the token embedding, with its input scaled by
        ``d_model ** -0.5`` (T5 1.0), or has its own (1.1 and Flan).
    layer_norm_epsilon : float
    dropout_rate : float
        Everywhere: embeddings, attention probabilities, within the feed-forward, residuals.
    pad_token_id, decoder_start_token_id : int
        What an ignored label becomes as the decoder's input, and the first of these inputs.
    """

    family: ClassVar[str] = "encoder-decoder"

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_decoder_layers: int
    num_heads: int
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    feed_forward_proj: str = "relu"
    tie_word_embeddings: bool = True
    layer_norm_epsilon: float = 1e-6
    dropout_rate: float = 0.1
    pad_token_id: int = 0
    decoder_start_token_id: int = 0

    def __post_init__(self) -> None:
        check_sizes(
            self, "vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads",
            "relative_attention_num_buckets", "relative_attention_max_distance",
        )  # fmt: skip
        check_sizes(self, "pad_token_id", "decoder_start_token_id", least=0)
        check_choice("feed_forward_proj", self.feed_forward_proj, _FEED_FORWARDS)
        check_flags(self, ("tie_word_embeddings",))
        check_numbers(self, "layer_norm_epsilon")
        check_probabilities(self, "dropout_rate")

    @property
    def gated(self) -> bool:
        """Whether the feed-forward is ``wo(act(wi_0(x)) * wi_1(x))``."""
        return self.feed_forward_proj == "gated-gelu"

    @property
    def stacks(self) -> tuple[LayerStack, ...]:
        """The first layer of each has the bias by distance."""
        return (
            LayerStack(path="encoder.layers", depth=self.num_layers, prefix=1),
            LayerStack(path="decoder.layers", depth=self.num_decoder_layers, prefix=1),
        )

    def with_depths(self, depths: Mapping[str, int]) -> EncoderDecoderDims:
        """The same model with another number of layers in one stack or both."""
        return dataclasses.replace(
            self,
            num_layers=depths.get("encoder.layers", self.num_layers),
            num_decoder_layers=depths.get("decoder.layers", self.num_decoder_layers),
        )

    def parameters(self) -> int:
        r"""Trainable numbers of the model with its head.

        With V vocabulary, D model width, A heads of width d, F feed-forward
        width, R buckets, and L and M layers::

            attention = 4 D A d
            mlp       = 2 D F, gated 3 D F
            encoder   = L (attention + mlp + 2 D)   + R A + D
            decoder   = M (2 attention + mlp + 3 D) + R A + D
            total     = V D + encoder + decoder + V D (0 if tied)

        Examples
        --------
        >>> from perfmodel.models import catalogue
        >>> catalogue.get("t5-small").dims.parameters()
        60506624
        """
        width, attention, mlp = self.d_model, 4 * self._projection, self._mlp
        bias = self.relative_attention_num_buckets * self.num_heads
        encoder = self.num_layers * (attention + mlp + 2 * width) + bias + width
        decoder = self.num_decoder_layers * (2 * attention + mlp + 3 * width) + bias + width
        embeddings = self.vocab_size * width * (1 if self.tie_word_embeddings else 2)
        return embeddings + encoder + decoder

    def closed_form_flops(self, bindings: Mapping[str, int]) -> float:
        """Model flops of a training step: 6 a weight and token that meets it, and 12 A d a pair of positions.

        PaLM's formula (Chowdhery et al. 2022, appendix B) with the two sequences
        told apart: the encoder's weights and the keys and values of
        cross-attention meet the source, the decoder's others and the head the target.
        """
        batch, source, target = bindings["batch"], bindings["seq"], bindings["target_seq"]
        projection, mlp = self._projection, self._mlp
        on_source = self.num_layers * (4 * projection + mlp) + self.num_decoder_layers * 2 * projection
        on_target = self.num_decoder_layers * (6 * projection + mlp) + self.vocab_size * self.d_model
        pairs = self.num_layers * source**2 + self.num_decoder_layers * (target**2 + source * target)
        weights = 6 * (on_source * source + on_target * target)
        return float(batch * (weights + 12 * self.num_heads * self.d_kv * pairs))

    @property
    def _projection(self) -> int:
        return self.d_model * self.num_heads * self.d_kv

    @property
    def _mlp(self) -> int:
        return (3 if self.gated else 2) * self.d_model * self.d_ff
