"""One chunk of texts to one partial result: what runs here, in a thread, in another process or on another machine."""

import pickle
import threading
from collections.abc import Callable, Sequence

import torch
from torch import nn

from ...errors import NonFiniteError, TLNormsError
from ..errors import UnfitTextError
from .corpus import Item
from .partial import MODULUS, Excluded, Mergeable, Partial, Spans, merged
from .study import Reading, Study
from .tokens import Window, batches, masked

Source = nn.Module | bytes | Callable[[], nn.Module]
"""The model, or its pickle, or what makes it."""

_lock = threading.RLock()  # hooks belong to the model: one run at a time per process
_models: dict[str, nn.Module] = {}


def measure_chunk(model: nn.Module, study: Study, items: tuple[Item, ...], reading: Reading) -> Partial:
    """Measure some texts. Texts that cannot be read, or give NaN, are named in the result and not measured."""
    rows, excluded = _rows(model, study, items, reading)
    values, broken = _measured(model, study, _joined(rows), reading)
    if any(len(rows[index]) > 1 for index in broken):  # its other windows are in already: once more without it
        values, more = _measured(model, study, _joined(rows, without=broken), reading)
        broken |= more
    excluded |= broken
    kept = _joined(rows, without=broken)
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
    """`measure_chunk` in a worker, which makes the model when it first needs it and keeps one."""
    with _lock:
        if isinstance(source, nn.Module):
            return measure_chunk(source, study, items, reading)
        if key not in _models:
            _models.clear()
            _models[key] = pickle.loads(source) if isinstance(source, bytes) else source()
        return measure_chunk(_models[key], study, items, reading)


def _rows(
    model: nn.Module, study: Study, items: Sequence[Item], reading: Reading
) -> tuple[dict[int, list[Window]], dict[int, str]]:
    """The windows of each text that can be read, and why the others cannot."""
    rows: dict[int, list[Window]] = {}
    excluded: dict[int, str] = {}
    for item in items:
        if item.content is None:
            excluded[item.index] = item.problem
            continue
        try:
            found = study.windows(model, item, reading)
        except UnfitTextError as error:
            excluded[item.index] = str(error)
            continue
        except (TLNormsError, MemoryError):
            raise
        except Exception as error:  # tokenizers raise whatever they like at a text that they do not take
            excluded[item.index] = f"is refused by the tokenizer ({type(error).__name__}: {_brief(error)})"
            continue
        if reading.mask_tokens is not None:
            found = [masked(window, model.tokenizer, reading.mask_tokens, reading.seed) for window in found]
        rows[item.index] = found
    return rows, excluded


def _joined(rows: dict[int, list[Window]], without: dict[int, str] | None = None) -> list[Window]:
    return [row for index, found in rows.items() if index not in (without or {}) for row in found]


def _measured(
    model: nn.Module, study: Study, rows: list[Window], reading: Reading
) -> tuple[dict[str, Mergeable], dict[int, str]]:
    """Measurements of all windows that have any, and why the texts of the others have none."""
    values: dict[str, Mergeable] = {}
    broken: dict[int, str] = {}
    for batch in batches(rows, reading.batch_tokens, reading.pad):
        try:
            with torch.no_grad():
                found = study.measure(model, batch)
            if not all(value.is_finite() for value in found.values()):
                raise NonFiniteError("a norm or ratio is NaN or infinite.")
            values = merged(values, found)
            continue
        except NonFiniteError as error:
            if len(batch.windows) == 1:
                broken[batch.windows[0].index] = _brief(error)
                continue
        for row in batch.windows:  # one of them is to blame: alone, each shows whether it is
            more, reasons = _measured(model, study, [row], reading)
            values, broken = merged(values, more), broken | reasons
    return values, broken


def _brief(error: Exception) -> str:
    """The first sentence of a message."""
    shown = str(error).split(". ")[0].rstrip(".")
    return shown if len(shown) <= 120 else shown[:117] + "..."
