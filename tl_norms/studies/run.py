"""One engine for all studies: chunks of the corpus, here or on an executor, merged in order, kept in a file."""

import os
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from tqdm.auto import tqdm
from typing_extensions import TypedDict

from .corpus import Corpus, Item
from .errors import ExcludedTextWarning, ResumeError, StudyInputError, TruncatedTextWarning
from .measuring import Reading, Study, measure_chunk
from .partial import MODULUS, Excluded, Partial
from .pool import Model, on_executor
from .resume import Notebook, described, model_fingerprint


class RunOptions(TypedDict, total=False):
    """Options that every study over a corpus takes.

    Keys:
        field: the key of the text where the corpus yields mappings (a `datasets` object), "text"
        limit: read this many texts, None for all
        max_length: tokens per text, special ones included, at most the model's context
        stride: longer texts are windowed, and this many tokens lie from one window's start to the next; None cuts
            them off, with a TruncatedTextWarning. A token in several windows counts in the first of them.
        batch_tokens: positions per batch, padding included, 4096
        chunk: texts that are read, sorted by length and batched together, and sent to a worker together, 128
        progress: a progress bar; None for one where stderr is a terminal
        resume: a file to write the partial result to every few seconds, and to go on from if it exists
        share: (k, n) for the k-th of n shares of the corpus, k from 0: every n-th chunk. For the jobs of an array, each
            with a `resume` file of its own
        parts: files that other runs of the same study over the same corpus wrote, all or some of its shares: what is
            in them is not measured again
        executor: any concurrent.futures.Executor to run chunks on; then `model` should be a function without arguments
            that makes the model, which each worker calls once
    """

    field: str
    limit: int | None
    max_length: int | None
    stride: int | None
    batch_tokens: int
    chunk: int
    progress: bool | None
    resume: str | os.PathLike | None
    share: tuple[int, int]
    parts: Iterable[str | os.PathLike]
    executor: Executor | None


_OTHER_TEXTS = (
    "what is there to resume from has {n} texts of another corpus: {how}. Give the same texts in the same order, or "
    "another file name."
)


@dataclass(frozen=True)
class CorpusFacts:
    """What a result is of.

    Attributes:
        n_texts: texts measured
        n_windows: windows they were cut into, one each unless a stride was given
        n_tokens: tokens that count
        n_truncated: texts that lost their ends
        excluded: texts that are not in the result, and why
    """

    n_texts: int
    n_windows: int
    n_tokens: int
    n_truncated: int
    excluded: tuple[Excluded, ...] = ()


def made(model: Model) -> nn.Module:
    """The model itself."""
    return model if isinstance(model, nn.Module) else model()


def run(
    model: Model,
    study: Study,
    texts: Iterable[Any],
    *,
    reading: Reading | None = None,
    field: str = "text",
    limit: int | None = None,
    max_length: int | None = None,
    stride: int | None = None,
    batch_tokens: int = 4096,
    chunk: int = 128,
    progress: bool | None = None,
    resume: str | os.PathLike | None = None,
    share: tuple[int, int] = (0, 1),
    parts: Iterable[str | os.PathLike] = (),
    executor: Executor | None = None,
) -> tuple[nn.Module, Partial, CorpusFacts]:
    """Measure a corpus; for options see `RunOptions`.

    Returns:
        The model, the merged partial result, and what it is of.

    Raises:
        StudyInputError: an empty corpus, or one without a single text that can be measured; bad options; a study of
            texts of an encoder-decoder.
        ResumeError: the file to resume from, or one of the parts, belongs to something else.
        StudyFailedError: a chunk failed on the executor and again.
    """
    for name, value in (("chunk", chunk), ("batch_tokens", batch_tokens)):
        if value < 1:
            raise StudyInputError(f"{name} is {value}; expected at least 1.")
    if not 0 <= share[0] < share[1]:
        raise StudyInputError(f"share is {share}; expected (k, n), the k-th of n shares with 0 <= k < n.")
    base = reading or Reading()
    reading = replace(base, max_length=max_length, stride=stride, batch_tokens=batch_tokens)
    corpus = Corpus(texts, field, limit)
    own = made(model)
    if not hasattr(study, "windows") and any(hasattr(own, name) for name in ("decoder_blocks", "decoder")):
        raise StudyInputError(
            f"{type(getattr(own, 'original_model', own)).__name__} is an encoder-decoder, and this study takes texts, "
            f"not pairs of source and target. studies.alignment takes pairs, tl_norms.block_norms single caches."
        )
    facts = {
        "study": described(study),
        "options": described(replace(reading, batch_tokens=0)),
    }
    parts = (parts,) if isinstance(parts, str | os.PathLike) else tuple(parts)
    if resume is not None or parts:
        facts["model"] = model_fingerprint(own)
    notebook = Notebook(resume, facts)
    partial = notebook.read()
    for part in parts:
        partial = partial.merge(Notebook(part, facts).read(needed=True))
    total = len(corpus) if share[1] == 1 else 0
    bar = tqdm(total=total or None, desc=study.name, unit="text", disable=None if progress is None else not progress)
    with bar:
        chunks = _chunks(corpus, chunk, share, partial)
        bar.update(len(partial.texts))
        done = (
            (measure_chunk(own, study, items, reading) for items in chunks)
            if executor is None
            else on_executor(executor, model, own, study, chunks, reading)
        )
        try:
            for part in done:
                before = len(partial.texts)
                partial = partial.merge(part)
                bar.update(len(partial.texts) - before)
                notebook.write(partial)
        finally:  # whatever stopped it: what is done is done
            if len(partial.texts):
                notebook.write(partial, now=True)
    return own, partial, _facts(partial, share)


def _chunks(corpus: Corpus, size: int, share: tuple[int, int], known: Partial) -> Iterator[tuple[Item, ...]]:
    """Consecutive texts of a share, cut at multiples of `size`. Those that are known are left out, and checked.

    Raises:
        ResumeError: the known texts are not those of this corpus.
    """
    chunk: list[Item] = []
    digest, n_known = 0, len(known.texts)
    for item in corpus:
        is_known = item.index in known.texts
        wanted = not is_known and item.index // size % share[1] == share[0]
        if wanted:
            chunk.append(item)
        if is_known:
            digest, n_known = (digest + item.digest) % MODULUS, n_known - 1
            if not n_known and digest != known.digest:
                raise ResumeError(_OTHER_TEXTS.format(n=len(known.texts), how="these are others"))
        if chunk and (not wanted or (item.index + 1) % size == 0):
            yield tuple(chunk)
            chunk = []
    if n_known:
        raise ResumeError(_OTHER_TEXTS.format(n=len(known.texts), how="these are fewer"))
    if chunk:
        yield tuple(chunk)


def _facts(partial: Partial, share: tuple[int, int]) -> CorpusFacts:
    """What the result is of; warnings of what it is not."""
    facts = CorpusFacts(*partial.counts, excluded=partial.excluded)
    if not len(partial.texts) and share[1] > 1:
        raise StudyInputError(
            f"share {share[0]} of {share[1]} holds no text: the corpus is empty, or has fewer chunks than shares. Take "
            f"fewer shares or a smaller chunk=."
        )
    if not len(partial.texts):
        raise StudyInputError("the corpus is empty: no text to measure. (A generator can be read only once.)")
    shown = "; ".join(f"{text.name} {text.reason}" for text in facts.excluded[:3])
    shown += f"; and {len(facts.excluded) - 3} more" if len(facts.excluded) > 3 else ""
    if not facts.n_texts:
        raise StudyInputError(f"none of the {len(partial.texts)} texts can be measured: {shown}.")
    if facts.excluded:
        warnings.warn(
            f"{len(facts.excluded)} of {len(partial.texts)} texts are not in the result: {shown}.",
            ExcludedTextWarning,
            stacklevel=4,
        )
    if facts.n_truncated:
        warnings.warn(
            f"{facts.n_truncated} of {facts.n_texts} texts were longer than the context and lost their ends; pass "
            f"stride= to cut them into windows instead.",
            TruncatedTextWarning,
            stacklevel=4,
        )
    return facts
