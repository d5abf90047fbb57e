"""From what is given as a corpus to numbered texts, in chunks."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from .errors import StudyInputError
from .lines import Line, Unreadable


@dataclass(frozen=True)
class Item:
    """One text as it was given.

    Attributes:
        index: its number in the corpus, from 0
        name: what to call it in messages
        content: the text, a pair of texts, token ids, what a study made itself, or None if it cannot be used
        problem: why it cannot be used
        types: token type ids, where they came with the ids
    """

    index: int
    name: str
    content: Any
    problem: str = ""
    types: tuple[int, ...] | None = None

    @property
    def digest(self) -> int:
        """128 bits of what was given and where. Added up, they tell one set of numbered texts from another."""
        given = repr((self.index, self.content, self.problem, self.types)).encode()
        return int.from_bytes(hashlib.blake2b(given, digest_size=16).digest(), "big")


@dataclass(frozen=True)
class Made:
    """What a study has made of its own input for one text: `content`, the same in every process when printed."""

    name: str
    content: Any
    problem: str = ""


@dataclass
class Corpus:
    """Numbered texts of anything that can be iterated over."""

    source: Iterable[Any]
    text_field: str = "text"
    limit: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.source, str | bytes | Mapping) or not isinstance(self.source, Iterable | Sequence):
            kind = type(self.source).__name__
            raise StudyInputError(
                f"expected an iterable of texts or token ids, got {kind}. For one text pass [text]; for a file "
                f"tl_norms.studies.TextFile(path)."
            )
        if self.limit is not None and self.limit < 1:
            raise StudyInputError(f"limit is {self.limit}; expected at least 1, or None for all texts.")

    def __len__(self) -> int:
        """The number of texts if it is known beforehand, else 0."""
        try:
            n = len(self.source)  # type: ignore[arg-type]
        except TypeError:
            return 0
        return n if self.limit is None else min(n, self.limit)

    def __iter__(self) -> Iterator[Item]:
        found = (one for thing in self.source for one in self._items(thing))
        for index, (name, content, problem, types) in enumerate(islice(found, self.limit)):
            yield Item(index, name or f"text {index}", content, problem, types)

    def _items(self, thing: Any) -> Iterator[tuple[str, Any, str, Any]]:
        """(name, content, problem, types) of each text in one thing that the source yields."""
        if isinstance(thing, Made):
            yield thing.name, thing.content, thing.problem, None
        elif isinstance(thing, Unreadable):
            yield f"line {thing.number}", None, thing.reason, None
        elif isinstance(thing, Line):
            yield f"line {thing.number}", *_text(thing.text), None
        elif isinstance(thing, Mapping) and "input_ids" in thing:
            yield from _tokenised(thing)
        elif isinstance(thing, Mapping):
            if self.text_field in thing:
                yield "", *_text(thing[self.text_field]), None
            else:
                yield "", None, f"has no field {self.text_field!r}; it has {', '.join(map(str, thing))}", None
        else:
            yield from _anything(thing)


def _anything(thing: Any) -> Iterator[tuple[str, Any, str, Any]]:
    pair = isinstance(thing, list | tuple) and len(thing) == 2 and all(isinstance(part, str) for part in thing)
    if isinstance(thing, str) or pair:
        yield "", *_text(tuple(thing) if pair else thing), None
        return
    ids = _numbers(thing)
    if ids is None or ids.ndim not in (1, 2):
        yield "", None, f"is neither text nor token ids but {type(thing).__name__}", None
        return
    for row in np.atleast_2d(ids):
        yield "", *_ids(row), None


def _tokenised(batch: Mapping[str, Any]) -> Iterator[tuple[str, Any, str, Any]]:
    """A tokenizer's output, [pos] or [batch pos]; padding goes by its attention_mask."""
    parts = [
        _numbers(batch[key]) if key in batch else None for key in ("input_ids", "attention_mask", "token_type_ids")
    ]
    if parts[0] is None:
        yield "", None, "holds input_ids that are no rectangle of whole numbers", None
        return
    ids, mask, types = (None if part is None else np.atleast_2d(part) for part in parts)
    assert ids is not None
    for row in range(len(ids)):
        keep = slice(None) if mask is None else mask[row].astype(bool)
        kept_types = None if types is None else tuple(types[row][keep].tolist())
        yield "", *_ids(ids[row][keep]), kept_types


def _text(text: Any) -> tuple[Any, str]:
    if isinstance(text, tuple):
        return (text, "") if all(part.strip() for part in text) else (None, "is empty")
    if not isinstance(text, str):
        return None, f"is no text but {type(text).__name__}"
    return (text, "") if text.strip() else (None, "is empty")


def _ids(row: np.ndarray) -> tuple[Any, str]:
    if not len(row):
        return None, "is empty"
    return (tuple(row.tolist()), "") if row.min() >= 0 else (None, "holds a negative token id")


def _numbers(thing: Any) -> np.ndarray | None:
    """An array of whole numbers, or None."""
    try:
        found = thing.detach().cpu().numpy() if isinstance(thing, torch.Tensor) else np.asarray(thing)
    except ValueError:  # rows of different lengths
        return None
    if found.size == 0 and found.ndim == 1:
        return found.astype(np.int64)
    return found.astype(np.int64) if found.dtype.kind in "iu" else None
