"""Other measurements that merge: rows per text, counts per key, and plain sums."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Rows:
    """One row of numbers per text: `index` [text, 2] (text, window), `values` [text, *cells]. Kept in order."""

    index: np.ndarray
    values: np.ndarray

    def merge(self, other: "Rows") -> "Rows":
        """Both together, sorted by text: associative and commutative, exactly."""
        index = np.concatenate([self.index, other.index])
        order = np.lexsort(index.T[::-1])
        return Rows(index[order], np.concatenate([self.values, other.values])[order])

    def is_finite(self) -> bool:
        """Whether no value is infinite; NaN marks what a text does not have."""
        return not np.isinf(self.values).any()

    def arrays(self) -> dict[str, np.ndarray]:
        """The fields, for a file."""
        return {"index": self.index, "values": self.values}


@dataclass(frozen=True)
class Tally:
    """How often each key was seen, with the sum and the greatest of a number that came with it.

    `keys` [key, columns] are sorted and unique; `count`, `total`, `greatest` are [key].
    """

    keys: np.ndarray
    count: np.ndarray
    total: np.ndarray
    greatest: np.ndarray

    @classmethod
    def of(cls, keys, values) -> "Tally":
        """Keys [seen, columns], whole numbers, each with its value [seen]."""
        keys, values = np.asarray(keys, np.int64), np.asarray(values, np.float64)
        return cls._grouped(keys, np.ones(len(keys), np.int64), values, values)

    def merge(self, other: "Tally") -> "Tally":
        """Both together: counts exactly, sums up to rounding."""
        parts = ((getattr(self, name), getattr(other, name)) for name in ("keys", "count", "total", "greatest"))
        return Tally._grouped(*(np.concatenate(part) for part in parts))

    def is_finite(self) -> bool:
        """Whether neither NaN nor infinity was among the numbers."""
        return bool(np.isfinite(self.total).all())

    def arrays(self) -> dict[str, np.ndarray]:
        """The fields, for a file."""
        return {"keys": self.keys, "count": self.count, "total": self.total, "greatest": self.greatest}

    @classmethod
    def _grouped(cls, keys, count, total, greatest) -> "Tally":
        unique, where = np.unique(keys, axis=0, return_inverse=True)
        where = where.reshape(-1)  # numpy 2.0 gave it two axes
        counts, totals = np.zeros(len(unique), np.int64), np.zeros(len(unique))
        most = np.full(len(unique), -np.inf)
        np.add.at(counts, where, count)
        np.add.at(totals, where, total)
        np.maximum.at(most, where, greatest)
        return cls(unique, counts, totals, most)


@dataclass(frozen=True)
class Totals:
    """Sums of whole numbers, [*cells]: what was counted in all texts together."""

    values: np.ndarray

    def merge(self, other: "Totals") -> "Totals":
        """Both together, exactly."""
        return Totals(self.values + other.values)

    def is_finite(self) -> bool:
        """Always: whole numbers."""
        return True

    def arrays(self) -> dict[str, np.ndarray]:
        """The fields, for a file."""
        return {"values": self.values}
