"""Texts as the model sees them: its own tokenisation, cut to its context, batched by length."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import StudyInputError
from .corpus import Item


@dataclass(frozen=True)
class Window:
    """As many tokens of one text as fit into the context.

    Attributes:
        index, window: the number of the text, and of this window in it
        ids: token ids, special tokens included
        counted: which positions count here; where windows overlap each token counts once
        types: token type ids, or None
        truncated: the text goes on, and that part is lost
    """

    index: int
    window: int
    ids: tuple[int, ...]
    counted: tuple[bool, ...]
    types: tuple[int, ...] | None = None
    truncated: bool = False

    @property
    def size(self) -> int:
        """Positions that it takes up in a batch."""
        return len(self.ids)


@dataclass(frozen=True)
class Batch:
    """Windows of similar length, padded on the right.

    Attributes:
        ids: [batch pos]
        mask: True at tokens, [batch pos]
        counted: True at the tokens that count, [batch pos]
        windows: the rows
    """

    ids: Tensor
    mask: Tensor
    counted: Tensor
    windows: tuple[Window, ...]
    types: Tensor | None = None


def context(model: nn.Module, max_length: int | None = None) -> int:
    """The longest input, special tokens included; 0 if nothing limits it."""
    tokenizer = getattr(model, "tokenizer", None)
    limits = [int(getattr(model.cfg, "n_ctx", 0) or 0), int(getattr(tokenizer, "model_max_length", 0) or 0)]
    found = [limit for limit in [*limits, max_length or 0] if 0 < limit < 10**9]
    return min(found, default=0)


def windows(model: nn.Module, item: Item, *, max_length: int | None = None, stride: int | None = None) -> list[Window]:
    """The windows of one text: one, unless it is too long and a stride is given.

    Args:
        model: its tokenizer and `to_tokens` decide on special tokens
        item: the text
        max_length: tokens per window, at most the model's context
        stride: tokens, not counting special ones, from the start of one window to the next; None cuts off the rest

    Raises:
        StudyInputError: windows of this length or stride hold no text.
    """
    ids, types = _ids(model, item)
    longest = context(model, max_length)
    if not longest or len(ids) <= longest:
        return [Window(item.index, 0, ids, (True,) * len(ids), types)]
    head, tail = _specials(model, ids)
    width = longest - head - tail
    if width < 1 or (stride is not None and not 1 <= stride <= width):
        raise StudyInputError(
            f"a window of {longest} tokens has room for {width} besides special ones; expected max_length above "
            f"{head + tail} and stride from 1 to {max(width, 1)}, got max_length={max_length}, stride={stride}."
        )
    if stride is None:
        rows = _sliced(ids, head, tail, width, width)[:1]
    else:
        rows = _overflowing(model, item, ids, longest, width - stride) or _sliced(ids, head, tail, width, stride)
    row_types = None if types is None else _sliced(types, head, tail, width, stride or width)
    found, seen = [], 0
    for number, row in enumerate(rows):
        start = number * (stride or width)
        end = start + len(row) - head - tail
        first, last = number == 0, number == len(rows) - 1
        counted = (first,) * head + tuple(place >= seen for place in range(start, end)) + (last,) * tail
        kept = None if row_types is None else row_types[number]
        found.append(Window(item.index, number, row, counted, kept, truncated=stride is None))
        seen = end
    return found


def batches(rows: list[Window], batch_tokens: int, pad: bool = True) -> Iterator[Batch]:
    """Batches of at most `batch_tokens` positions, the shortest windows first; without `pad`, of one length each."""
    rows = sorted(rows, key=lambda row: row.size)
    start = 0
    for end in range(1, len(rows) + 1):
        longer = end < len(rows) and not pad and rows[end].size > rows[start].size
        if end == len(rows) or longer or rows[end].size * (end + 1 - start) > batch_tokens:
            yield padded(rows[start:end])
            start = end


def padded(rows: list[Window]) -> Batch:
    """One batch. Padding repeats a token of the text: it is masked, and any id of the vocabulary will do."""
    n = max(len(row.ids) for row in rows)

    def filled(values: list[tuple[Any, ...]], pad: Any = 0) -> Tensor:
        return torch.tensor([[*v, *[v[-1] if pad is None else pad] * (n - len(v))] for v in values])

    mask = filled([(True,) * len(row.ids) for row in rows], False)
    types = [row.types for row in rows if row.types is not None]
    return Batch(
        ids=filled([row.ids for row in rows], None),
        mask=mask,
        counted=filled([row.counted for row in rows], False),
        windows=tuple(rows),
        types=filled([row.types or (0,) * len(row.ids) for row in rows]) if types else None,
    )


def special_ids(tokenizer: Any) -> dict[int, str]:
    """The ids of sequence and mask tokens with their names: what papers leave out as special ([UNK] is a word)."""
    names = ("cls_token", "sep_token", "bos_token", "eos_token", "mask_token", "pad_token")
    found: dict[int, str] = {}
    for name in names:
        number = getattr(tokenizer, f"{name}_id", None)
        if number is not None and str(getattr(tokenizer, name)) != str(getattr(tokenizer, "unk_token", None)):
            found.setdefault(int(number), str(getattr(tokenizer, name)))
    return found


def masked(window: Window, tokenizer: Any, share: float, seed: int) -> Window:
    """A share of the tokens, at least one, replaced by the mask token: the same ones whatever the chunks are."""
    mask_id = getattr(tokenizer, "mask_token_id", None)
    if mask_id is None:
        raise StudyInputError("this model's tokenizer has no mask token: leave mask_tokens out.")
    special = special_ids(tokenizer)
    free = [position for position, number in enumerate(window.ids) if number not in special]
    if not free:
        return window
    generator = torch.Generator().manual_seed((seed * 1_000_003 + window.index) * 1009 + window.window)
    order = torch.randperm(len(free), generator=generator)[: max(1, int(share * len(free) + 1e-9))].tolist()
    ids = list(window.ids)
    for number in order:
        ids[free[number]] = int(mask_id)
    return replace(window, ids=tuple(ids))


def _ids(model: Any, item: Item) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    content = item.content
    if not isinstance(content[0], str):
        return content, item.types
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise StudyInputError("this model has no tokenizer: give token ids instead of texts.")
    if isinstance(content, tuple):
        found = tokenizer(*content)
        types = found.get("token_type_ids")
        return tuple(found["input_ids"]), None if types is None else tuple(types)
    whole = {"truncate": False} if "truncate" in inspect.signature(model.to_tokens).parameters else {}
    tokens = model.to_tokens(content, **whole)
    tokens = tokens[0] if isinstance(tokens, tuple) else tokens  # HookedEncoder adds segments and mask
    return tuple(tokens[0].tolist()), None


def _specials(model: nn.Module, ids: tuple[int, ...]) -> tuple[int, int]:
    """How many special tokens a text begins and ends with."""
    special = special_ids(getattr(model, "tokenizer", None))
    head = next((n for n, number in enumerate(ids) if number not in special), 0)
    tail = next((n for n, number in enumerate(reversed(ids)) if number not in special), 0)
    return head, tail


def _overflowing(
    model: nn.Module, item: Item, ids: tuple[int, ...], longest: int, overlap: int
) -> list[tuple[int, ...]] | None:
    """The windows that the tokenizer makes; None where it cannot, or sets other special tokens than the model."""
    tokenizer: Any = getattr(model, "tokenizer", None)
    if not isinstance(item.content, str) or not getattr(tokenizer, "is_fast", False):
        return None
    made = tokenizer(item.content, truncation=True, max_length=longest, stride=overlap, return_overflowing_tokens=True)[
        "input_ids"
    ]
    head, tail = _specials(model, ids)
    content = list(made[0][: len(made[0]) - tail])
    for row in made[1:]:
        content += row[head + overlap : len(row) - tail]
    whole = (*content, *ids[len(ids) - tail :])
    return [tuple(row) for row in made] if whole == ids else None


def _sliced(values: tuple[int, ...], head: int, tail: int, width: int, stride: int) -> list[tuple[int, ...]]:
    """Windows of `width` values, `stride` apart, between the first `head` and the last `tail` values of the whole."""
    end = len(values) - tail
    starts = range(head, max(end - width, head) + stride, stride)
    return [(*values[:head], *values[start : min(start + width, end)], *values[end:]) for start in starts]
