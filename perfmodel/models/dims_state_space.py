"""Dimensions of a state-space language model: Mamba and Mamba-2. Without PyTorch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from perfmodel.errors import UnsupportedError
from perfmodel.models.checks import check_choice, check_flags
from perfmodel.models.records import Record, check_numbers, check_sizes
from perfmodel.models.stacks import LayerStack

__all__ = ["StateSpaceDims"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StateSpaceDims(Record):
    """A language model of selective state-space layers; names are those of MambaConfig and Mamba2Config.

    Attributes
    ----------
    scan : {"selective", "ssd"}
        Mamba's, with a decay for each channel and state (Gu & Dao 2023), or Mamba-2's, with
        one for each head, by chunks (Dao & Gu 2024).
    vocab_size, hidden_size, num_hidden_layers, state_size : int
    expand : int
        Channels of the scan over ``hidden_size``.
    conv_kernel : int
        Width of the convolution before the scan.
    head_dim, n_groups, chunk_size : int
        Of Mamba-2: channels of a head, groups of heads that share B and C, positions of a chunk.
    use_bias, use_conv_bias : bool
        Biases of the projections and of the convolution.
    residual_in_fp32 : bool
    layer_norm_epsilon : float
    tie_word_embeddings : bool
    """

    family: ClassVar[str] = "state-space"

    scan: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    state_size: int
    expand: int = 2
    conv_kernel: int = 4
    head_dim: int = 64
    n_groups: int = 1
    chunk_size: int = 256
    use_bias: bool = False
    use_conv_bias: bool = True
    residual_in_fp32: bool = True
    layer_norm_epsilon: float = 1e-5
    tie_word_embeddings: bool = True

    def __post_init__(self) -> None:
        check_choice("scan", self.scan, ("selective", "ssd"))
        check_sizes(
            self, "vocab_size", "hidden_size", "num_hidden_layers", "state_size", "expand", "conv_kernel", "head_dim",
            "n_groups", "chunk_size",
        )  # fmt: skip
        check_flags(self, ("use_bias", "use_conv_bias", "residual_in_fp32", "tie_word_embeddings"))
        check_numbers(self, "layer_norm_epsilon")
        if self.scan == "ssd" and (self.channels % self.head_dim or self.num_heads % self.n_groups):
            raise UnsupportedError(
                f"{self.channels} channels don't make heads of {self.head_dim} in {self.n_groups} groups; "
                "change head_dim or n_groups"
            )

    @property
    def channels(self) -> int:
        """Of the scan."""
        return self.expand * self.hidden_size

    @property
    def num_heads(self) -> int:
        """Heads of Mamba-2."""
        return self.channels // self.head_dim

    @property
    def time_step_rank(self) -> int:
        """Width from which Mamba makes the time step of each channel."""
        return math.ceil(self.hidden_size / 16)

    @property
    def conv_channels(self) -> int:
        """Channels of the convolution; Mamba-2's also smooths B and C."""
        return self.channels + (2 * self.n_groups * self.state_size if self.scan == "ssd" else 0)

    @property
    def stacks(self) -> tuple[LayerStack, ...]:
        """The one stack of layers."""
        return (LayerStack(path="layers", depth=self.num_hidden_layers),)

    def with_depths(self, depths: Mapping[str, int]) -> StateSpaceDims:
        """The same model with another number of layers."""
        return dataclasses.replace(self, num_hidden_layers=depths["layers"])

    def parameters(self) -> int:
        r"""Trainable numbers of the model with its head.

        With V vocabulary, H hidden, L layers, I channels, N states, k convolution, R time-step rank, G groups and
        A heads::

            Mamba    = 2 H I + (k + 1) I + I (R + 2 N) + R I + I + I N + I + I H
            Mamba-2  = H (2 I + 2 G N + A) + (k + 1)(I + 2 G N) + 3 A + I + I H
            total    = V H + L (layer + H) + H + V H (0 if tied)

        Examples
        --------
        >>> from perfmodel.models import catalogue
        >>> catalogue.get("mamba2-2.7b").dims.parameters()
        2702599680
        """
        hidden, channels = self.hidden_size, self.channels
        convolution = (self.conv_kernel + int(self.use_conv_bias)) * self.conv_channels
        own = 3 * self.num_heads + channels if self.scan == "ssd" else channels * (self.state_size + 2)
        biases = self._projected + hidden if self.use_bias else 0
        layer = self._layer_weights + convolution + own + biases + hidden
        head = 0 if self.tie_word_embeddings else self.vocab_size * hidden
        return self.vocab_size * hidden + self.num_hidden_layers * layer + hidden + head

    def closed_form_flops(self, bindings: Mapping[str, int]) -> float:
        """Model flops of a training step, 6 a weight of a product and token; the scan isn't counted.

        The convolution's weights count among them.
        """
        weights = self._layer_weights + self.conv_kernel * self.conv_channels
        total = self.num_hidden_layers * weights + self.vocab_size * self.hidden_size
        return 6.0 * bindings["batch"] * bindings["seq"] * total

    @property
    def _projected(self) -> int:
        """Outputs of the first projection of a layer."""
        return self.channels + self.conv_channels + (self.num_heads if self.scan == "ssd" else 0)

    @property
    def _layer_weights(self) -> int:
        """Weights of a layer's matrix products."""
        weights = self.hidden_size * (self._projected + self.channels)
        if self.scan == "selective":
            weights += self.channels * (2 * self.time_step_rank + 2 * self.state_size)
        return weights
