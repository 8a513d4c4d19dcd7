"""Dimensions of a residual network of convolutions. Without PyTorch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from perfmodel.errors import UnsupportedError
from perfmodel.models.checks import check_choice
from perfmodel.models.records import Record, check_sizes
from perfmodel.models.stacks import LayerStack

__all__ = ["EXPANSION", "ResNetDims"]

#: Channels that a block puts out, over its width.
EXPANSION = {"basic": 1, "bottleneck": 4}


@dataclass(frozen=True, kw_only=True, slots=True)
class ResNetDims(Record):
    """A ResNet that sorts images into classes (He et al. 2015, table 1), as torchvision has it.

    Its blocks halve the image in their 3x3 convolution, which is known as version 1.5.

    Attributes
    ----------
    block : {"basic", "bottleneck"}
        Two 3x3 convolutions, or a 3x3 one between two 1x1 ones.
    depths : tuple of int
        Blocks of each stage; each stage after the first halves the image and doubles the width.
    num_labels, image_size, num_channels : int
    width : int
        Channels of the first stage's blocks.
    """

    family: ClassVar[str] = "resnet"

    block: str
    depths: tuple[int, ...]
    num_labels: int = 1000
    image_size: int = 224
    num_channels: int = 3
    width: int = 64

    def __post_init__(self) -> None:
        check_choice("block", self.block, EXPANSION)
        check_sizes(self, "depths", "num_labels", "image_size", "num_channels", "width")
        if not self.depths:
            raise UnsupportedError("depths=() has no stage; give the number of blocks of each")

    @property
    def stacks(self) -> tuple[LayerStack, ...]:
        """The stages; the first block of each changes the number of channels."""
        return tuple(
            LayerStack(path=f"stages.{stage}", depth=depth, prefix=1) for stage, depth in enumerate(self.depths)
        )

    def with_depths(self, depths: Mapping[str, int]) -> ResNetDims:
        """The same model with another number of blocks in some stages."""
        found = tuple(depths.get(f"stages.{stage}", depth) for stage, depth in enumerate(self.depths))
        return dataclasses.replace(self, depths=found)

    def parameters(self) -> int:
        """Trainable numbers: of each convolution k² C_in C_out, of its batch norm 2 C_out, of the classifier K (C + 1).

        Examples
        --------
        >>> from perfmodel.models import catalogue
        >>> catalogue.get("resnet-50").dims.parameters()
        25557032
        """
        convolutions = sum(weights + 2 * channels for weights, channels, _ in self._convolutions())
        return convolutions + self.num_labels * (self._features + 1)

    def closed_form_flops(self, bindings: Mapping[str, int]) -> float:
        """Model flops of a training step: three times the forward pass of 2 a weight and pixel put out."""
        weights = sum(weights * pixels for weights, _, pixels in self._convolutions())
        return 6.0 * bindings["batch"] * (weights + self.num_labels * self._features)

    @property
    def _features(self) -> int:
        return int(self.width * 2 ** (len(self.depths) - 1) * EXPANSION[self.block])

    def _convolutions(self) -> Iterator[tuple[int, int, int]]:
        """Weights, channels put out and pixels put out of each convolution."""
        side = _halved(self.image_size)
        yield 49 * self.num_channels * self.width, self.width, side**2
        side, channels = _halved(side), self.width
        for stage, depth in enumerate(self.depths):
            width, out = self.width * 2**stage, self.width * 2**stage * EXPANSION[self.block]
            for number in range(depth):
                before, shrinks = side, number == 0 and stage > 0
                side = _halved(side) if shrinks else side
                if self.block == "basic":
                    yield 9 * channels * width, width, side**2
                    yield 9 * width * width, width, side**2
                else:
                    yield channels * width, width, before**2
                    yield 9 * width * width, width, side**2
                    yield width * out, out, side**2
                if shrinks or channels != out:
                    yield channels * out, out, side**2
                channels = out


def _halved(side: int) -> int:
    """Side of the image after a padded convolution or pooling of stride 2."""
    return (side - 1) // 2 + 1
