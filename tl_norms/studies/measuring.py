"""One chunk of texts to one partial result: what runs here, in a thread, in another process or on another machine."""

import pickle
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from ..errors import NonFiniteError
from .corpus import Item
from .correlation import Pairs
from .errors import UnfitTextError
from .moments import Moments
from .partial import MODULUS, Excluded, Mergeable, Partial, Spans, merged
from .tokens import Batch, Window, batches, masked, windows

Source = nn.Module | bytes | Callable[[], nn.Module]
"""The model, or its pickle, or what makes it."""

_lock = threading.RLock()  # hooks belong to the model: one run at a time per process
_models: dict[str, nn.Module] = {}


class Study(Protocol):
    """What is measured. A frozen dataclass of options, so that it can be sent to other processes.

    A study of something else than texts also has `windows(model, item)` -> list[Window], which raises UnfitTextError
    for what has to be left out.
    """

    @property
    def name(self) -> str: ...

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, Mergeable]:
        """The measurements of one batch, reduced to what is needed at the end."""
        ...


@dataclass(frozen=True)
class Reading:
    """How texts become batches.

    Attributes:
        max_length, stride: see `tl_norms.studies.tokens.windows`
        batch_tokens: positions per batch, padding included
        mask_tokens: share of tokens replaced by the mask token, None for none
        seed: of the choice of masked tokens
        pad: False for batches of texts of one length, where work at padding is dear: maps behind a feed-forward
    """

    max_length: int | None = None
    stride: int | None = None
    batch_tokens: int = 4096
    mask_tokens: float | None = None
    seed: int = 0
    pad: bool = True


def measure_chunk(model: nn.Module, study: Study, items: tuple[Item, ...], reading: Reading) -> Partial:
    """Measure some texts. Texts that cannot be read, or hold NaN, are named in the result and not measured."""
    excluded = {item.index: item.problem for item in items if item.content is None}
    rows: dict[int, list[Window]] = {}
    for item in items:
        if item.content is None:
            continue
        try:
            found = _windows(model, study, item, reading)
        except UnfitTextError as error:
            excluded[item.index] = str(error)
            continue
        if reading.mask_tokens is not None:
            found = [masked(window, model.tokenizer, reading.mask_tokens, reading.seed) for window in found]
        rows[item.index] = found
    values, broken = _measured(model, study, [row for found in rows.values() for row in found], reading)
    if any(len(rows[index]) > 1 for index in broken):  # its other windows are in already: once more without it
        whole = [row for index, found in rows.items() if index not in broken for row in found]
        values, more = _measured(model, study, whole, reading)
        broken |= more
    excluded |= broken
    kept = [row for index, found in rows.items() if index not in broken for row in found]
    names = {item.index: item.name for item in items}
    return Partial(
        Spans(((items[0].index, items[-1].index + 1),)),
        values,
        tuple(Excluded(index, names[index], reason) for index, reason in sorted(excluded.items())),
        (
            len({row.index for row in kept}),
            len(kept),
            sum(sum(row.counted) for row in kept),
            sum(row.truncated for row in kept),
        ),
        sum(item.digest for item in items) % MODULUS,
    )


def measure_elsewhere(
    key: str,
    source: Source,
    study: Study,
    items: tuple[Item, ...],
    reading: Reading,
) -> Partial:
    """`measure_chunk` in a worker, which makes the model when it first meets it and keeps one."""
    with _lock:
        if isinstance(source, nn.Module):
            return measure_chunk(source, study, items, reading)
        if key not in _models:
            _models.clear()
            _models[key] = pickle.loads(source) if isinstance(source, bytes) else source()
        return measure_chunk(_models[key], study, items, reading)


def _measured(
    model: nn.Module, study: Study, rows: list[Window], reading: Reading
) -> tuple[dict[str, Mergeable], dict[int, str]]:
    """Measurements of all windows that have any, and why the texts of the others have none."""
    values: dict[str, Mergeable] = {}
    broken: dict[int, str] = {}
    for batch in batches(rows, reading.batch_tokens, reading.pad):
        try:
            values = merged(values, _one(model, study, batch))
            continue
        except NonFiniteError as error:
            if len(batch.windows) == 1:
                broken[batch.windows[0].index] = _brief(error)
                continue
        for row in batch.windows:  # one of them is to blame: alone, each shows whether it is
            more, reasons = _measured(model, study, [row], reading)
            values, broken = merged(values, more), broken | reasons
    return values, broken


def _one(model: nn.Module, study: Study, batch: Batch) -> dict[str, Mergeable]:
    with torch.no_grad():
        values = study.measure(model, batch)
    for value in values.values():
        numbers: list[Any] = [value.mean_, value.squares] if isinstance(value, Moments) else []
        numbers += [value.x, value.y] if isinstance(value, Pairs) else []
        if not all(np.isfinite(array).all() for array in numbers):
            raise NonFiniteError("a length or ratio is NaN or infinite.")
    return values


def _windows(model: nn.Module, study: Study, item: Item, reading: Reading) -> list[Window]:
    own = getattr(study, "windows", None)
    if own is not None:
        return own(model, item)
    found = windows(model, item, max_length=reading.max_length, stride=reading.stride)
    if problem := _problem(model, found):
        raise UnfitTextError(problem)
    return found


def _problem(model: nn.Module, rows: list[Window]) -> str:
    if not rows[0].ids:
        return "has no tokens"
    n_vocabulary = int(getattr(model.cfg, "d_vocab", 0) or 0)
    largest = max(max(row.ids) for row in rows)
    if 0 < n_vocabulary <= largest:
        return f"holds token id {largest}, outside the vocabulary of {n_vocabulary}"
    return ""


def _brief(error: Exception) -> str:
    """The first sentence of a message."""
    return str(error).split(". ")[0].rstrip(".")
