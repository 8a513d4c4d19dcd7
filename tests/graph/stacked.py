"""Modules whose layers repeat in other ways than one after the other, all alike."""

from __future__ import annotations

from itertools import cycle, islice

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

WIDTH = 8


class Branch(nn.Module):
    """Parallel products added to the input, under a mask: as many as its kind says."""

    def __init__(self, products: int) -> None:
        super().__init__()
        self.products = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(products))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return x + sum(F.gelu(product(x)) for product in self.products) * mask


class Pattern(nn.Module):
    """Layers of several kinds: ``a`` and ``s`` have one product, under two masks, ``m`` two, ``p`` three."""

    def __init__(self, kinds: str, checkpointed: bool = False, frozen: str = "") -> None:
        super().__init__()
        self.kinds = kinds
        self.checkpointed = checkpointed
        self.layers = nn.ModuleList(Branch({"m": 2, "p": 3}.get(kind, 1)) for kind in kinds)
        for kind, layer in zip(kinds, self.layers, strict=True):
            layer.requires_grad_(kind not in frozen)
        self.embed = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        wide, narrow = torch.ones_like(x), torch.zeros_like(x)
        x = self.embed(x)
        for kind, layer in zip(self.kinds, self.layers, strict=True):
            mask = narrow if kind == "s" else wide
            x = checkpoint(layer, x, mask, use_reentrant=False) if self.checkpointed else layer(x, mask)
        return F.mse_loss(x, y)


def kinds(depth: int, period: str, prefix: str = "") -> str:
    """Kinds of ``depth`` layers.

    >>> kinds(7, "sa", prefix="pp")
    'ppsasas'
    """
    return prefix + "".join(islice(cycle(period), depth - len(prefix)))


class Attend(nn.Module):
    """Attention with a bias that all layers share and the first one owns, over itself or another sequence."""

    def __init__(self, owns_bias: bool, cross: bool) -> None:
        super().__init__()
        self.bias = nn.Embedding(4, 1) if owns_bias else None
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.cross = Attend(False, False) if cross else None

    def forward(
        self, x: torch.Tensor, source: torch.Tensor, bias: torch.Tensor | None, encoded: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        scores = self.query(x) @ self.key(source).mT
        if self.bias is not None:
            positions = torch.zeros(scores.shape[-2:], dtype=torch.long)
            bias = self.bias(positions).squeeze(-1)
        if bias is not None:
            scores = scores + bias
        x = x + scores.softmax(-1) @ self.value(source)
        if self.cross is not None:
            x, _ = self.cross(x, encoded, None)
        return x, bias


class EncoderDecoder(nn.Module):
    """Two stacks: the decoder's layers read what the encoder made (T5)."""

    def __init__(self, encoder: int, decoder: int) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(Attend(i == 0, False) for i in range(encoder))
        self.decoder = nn.ModuleList(Attend(i == 0, True) for i in range(decoder))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        bias = None
        for layer in self.encoder:
            x, bias = layer(x, x, bias)
        encoded, x, bias = self.norm(x), y, None
        for layer in self.decoder:
            x, bias = layer(x, x, bias, encoded)
        return F.mse_loss(self.norm(x), y)


class Between(nn.Module):
    """The parent adds the residual itself, and its layers are pairs."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        pair = lambda: nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)])  # noqa: E731
        self.layers = nn.ModuleList(pair() for _ in range(depth))
        self.drop = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        for mix, feed in self.layers:
            x = x + self.drop(mix(x))
            x = x + F.gelu(feed(x))
        return F.mse_loss(x, y)


class SideBySide(nn.Module):
    """Two lists of layers that the parent runs in turn."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(depth))
        self.feeds = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(depth))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        for norm, feed in zip(self.norms, self.feeds, strict=True):
            x = x + F.gelu(feed(norm(x)))
        return F.mse_loss(x, y)


class LowRank(nn.Module):
    """A frozen product with a trainable low-rank one beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.down, self.up = nn.Linear(WIDTH, 2, bias=False), nn.Linear(2, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.up(self.down(x))


class Tuned(nn.Module):
    """Low-rank adapters in every layer of a Sequential, activations between them."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(part for _ in range(depth) for part in (LowRank(), nn.GELU())))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(self.layers(x), y)


class Collects(nn.Module):
    """All layers' results are used at the end."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(depth))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        results = []
        for layer in self.layers:
            x = layer(x)
            results.append(x)
        return F.mse_loss(torch.stack(results).mean(0), y)


def sequences(batch: int = 2, length: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs of all these modules."""
    return torch.randn(batch, length, WIDTH), torch.randn(batch, length, WIDTH)
