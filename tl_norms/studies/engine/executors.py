"""Chunks on a concurrent.futures executor: a few at a time, in order, each counted once whatever happens to workers."""

import hashlib
import pickle
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass

from torch import nn

from ...errors import TLNormsError
from ..errors import StudyFailedError, StudyInputError
from .corpus import Item
from .measuring import Source, measure_elsewhere
from .partial import Partial
from .study import Reading, Study

Model = nn.Module | Callable[[], nn.Module]
"""A model, or a function without arguments that makes it."""
_AHEAD = 3  # chunks submitted per worker, so that none waits while texts are read


@dataclass
class _Chunk:
    items: tuple[Item, ...]
    future: Future | None  # None: the executor takes no more work


def on_executor(
    executor: Executor,
    model: Model,
    own: nn.Module,
    study: Study,
    chunks: Iterator[tuple[Item, ...]],
    reading: Reading,
) -> Iterator[Partial]:
    """Partial results in the order of the corpus.

    A chunk whose worker dies or fails is submitted once more; if that fails too, or the executor is broken, it runs in
    this process. Each chunk has one result, whichever attempt gave it, so no text is lost and none counts twice.

    Args:
        executor: where chunks run
        model: what workers make it from
        own: the same model in this process
        study, chunks, reading: what is measured, of which texts, and how they are read

    Raises:
        StudyFailedError: a chunk failed here too.
        TLNormsError: something is wrong with the study itself; it is raised at once.
    """
    source, key = source_of(executor, model)
    ahead = _AHEAD * max(1, int(getattr(executor, "_max_workers", 0) or 4))
    waiting: deque[_Chunk] = deque()

    def submit(items: tuple[Item, ...]) -> Future | None:
        try:
            return executor.submit(measure_elsewhere, key, source, study, items, reading)
        except RuntimeError:  # broken, or shut down
            return None

    def result(chunk: _Chunk) -> Partial:
        for attempt in (chunk.future, None):
            future = attempt or submit(chunk.items)
            if future is None:
                break
            try:
                return future.result()
            except TLNormsError:
                raise
            except Exception:  # the worker died, or something failed there that need not fail again
                continue
        return _here(own, study, chunk.items, reading)

    try:
        for items in chunks:
            waiting.append(_Chunk(items, submit(items)))
            if len(waiting) >= ahead:
                yield result(waiting.popleft())
        while waiting:
            yield result(waiting.popleft())
    finally:
        for chunk in waiting:
            if chunk.future is not None:
                chunk.future.cancel()


def _here(own: nn.Module, study: Study, items: tuple[Item, ...], reading: Reading) -> Partial:
    try:
        return measure_elsewhere("", own, study, items, reading)  # a thread may be using this very model
    except TLNormsError:
        raise
    except Exception as error:
        raise StudyFailedError(
            f"texts {items[0].index} to {items[-1].index} failed on the executor and in this process: "
            f"{type(error).__name__}: {error}"
        ) from error


def source_of(executor: Executor, model: Model) -> tuple[Source, str]:
    """What a worker makes the model from, and a key to keep it under."""
    if isinstance(executor, ThreadPoolExecutor) and isinstance(model, nn.Module):
        return model, ""
    try:
        pickled = pickle.dumps(model)
    except Exception as error:
        if isinstance(model, nn.Module):
            raise StudyInputError(
                f"a {type(model).__name__} cannot be sent to other processes ({error}). Give a function without "
                f"arguments that makes the model, defined in a module: model=make_model."
            ) from error
        return model, uuid.uuid4().hex  # the executor may pickle more than pickle does, as Dask's does
    key = hashlib.blake2b(pickled, digest_size=16).hexdigest()
    return (pickled, key) if isinstance(model, nn.Module) else (model, key)
