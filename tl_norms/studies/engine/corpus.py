"""From what is given as a corpus to numbered texts."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from ..errors import StudyInputError, UnfitTextError
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
        given = repr((self.index, self.content, self.problem, self.types)).encode("utf-8", "backslashreplace")
        return int.from_bytes(hashlib.blake2b(given, digest_size=16).digest(), "big")


@dataclass(frozen=True)
class Made:
    """What a study has made of its own input for one text: `content`, the same in every process when printed."""

    name: str
    content: Any
    problem: str = ""


@dataclass
class Corpus:
    """Numbered texts of anything that can be iterated over.

    Raises:
        StudyInputError: the source is no iterable of texts.
    """

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

    def __len__(self) -> int:
        """The number of texts if it is known in advance, else 0."""
        try:
            n = len(self.source)  # type: ignore[arg-type]
        except TypeError:
            return 0
        return n if self.limit is None else min(n, self.limit)

    def __iter__(self) -> Iterator[Item]:
        found = (one for thing in self.source for one in _items(thing, self.text_field))
        for index, (name, content, problem, types) in enumerate(islice(found, self.limit)):
            yield Item(index, name or f"text {index}", content, problem, types)


_Found = tuple[str, Any, str, tuple[int, ...] | None]  # name, content, problem, token types


def _items(thing: Any, field: str) -> Iterator[_Found]:
    """Each text in one thing that the source yields. What cannot be used has a reason for content."""
    if isinstance(thing, Made):
        yield thing.name, thing.content, thing.problem, None
    elif isinstance(thing, Unreadable):
        yield f"line {thing.number}", None, thing.reason, None
    elif isinstance(thing, Line):
        yield _text(thing.text, f"line {thing.number}")
    elif isinstance(thing, Mapping) and "input_ids" in thing:
        yield from _rows_of(thing, "input_ids", "attention_mask", "token_type_ids")
    elif isinstance(thing, Mapping):
        has = ", ".join(map(str, list(thing)[:8])) or "none"
        yield _text(thing[field]) if field in thing else ("", None, f"has no field {field!r}; it has {has}", None)
    elif isinstance(thing, str):
        yield _text(thing)
    elif isinstance(thing, list | tuple) and len(thing) == 2 and all(isinstance(part, str) for part in thing):
        yield _text(tuple(thing))
    else:
        yield from _rows_of({"ids": thing}, "ids")


def _rows_of(given: Mapping[str, Any], ids: str, mask: str = "", types: str = "") -> Iterator[_Found]:
    """Token ids [pos] or [batch pos], one text a row; padding goes by the mask."""
    try:
        rows = _whole(given[ids], ids)
        if rows.ndim not in (1, 2):
            raise UnfitTextError(f"has {ids} of shape {list(rows.shape)}; expected [pos] or [batch pos]")
        masks, kinds = (_beside(given, name, rows.shape, ids) for name in (mask, types))
        if masks is not None and not np.isin(masks, (0, 1)).all():
            raise UnfitTextError(f"has an {mask} with other values than 0 and 1")
    except UnfitTextError as error:
        yield "", None, str(error), None
        return
    for number, row in enumerate(np.atleast_2d(rows)):
        keep = np.ones(len(row), bool) if masks is None else np.atleast_2d(masks)[number].astype(bool)
        kept = tuple(row[keep].tolist())
        of_tokens = None if kinds is None else tuple(np.atleast_2d(kinds)[number][keep].tolist())
        problem = "is empty" if not kept else "holds a negative token id" if min(kept) < 0 else ""
        yield "", None if problem else kept, problem, None if problem else of_tokens


def _beside(given: Mapping[str, Any], name: str, shape: tuple[int, ...], ids: str) -> np.ndarray | None:
    """What comes with the ids under this name; None if nothing does."""
    if given.get(name) is None:
        return None
    found = _whole(given[name], name, kinds="iub")
    if found.shape != shape:
        raise UnfitTextError(f"has {name} of shape {list(found.shape)}; expected {list(shape)}, that of {ids}")
    return found.astype(np.int64)


def _whole(thing: Any, name: str, kinds: str = "iu") -> np.ndarray:
    """An array of whole numbers."""
    try:
        found = thing.detach().cpu().numpy() if isinstance(thing, torch.Tensor) else np.asarray(thing)
    except (ValueError, TypeError, OverflowError, RuntimeError):  # rows of different lengths; bfloat16
        found = np.empty(0, object)
    if found.size == 0 and found.ndim == 1 and found.dtype.kind != "O":
        return found.astype(np.int64)
    if found.dtype.kind in kinds:
        return found.astype(np.int64)
    if name == "ids":
        raise UnfitTextError(f"is neither text nor token ids but {type(thing).__name__}")
    raise UnfitTextError(f"has {name} that are no rectangle of whole numbers")


def _text(text: Any, name: str = "") -> _Found:
    """A text or a pair of texts."""
    parts = text if isinstance(text, tuple) else (text,)
    if not all(isinstance(part, str) for part in parts):
        return name, None, f"is no text but {type(text).__name__}", None
    if not all(part.strip() for part in parts):
        return name, None, "is empty", None
    try:
        "".join(parts).encode()
    except UnicodeEncodeError as error:
        return name, None, f"holds a lone surrogate at character {error.start}, which is no character", None
    return name, text, "", None
