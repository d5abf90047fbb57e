"""What is known of a corpus so far: which texts are in it, what was measured, what was left out."""

import json
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ..errors import StudyInputError
from .correlation import Pairs
from .moments import Moments
from .tallies import Rows, Tally, Totals


class Mergeable(Protocol):
    """A measurement of some texts."""

    def merge(self, other: Any) -> "Mergeable":
        """The measurement of both together: associative and commutative."""
        ...

    def is_finite(self) -> bool:
        """Whether it holds neither NaN nor infinity where none may be."""
        ...

    def arrays(self) -> dict[str, np.ndarray]:
        """The constructor's arguments as arrays, for a file."""
        ...


MODULUS = 2**128  # of sums of digests

_KINDS: dict[str, Any] = {kind.__name__: kind for kind in (Moments, Pairs, Rows, Tally, Totals)}


@dataclass(frozen=True, order=True)
class Excluded:
    """A text that is not in the result.

    Attributes:
        index: its number in the corpus, from 0
        name: "text 17", or "line 18" of a file
        reason: why
    """

    index: int
    name: str
    reason: str


@dataclass(frozen=True)
class Spans:
    """A set of text numbers as sorted, disjoint half-open spans."""

    spans: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        return sum(end - start for start, end in self.spans)

    def __contains__(self, number: int) -> bool:
        before = bisect_right(self.spans, number, key=lambda span: span[0])
        return before > 0 and number < self.spans[before - 1][1]

    def union(self, other: "Spans") -> "Spans":
        joined: list[tuple[int, int]] = []
        for start, end in sorted(self.spans + other.spans):
            if joined and start <= joined[-1][1]:
                joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
            else:
                joined.append((start, end))
        return Spans(tuple(joined))

    def holds(self, other: "Spans") -> bool:
        return self.union(other) == self


@dataclass(frozen=True)
class Partial:
    """The measurements of some texts, as a value: `a.merge(b)` is what both together give.

    Merging is associative and commutative (sums up to rounding, everything else exactly). Texts that are in both
    count once: a part that is contained in the other changes nothing, parts that overlap otherwise are refused.

    Attributes:
        texts: the numbers of the texts read, excluded ones too
        values: what the study measures, by name
        excluded: the texts left out
        counts: texts measured, windows, tokens, truncated texts
        digest: the sum of `Item.digest` over the texts read, modulo 2^128
    """

    texts: Spans = Spans()
    values: dict[str, Mergeable] = field(default_factory=dict)
    excluded: tuple[Excluded, ...] = ()
    counts: tuple[int, int, int, int] = (0, 0, 0, 0)
    digest: int = 0

    def merge(self, other: "Partial") -> "Partial":
        """Both together."""
        if self.texts.holds(other.texts):
            return self
        if other.texts.holds(self.texts):
            return other
        texts = self.texts.union(other.texts)
        if len(texts) != len(self.texts) + len(other.texts):
            raise StudyInputError(
                f"two parts share some of their texts, {self.texts.spans} and {other.texts.spans}, and cannot be told "
                f"apart any more. Merge parts of disjoint texts."
            )
        return Partial(
            texts,
            merged(self.values, other.values),
            tuple(sorted(self.excluded + other.excluded)),
            tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)),  # type: ignore[arg-type]
            (self.digest + other.digest) % MODULUS,
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything as plain arrays, for a file without pickles."""
        kinds = [(name, type(value).__name__) for name, value in self.values.items()]
        excluded = [(text.index, text.name, text.reason) for text in self.excluded]
        facts = {
            "texts": self.texts.spans,
            "kinds": kinds,
            "excluded": excluded,
            "counts": self.counts,
            "digest": self.digest,
        }
        found = {"partial": np.array(json.dumps(facts))}
        for number, value in enumerate(self.values.values()):
            found |= {f"value{number}/{key}": array for key, array in value.arrays().items()}
        return found

    @classmethod
    def of_arrays(cls, arrays: Any) -> "Partial":
        """The inverse of `arrays`."""
        facts = json.loads(str(arrays["partial"]))
        values: dict[str, Mergeable] = {}
        for number, (name, kind) in enumerate(facts["kinds"]):
            at = f"value{number}/"
            fields = {key.removeprefix(at): arrays[key] for key in arrays if key.startswith(at)}
            values[name] = _KINDS[kind](**{key: v.item() if v.ndim == 0 else v for key, v in fields.items()})
        return cls(
            Spans(tuple((start, end) for start, end in facts["texts"])),
            values,
            tuple(Excluded(*text) for text in facts["excluded"]),
            tuple(facts["counts"]),
            facts["digest"],
        )


def merged(left: dict[str, Mergeable], right: dict[str, Mergeable]) -> dict[str, Mergeable]:
    """Measurements by name, merged where both have one."""
    found = dict(left)
    for name, value in right.items():
        found[name] = found[name].merge(value) if name in found else value
    return found
