"""A deep-learning recommendation model: DLRM.

Its tables are trained as FBGEMM's table-batched embeddings and MLPerf's submissions train them: a step of SGD on
the rows that were looked up, within backward. No gradient of a table is ever made, and the optimizer
sees the feed-forward nets only.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from perfmodel.errors import UnsupportedError
from perfmodel.models.dims_recommender import RecommenderDims
from perfmodel.models.layers import LossAndLogits

__all__ = ["Recommender", "build"]


#: Of the tables' SGD; which one it is costs the same.
_LEARNING_RATE = 0.1


class _Lookup(torch.autograd.Function):
    """Sums of a table's rows; backward updates them."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor) -> Tensor:
        ctx.table, ctx.rows = table, rows
        return functional.embedding_bag(rows, table, mode="sum")

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        batch, lookups = ctx.rows.shape
        each = grads[0].unsqueeze(1).expand(batch, lookups, -1).reshape(batch * lookups, -1)
        ctx.table.data.index_add_(0, ctx.rows.reshape(-1), each, alpha=-_LEARNING_RATE)
        return None, None


class Table(nn.Module):
    """An embedding table that trains itself."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width))
        nn.init.uniform_(self.weight, -(rows**-0.5), rows**-0.5)

    def forward(self, rows: Tensor) -> Tensor:
        """``[batch, lookups]`` of int64 to ``[batch, width]``."""
        return _Lookup.apply(self.weight, rows)  # type: ignore[no-any-return, no-untyped-call]


def _layers(sizes: tuple[int, ...]) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))


class Recommender(nn.Module):
    """Features of a user and an item in, mean binary cross-entropy of the click out.

    Parameters
    ----------
    dims : RecommenderDims
    return_logits : bool
        Return :class:`perfmodel.models.layers.LossAndLogits` instead of the loss alone.
    """

    pair_rows: Tensor
    pair_columns: Tensor

    def __init__(self, dims: RecommenderDims, *, return_logits: bool = False) -> None:
        super().__init__()
        self.return_logits = return_logits
        self.tables = nn.ModuleList(Table(rows, dims.embedding_size) for rows in dims.table_sizes)
        self.bottom, self.top = _layers(dims.bottom), _layers(dims.top)
        rows, columns = torch.tril_indices(dims.num_tables + 1, dims.num_tables + 1, offset=-1)
        self.register_buffer("pair_rows", rows, persistent=False)
        self.register_buffer("pair_columns", columns, persistent=False)

    def forward(self, dense: Tensor, categories: Tensor, labels: Tensor) -> Tensor | LossAndLogits:
        """The loss of one batch.

        Parameters
        ----------
        dense : Tensor
            ``[batch, features]`` in the type of the parameters.
        categories : Tensor
            ``[tables, batch, lookups]`` of int64: which rows of each table.
        labels : Tensor
            ``[batch]`` in the type of the parameters: 1 for a click.
        """
        for layer in self.bottom:
            dense = functional.relu(layer(dense))
        vectors = [table(categories[number]) for number, table in enumerate(self.tables)]
        stacked = torch.cat([dense, *vectors], dim=1).view(dense.shape[0], -1, dense.shape[1])
        products = torch.bmm(stacked, stacked.transpose(1, 2))
        hidden = torch.cat([dense, products[:, self.pair_rows, self.pair_columns]], dim=1)
        *inner, last = self.top
        for layer in inner:
            hidden = functional.relu(layer(hidden))
        logits = last(hidden).view(-1)
        loss = functional.binary_cross_entropy(torch.sigmoid(logits), labels)
        return LossAndLogits(loss, logits) if self.return_logits else loss


def build(dims: RecommenderDims, *, gradient_checkpointing: bool = False, return_logits: bool = False) -> Recommender:
    """A recommendation model in training mode; see :class:`Recommender`.

    Raises
    ------
    UnsupportedError
        With ``gradient_checkpointing``: there are no alike layers to recompute.
    """
    if gradient_checkpointing:
        raise UnsupportedError("a recommender can't recompute its layers; set gradient_checkpointing=False")
    return Recommender(dims, return_logits=return_logits)
