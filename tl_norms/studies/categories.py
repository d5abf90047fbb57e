"""The category of the token at each position, from the tokenizer and the ids."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .engine.tokens import Batch, special_ids
from .errors import StudyInputError

Categories = Callable[[Any, Sequence[int]], Sequence[str]]
"""(tokenizer or None, token ids of one text) -> a name for each token."""

OTHER, PUNCTUATION = "other", "comma and period"


def token_categories(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The categories of Kobayashi et al. 2020: each special token, comma and period, other.

    Special tokens are named as the tokenizer writes them: "[CLS]" and "[SEP]" of BERT, "<|endoftext|>" of GPT-2. The
    unknown token is a word and so "other".

    Example:
        >>> token_categories(model.tokenizer, model.tokenizer("Yes.").input_ids)        # doctest: +SKIP
        ['[CLS]', 'other', 'comma and period', '[SEP]']
    """
    special = special_ids(tokenizer)
    return [special.get(number) or (PUNCTUATION if _word(tokenizer, number) in (",", ".") else OTHER) for number in ids]


def token_types(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The token types of Kobayashi et al. 2021: each special token (masks too), other."""
    special = special_ids(tokenizer)
    return [special.get(number, OTHER) for number in ids]


def category_masks(categories: Categories, tokenizer: Any, batch: Batch) -> dict[str, np.ndarray]:
    """category -> True at its tokens, [batch pos], padding never."""
    found: dict[str, np.ndarray] = {}
    for row, window in enumerate(batch.windows):
        names = categories(tokenizer, window.ids)
        if not isinstance(names, Sequence) or isinstance(names, str):
            raise StudyInputError(f"categories gave {type(names).__name__}; expected a list with a name per token.")
        if len(names) != len(window.ids):
            raise StudyInputError(
                f"categories gave {len(names)} names for {len(window.ids)} tokens; expected one each."
            )
        for position, name in enumerate(names):
            found.setdefault(str(name), np.zeros(batch.mask.shape, bool))[row, position] = True
    return found


def _word(tokenizer: Any, number: int) -> str:
    if tokenizer is None:
        return ""
    return str(tokenizer.convert_ids_to_tokens(int(number))).strip("Ġ▁ ")
