"""Recommenders: bags of embeddings, and their interaction, in a capture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import perfmodel as pm
from perfmodel.errors import CaptureError


class Recommender(nn.Module):
    """A DLRM in small: bottom and top nets, bags, and products of all pairs."""

    def __init__(self, mode: str = "sum", sparse: bool = False) -> None:
        super().__init__()
        self.bags = nn.ModuleList(nn.EmbeddingBag(rows, 16, mode=mode, sparse=sparse) for rows in (100, 1000))
        self.bottom, self.top = nn.Linear(13, 16), nn.Linear(16 + 3, 1)

    def forward(self, dense: torch.Tensor, ids: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        bottom = self.bottom(dense).relu()
        parts = torch.stack([bottom, *(bag(ids, offsets) for bag in self.bags)], 1)
        rows, columns = torch.tril_indices(3, 3, -1)
        pairs = torch.bmm(parts, parts.transpose(1, 2))[:, rows, columns]
        return self.top(torch.cat([bottom, pairs], 1)).square().mean()


def inputs(batch: int, per_bag: int) -> tuple[torch.Tensor, ...]:
    ids = torch.zeros(batch * per_bag, dtype=torch.long)
    return torch.zeros(batch, 13), ids, torch.arange(0, batch * per_bag, per_bag)


def captured(module: nn.Module, batch: int, per_bag: int, **settings: Any) -> pm.Graph:
    return pm.capture(module, inputs(batch, per_bag), optimizer="adamw", **settings)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_a_recommender_is_captured_for_any_batch_and_bag(mode: str) -> None:
    graph = captured(Recommender(mode), 8, 4, dynamic_shapes=({0: "batch"}, {0: "ids"}, {0: "batch"}))
    other = captured(Recommender(mode), 32, 10)
    at = graph.at(batch=32, ids=320)
    assert not graph.coverage.missing
    assert [at.flops(unit) for unit in ("matrix", "vector")] == [other.flops(unit) for unit in ("matrix", "vector")]
    assert (at.bytes(), at.depth) == (other.bytes(), other.depth)


@pytest.mark.parametrize(("dispatch", "bags_of"), [("neutral", 40), ("cpu", 0)])
def test_a_gpu_keeps_the_bag_of_each_index(dispatch: str, bags_of: int) -> None:
    # One after the other: shapes that PyTorch remembers of one must not reach the other.
    for _ in range(2):
        graph = captured(Recommender(), 8, 5, dispatch=dispatch)
        sizes = [op.inputs["offset2bag"].shape for op, _ in graph.ops() if op.name == "aten._embedding_bag_backward"]
        assert sizes == [(bags_of,)] * 2


def test_a_sparse_gradient_is_refused_with_the_cure() -> None:
    with pytest.raises(CaptureError, match="sparse=False"):
        captured(Recommender(sparse=True), 8, 4)
