"""Alignment error rate (Och and Ney 2003), counted over a corpus."""

from collections.abc import Iterable
from dataclasses import dataclass

from .errors import AlignmentInputError
from .links import GoldLinks, Link, link_set


@dataclass(frozen=True)
class AlignmentErrorRate:
    """How far predicted links are from gold links; shares between 0 and 1, not percent.

    Attributes:
        n_predicted: |A|, links predicted, over all sentences
        n_sure: |S|
        n_predicted_sure: |A ∩ S|
        n_predicted_possible: |A ∩ P|, where S is in P
        n_sentences: sentence pairs counted
    """

    n_predicted: int
    n_sure: int
    n_predicted_sure: int
    n_predicted_possible: int
    n_sentences: int = 0

    @property
    def aer(self) -> float:
        """1 - (|A∩S| + |A∩P|) / (|A| + |S|): 0 is best; nan if there are neither predicted nor sure links."""
        n = self.n_predicted + self.n_sure
        return 1 - (self.n_predicted_sure + self.n_predicted_possible) / n if n else float("nan")

    @property
    def precision(self) -> float:
        """|A∩P| / |A|; nan if nothing was predicted."""
        return self.n_predicted_possible / self.n_predicted if self.n_predicted else float("nan")

    @property
    def recall(self) -> float:
        """|A∩S| / |S|; nan if there is no sure link."""
        return self.n_predicted_sure / self.n_sure if self.n_sure else float("nan")

    def __repr__(self) -> str:
        rates = ", ".join(f"{name}={getattr(self, name):.4g}" for name in ("aer", "precision", "recall"))
        return f"AlignmentErrorRate({rates}, {self.n_predicted} predicted and {self.n_sure} sure links)"


def alignment_error_rate(
    predicted: Iterable[Iterable[Link]],
    sure: Iterable[Iterable[Link]] | Iterable[GoldLinks],
    possible: Iterable[Iterable[Link]] | None = None,
) -> AlignmentErrorRate:
    """Alignment error rate of predicted links, from counts over all sentences together.

    AER = 1 - (|A∩S| + |A∩P|) / (|A| + |S|), precision = |A∩P| / |A|, recall = |A∩S| / |S|, with A the predicted, S the
    sure and P the possible links, S among them (Och and Ney 2003; Kobayashi et al. 2020, section 5).

    Args:
        predicted: for each sentence a set of links (source word, target word), both from 0
        sure: for each sentence the links that have to be there; or the gold links as the readers give them
        possible: for each sentence the links that may be there; sure ones need not be repeated. None if there are none
            besides the sure ones, or if `sure` are gold links with both.

    Returns:
        AlignmentErrorRate: `aer`, `precision`, `recall` in 0..1, and the counts. nan where a denominator is 0.

    Raises:
        AlignmentInputError: the numbers of sentences differ, or something is no set of links.

    Example:
        >>> alignment_error_rate([{(0, 0), (1, 1)}], [{(0, 0)}], [{(1, 1), (2, 1)}]).aer
        0.0
    """
    found, wanted = list(predicted), list(sure)
    if wanted and all(isinstance(gold, GoldLinks) for gold in wanted):
        if possible is not None:
            raise AlignmentInputError("gold links hold possible links already: leave `possible` out.")
        golds: list[GoldLinks] = wanted  # type: ignore[assignment]
    else:
        more = [()] * len(wanted) if possible is None else list(possible)
        if len(more) != len(wanted):
            raise AlignmentInputError(
                f"there are sure links of {len(wanted)} sentences and possible links of {len(more)}; expected one set "
                f"per sentence each, empty where a sentence has none."
            )
        golds = [
            GoldLinks(link_set(s, f"sentence {n} (sure)"), link_set(p, f"sentence {n} (possible)"))  # type: ignore[arg-type]
            for n, (s, p) in enumerate(zip(wanted, more, strict=True))
        ]
    if len(found) != len(golds):
        raise AlignmentInputError(
            f"there are predictions for {len(found)} sentences and gold links for {len(golds)}; expected one set per "
            f"sentence each, empty where a sentence has none."
        )
    counts = [0, 0, 0, 0]
    for number, (links, gold) in enumerate(zip(found, golds, strict=True)):
        a = link_set(links, f"sentence {number} (predicted)")
        more_counts = (len(a), len(gold.sure), len(a & gold.sure), len(a & gold.possible))
        counts = [count + more for count, more in zip(counts, more_counts, strict=True)]
    return AlignmentErrorRate(*counts, n_sentences=len(golds))
