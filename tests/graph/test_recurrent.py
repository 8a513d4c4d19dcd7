"""Recurrent layers in a capture: one op a layer, any length, as a GPU's library runs them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import perfmodel as pm
from perfmodel.errors import CaptureError


class Lm(nn.Module):
    def __init__(self, kind: Any, **settings: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        self.layer = kind(8, 12, batch_first=True, **settings)
        width = (settings.get("proj_size") or 12) * (2 if settings.get("bidirectional") else 1)
        self.head = nn.Linear(width, 50)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        scores = self.head(self.layer(self.embedding(tokens))[0])
        return nn.functional.cross_entropy(scores.flatten(0, 1), tokens.flatten())


def captured(module: nn.Module, batch: int = 3, seq: int = 7, **settings: Any) -> pm.Graph:
    tokens = torch.zeros(batch, seq, dtype=torch.long)
    return pm.capture(module, (tokens,), optimizer=None, **settings)


def own_ops(graph: pm.Graph) -> list[str]:
    return [op.name for op, _ in graph.ops() if op.name.startswith("perfmodel.") and op.name != "perfmodel.release"]


@pytest.mark.parametrize(
    ("kind", "settings", "name"),
    [
        (nn.LSTM, {"num_layers": 2, "bidirectional": True, "dropout": 0.1}, "lstm"),
        (nn.LSTM, {"proj_size": 5}, "lstm"),
        (nn.GRU, {"num_layers": 2, "bias": False}, "gru"),
        (nn.RNN, {"nonlinearity": "relu"}, "rnn"),
    ],
)
def test_a_layer_is_one_op_of_any_length(kind: Any, settings: dict[str, Any], name: str) -> None:
    module = Lm(kind, **settings)
    graph = captured(module, dynamic_shapes=({0: "batch", 1: "seq"},))
    layers = settings.get("num_layers", 1)
    assert own_ops(graph) == [f"perfmodel.{name}"] * layers + [f"perfmodel.{name}_backward"] * layers
    assert not graph.coverage.missing
    longer = captured(module, batch=2, seq=50)
    at = graph.at(batch=2, seq=50)
    assert [at.flops(unit) for unit in ("matrix", "vector")] == [longer.flops(unit) for unit in ("matrix", "vector")]
    assert at.bytes() == longer.bytes()


def test_every_weight_gets_its_gradient_and_frozen_ones_no_work() -> None:
    trained, frozen = Lm(nn.LSTM), Lm(nn.LSTM)
    frozen.layer.requires_grad_(False)
    whole, part = captured(trained), captured(frozen)
    gradients = {s.name: s for s in whole.storages if s.role == "gradient"}
    for name, parameter in trained.named_parameters():
        assert gradients[f"{name}.grad"].nbytes == parameter.numel() * 4
    matrices = sum(w.numel() for w in trained.layer.parameters() if w.dim() == 2)
    assert whole.flops(phase="backward") - part.flops(phase="backward") == 2 * 3 * 7 * matrices


def test_gates_and_cells_are_kept_for_backward() -> None:
    graph = captured(Lm(nn.LSTM))
    kept = [s for s in graph.storages if s.role == "activation" and ":lstm." in s.name]
    rows, hidden, size = 3 * 7, 12, 4
    # The output, four gates and the cell of each row; the last cell state isn't used and isn't kept.
    assert sorted(s.nbytes for s in kept) == sorted([rows * hidden * size, rows * 5 * hidden * size])


def test_a_packed_sequence_is_refused_with_the_cure() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.LSTM(8, 12)

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            packed = nn.utils.rnn.PackedSequence(rows, torch.tensor([3, 2, 1]))
            return self.layer(packed)[0].data.mean()

    with pytest.raises(CaptureError, match="padded batch of the mean length"):
        pm.capture(Packed(), (torch.zeros(6, 8),), optimizer=None)


def test_on_a_cpu_pytorchs_own_ops_are_recorded() -> None:
    assert own_ops(captured(Lm(nn.LSTM), dispatch="cpu")) == []


def test_the_layer_runs_for_real_after_a_capture() -> None:
    module = Lm(nn.GRU)
    tokens = torch.zeros(2, 5, dtype=torch.long)
    before = module(tokens)
    captured(module)
    assert torch.equal(module(tokens), before)
