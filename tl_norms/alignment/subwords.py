"""Where words begin among a tokenizer's pieces, by the marks that the tokenizer itself puts on them."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

from .errors import TokenizerSchemeError

Scheme = Literal["▁", "Ġ", "##", "@@", "</w>", "word"]
"""How pieces show word boundaries.

"▁": SentencePiece, at the beginning of a word. "Ġ": byte-level BPE, likewise. "##": WordPiece, at the beginning of a
piece that goes on with a word. "@@": subword-nmt and fairseq, at the end of a piece that is not its word's last.
"</w>": at the end of a word. "word": every piece is a word.
"""


def subword_scheme(tokenizer: Any) -> Scheme:
    """The scheme of a tokenizer, from the marks in its vocabulary.

    Raises:
        TokenizerSchemeError: no known mark is in the vocabulary.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if type(getattr(backend, "model", None)).__name__ == "WordLevel":
        return "word"
    vocabulary = list(tokenizer.get_vocab())
    seen = {scheme: sum(_marked(piece, scheme) for piece in vocabulary) for scheme in get_args(Scheme)}
    best = max(seen, key=lambda scheme: seen[scheme])
    if not seen[best]:
        raise _unknown(f"the vocabulary of {type(tokenizer).__name__}", vocabulary)
    return best


def word_groups(pieces: Sequence[str], scheme: Scheme, special: Sequence[bool] | None = None) -> tuple[int | None, ...]:
    """For each piece the number of its word, from 0; None for special tokens, whose neighbours are different words.

    Args:
        pieces: the pieces as the tokenizer writes them (`convert_ids_to_tokens`)
        scheme: how they show word boundaries, see `subword_scheme`
        special: which of them are special tokens, None for none

    Raises:
        TokenizerSchemeError: the scheme is none of those known.

    Example:
        >>> word_groups(["▁re", "order", "ing", "▁helps", "</s>"], "▁", [False, False, False, False, True])
        (0, 0, 0, 1, None)
    """
    if scheme not in get_args(Scheme):
        raise _unknown(f"scheme {scheme!r}", list(pieces))
    found: list[int | None] = []
    word, opens = -1, True  # opens: the next piece begins a word whatever its own mark says
    for number, piece in enumerate(pieces):
        if special is not None and special[number]:
            found.append(None)
            opens = True
            continue
        begins = {"▁": piece.startswith("▁"), "Ġ": piece.startswith(("Ġ", "Ċ", "ĉ")), "##": not _marked(piece, "##")}
        if opens or begins.get(scheme, scheme == "word"):
            word += 1
        found.append(word)
        opens = {"@@": not piece.endswith("@@"), "</w>": piece.endswith("</w>")}.get(scheme, False)
    return tuple(found)


def _marked(piece: str, scheme: str) -> bool:
    if scheme in ("▁", "Ġ", "##"):
        return piece.startswith(scheme) and len(piece) > len(scheme)
    return piece.endswith(scheme) and len(piece) > len(scheme) and scheme != "word"


def _unknown(what: str, pieces: list[str]) -> TokenizerSchemeError:
    shown = ", ".join(repr(piece) for piece in [*pieces[:3], *pieces[-5:]])
    return TokenizerSchemeError(
        f"{what} shows no word boundaries that are known here (▁ of SentencePiece, Ġ of byte-level BPE, ## of "
        f"WordPiece, @@, </w>); it has pieces such as {shown}. Group the pieces yourself: give EncodedPair(source, "
        f"target, source_words, target_words) in place of sentences, with the number of each piece's word."
    )
