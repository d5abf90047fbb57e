"""How faithful one attribution of one input is. Formulas only: a model is a function f of the set of kept positions.

f(S): the target with only S kept; N: all removable positions, m of them; order: by signed score, best first.

    comprehensiveness ↑   mean over k of f(N) - f(N without the k best)
    sufficiency ↓         mean over k of f(N) - f(only the k best)
    SRG ↑                 mean over k of f(N without the k worst) - f(N without the k best)
    NAOPC ↑               (comprehensiveness - lowest) / (highest - lowest), over orders
    soft ... at rate r    the same two with coordinates of embeddings removed at random, a share r of them kept
    MRR ↑                 1 / rank of the best evidence token
    RMA ↑                 share of the positive score that lies on the evidence
    effect correlation ↑  Spearman of scores with f(N) - f(N without j)
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from .engine import spearman
from .errors import FaithfulnessInputError

Sets = Callable[[Bool[np.ndarray, "sets removable"]], Float[np.ndarray, " sets"]]
SoftSets = Callable[[Float[np.ndarray, "sets removable"]], Float[np.ndarray, " sets"]]
Needs = Literal["evidence", "removal", "soft"]

RATES = (0.25, 0.5, 0.75)
EXACT, BEAM = 8, 5
"""NAOPC looks at all orders of up to EXACT positions, and at BEAM of them at a time beyond."""


@dataclass(frozen=True)
class Scored:
    """One attribution of one input, as metrics see it.

    Attributes:
        scores: of the removable positions, signed
        evidence: which of them decide, all False if nobody has said
        f: the target with only these kept, [sets removable] -> [sets]; None where a metric needs no run
        soft: the expected target with each position's coordinates kept at these rates; None likewise
        fractions: the stated shares of m that k takes, each at least one position; None for k = 1..m
        ties: breaks ties between equal scores, a permutation of range(m); None for the order of positions
    """

    scores: Float[np.ndarray, " removable"]
    evidence: Bool[np.ndarray, " removable"]
    f: Sets | None = None
    soft: SoftSets | None = None
    fractions: tuple[float, ...] | None = None
    ties: Int[np.ndarray, " removable"] | None = None

    @property
    def m(self) -> int:
        return len(self.scores)

    @cached_property
    def order(self) -> Int[np.ndarray, " removable"]:
        """Best first."""
        ties = np.arange(self.m) if self.ties is None else self.ties
        return np.lexsort((ties, -self.scores))

    @cached_property
    def ks(self) -> tuple[int, ...]:
        """Numbers of positions that are removed, or kept."""
        if self.fractions is None:
            return tuple(range(1, self.m + 1))
        return tuple(sorted({max(1, int(np.ceil(share * self.m - 1e-9))) for share in self.fractions}))

    def run(self, kept: Bool[np.ndarray, "sets removable"]) -> Float[np.ndarray, " sets"]:
        if self.f is None:
            raise FaithfulnessInputError("this metric removes positions: give it a removal.")
        return self.f(kept)

    @cached_property
    def full(self) -> float:
        """f(N)."""
        return float(self.run(np.ones((1, self.m), bool))[0])

    def without(self, positions: Int[np.ndarray, " removable"]) -> Float[np.ndarray, " ks"]:
        """f(N without the first k of these) for every k."""
        kept = np.ones((len(self.ks), self.m), bool)
        for row, k in enumerate(self.ks):
            kept[row, positions[:k]] = False
        return self.run(kept)

    def only(self, positions: Int[np.ndarray, " removable"]) -> Float[np.ndarray, " ks"]:
        """f(only the first k of these) for every k."""
        kept = np.zeros((len(self.ks), self.m), bool)
        for row, k in enumerate(self.ks):
            kept[row, positions[:k]] = True
        return self.run(kept)


def comprehensiveness(scored: Scored) -> float:
    """mean over k of f(N) - f(N without the k best)."""
    return float((scored.full - scored.without(scored.order)).mean())


def sufficiency(scored: Scored) -> float:
    """mean over k of f(N) - f(only the k best)."""
    return float((scored.full - scored.only(scored.order)).mean())


def symmetric_relevance_gain(scored: Scored) -> float:
    """mean over k of f(N without the k worst) - f(N without the k best)."""
    return float((scored.without(scored.order[::-1]) - scored.without(scored.order)).mean())


def normalised_aopc(scored: Scored) -> float:
    """(AOPC - lowest) / (highest - lowest), AOPC being comprehensiveness with k = 1..m; nan if all orders are equal."""
    every = Scored(scored.scores, scored.evidence, scored.f, ties=scored.ties)
    aopc = comprehensiveness(every)
    lowest, highest = aopc_bounds(every.run, every.m)
    lowest, highest = min(lowest, aopc), max(highest, aopc)  # a beam may miss what this very order reaches
    return (aopc - lowest) / (highest - lowest) if highest - lowest > 1e-9 * max(1, abs(highest)) else float("nan")


def aopc_bounds(f: Sets, m: int, *, exact: int = EXACT, beam: int = BEAM) -> tuple[float, float]:
    """The lowest and the highest AOPC of any order of m positions.

    Up to `exact` positions over all m! orders, which share their 2^m sets: the best order that begins with a set of
    positions does not depend on the order within. Beyond, a beam search that keeps `beam` sets per step, whose bounds
    can be too narrow.
    """
    full = float(f(np.ones((1, m), bool))[0])
    return tuple(sign * _highest(f, m, full, sign, 2**m if m <= exact else beam) / m for sign in (-1, 1))  # type: ignore[return-value]


def _highest(f: Sets, m: int, full: float, sign: int, width: int) -> float:
    """Largest sum over k of sign * (f(N) - f(N without the first k)); as many partial orders as `width` go on."""
    sums = {frozenset[int](): 0.0}
    for _ in range(m):
        sets = list({before | {j} for before in sums for j in range(m) if j not in before})
        kept = np.ones((len(sets), m), bool)
        for row, gone in enumerate(sets):
            kept[row, list(gone)] = False
        drops = sign * (full - f(kept))
        reached = {
            gone: drop + max(sums[gone - {j}] for j in gone if gone - {j} in sums)
            for gone, drop in zip(sets, drops.tolist(), strict=True)
        }
        sums = dict(sorted(reached.items(), key=lambda entry: -entry[1])[:width])
    return next(iter(sums.values()))


def keep_rates(scores: Float[np.ndarray, " removable"], rate: float) -> Float[np.ndarray, " removable"]:
    """Scores as probabilities of being kept whose mean is `rate`, in the order of the scores.

    min-max to [0, 1], then moved up or down by one number and clipped: whatever a method's mean score is, the same
    share of coordinates is kept.
    """
    low, high = scores.min(), scores.max()
    unit = (scores - low) / (high - low) if high > low else np.full_like(scores, 0.5)
    below, above = -1.0, 1.0
    for _ in range(60):
        shift = (below + above) / 2
        below, above = (shift, above) if np.clip(unit + shift, 0, 1).mean() < rate else (below, shift)
    return np.clip(unit + above, 0, 1)


def soft_comprehensiveness(scored: Scored, rates: tuple[float, ...] = RATES) -> float:
    """mean over rates of f(N) - f(coordinates of j kept with probability falling with its score)."""
    return _soft(scored, np.stack([1 - keep_rates(scored.scores, 1 - rate) for rate in rates]))


def soft_sufficiency(scored: Scored, rates: tuple[float, ...] = RATES) -> float:
    """mean over rates of f(N) - f(coordinates of j kept with probability rising with its score)."""
    return _soft(scored, np.stack([keep_rates(scored.scores, rate) for rate in rates]))


def _soft(scored: Scored, keep: Float[np.ndarray, "rates removable"]) -> float:
    if scored.soft is None:
        raise FaithfulnessInputError("soft metrics fill coordinates of embeddings: they need the removal 'replace'.")
    return float((scored.full - scored.soft(keep)).mean())


def evidence_rank(scored: Scored) -> float:
    """1 / rank of the best evidence token, 1 for the highest score; equal scores elsewhere count against it."""
    if not scored.evidence.any():
        return float("nan")
    best = scored.scores[scored.evidence].max()
    return 1.0 / (1 + int((scored.scores[~scored.evidence] >= best).sum()))


def relevance_mass(scored: Scored) -> float:
    """Share of the positive score that lies on the evidence; 0 if nothing is positive."""
    if not scored.evidence.any():
        return float("nan")
    positive = scored.scores.clip(min=0)
    return float(positive[scored.evidence].sum() / positive.sum()) if positive.sum() > 0 else 0.0


def effect_correlation(scored: Scored) -> float:
    """Spearman of scores with f(N) - f(N without j); nan for fewer than three positions or equal scores."""
    if scored.m < 3:
        return float("nan")
    effects = scored.full - scored.run(~np.eye(scored.m, dtype=bool))
    return spearman(scored.scores, effects).rho


@dataclass(frozen=True)
class Metric:
    """A metric by name.

    Attributes:
        name: what tables call it, without its direction
        better: "↑" if more is better, "↓" if less is
        needs: "evidence" (no runs), "removal" (once per removal), "soft" (with the removal "replace")
        function: of a `Scored`; nan where it is not defined
    """

    name: str
    better: Literal["↑", "↓"]
    needs: Needs
    function: Callable[[Scored], float]

    def label(self, removal: str = "") -> str:
        """Its name with removal and direction, for the head of a table."""
        if removal == "swap" and self.name == "effect correlation":
            return f"counterfactual effect correlation {self.better}"
        return f"{self.name} {self.better}" if not removal else f"{self.name} ({removal}) {self.better}"


METRICS = {
    metric.name: metric
    for metric in (
        Metric("MRR", "↑", "evidence", evidence_rank),
        Metric("RMA", "↑", "evidence", relevance_mass),
        Metric("SRG", "↑", "removal", symmetric_relevance_gain),
        Metric("comprehensiveness", "↑", "removal", comprehensiveness),
        Metric("sufficiency", "↓", "removal", sufficiency),
        Metric("effect correlation", "↑", "removal", effect_correlation),
        Metric("NAOPC", "↑", "removal", normalised_aopc),
        Metric("soft comprehensiveness", "↑", "soft", soft_comprehensiveness),
        Metric("soft sufficiency", "↓", "soft", soft_sufficiency),
    )
}
DEFAULT = ("MRR", "RMA", "SRG", "comprehensiveness", "sufficiency", "effect correlation")
"""Those that cost no more than 2 m runs per method; NAOPC takes up to 2^m, soft metrics many draws."""


def chosen(names: tuple[str, ...] | None) -> tuple[Metric, ...]:
    """Metrics by name, in the order given; None for `DEFAULT`.

    Raises:
        FaithfulnessInputError: there is no such metric.
    """
    unknown = [name for name in names or () if name not in METRICS]
    if unknown:
        raise FaithfulnessInputError(f"there is no metric {unknown[0]!r}; expected one of {', '.join(METRICS)}.")
    return tuple(METRICS[name] for name in (DEFAULT if names is None else names))
