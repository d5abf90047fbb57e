"""Tokens and texts as they are shown: spaces made visible, control characters spelled out, long ones cut."""

import re
import unicodedata
from collections.abc import Sequence

LONGEST = 16  # characters of a token on an axis; hover shows all of it
SENTENCE = 72  # characters of the text in a title
SPECIAL = re.compile(r"\[[A-Z]+\]|</?\w+>|<\|.*\|>")
_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_NAMED = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
_SPACES = re.compile(r"^ +| +$")


def visible(token: str) -> str:
    """A token as it can be read on an axis: " is" as "·is", control characters spelled out."""
    if not token:
        return "(empty)"
    if not token.strip(" "):
        return "\u2423" * len(token)
    shown = _SPACES.sub(lambda found: "·" * len(found[0]), token)
    return _UNSEEN.sub(lambda found: _NAMED.get(found[0], f"\\u{ord(found[0]):04x}"), shown)


def clipped(token: str, longest: int = LONGEST) -> str:
    """A visible token, short enough for an axis."""
    return token if len(token) <= longest else token[: longest - 1] + "…"


def sentence(tokens: Sequence[str]) -> str:
    """The text that these tokens spell, for a title: without special tokens, and cut if it is long."""
    words = [token for token in tokens if not SPECIAL.fullmatch(token.strip())]
    if any(word.startswith((" ", "\u2581")) for word in words):  # a blank, or what stands for one in SentencePiece
        text = "".join(words).replace("\u2581", " ")
    else:  # word pieces and words: a blank before everything but continuations and closing punctuation
        text = re.sub(r" (##|(?=[.,;:!?)\]]))", "", " ".join(words))
    text = " ".join(_UNSEEN.sub(" ", text).split())
    return clipped(text, SENTENCE)


def characters(text: str) -> int:
    """The width of a text in characters; wide ones count twice, combining ones not at all."""
    wide = sum(unicodedata.east_asian_width(one) in "WF" for one in text)
    return len(text) + wide - sum(bool(unicodedata.combining(one)) for one in text)
