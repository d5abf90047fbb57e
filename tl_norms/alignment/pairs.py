"""Sentence pairs, as words and as the pieces that a model reads."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .errors import AlignmentFormatError, AlignmentInputError
from .merging import Words, groups
from .reading import text_of


@dataclass(frozen=True)
class SentencePair:
    """Two sentences as words: what gold links count in."""

    source: tuple[str, ...]
    target: tuple[str, ...]


@dataclass(frozen=True)
class EncodedPair:
    """Two sentences as token ids, with the word that each token belongs to.

    Attributes:
        source: ids that the encoder reads, special tokens included
        target: ids that the decoder is to predict, the end of sentence included
        source_words, target_words: for each id the number of its word, from 0; None for special tokens
        n_source, n_target: words; more than are numbered if some have no token of their own, None for no more
        start: the id that the decoder begins with, None for the model's own

    Raises:
        AlignmentInputError: an empty sentence, or words that do not fit the ids.
    """

    source: tuple[int, ...]
    target: tuple[int, ...]
    source_words: tuple[int | None, ...]
    target_words: tuple[int | None, ...]
    n_source: int | None = None
    n_target: int | None = None
    start: int | None = None

    def __post_init__(self) -> None:
        for side in ("source", "target"):
            ids = tuple(int(number) for number in getattr(self, side))
            words: Words = getattr(self, f"{side}_words")
            if not ids or len(words) != len(ids):
                raise AlignmentInputError(
                    f"the {side} has {len(ids)} tokens and {len(words)} word numbers; expected one number per token "
                    f"(None for special tokens), and at least one token."
                )
            numbered = max((word for word in words if word is not None), default=-1) + 1
            n = getattr(self, f"n_{side}")
            groups(words, n)
            object.__setattr__(self, side, ids)
            object.__setattr__(self, f"{side}_words", tuple(words))
            object.__setattr__(self, f"n_{side}", numbered if n is None else n)

    @property
    def size(self) -> int:
        """Positions of the longer side, the decoder's start included."""
        return max(len(self.source), len(self.target) + 1)


def as_pair(thing: Any, name: str = "the pair") -> SentencePair | EncodedPair:
    """A sentence pair from two strings (words between blanks), two lists of words, or one that is a pair already.

    Raises:
        AlignmentInputError: something else.
    """
    if isinstance(thing, SentencePair | EncodedPair):
        return thing
    if isinstance(thing, str) or not isinstance(thing, Sequence) or len(thing) != 2:
        raise AlignmentInputError(
            f"{name} is {type(thing).__name__}; expected (source, target), each a string of words with blanks between "
            f"them or a list of words, or an EncodedPair."
        )
    return SentencePair(_words(thing[0], name), _words(thing[1], name))


def read_pairs(path: str | os.PathLike) -> list[SentencePair]:
    """Sentence pairs from a file: a line per pair, source and target with `|||` or a tab between them, words by blanks.

    Raises:
        AlignmentInputError: there is no such file.
        AlignmentFormatError: a line without two sentences on it; the message has its number.
    """
    found = []
    for number, line in enumerate(text_of(path, "sentence pairs").rstrip().split("\n"), start=1):
        parts = line.split("|||" if "|||" in line else "\t")
        if len(parts) != 2 or not all(part.split() for part in parts):
            raise AlignmentFormatError(
                f"line {number} of {str(path)!r} is {line[:60]!r}; expected source and target on one line, with ||| or "
                f"a tab between them: 'das Haus ||| the house'."
            )
        found.append(SentencePair(_words(parts[0], ""), _words(parts[1], "")))
    return found


def _words(sentence: Any, name: str) -> tuple[str, ...]:
    if isinstance(sentence, str):
        return tuple(sentence.split())
    if not isinstance(sentence, Sequence) or not all(isinstance(word, str) for word in sentence):
        raise AlignmentInputError(f"a sentence of {name} is neither a string nor a list of words.")
    for word in sentence:
        if len(word.split()) != 1:
            raise AlignmentInputError(f"{name} has the word {word!r}; expected words without blanks in them.")
    return tuple(sentence)
