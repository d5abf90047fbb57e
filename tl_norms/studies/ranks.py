"""How frequent each token is: ranks from a file or a mapping, or counted in the corpus itself."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..files import is_file, no_file
from .engine.correlation import Pairs, Spearman, spearman
from .engine.options import whole
from .errors import StudyInputError

Ranks = str | os.PathLike | Mapping[int, int]
""""corpus", or a file, or token id -> rank."""


def loaded(ranks: Ranks) -> Mapping[int, int] | None:
    """Token id -> rank; None if they are to be counted from the corpus.

    Args:
        ranks: "corpus"; a file with lines `rank count token_id`; or a mapping

    Raises:
        StudyInputError: no such file, or a line of it that holds something else.
    """
    if not isinstance(ranks, Mapping):
        return None if isinstance(ranks, str) and ranks == "corpus" else read_ranks(ranks)
    if not ranks:
        raise StudyInputError("the ranks are empty; expected token id -> rank.")
    return {whole("a token id of ranks", token): whole("a rank", rank) for token, rank in ranks.items()}


def read_ranks(path: str | os.PathLike) -> dict[int, int]:
    """Token id -> rank from a file with lines `rank count token_id`, as the papers' authors use it."""
    if not is_file(path):
        raise StudyInputError(f"{no_file(path)} with ranks, a mapping, or 'corpus'.")
    found: dict[int, int] = {}
    text = Path(path).expanduser().read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            rank, _, token = (int(part) for part in line.split() if len(part) < 20)
        except ValueError:
            raise StudyInputError(
                f"line {number} of {str(path)!r} is {line[:60]!r}; expected 'rank count token_id'."
            ) from None
        found[token] = rank
    if not found:
        raise StudyInputError(f"{str(path)!r} holds no ranks; expected lines 'rank count token_id'.")
    return found


def counted(ids: np.ndarray, counts: np.ndarray) -> dict[int, int]:
    """Token id -> rank by count, the most frequent first; equal counts share the better rank."""
    unique, where = np.unique(ids, return_inverse=True)
    totals = np.bincount(where, weights=counts).astype(np.int64)
    ordered = np.sort(-totals)
    return dict(zip(unique.tolist(), (np.searchsorted(ordered, -totals) + 1).tolist(), strict=True))


def frequency_correlation(pairs: Pairs, ranks: Mapping[int, int] | None, without: tuple[int, ...] = ()) -> Spearman:
    """Spearman of frequency rank and a number of each token.

    Args:
        pairs: (token id, number) of every token
        ranks: token id -> rank, None to count the tokens of `pairs`; ids that are not listed rank after all others
        without: token ids to leave out
    """
    ids, values, counts = pairs.table()
    ids = ids.astype(np.int64)
    ranks = counted(ids, counts) if ranks is None else ranks
    last = max(ranks.values()) + 1
    unique, where = np.unique(ids, return_inverse=True)
    rank = np.array([ranks.get(number, last) for number in unique.tolist()])[where]
    keep = ~np.isin(ids, list(without))
    return spearman(rank[keep], values[keep], counts[keep], y_binned=len(pairs.cells) > 0)
