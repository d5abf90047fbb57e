"""Shares of a corpus for independent array jobs, and the files they leave put together."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import ResumeError
from .corpus import Corpus, Item
from .partial import MODULUS, Partial
from .resume import Notebook

_OTHER_TEXTS = (
    "what is there to resume from has {n} texts of another corpus: {how}. Give the same texts in the same order, or "
    "another file name."
)


def put_together(partial: Partial, parts: Iterable[Path], facts: dict[str, str]) -> Partial:
    """A partial result and those in the files of other runs of the same study.

    Raises:
        ResumeError: a file is missing, or belongs to something else.
        StudyInputError: two of them share some of their texts.
    """
    for part in parts:
        partial = partial.merge(Notebook(part, facts).read(needed=True))
    return partial


def chunks(corpus: Corpus, size: int, share: tuple[int, int], known: Partial) -> Iterator[tuple[Item, ...]]:
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
