"""Dimensions of a deep-learning recommendation model. Without PyTorch."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from perfmodel.errors import UnsupportedError
from perfmodel.models.records import Record, check_sizes

__all__ = ["RecommenderDims"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RecommenderDims(Record):
    """DLRM (Naumov et al. 2019): embedding tables, two feed-forward nets and dot products of pairs between them.

    Attributes
    ----------
    num_dense_features : int
    table_sizes : tuple of int
        Rows of each embedding table.
    embedding_size : int
        Width of all tables.
    bottom_sizes : tuple of int
        Outputs of the layers over the dense features; the last is ``embedding_size``.
    top_sizes : tuple of int
        Outputs of the layers over the products; the last is 1.
    lookups_per_table : int
        Rows that are summed a sample and table.
    """

    family: ClassVar[str] = "recommender"

    num_dense_features: int
    table_sizes: tuple[int, ...]
    embedding_size: int
    bottom_sizes: tuple[int, ...]
    top_sizes: tuple[int, ...]
    lookups_per_table: int = 1

    def __post_init__(self) -> None:
        check_sizes(
            self, "num_dense_features", "table_sizes", "embedding_size", "bottom_sizes", "top_sizes",
            "lookups_per_table",
        )  # fmt: skip
        if not self.table_sizes:
            raise UnsupportedError("table_sizes=() has no table; give the rows of each")
        for name, last in (("bottom_sizes", self.embedding_size), ("top_sizes", 1)):
            if getattr(self, name)[-1:] != (last,):
                raise UnsupportedError(f"{name}={getattr(self, name)} must end with {last}; add a layer")

    @property
    def num_tables(self) -> int:
        """Number of embedding tables."""
        return len(self.table_sizes)

    @property
    def bottom(self) -> tuple[int, ...]:
        """Features from the dense ones to an embedding's width."""
        return (self.num_dense_features, *self.bottom_sizes)

    @property
    def top(self) -> tuple[int, ...]:
        """Features from the products of all pairs, with the dense embedding, to the click."""
        vectors = self.num_tables + 1
        return (self.embedding_size + vectors * (vectors - 1) // 2, *self.top_sizes)

    def parameters(self) -> int:
        """Trainable numbers: tables, and of each layer a matrix and a bias.

        Examples
        --------
        >>> from perfmodel.models import catalogue
        >>> catalogue.get("dlrm-criteo-kaggle").dims.parameters()
        540677217
        """
        layers = sum((a + 1) * b for a, b in self._layers())
        return sum(self.table_sizes) * self.embedding_size + layers

    def closed_form_flops(self, bindings: Mapping[str, int]) -> float:
        """Model flops of a training step: 6 a weight and sample, and 6 for each number of the products of all pairs."""
        vectors = self.num_tables + 1
        weights = sum(a * b for a, b in self._layers())
        return 6.0 * bindings["batch"] * (weights + vectors**2 * self.embedding_size)

    def _layers(self) -> list[tuple[int, int]]:
        return [pair for sizes in (self.bottom, self.top) for pair in itertools.pairwise(sizes)]
