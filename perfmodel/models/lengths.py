"""How long the sequences of a data set are, and what padding or packing makes of that."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from perfmodel.errors import FileError, ShapeError

__all__ = ["Bucket", "Lengths", "Packed", "Padded"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Padded:
    """A batch whose sequences are padded to the longest of them.

    Attributes
    ----------
    length : float
        Expected length of the batch.
    useful : float
        Share of its positions that hold a token of a sequence.
    """

    length: float
    useful: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """The sequences that are padded to one length.

    Attributes
    ----------
    length : int
        To which they are padded.
    share : float
        Share of all sequences.
    useful : float
        Share of its positions that hold a token of a sequence.
    """

    length: int
    share: float
    useful: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """Rows of several documents each, with attention within a document only.

    Attributes
    ----------
    seq_len : int
        Positions of a row.
    documents : float
        Expected number of documents, whole or in part, in a row.
    useful : float
        Share of the positions that hold a token.
    visible : float
        Share of the ``seq_len ** 2`` pairs of query and key that causal attention sees: same document, key not
        after the query.
    visible_both_ways : float
        The same for attention that isn't causal.
    """

    seq_len: int
    documents: float
    useful: float
    visible: float
    visible_both_ways: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """A distribution of sequence lengths, in tokens.

    Parameters
    ----------
    values : tuple of int
        The lengths that occur, ascending.
    weights : tuple of float
        Probability of each; they sum to 1.

    Raises
    ------
    ShapeError
        If there is no length, one isn't a positive integer, or a weight is negative.

    Examples
    --------
    >>> lengths = Lengths.from_histogram({100: 3, 500: 1})
    >>> lengths.mean, lengths.quantile(0.9)
    (200.0, 500)
    >>> round(lengths.padded(batch=8).useful, 3)
    0.435
    """

    values: tuple[int, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values or len(self.values) != len(self.weights):
            raise ShapeError(
                f"{len(self.values)} lengths and {len(self.weights)} weights; give one weight for each of some lengths"
            )
        ascending = all(a < b for a, b in zip(self.values, self.values[1:], strict=False))
        if not ascending or self.values[0] < 1:
            raise ShapeError("lengths must be positive, ascending integers; use Lengths.from_samples or from_histogram")
        if min(self.weights) < 0 or not math.isclose(sum(self.weights), 1, rel_tol=1e-6):
            raise ShapeError("weights of lengths must be positive and sum to 1; use Lengths.from_histogram for counts")

    # -- made of -------------------------------------------------------------

    @classmethod
    def from_samples(cls, samples: Iterable[int]) -> Lengths:
        """The lengths of some sequences, each as likely as the other.

        >>> Lengths.from_samples([3, 5, 5, 7]).mean
        5.0
        """
        counts: dict[int, float] = {}
        for length in samples:
            counts[length] = counts.get(length, 0) + 1
        return cls.from_histogram(counts)

    @classmethod
    def from_histogram(
        cls, counts: Mapping[int, float] | Sequence[float], edges: Sequence[int] | None = None
    ) -> Lengths:
        """Lengths with how often each occurs, or bins of lengths.

        Parameters
        ----------
        counts : mapping of int to float, or sequence of float
            By length; or by bin.
        edges : sequence of int, optional
            For bins: one more than there are counts. Bin ``i`` holds the lengths from ``edges[i]`` to
            ``edges[i + 1] - 1``, all as likely as each other.
        """
        by_length: dict[int, float] = {}
        if isinstance(counts, Mapping):
            if edges is not None:
                raise ShapeError("edges are for counts by bin; leave them out where counts is a mapping by length")
            by_length = dict(counts)
        else:
            if edges is None or len(edges) != len(counts) + 1:
                raise ShapeError(f"{len(counts)} bins have {len(counts) + 1} edges; give as many")
            for low, high, count in zip(edges, edges[1:], counts, strict=False):
                if high <= low:
                    raise ShapeError(f"edges of bins must ascend, and {high} follows {low}")
                by_length.update(dict.fromkeys(range(low, high), count / (high - low)))
        for length, count in by_length.items():
            if isinstance(length, bool) or not hasattr(length, "__index__") or length < 1 or not count >= 0:
                raise ShapeError(f"a length must be a positive integer with a count, not {length!r}: {count!r}")
        total = sum(by_length.values())
        if not total > 0:
            raise ShapeError("a histogram of lengths needs at least one sequence")
        kept = sorted((int(length), count / total) for length, count in by_length.items() if count)
        return cls(values=tuple(v for v, _ in kept), weights=tuple(w for _, w in kept))

    @classmethod
    def uniform(cls, low: int, high: int) -> Lengths:
        """Every length from ``low`` to ``high``, both included.

        >>> Lengths.uniform(1, 9).quantile(0.5)
        5
        """
        return cls.from_histogram([1.0], [low, high + 1])

    @classmethod
    def lognormal(cls, *, median: float, sigma: float, longest: int, shortest: int = 1) -> Lengths:
        """Lengths whose logarithm is normal, as lengths of texts about are.

        Parameters
        ----------
        median : float
            Of the whole distribution.
        sigma : float
            Standard deviation of the natural logarithm.
        longest, shortest : int
            Sequences beyond them are left out; to cut them instead, use :meth:`truncated`.
        """
        if not (median > 0 and sigma > 0 and 1 <= shortest <= longest):
            raise ShapeError(
                f"lognormal(median={median}, sigma={sigma}, longest={longest}, shortest={shortest}): median and sigma "
                "must be positive and 1 <= shortest <= longest"
            )
        scale = sigma * math.sqrt(2)
        below = [math.erf(math.log((length - 0.5) / median) / scale) for length in range(shortest, longest + 2)]
        mass = np.diff(below)
        return cls.from_histogram(dict(zip(range(shortest, longest + 1), mass.tolist(), strict=True)))

    def truncated(self, longest: int) -> Lengths:
        """The same sequences, the tokens after ``longest`` cut off."""
        if longest < 1:
            raise ShapeError(f"sequences can't be cut to {longest} tokens; give at least 1")
        counts: dict[int, float] = {}
        for value, weight in zip(self.values, self.weights, strict=True):
            kept = min(value, longest)
            counts[kept] = counts.get(kept, 0.0) + weight
        return Lengths.from_histogram(counts)

    # -- what it says ------------------------------------------------------------

    @property
    def mean(self) -> float:
        """Expected length."""
        return float(self._values @ self._weights)

    @property
    def longest(self) -> int:
        """The longest that occurs."""
        return self.values[-1]

    def quantile(self, q: float) -> int:
        """The shortest length that a share ``q`` of the sequences doesn't exceed."""
        if not 0 <= q <= 1:
            raise ShapeError(f"a quantile lies between 0 and 1, not at {q}")
        # Sums of weights are rounded: a share that is met but for that is met.
        position = int(np.searchsorted(np.cumsum(self._weights), q - 1e-12))
        return self.values[min(position, len(self.values) - 1)]

    def padded(self, batch: int, *, multiple: int = 1) -> Padded:
        """A batch of independent sequences, padded to the longest of them.

        With ``F`` the share of sequences not longer than ``l``, the longest of ``B`` isn't longer than ``l`` with
        probability ``F(l)^B``. So its expectation is the sum over lengths of ``l (F(l)^B - F(l-)^B)``, where ``F(l-)``
        is the share of shorter ones. Of ``B`` times that many positions, ``B`` times the mean length is useful.

        Parameters
        ----------
        batch : int
            Sequences that are padded together.
        multiple : int
            The length is rounded up to a multiple of this.
        """
        if batch < 1 or multiple < 1:
            raise ShapeError(f"batch and multiple must be positive, not {batch} and {multiple}")
        not_longer = np.cumsum(self._weights)
        not_longer[-1] = 1.0
        probability = np.diff(not_longer**batch, prepend=0.0)
        lengths = -(-self._values // multiple) * multiple
        length = float(lengths @ probability)
        return Padded(length=length, useful=self.mean / length)

    def buckets(self, bounds: int | Sequence[int]) -> tuple[Bucket, ...]:
        """Sequences sorted into buckets, each padded to its bucket's bound.

        Parameters
        ----------
        bounds : int or sequence of int
            Bounds in ascending order, the last not below the longest sequence; or how many buckets with about
            equally many sequences.

        Returns
        -------
        tuple of Bucket
            Those that hold any sequence.
        """
        if isinstance(bounds, int):
            if bounds < 1:
                raise ShapeError(f"{bounds} buckets hold nothing; give at least 1")
            bounds = sorted({self.quantile((i + 1) / bounds) for i in range(bounds)})
        if list(bounds) != sorted(set(bounds)) or not bounds or bounds[-1] < self.longest:
            raise ShapeError(
                f"bounds of buckets must ascend up to the longest sequence, {self.longest}, not {list(bounds)}; "
                "cut longer sequences with truncated()"
            )
        of = np.searchsorted(np.array(bounds), self._values)
        made: list[Bucket] = []
        for number, length in enumerate(bounds):
            inside = of == number
            share = float(self._weights[inside].sum())
            if share:
                tokens = float((self._values * self._weights)[inside].sum())
                made.append(Bucket(length=int(length), share=share, useful=tokens / share / length))
        return tuple(made)

    def packed(self, seq_len: int, *, fill: float | None = None) -> Packed:
        """Documents packed into rows of ``seq_len`` tokens.

        Without ``fill``, documents are joined to one stream that is cut every ``seq_len`` tokens, also within a
        document. A token and the one ``d`` places after it lie in the same document where a document of ``l``
        tokens has ``max(l - d, 0)`` such places; so this holds for a share ``E[max(l - d, 0)] / E[l]`` of all places.
        A row has ``seq_len - d`` pairs at the distance ``d``. Causal attention sees

        ``sum over d of (seq_len - d) E[max(l - d, 0)] / E[l]``

        pairs of a row; attention both ways sees those with ``d > 0`` twice. For rows much longer than a document
        this is ``seq_len E[l (l + 1) / 2] / E[l]``. A document begins at a share ``1 / E[l]`` of the places, so a row
        has ``1 + (seq_len - 1) / E[l]`` of them. All this holds where a row may begin at any place of a document. If
        ``g`` divides ``seq_len`` and every length, rows and documents begin at multiples of ``g`` only: then it holds
        for pieces of ``g`` tokens, of which two make ``g^2`` pairs and one makes ``g (g + 1) / 2``.

        With ``fill``, rows hold whole documents and, for the rest, padding that sees itself only, which isn't
        counted: ``fill seq_len / E[l]`` documents with ``E[l (l + 1) / 2]`` pairs each, or ``E[l^2]`` both ways.

        Parameters
        ----------
        seq_len : int
        fill : float, optional
            Share of a row that whole documents fill. It depends on how they are chosen for a row; best-fit packing
            fills almost all of it (Ding et al. 2024, "Fewer Truncations Improve Language Modeling", section 3).

        Raises
        ------
        ShapeError
            If a document that must stay whole is longer than a row.
        """
        if seq_len < 1:
            raise ShapeError(f"a row has at least 1 token, not {seq_len}")
        if fill is None:
            piece = math.gcd(seq_len, *self.values)
            pieces, mean = seq_len // piece, self.mean / piece
            distances = np.arange(1, pieces)
            between = float(((pieces - distances) * self._excess(distances * piece)).sum()) / piece / mean * piece**2
            return Packed(
                seq_len=seq_len,
                documents=1 + (pieces - 1) / mean,
                useful=1.0,
                visible=(between + pieces * piece * (piece + 1) / 2) / seq_len**2,
                visible_both_ways=(2 * between + pieces * piece**2) / seq_len**2,
            )
        if not 0 < fill <= 1:
            raise ShapeError(f"fill is the share of a row that documents fill, above 0 and at most 1, not {fill}")
        if self.longest > seq_len:
            raise ShapeError(
                f"a document of {self.longest} tokens doesn't fit whole in a row of {seq_len}; cut documents with "
                f"truncated({seq_len}), or leave fill out to split them over rows"
            )
        documents = fill * seq_len / self.mean
        squares = float(self._values.astype(np.float64) ** 2 @ self._weights)
        return Packed(
            seq_len=seq_len,
            documents=documents,
            useful=fill,
            visible=documents * (squares + self.mean) / 2 / seq_len**2,
            visible_both_ways=documents * squares / seq_len**2,
        )

    def _excess(self, distances: Ints) -> Floats:
        """``E[max(l - d, 0)]`` for each distance."""
        longer = np.searchsorted(self._values, distances, side="right")
        chance = np.append(np.cumsum(self._weights[::-1])[::-1], 0.0)
        tokens = np.append(np.cumsum((self._values * self._weights)[::-1])[::-1], 0.0)
        excess: Floats = tokens[longer] - distances * chance[longer]
        return excess

    @property
    def _values(self) -> Ints:
        return np.array(self.values, dtype=np.int64)

    @property
    def _weights(self) -> Floats:
        return np.array(self.weights)

    # -- stored ------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"version": _VERSION, "values": list(self.values), "weights": list(self.weights)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Lengths:
        """Inverse of :meth:`to_dict`.

        Raises
        ------
        FileError
            If the data is of another version.
        """
        if data.get("version") != _VERSION:
            raise FileError(f"lengths of version {data.get('version')!r}; this perfmodel reads version {_VERSION}")
        return cls(values=tuple(data["values"]), weights=tuple(data["weights"]))
