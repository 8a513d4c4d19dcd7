"""Dimensions of plain nets: feed-forward, recurrent, and PyTorch's own transformer. Without PyTorch."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from perfmodel.errors import UnsupportedError
from perfmodel.models.checks import check_choice, check_flags
from perfmodel.models.records import Record, check_probabilities, check_sizes
from perfmodel.models.stacks import LayerStack

__all__ = ["CELLS", "FeedForwardDims", "RecurrentDims", "TranslatorDims"]

#: Gates of a recurrent cell, each with a product of the input and one of the state.
CELLS = {"lstm": 4, "gru": 3}


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedForwardDims(Record):
    """Linear layers with ReLU between them, and a class for each input.

    Attributes
    ----------
    in_features : int
    hidden_sizes : tuple of int
    num_labels : int
    """

    family: ClassVar[str] = "feed-forward"

    in_features: int
    hidden_sizes: tuple[int, ...]
    num_labels: int

    def __post_init__(self) -> None:
        check_sizes(self, "in_features", "hidden_sizes", "num_labels")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Features from the input to the output."""
        return (self.in_features, *self.hidden_sizes, self.num_labels)

    def parameters(self) -> int:
        """Trainable numbers: of each layer a matrix and a bias.

        Examples
        --------
        >>> FeedForwardDims(in_features=784, hidden_sizes=(300, 100), num_labels=10).parameters()
        266610
        """
        return sum((a + 1) * b for a, b in itertools.pairwise(self.sizes))

    def closed_form_flops(self, bindings: Mapping[str, int]) -> float:
        """Model flops of a training step, 6 a weight and input (Kaplan et al. 2020, section 2.1)."""
        return 6.0 * bindings["batch"] * sum(a * b for a, b in itertools.pairwise(self.sizes))


@dataclass(frozen=True, kw_only=True, slots=True)
class RecurrentDims(Record):
    """A language model of recurrent layers (Zaremba et al. 2014), with the two biases a gate that cuDNN has.

    Attributes
    ----------
    cell : {"lstm", "gru"}
    vocab_size, embedding_size, hidden_size, num_hidden_layers : int
    dropout : float
        On the embeddings, between layers and before the head.
    tie_word_embeddings : bool
        Whether the head uses the weight of the token embedding.
    """

    family: ClassVar[str] = "recurrent"

    cell: str
    vocab_size: int
    embedding_size: int
    hidden_size: int
    num_hidden_layers: int
    dropout: float = 0.0
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        check_choice("cell", self.cell, CELLS)
        check_sizes(self, "vocab_size", "embedding_size", "hidden_size", "num_hidden_layers")
        check_probabilities(self, "dropout")
        check_flags(self, ("tie_word_embeddings",))
        if self.tie_word_embeddings and self.embedding_size != self.hidden_size:
            raise UnsupportedError(
                f"tied embeddings need embedding_size={self.embedding_size} to be hidden_size={self.hidden_size}; "
                "change one of them, or set tie_word_embeddings=False"
            )

    def parameters(self) -> int:
        """Trainable numbers: embedding V E, of a layer with G gates G (H I + H² + 2 H), head V H (0 if tied) + V.

        Examples
        --------
        >>> from perfmodel.models import catalogue
        >>> catalogue.get("lstm-ptb-large").dims.parameters()
        66034000
        """
        gates, hidden = CELLS[self.cell], self.hidden_size
        layers = sum(gates * hidden * (size + hidden + 2) for size in self._input_sizes())
        head = self.vocab_size * (1 if self.tie_word_embeddings else 1 + hidden)
        return self.vocab_size * self.embedding_size + layers + head

    def closed_form_flops(self, bindings: Mapping[str, int]) -> float:
        """Model flops of a training step, 6 a weight of a product and token."""
        gates, hidden = CELLS[self.cell], self.hidden_size
        weights = sum(gates * hidden * (size + hidden) for size in self._input_sizes()) + self.vocab_size * hidden
        return 6.0 * bindings["batch"] * bindings["seq"] * weights

    def _input_sizes(self) -> tuple[int, ...]:
        return (self.embedding_size, *(self.hidden_size for _ in range(self.num_hidden_layers - 1)))


@dataclass(frozen=True, kw_only=True, slots=True)
class TranslatorDims(Record):
    """PyTorch's ``nn.Transformer`` as a translator, with sinusoidal positions (Vaswani et al. 2017).

    It has a norm after each stack, which the paper's hasn't.

    Attributes
    ----------
    vocab_size, target_vocab_size : int
        The decoder's embedding is also the head's weight.
    d_model, nhead, num_encoder_layers, num_decoder_layers, dim_feedforward : int
    max_position_embeddings : int
        Length of the table of positions.
    dropout : float
    """

    family: ClassVar[str] = "translator"

    vocab_size: int
    target_vocab_size: int
    d_model: int
    nhead: int
    num_encoder_layers: int
    num_decoder_layers: int
    dim_feedforward: int
    max_position_embeddings: int = 1024
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_sizes(
            self, "vocab_size", "target_vocab_size", "d_model", "nhead", "num_encoder_layers", "num_decoder_layers",
            "dim_feedforward", "max_position_embeddings",
        )  # fmt: skip
        check_probabilities(self, "dropout")
        if self.d_model % self.nhead or self.d_model % 2:
            raise UnsupportedError(
                f"d_model={self.d_model} must be even and a multiple of nhead={self.nhead}; change one of them"
            )

    @property
    def max_length(self) -> int:
        """Length of the table of positions."""
        return self.max_position_embeddings

    @property
    def stacks(self) -> tuple[LayerStack, ...]:
        """The encoder's layers and the decoder's."""
        return (
            LayerStack(path="transformer.encoder.layers", depth=self.num_encoder_layers),
            # The last layer but one is where gradients of the encoder's output are first added: one more is captured.
            LayerStack(path="transformer.decoder.layers", depth=self.num_decoder_layers, prefix=1),
        )

    def with_depths(self, depths: Mapping[str, int]) -> TranslatorDims:
        """The same model with another number of layers in one stack or both."""
        return dataclasses.replace(
            self,
            num_encoder_layers=depths.get("transformer.encoder.layers", self.num_encoder_layers),
            num_decoder_layers=depths.get("transformer.decoder.layers", self.num_decoder_layers),
        )

    def parameters(self) -> int:
        r"""Trainable numbers of the model with its head.

        With V and W vocabularies, D width, F feed-forward width, L and M layers::

            attention = 4 D² + 4 D
            encoder   = L (attention + 2 D F + F + D + 4 D)   + 2 D
            decoder   = M (2 attention + 2 D F + F + D + 6 D) + 2 D
            total     = V D + W D + encoder + decoder

        Examples
        --------
        >>> from perfmodel.models import catalogue
        >>> catalogue.get("transformer-iwslt-de-en").dims.parameters()
        39471104
        """
        width, attention = self.d_model, 4 * self.d_model * (self.d_model + 1)
        mlp = (2 * width + 1) * self.dim_feedforward + width
        encoder = self.num_encoder_layers * (attention + mlp + 4 * width) + 2 * width
        decoder = self.num_decoder_layers * (2 * attention + mlp + 6 * width) + 2 * width
        return (self.vocab_size + self.target_vocab_size) * width + encoder + decoder

    def closed_form_flops(self, bindings: Mapping[str, int]) -> float:
        """Model flops of a training step: 6 a weight and token that meets it, and 12 D a pair of positions.

        PaLM's formula (Chowdhery et al. 2022, appendix B), source and target told apart.
        """
        batch, source, target = bindings["batch"], bindings["seq"], bindings["target_seq"]
        square, mlp = self.d_model**2, 2 * self.d_model * self.dim_feedforward
        on_source = self.num_encoder_layers * (4 * square + mlp) + self.num_decoder_layers * 2 * square
        on_target = self.num_decoder_layers * (6 * square + mlp) + self.target_vocab_size * self.d_model
        pairs = self.num_encoder_layers * source**2 + self.num_decoder_layers * (target**2 + source * target)
        return float(batch * (6 * (on_source * source + on_target * target) + 12 * self.d_model * pairs))
