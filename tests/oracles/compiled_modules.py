"""Models whose compiled traffic is compared: two layers each, activations larger than weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from perfmodel.models import catalogue
from perfmodel.models.build import build
from tests.graph.modules import Block

BATCH, SEQ, WIDTH, HEADS, VOCAB = 4, 256, 128, 4, 1000


class OneBlock(nn.Module):
    """A transformer block under a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block(WIDTH, HEADS, 0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x).sum()


class Vit(nn.Module):
    """Patches by a convolution, a class token, blocks, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, WIDTH, 8, 8)
        self.token, self.position = (nn.Parameter(torch.zeros(1, n, WIDTH)) for n in (1, 65))
        self.blocks = nn.ModuleList(Block(WIDTH, HEADS, 0.0) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 100)

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.patch(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.norm(x)[:, 0]), labels)


class MixerBlock(nn.Module):
    """Perceptrons over tokens and over channels (Tolstikhin et al., MLP-Mixer, 2021)."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.up1, self.down1 = nn.Linear(tokens, 2 * tokens), nn.Linear(2 * tokens, tokens)
        self.up2, self.down2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.down1(F.gelu(self.up1(self.norm1(x).transpose(1, 2)))).transpose(1, 2)
        return x + self.down2(F.gelu(self.up2(self.norm2(x))))


class Mixer(nn.Module):
    """Mixer blocks over embedded patches, averaged and classified."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Linear(192, WIDTH)
        self.blocks = nn.ModuleList(MixerBlock(64) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 100)

    def forward(self, patches: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.patch(patches)
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.norm(x).mean(1)), labels)


class RmsNorm(nn.Module):
    """In float32, from element-wise ops."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        variance = x.float().pow(2).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(variance + 1e-6)).to(x.dtype)


class T5Layer(nn.Module):
    """Attention with a bias and its scores in memory, a gated perceptron, dropout after each (Raffel et al., 2020)."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.norm1, self.norm2 = RmsNorm(), RmsNorm()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(WIDTH, 3 * WIDTH, bias=False) for _ in range(2))
        self.down = nn.Linear(3 * WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        batch, seq, _ = x.shape
        y = self.norm1(x)
        q, k, v = (part(y).view(batch, seq, HEADS, -1).transpose(1, 2) for part in (self.q, self.k, self.v))
        weights = self.dropout(F.softmax((q @ k.transpose(-1, -2) + bias).float(), -1).type_as(q))
        x = x + self.dropout(self.o((weights @ v).transpose(1, 2).reshape(batch, seq, WIDTH)))
        y = self.norm2(x)
        return x + self.dropout(self.down(self.dropout(F.gelu(self.gate(y), approximate="tanh") * self.up(y))))


class T5(nn.Module):
    """Layers with one relative-position bias, and a language-model head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.bias = nn.Embedding(VOCAB, WIDTH), nn.Embedding(32, HEADS)
        self.layers = nn.ModuleList(T5Layer(0.1) for _ in range(2))
        self.norm, self.head = RmsNorm(), nn.Linear(WIDTH, VOCAB, bias=False)
        positions = torch.arange(SEQ)
        self.register_buffer("distance", (positions[:, None] - positions).clamp(-16, 15) + 16)

    def forward(self, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        bias = self.bias(self.distance).permute(2, 0, 1).unsqueeze(0)
        for layer in self.layers:
            x = layer(x, bias)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), labels.flatten())


def example(name: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A model and its arguments."""
    tokens = torch.randint(0, VOCAB, (BATCH, SEQ))
    match name:
        case "block":
            return OneBlock(), {"x": torch.randn(BATCH, SEQ, WIDTH)}
        case "vit":
            return Vit(), {"images": torch.randn(16, 3, 64, 64), "labels": torch.randint(0, 100, (16,))}
        case "mixer":
            return Mixer(), {"patches": torch.randn(16, 64, 192), "labels": torch.randint(0, 100, (16,))}
        case "t5":
            return T5(), {"ids": tokens, "labels": tokens.clone()}
        case "nn.Transformer":
            return EncoderDecoder(), {"source": tokens, "target": tokens.clone(), "labels": tokens.clone()}
    inputs = {"input_ids": tokens, "labels": tokens.clone()}
    if name == "bert":
        lengths = torch.tensor([[256], [256], [200], [100]])
        inputs["attention_mask"] = (torch.arange(SEQ) < lengths).long()
    model = reference(name.removesuffix("-bfloat16")).train()
    return model.to(torch.bfloat16) if name.endswith("-bfloat16") else model, inputs


class EncoderDecoder(nn.Module):
    """PyTorch's own transformer: norms after the residuals, cross-attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, VOCAB)
        self.layers = nn.Transformer(WIDTH, HEADS, 1, 1, 4 * WIDTH, dropout=0.0, batch_first=True)

    def forward(self, source: torch.Tensor, target: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.layers(self.embed(source), self.embed(target))
        return F.cross_entropy(self.head(x).flatten(0, 1), labels.flatten())


def reference(name: str) -> nn.Module:
    """The catalogue's model, two narrow layers of it."""
    llama = name == "llama"
    narrow: dict[str, Any] = {
        "hidden_size": WIDTH,
        "num_attention_heads": HEADS,
        "head_dim": WIDTH // HEADS,
        "num_key_value_heads": 2 if llama else HEADS,
        "intermediate_size": 352 if llama else 4 * WIDTH,
        "vocab_size": VOCAB,
        "num_hidden_layers": 2,
        # Dropout of attention would leave it to PyTorch's unfused path on a CPU.
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0 if llama else 0.1,
        "resid_pdrop": 0.0 if llama else 0.1,
    }
    known = {"llama": "llama-3.1-8b", "gpt2": "gpt2", "bert": "bert-base-uncased"}[name]
    dims = dataclasses.replace(catalogue.get(known).dims, **narrow)
    return build(dims, implementation="reference", gradient_checkpointing=False, device="cpu")[0]
