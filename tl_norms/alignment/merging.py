"""From maps between pieces to maps between words."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import AlignmentInputError

Words = Sequence[int | None]
"""For each piece the number of its word, from 0; None for special tokens, which are groups of their own."""


def merge_words(
    map: Tensor,
    source_words: Words,
    target_words: Words,
    *,
    n_source: int | None = None,
    n_target: int | None = None,
) -> Tensor:
    """A map between words from one between pieces: SUM over a source word's pieces, MEAN over a target word's.

    M_ts = 1/|t| sum_{i in t} sum_{j in s} m_ij (Kobayashi et al. 2020, section 5). The sum keeps what a target piece
    takes from a word whole; the mean keeps rows of long words comparable.

    Args:
        map: [*leading target_piece source_piece], attention weights or vector norms
        source_words: for each column the number of its word, from 0; None for a special token
        target_words: for each row likewise
        n_source, n_target: how many words there are; None for as many as are numbered. A word without a piece gets 0.

    Returns:
        [*leading target_group source_group]: words in their order, then each special token by itself, in order.

    Raises:
        AlignmentInputError: the map has other axes than the words given.

    Example:
        >>> map = torch.tensor([[0.1, 0.2, 0.7], [0.3, 0.2, 0.5]])
        >>> merge_words(map, (0, 0, None), (0, 0))      # one word of two pieces on both sides, and an end of sentence
        tensor([[0.4000, 0.6000]])
    """
    wanted = (len(target_words), len(source_words))
    if map.ndim < 2 or tuple(map.shape[-2:]) != wanted:
        raise AlignmentInputError(
            f"the map is {list(map.shape)}, but there are {wanted[0]} target pieces and {wanted[1]} source pieces; "
            f"expected [..., {wanted[0]}, {wanted[1]}]."
        )
    kind = torch.promote_types(map.dtype, torch.float32)
    columns = _membership(source_words, n_source).to(map.device, kind)
    rows = _membership(target_words, n_target).to(map.device, kind)
    return (rows / rows.sum(0).clamp_min(1)).T @ map.to(kind) @ columns


def groups(words: Words, n_words: int | None = None) -> list[int]:
    """The number of each piece's group: its word, or a number after all words for each special token."""
    n = n_words if n_words is not None else max((word for word in words if word is not None), default=-1) + 1
    found, n_special = [], 0
    for word in words:
        if word is not None and not 0 <= word < n:
            raise AlignmentInputError(f"a piece belongs to word {word}; expected words numbered from 0 to {n - 1}.")
        found.append(n + n_special if word is None else word)
        n_special += word is None
    return found


def _membership(words: Words, n_words: int | None) -> Tensor:
    """1 where a piece belongs to a group, [piece group]."""
    numbers = groups(words, n_words)
    n_special = sum(word is None for word in words)
    n = (n_words if n_words is not None else max((w for w in words if w is not None), default=-1) + 1) + n_special
    found = torch.zeros(len(numbers), n)
    if numbers:
        found[torch.arange(len(numbers)), torch.tensor(numbers)] = 1
    return found
