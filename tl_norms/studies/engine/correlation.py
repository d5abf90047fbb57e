"""Spearman correlations pooled over any number of pairs: exact below a limit, above it from bins, with a bound.

Bins are fixed: a non-negative float is cut to its exponent and its first bits, so that bins of a value do not depend on
what else was seen, and merging is exact. What a bin holds counts as tied. The true rank vector x of the pairs and the
vector of their bins' mean ranks enclose an angle t with tan t <= sqrt(T / M), where M is the sum of squares of the mean
ranks (centred) and T = sum (n^3 - n) / 12 over bins is the most that ranks can scatter within bins. The angle between
two rank vectors is therefore that between the binned ones, give or take both t: a bound, not an estimate.
"""

from dataclasses import dataclass, field

import numpy as np

LIMIT = 1_000_000  # pairs held one by one
BITS = 8  # of the mantissa: a bin is at most 1/256 wide, relative to its value
_SHIFT = 23 - BITS
_WIDTH = 32
_INFINITE = 0x7F800000 >> _SHIFT  # the bin of infinity in float32; those of NaN follow


@dataclass(frozen=True)
class Spearman:
    """A rank correlation.

    Attributes:
        rho: Spearman's coefficient, nan if one side is constant or there are fewer than two pairs
        n: number of pairs
        error: bound of |rho - exact rho|; 0 where it is exact
    """

    rho: float
    n: int
    error: float


@dataclass(frozen=True)
class Pairs:
    """Pairs (x, y) for a Spearman correlation; y, and x unless `discrete`, must not be negative.

    Up to `limit` pairs are kept one by one, more as counts of cells. `merge` is associative, exactly.

    Attributes:
        x, y: the pairs one by one, empty if there are too many
        cells, counts: occupied cells (x's bin above y's bin, in one number) and what they hold
        limit: pairs held one by one
        discrete: x are whole numbers below 2^31 (token ids), kept as they are
    """

    x: np.ndarray = field(default_factory=lambda: np.empty(0))
    y: np.ndarray = field(default_factory=lambda: np.empty(0))
    cells: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    counts: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    limit: int = LIMIT
    discrete: bool = False

    @classmethod
    def of(cls, x, y, *, limit: int = LIMIT, discrete: bool = False) -> "Pairs":
        x, y = np.asarray(x, np.float64).ravel(), np.asarray(y, np.float64).ravel()
        return cls(x, y, limit=limit, discrete=discrete)._within_limit()

    @property
    def n(self) -> int:
        return len(self.x) + int(self.counts.sum())

    def merge(self, other: "Pairs") -> "Pairs":
        """Both together."""
        if self.n + other.n <= self.limit:
            x, y = np.concatenate([self.x, other.x]), np.concatenate([self.y, other.y])
            return Pairs(x, y, limit=self.limit, discrete=self.discrete)
        left, right = self._binned(), other._binned()
        cells, counts = np.concatenate([left.cells, right.cells]), np.concatenate([left.counts, right.counts])
        order = np.argsort(cells, kind="stable")  # merges two sorted runs; np.union1d would hash millions of cells
        cells = cells[order]
        starts = np.flatnonzero(np.append(True, cells[1:] != cells[:-1]))
        counts = np.add.reduceat(counts[order], starts)
        return Pairs(cells=cells[starts], counts=counts, limit=self.limit, discrete=self.discrete)

    def table(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x, y and how often; bins in place of values where pairs were counted."""
        if len(self.cells):
            return self.cells >> _WIDTH, self.cells & ((1 << _WIDTH) - 1), self.counts
        return self.x, self.y, np.ones(len(self.x), np.int64)

    def spearman(self) -> Spearman:
        """The correlation of x and y."""
        x, y, counts = self.table()
        binned = len(self.cells) > 0
        return spearman(x, y, counts, x_binned=binned and not self.discrete, y_binned=binned)

    def is_finite(self) -> bool:
        """Whether neither NaN nor infinity is among the pairs, which have bins of their own, above all numbers."""
        bins = [self.cells & ((1 << _WIDTH) - 1)] + [self.cells >> _WIDTH] * (not self.discrete)
        one_by_one = np.isfinite(self.x).all() and np.isfinite(self.y).all()
        return bool(one_by_one and all((part < _INFINITE).all() for part in bins))

    def arrays(self) -> dict[str, np.ndarray]:
        """The fields, for a file."""
        names = ("x", "y", "cells", "counts", "limit", "discrete")
        return {name: np.asarray(getattr(self, name)) for name in names}

    def _within_limit(self) -> "Pairs":
        return self if self.n <= self.limit else self._binned()

    def _binned(self) -> "Pairs":
        if not len(self.x):
            return self
        x = self.x.astype(np.int64) if self.discrete else _bins(self.x)
        cells, counts = np.unique((x << _WIDTH) | _bins(self.y), return_counts=True)
        return Pairs(cells=cells, counts=counts, limit=self.limit, discrete=self.discrete)


def spearman(x, y, counts=None, *, x_binned: bool = False, y_binned: bool = False) -> Spearman:
    """Spearman's rho of the pairs (x, y), each seen `counts` times; ties get their mean rank.

    Args:
        x, y: [pairs]
        counts: [pairs], None for once each
        x_binned, y_binned: equal values are bins, whose true values may differ: bound the error of that
    """
    x, y = np.asarray(x), np.asarray(y)
    counts = np.ones(len(x), np.int64) if counts is None else np.asarray(counts, np.int64)
    total = int(counts.sum())
    if total < 2:
        return Spearman(float("nan"), total, 0.0)
    (rank_x, scatter_x), (rank_y, scatter_y) = _ranks(x, counts), _ranks(y, counts)
    weights = counts.astype(np.float64)
    square_x, square_y = float(weights @ rank_x**2), float(weights @ rank_y**2)
    if square_x == 0 or square_y == 0:
        return Spearman(float("nan"), total, 0.0)
    rho = float(np.clip(weights @ (rank_x * rank_y) / np.sqrt(square_x) / np.sqrt(square_y), -1, 1))
    turn = x_binned * np.arctan(np.sqrt(scatter_x / square_x)) + y_binned * np.arctan(np.sqrt(scatter_y / square_y))
    angle = np.arccos(rho)
    far, near = np.cos(min(np.pi, angle + turn)), np.cos(max(0.0, angle - turn))
    return Spearman(rho, total, float(max(rho - far, near - rho)) if turn else 0.0)


def _ranks(values: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, float]:
    """Mean ranks, centred and as shares of the number of pairs; and how much ranks can scatter within ties."""
    _, where = np.unique(values, return_inverse=True)
    sizes = np.bincount(where, weights=counts)
    total = sizes.sum()
    centred = (np.cumsum(sizes) - sizes / 2) / total - 0.5
    return centred[where], float((sizes**3 - sizes).sum() / 12 / total**2)


def _bins(values: np.ndarray) -> np.ndarray:
    """The number of the bin of each value: its float32 exponent and first bits, which sort as the values do."""
    return (np.abs(values).astype(np.float32).view(np.uint32) >> _SHIFT).astype(np.int64)
