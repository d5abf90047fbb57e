"""Sentence pairs through a translation model's tokenizer, with the word of each piece.

Words are those given (gold links count in them). A fast tokenizer tells the characters that each piece comes from, and
so its word. With a slow one (Marian's and M2M-100's) a word has the pieces that it has alone, if these together are the
pieces of the sentence, as they are with SentencePiece; otherwise the marks on the pieces tell, if they make as many
words as are given.
"""

from collections.abc import Sequence
from typing import Any

from .errors import AlignmentInputError
from .pairs import EncodedPair, SentencePair
from .subwords import subword_scheme, word_groups


def encode_pair(tokenizer: Any, pair: SentencePair, *, source_prefix: str = "") -> EncodedPair:
    """A sentence pair as the model was trained to read it: its tokenizer's ids on both sides, special tokens included.

    Args:
        tokenizer: of transformers; the target goes through `text_target`, where Marian's changes its vocabulary
        pair: words on both sides; they are joined by blanks
        source_prefix: put before the source, belonging to no word: "translate English to German:" of T5, or a language
            code such as ">>deu<<"

    Raises:
        TokenizerSchemeError: the tokenizer's pieces show no word boundaries.
        AlignmentInputError: an empty sentence, or one of which the tokenizer makes other words.

    Example:
        >>> encode_pair(tokenizer, SentencePair(("das", "Haus"), ("the", "house")))     # doctest: +SKIP
    """
    if not pair.source or not pair.target:
        raise AlignmentInputError(f"the {'target' if pair.source else 'source'} has no words.")
    source, source_words = _side(tokenizer, pair.source, source_prefix.split(), target=False)
    target, target_words = _side(tokenizer, pair.target, [], target=True)
    return EncodedPair(source, target, source_words, target_words, len(pair.source), len(pair.target))


def _side(
    tokenizer: Any, words: Sequence[str], prefix: Sequence[str], target: bool
) -> tuple[tuple[int, ...], tuple[int | None, ...]]:
    """Ids of a sentence, and for each the number of its word; None for special tokens and the prefix."""
    everything = [*prefix, *words]
    read = _fast if getattr(tokenizer, "is_fast", False) else _slow
    ids, numbers = read(tokenizer, everything, target)
    n = len(prefix)
    return tuple(ids), tuple(None if number is None or number < n else number - n for number in numbers)


def _fast(tokenizer: Any, words: Sequence[str], target: bool) -> tuple[list[int], list[int | None]]:
    """By the characters that each piece comes from."""
    text = " ".join(words)
    given = {"text_target" if target else "text": text}
    found = tokenizer(**given, return_offsets_mapping=True, return_special_tokens_mask=True)
    at: list[int] = []  # for each character its word; a blank belongs to the word after it
    for number, word in enumerate(words):
        at += [number] * (len(word) + (number > 0))
    spans = zip(found["offset_mapping"], found["special_tokens_mask"], strict=True)
    return list(found["input_ids"]), [None if special else at[min(start, len(at) - 1)] for (start, _), special in spans]


def _slow(tokenizer: Any, words: Sequence[str], target: bool) -> tuple[list[int], list[int | None]]:
    """By the pieces of each word alone, or by the marks on pieces."""
    text = " ".join(words)
    ids = list(tokenizer(**{"text_target" if target else "text": text})["input_ids"])
    switch = getattr(tokenizer, "_switch_to_target_mode", None) if target else None
    back = getattr(tokenizer, "_switch_to_input_mode", None)
    if switch is not None:
        switch()
    try:  # ids alone would not do: Marian's convert_ids_to_tokens knows one of its vocabularies only
        pieces = list(tokenizer.tokenize(text))
        piece_ids = list(tokenizer.convert_tokens_to_ids(pieces))
        alone = [list(tokenizer.tokenize(word)) for word in words]
    finally:
        if switch is not None and back is not None:
            back()
    first = next((n for n in range(len(ids) - len(pieces) + 1) if ids[n : n + len(pieces)] == piece_ids), None)
    if first is None:
        raise AlignmentInputError(
            f"{type(tokenizer).__name__} encodes {text!r} to other ids than those of its pieces {pieces}; give an "
            f"EncodedPair with ids and word numbers in place of the sentences."
        )
    numbers = _numbers(tokenizer, words, pieces, alone)
    after = len(ids) - first - len(pieces)
    return ids, [*[None] * first, *numbers, *[None] * after]


def _numbers(
    tokenizer: Any, words: Sequence[str], pieces: list[str], alone: list[list[str]]
) -> tuple[int | None, ...] | list[int]:
    if [piece for word in alone for piece in word] == pieces:
        return [number for number, word in enumerate(alone) for _ in word]
    marked = word_groups(pieces, subword_scheme(tokenizer))
    if max((number for number in marked if number is not None), default=-1) + 1 == len(words):
        return marked
    raise AlignmentInputError(
        f"{type(tokenizer).__name__} makes other words of {' '.join(words)!r} than those given: {pieces}. Split the "
        f"sentence as the tokenizer does, or give an EncodedPair with ids and word numbers in its place."
    )
