"""One loop for all studies: chunks of the corpus, here or on an executor, merged in order, kept in a file."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import nn
from tqdm.auto import tqdm
from typing_extensions import Unpack

from ..errors import ExcludedTextWarning, StudyInputError, TruncatedTextWarning
from .corpus import Corpus
from .executors import Model, on_executor
from .fingerprint import model_facts
from .measuring import measure_chunk
from .options import RunOptions, checked, made
from .partial import Excluded, Partial
from .resume import Notebook
from .shares import chunks, put_together
from .study import Reading, Study
from .words import told


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


def run(
    model: Model, study: Study, texts: Iterable[Any], *, reading: Reading | None = None, **options: Unpack[RunOptions]
) -> tuple[nn.Module, Partial, CorpusFacts]:
    """Measure a corpus.

    Args:
        model: the model, or a function without arguments that makes it
        study: what is measured
        texts: the corpus
        reading: how the study reads texts, where it matters to it
        **options: see `RunOptions`

    Returns:
        The model, the merged partial result, and what it is of.

    Raises:
        StudyInputError: an empty corpus, or one without a single text that can be measured; bad options; a study of
            texts of an encoder-decoder.
        ResumeError: the file to resume from, or one of the parts, belongs to something else.
        StudyFailedError: a chunk failed on the executor and again.
    """
    given: Any = checked(options)
    reading = replace(reading or Reading(), **{name: given[name] for name in ("max_length", "stride", "batch_tokens")})
    corpus = Corpus(texts, given["field"], given["limit"])
    own = made(model)
    study.check(own)
    facts = _facts(study, reading, own) if given["resume"] is not None or given["parts"] else {}
    notebook = Notebook(given["resume"], facts)
    partial = put_together(notebook.read(), given["parts"], facts)
    share, progress = given["share"], given["progress"]
    total = len(corpus) if share[1] == 1 else 0
    bar = tqdm(total=total or None, desc=study.name, unit="text", disable=None if progress is None else not progress)
    with bar:
        todo = chunks(corpus, given["chunk"], share, partial)
        bar.update(len(partial.texts))
        executor = given["executor"]
        done = (
            (measure_chunk(own, study, items, reading) for items in todo)
            if executor is None
            else on_executor(executor, model, own, study, todo, reading)
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
    return own, partial, _corpus_facts(partial, share)


def _facts(study: Study, reading: Reading, model: nn.Module) -> dict[str, str]:
    """Everything that determines the numbers, under the names that messages call it by.

    Raises:
        StudyInputError: an option, or hooks of the model, cannot be distinguished from others.
    """
    given = ", ".join(f"{field.name}={told(field.name, getattr(study, field.name))}" for field in fields(study))
    names = [field.name for field in fields(reading) if field.name != "batch_tokens"]
    ways = ", ".join(f"{name}={getattr(reading, name)}" for name in names)
    return {"study": f"{study.name}({given})", "options": ways, **model_facts(model)}


def _corpus_facts(partial: Partial, share: tuple[int, int]) -> CorpusFacts:
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
