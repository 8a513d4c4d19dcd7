"""Dimensions of an encoder in pre-training, whose head sees some positions only. Without PyTorch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from perfmodel.errors import UnsupportedError
from perfmodel.models.checks import check_flags
from perfmodel.models.dims import TransformerDims
from perfmodel.models.records import Record, check_sizes
from perfmodel.models.stacks import LayerStack

__all__ = ["PretrainingDims"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainingDims(Record):
    """BERT in pre-training, as Google's and NVIDIA's scripts run it.

    They choose the masked positions when they make the data and gather them before
    the head, which so never sees the others.

    Attributes
    ----------
    encoder : TransformerDims
        Of family ``"encoder"``.
    max_predictions_per_seq : int
        Positions of a sequence that the head sees.
    next_sentence : bool
        Whether a second head says if one half of the sequence follows the other.
    """

    family: ClassVar[str] = "encoder-pretraining"

    encoder: TransformerDims
    max_predictions_per_seq: int
    next_sentence: bool = True

    def __post_init__(self) -> None:
        check_sizes(self, "max_predictions_per_seq")
        check_flags(self, ("next_sentence",))
        if self.encoder.family != "encoder":
            raise UnsupportedError(f"encoder is of family {self.encoder.family!r}; give one of family 'encoder'")

    @property
    def max_length(self) -> int | None:
        """Number of learned positions."""
        return self.encoder.max_length

    @property
    def stacks(self) -> tuple[LayerStack, ...]:
        """The one stack of layers."""
        return tuple(dataclasses.replace(stack, path=f"encoder.{stack.path}") for stack in self.encoder.stacks)

    def with_depths(self, depths: Mapping[str, int]) -> PretrainingDims:
        """The same model with another number of layers."""
        inner = {path.removeprefix("encoder."): depth for path, depth in depths.items()}
        return dataclasses.replace(self, encoder=self.encoder.with_depths(inner))

    def parameters(self) -> int:
        """Trainable numbers: the encoder's with its head, and of next-sentence prediction H² + H + 2 H + 2.

        Examples
        --------
        >>> from perfmodel.models import catalogue
        >>> catalogue.get("bert-large-pretraining").dims.parameters()
        336226108
        """
        hidden = self.encoder.hidden_size
        return self.encoder.parameters() + (hidden**2 + 3 * hidden + 2 if self.next_sentence else 0)

    def closed_form_flops(self, bindings: Mapping[str, int]) -> float:
        """Model flops of a training step: the encoder's (PaLM's formula), with fewer positions in the head.

        6 for each weight of the transform and the vocabulary and each position that the head doesn't see are less.
        """
        encoder = self.encoder
        head = encoder.hidden_size**2 + encoder.vocab_size * encoder.hidden_size
        unseen = bindings["seq"] - self.max_predictions_per_seq
        return encoder.closed_form_flops(bindings) - 6.0 * bindings["batch"] * unseen * head

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and YAML; :meth:`from_dict` is the inverse."""
        return {**super(PretrainingDims, self).to_dict(), "encoder": self.encoder.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PretrainingDims:
        """Dimensions from plain values; those of the encoder may be plain too."""
        encoder = data.get("encoder")
        if isinstance(encoder, Mapping):
            data = {**data, "encoder": TransformerDims.from_dict(encoder)}
        return super(PretrainingDims, cls).from_dict(data)
