"""A residual network of convolutions, op for op as torchvision's ResNet."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from perfmodel.models.dims_resnet import EXPANSION, ResNetDims
from perfmodel.models.layers import LossAndLogits, run_layer

__all__ = ["ResNet", "build"]


class Block(nn.Module):
    """Convolutions with a way around them."""

    def __init__(self, kind: str, inputs: int, width: int, stride: int, *, gradient_checkpointing: bool) -> None:
        super().__init__()
        outputs = width * EXPANSION[kind]
        if kind == "basic":
            sizes = [(inputs, width, 3, stride), (width, width, 3, 1)]
        else:
            sizes = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
        self.convolutions = nn.ModuleList(_convolution(*size) for size in sizes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(size[1]) for size in sizes)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module | None = None
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(_convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
        self.gradient_checkpointing = gradient_checkpointing

    def forward(self, hidden: Tensor) -> Tensor:
        """``[batch, channels, height, width]`` in and out."""
        return run_layer(self._body, self.gradient_checkpointing and self.training, hidden)

    def _body(self, hidden: Tensor) -> Tensor:
        out = hidden
        for number, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            out = norm(convolution(out))
            if number < len(self.norms) - 1:
                out = self.relu(out)
        out += hidden if self.shortcut is None else self.shortcut(hidden)
        return self.relu(out)  # type: ignore[no-any-return]


def _convolution(inputs: int, outputs: int, size: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=size, stride=stride, padding=size // 2, bias=False)


class ResNet(nn.Module):
    """Images in, mean cross-entropy of their classes out.

    Parameters
    ----------
    dims : ResNetDims
    gradient_checkpointing : bool
        Recompute each block in backward.
    return_logits : bool
        Return :class:`perfmodel.models.layers.LossAndLogits` instead of the loss alone.
    """

    def __init__(self, dims: ResNetDims, *, gradient_checkpointing: bool = False, return_logits: bool = False) -> None:
        super().__init__()
        self.return_logits = return_logits
        self.stem = nn.Conv2d(dims.num_channels, dims.width, kernel_size=7, stride=2, padding=3, bias=False)
        self.stem_norm = nn.BatchNorm2d(dims.width)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.stages = nn.ModuleList()
        channels = dims.width
        for stage, depth in enumerate(dims.depths):
            width = dims.width * 2**stage
            blocks = nn.ModuleList()
            for number in range(depth):
                stride = 2 if number == 0 and stage > 0 else 1
                blocks.append(Block(dims.block, channels, width, stride, gradient_checkpointing=gradient_checkpointing))
                channels = width * EXPANSION[dims.block]
            self.stages.append(blocks)
        self.average = nn.AdaptiveAvgPool2d((1, 1))
        self.classifier = nn.Linear(channels, dims.num_labels)

    def forward(self, pixel_values: Tensor, labels: Tensor) -> Tensor | LossAndLogits:
        """The loss of one batch.

        Parameters
        ----------
        pixel_values : Tensor
            ``[batch, channels, size, size]``, brought to the type of the parameters.
        labels : Tensor
            ``[batch]`` of int64.
        """
        hidden = pixel_values.to(self.stem.weight.dtype)
        hidden = self.pool(self.relu(self.stem_norm(self.stem(hidden))))
        for blocks in self.stages:
            assert isinstance(blocks, nn.ModuleList)
            for block in blocks:
                hidden = block(hidden)
        logits = self.classifier(torch.flatten(self.average(hidden), 1))
        loss = functional.cross_entropy(logits, labels)
        return LossAndLogits(loss, logits) if self.return_logits else loss


def build(dims: ResNetDims, *, gradient_checkpointing: bool = False, return_logits: bool = False) -> ResNet:
    """A residual network in training mode; see :class:`ResNet`."""
    return ResNet(dims, gradient_checkpointing=gradient_checkpointing, return_logits=return_logits)
