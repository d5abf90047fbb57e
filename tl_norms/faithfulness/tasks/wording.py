"""From words to tokens: what a text begins and ends with, which words are single tokens, where a word is."""

import inspect
import re
from typing import Any

from ..errors import TaskError


class Wording:
    """The tokenisation of one model.

    Raises:
        TaskError: the model has no tokenizer.
    """

    def __init__(self, model: Any):
        self.tokenizer: Any = getattr(model, "tokenizer", None)
        if self.tokenizer is None:
            raise TaskError("this model has no tokenizer: build tasks from your own tl_norms.faithfulness.Example.")
        self._model = model
        options = {"truncate": False} if "truncate" in inspect.signature(model.to_tokens).parameters else {}
        self._options: dict[str, Any] = options

    def tokens(self, text: str) -> tuple[int, ...]:
        """As the model reads it, special tokens included."""
        found = self._model.to_tokens(text, **self._options)
        found = found[0] if isinstance(found, tuple) else found  # HookedEncoder adds segments and mask
        return tuple(found[0].tolist())

    def plain(self, text: str) -> tuple[int, ...]:
        """Without special tokens."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def continuation(self, text: str, word: str) -> int | None:
        """The one token that this word adds to a text, None if it adds more or changes what was there."""
        before, after = self.plain(text), self.plain(f"{text} {word}")
        unknown = getattr(self.tokenizer, "unk_token_id", None)
        one = len(after) == len(before) + 1 and after[: len(before)] == before and after[-1] != unknown
        return after[-1] if one else None

    def single(self, word: str, before: str = "the") -> bool:
        """Whether the word is one token inside a text."""
        return self.continuation(before, word) is not None

    def positions(self, text: str, start: int, end: int) -> tuple[int, ...]:
        """The positions, in `tokens(text)`, of the characters from start to end; () if they cannot be told."""
        plain, whole = self.plain(text), self.tokens(text)
        heads = [n for n in range(len(whole) - len(plain) + 1) if whole[n : n + len(plain)] == plain]
        if not heads:
            return ()
        if getattr(self.tokenizer, "is_fast", False):
            spans = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            inside = [n for n, (a, b) in enumerate(spans) if a < end and b > start and b > a]
            return tuple(heads[0] + n for n in inside)
        before, after = self.plain(text[:start].rstrip()), self.plain(text[:end])
        if plain[: len(after)] != after or after[: len(before)] != before:
            return ()
        return tuple(range(heads[0] + len(before), heads[0] + len(after)))

    def find(self, text: str, word: str) -> tuple[int, ...]:
        """The positions of the first occurrence of a word in a text; () if it is not there."""
        found = re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text)
        return () if found is None else self.positions(text, *found.span())
