"""Dimensions of a vision transformer. Without PyTorch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from perfmodel.errors import UnsupportedError
from perfmodel.models.checks import check_choice, check_flags
from perfmodel.models.dims import HIDDEN_ACTS
from perfmodel.models.records import Record, check_numbers, check_probabilities, check_sizes
from perfmodel.models.stacks import LayerStack

__all__ = ["VisionDims"]


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionDims(Record):
    """A vision transformer that sorts images into classes (Dosovitskiy et al. 2020; names are those of ViTConfig).

    Attributes
    ----------
    image_size, patch_size, num_channels : int
        Of square images and patches, in pixels.
    hidden_size, num_hidden_layers, num_attention_heads, intermediate_size : int
    num_labels : int
        Number of classes.
    hidden_act : str
    layer_norm_eps : float
    qkv_bias : bool
        Whether queries, keys and values have a bias.
    hidden_dropout_prob, attention_probs_dropout_prob : float
    """

    family: ClassVar[str] = "vision"

    image_size: int
    patch_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    num_labels: int
    num_channels: int = 3
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    qkv_bias: bool = True
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0

    def __post_init__(self) -> None:
        check_sizes(
            self, "image_size", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
            "intermediate_size", "num_labels", "num_channels",
        )  # fmt: skip
        check_choice("hidden_act", self.hidden_act, HIDDEN_ACTS)
        check_flags(self, ("qkv_bias",))
        check_numbers(self, "layer_norm_eps")
        check_probabilities(self, "hidden_dropout_prob", "attention_probs_dropout_prob")
        for size, of in (("num_attention_heads", "hidden_size"), ("patch_size", "image_size")):
            if getattr(self, of) % getattr(self, size):
                raise UnsupportedError(
                    f"{size}={getattr(self, size)} doesn't divide {of}={getattr(self, of)}; give one that does"
                )

    @property
    def num_patches(self) -> int:
        """Patches of an image; attention sees one position more, for the class."""
        return int((self.image_size // self.patch_size) ** 2)

    @property
    def stacks(self) -> tuple[LayerStack, ...]:
        """The one stack of layers."""
        return (LayerStack(path="layers", depth=self.num_hidden_layers),)

    def with_depths(self, depths: Mapping[str, int]) -> VisionDims:
        """The same model with another number of layers."""
        return dataclasses.replace(self, num_hidden_layers=depths["layers"])

    def parameters(self) -> int:
        r"""Trainable numbers of the model with its classifier.

        With C channels, p patch size, n patches, H hidden, F intermediate, L layers and K classes::

            embeddings = (C p² H + H) + H + (n + 1) H
            layer      = 4 H² + H + 3 H (biases of q, k, v) + 2 H F + F + H + 4 H
            total      = embeddings + L layer + 2 H + K H + K

        Examples
        --------
        >>> from perfmodel.models import catalogue
        >>> catalogue.get("vit-base-patch16-224").dims.parameters()
        86567656
        """
        hidden, inner = self.hidden_size, self.intermediate_size
        embeddings = self._patch_weights + hidden + hidden + (self.num_patches + 1) * hidden
        biases = hidden + (3 * hidden if self.qkv_bias else 0) + inner + hidden
        layer = self._layer_weights + biases + 4 * hidden
        return embeddings + self.num_hidden_layers * layer + 2 * hidden + self.num_labels * (hidden + 1)

    def closed_form_flops(self, bindings: Mapping[str, int]) -> float:
        """Model flops of a training step: 6 a weight and position that meets it, and 12 L H a pair of positions.

        PaLM's formula (Chowdhery et al. 2022, appendix B) for positions of an image.
        """
        positions = self.num_patches + 1
        weights = self.num_hidden_layers * self._layer_weights * positions
        weights += self._patch_weights * self.num_patches + self.num_labels * self.hidden_size
        attention = 12 * self.num_hidden_layers * self.hidden_size * positions**2
        return float(bindings["batch"] * (6 * weights + attention))

    @property
    def _patch_weights(self) -> int:
        return self.num_channels * self.patch_size**2 * self.hidden_size

    @property
    def _layer_weights(self) -> int:
        return 4 * self.hidden_size**2 + 2 * self.hidden_size * self.intermediate_size
