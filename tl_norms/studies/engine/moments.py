"""Mean, variance, least and greatest value of many cells at once, in one pass and in float64."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Moments:
    """Count, mean, sum of squared deviations, least and greatest value per cell; all arrays have one shape.

    `a.merge(b)` is what one pass over both would have given (Chan et al. 1979): associative and commutative up to
    rounding in float64, exact in counts and extremes.
    """

    n: np.ndarray
    mean_: np.ndarray
    squares: np.ndarray
    least: np.ndarray
    greatest: np.ndarray

    @classmethod
    def of(cls, values: Any, where: Any = None) -> "Moments":
        """Moments over the last axis of `values` [*cells, observations], of those that `where` selects."""
        values = np.asarray(values, dtype=np.float64)
        where = np.ones(values.shape, bool) if where is None else np.broadcast_to(where, values.shape)
        n = where.sum(-1)
        mean = np.where(where, values, 0).sum(-1) / np.maximum(n, 1)
        squares = np.where(where, (values - mean[..., None]) ** 2, 0).sum(-1)
        least = np.where(where, values, np.inf).min(-1, initial=np.inf)
        greatest = np.where(where, values, -np.inf).max(-1, initial=-np.inf)
        return cls(n.astype(np.int64), mean, squares, least, greatest)

    def merge(self, other: "Moments") -> "Moments":
        """Both together."""
        n = self.n + other.n
        share = other.n / np.maximum(n, 1)
        apart = other.mean_ - self.mean_
        return Moments(
            n,
            self.mean_ + apart * share,
            self.squares + other.squares + apart**2 * self.n * share,
            np.minimum(self.least, other.least),
            np.maximum(self.greatest, other.greatest),
        )

    @property
    def mean(self) -> np.ndarray:
        """Mean of each cell; nan where nothing was seen."""
        return np.where(self.n > 0, self.mean_, np.nan)

    @property
    def sd(self) -> np.ndarray:
        """Population standard deviation (ddof 0) of each cell; nan where nothing was seen."""
        return np.where(self.n > 0, np.sqrt(self.squares / np.maximum(self.n, 1)), np.nan)

    @property
    def min(self) -> np.ndarray:
        """Least value of each cell; nan where nothing was seen."""
        return np.where(self.n > 0, self.least, np.nan)

    @property
    def max(self) -> np.ndarray:
        """Greatest value of each cell; nan where nothing was seen."""
        return np.where(self.n > 0, self.greatest, np.nan)

    def is_finite(self) -> bool:
        """Whether neither NaN nor infinity was among the values."""
        return bool(np.isfinite(self.mean_).all() and np.isfinite(self.squares).all())

    def arrays(self) -> dict[str, np.ndarray]:
        """The fields, for a file."""
        return {field.name: np.asarray(getattr(self, field.name)) for field in fields(self)}
