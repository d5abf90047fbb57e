"""Links between the words of two sentences: what a gold standard holds for each of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .errors import AlignmentInputError

Link = tuple[int, int]
"""(source word, target word), both from 0."""
Links = frozenset[Link]
Lengths = Sequence[tuple[int, int]]
"""(source words, target words) of each sentence pair."""


@dataclass(frozen=True)
class GoldLinks:
    """The gold links of one sentence pair, (source word, target word) from 0.

    Attributes:
        sure: links that a prediction must have (for recall)
        possible: links that a prediction may have (for precision); sure ones are counted in

    Raises:
        AlignmentInputError: something that is no pair of word numbers.

    Example:
        >>> GoldLinks({(0, 0)}, {(0, 1)}).possible == {(0, 0), (0, 1)}
        True
    """

    sure: Links
    possible: Links = frozenset()

    def __post_init__(self) -> None:
        sure = link_set(self.sure)
        object.__setattr__(self, "sure", sure)
        object.__setattr__(self, "possible", sure | link_set(self.possible))


def link_set(links: Iterable[Link], of: str = "a sentence") -> Links:
    """Links as a set of pairs of whole numbers.

    Raises:
        AlignmentInputError: something else is among them.
    """
    try:
        given = list(links)
        found = frozenset((int(source), int(target)) for source, target in given)
        whole = all(number == int(number) and 0 <= number < 10**9 for link in given for number in link)
    except (TypeError, ValueError, OverflowError):
        given, found, whole = links, frozenset(), False
    if not whole:
        raise AlignmentInputError(
            f"the links of {of} are {_shown(given)}; expected a set of (source word, target word), whole numbers "
            f"from 0, for each sentence: [{{(0, 0), (1, 2)}}, ...]."
        )
    return found


def check_range(links: Iterable[Link], n_source: int, n_target: int, where: str, hint: str = "") -> None:
    """Refuse links to words that the sentences do not have.

    Raises:
        AlignmentInputError: its message begins with `where` and ends with `hint`.
    """
    for source, target in sorted(links):
        if source >= n_source or target >= n_target:
            raise AlignmentInputError(
                f"{where}: the gold link {source}-{target} is out of range: the source has {n_source} words and the "
                f"target {n_target}, numbered from 0.{hint}"
            )


def _shown(links: object) -> str:
    try:
        shown = repr(links)
    except ValueError:  # numbers of 5,000 digits have no repr
        shown = f"{type(links).__name__} with a number of thousands of digits"
    return shown if len(shown) <= 60 else shown[:57] + "..."
