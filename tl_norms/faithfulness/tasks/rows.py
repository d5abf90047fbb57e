"""Tasks from tables of your own, from the hub's data sets, and from plain texts."""

import csv
import json
import os
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ...errors import MissingExtraError
from ...files import no_file
from ..errors import TaskError
from .task import Example, Excluded, Task
from .wording import Wording

_NONE = ("", "na", "nan", "none", "null")


def from_rows(
    rows: str | os.PathLike | Iterable[Mapping[str, Any]],
    model: Any,
    *,
    prefix: str = "prefix",
    good: str = "good",
    bad: str = "bad",
    evidence: str | None = "evidence",
    counterfactual: str | None = None,
    name: str | None = None,
    limit: int | None = None,
) -> Task:
    """A task from a table: a csv file with a header, a jsonl file, or mappings.

    Args:
        rows: the file, or the rows themselves
        model: its tokenizer reads the rows
        prefix, good, bad: columns of the text so far and of its right and wrong continuation, single tokens
        evidence: column of the word of the prefix that decides (its first occurrence), of several separated by blanks,
            or of a list of words; None if nobody has said
        counterfactual: column of another prefix, of as many tokens, for which `bad` is right
        name: of the task, by default that of the file
        limit: use the first rows that can be used, at most this many

    Returns:
        A Task; rows that cannot be used are in its `excluded`, each with the reason.

    Raises:
        TaskError: no such file or column, or not one row that can be used; the first reasons are named.

    Example:
        >>> task = tasks.from_rows("agreement.csv", model, evidence="subject")          # doctest: +SKIP
        >>> task.excluded[:3]                                                           # doctest: +SKIP
    """
    wording = Wording(model)
    file = isinstance(rows, str | os.PathLike)
    found: list[Example] = []
    excluded: list[Excluded] = []
    columns = [column for column in (prefix, good, bad, evidence, counterfactual) if column is not None]
    for number, row in enumerate(_read(rows)):
        if limit is not None and len(found) == limit:
            break
        missing = [column for column in columns if column not in row]
        if missing:
            raise TaskError(
                f"row {number} has no column {missing[0]!r}; it has {', '.join(map(str, row))}. Name the columns: "
                f"from_rows(..., prefix=, good=, bad=, evidence=None)."
            )
        given = [None if column is None else row[column] for column in (prefix, good, bad, evidence, counterfactual)]
        try:
            found.append(_example(wording, *given, expects_evidence=evidence is not None))
        except TaskError as error:
            excluded.append(Excluded(f"row {number}", str(error)))
    called = name or (Path(rows).stem if file else "rows")  # type: ignore[arg-type]
    return _task(called, found, excluded)


def from_datasets(
    path: str,
    configuration: str | None,
    model: Any,
    *,
    split: str = "train",
    good: str = "sentence_good",
    bad: str = "sentence_bad",
    limit: int | None = None,
    **options: Any,
) -> Task:
    """A task from pairs of sentences on the hub, BLiMP's first of all, for users who are online.

    The prefix is what both sentences begin with; the continuations are the first words that differ. There is no
    evidence, so that metrics which need it are empty.

    Args:
        path, configuration: of the data set, `("nyu-mll/blimp", "anaphor_gender_agreement")`
        model: its tokenizer reads the sentences
        split: of the data set
        good, bad: columns of the two sentences
        limit: use at most this many
        options: passed on to `datasets.load_dataset`

    Raises:
        MissingExtraError: the library `datasets` is not installed.
        TaskError: no pair can be used.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise MissingExtraError("from_datasets needs datasets: pip install datasets") from error
    rows: Any = load_dataset(path, configuration, split=split, **options)
    return from_pairs(((row[good], row[bad]) for row in rows), model, name=configuration or path, limit=limit)


def from_pairs(pairs: Iterable[tuple[str, str]], model: Any, *, name: str = "pairs", limit: int | None = None) -> Task:
    """A task from pairs of a good and a bad sentence, as `from_datasets` reads them: up to the first other word."""
    wording = Wording(model)
    found: list[Example] = []
    excluded: list[Excluded] = []
    for number, (good, bad) in enumerate(pairs):
        if limit is not None and len(found) == limit:
            break
        left, right = good.split(), bad.split()
        same = next((n for n, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), None)
        try:
            if not same:
                raise TaskError("the sentences differ in no word, or in the first one")
            words = (left[same].rstrip(".?!,"), right[same].rstrip(".?!,"))
            found.append(_example(wording, " ".join(left[:same]), *words, None, None))
        except TaskError as error:
            excluded.append(Excluded(f"pair {number}", str(error)))
    return _task(name, found, excluded)


@torch.no_grad()
def next_token(texts: Iterable[str], model: Any, *, name: str = "next-token", limit: int | None = None) -> Task:
    """The model's own next token against its second choice, after each text. There is no evidence.

    What the model predicts is right by definition.

    Args:
        texts: strings
        model: a language model with a tokenizer
        name: of the task
        limit: use at most this many

    Raises:
        TaskError: no text can be used.
    """
    from ..running import output

    wording = Wording(model)
    found: list[Example] = []
    excluded: list[Excluded] = []
    for number, text in enumerate(islice(texts, limit)):
        tokens = wording.tokens(text) if isinstance(text, str) else ()
        if len(tokens) < 2:
            excluded.append(Excluded(f"text {number}", "has fewer than two tokens"))
            continue
        first, second = output(model, torch.tensor([tokens]))[0, -1].topk(2).indices.tolist()
        found.append(Example(text, tokens, first, second))
    return _task(name, found, excluded)


def _task(name: str, found: list[Example], excluded: list[Excluded]) -> Task:
    if not found:
        shown = "; ".join(f"{row.name}: {row.reason}" for row in excluded[:3])
        raise TaskError(f"none of the {len(excluded)} rows of {name!r} can be used. {shown or 'There are no rows.'}")
    return Task(name, tuple(found), tuple(excluded))


def _read(rows: str | os.PathLike | Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    if not isinstance(rows, str | os.PathLike):
        return rows
    path = Path(rows).expanduser()
    if not path.is_file():
        raise TaskError(f"{no_file(path)}.")
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix in (".jsonl", ".json"):
        try:
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        except ValueError as error:
            raise TaskError(f"{str(path)!r} is no jsonl file, one object a line: {error}.") from error
    return list(csv.DictReader(text.splitlines(), delimiter="\t" if path.suffix == ".tsv" else ","))


def _example(
    wording: Wording,
    prefix: Any,
    good: Any,
    bad: Any,
    evidence: Any,
    counterfactual: Any,
    expects_evidence: bool = False,
) -> Example:
    text = str(prefix or "").strip()
    if not text:
        raise TaskError("the prefix is empty")
    continuations = [str(word or "").strip() for word in (good, bad)]
    ids = [wording.continuation(text, word) if word else None for word in continuations]
    if None in ids:
        split = [word for word, number in zip(continuations, ids, strict=True) if number is None]
        raise TaskError(f"{' and '.join(map(repr, split))} is no single token behind this prefix")
    if ids[0] == ids[1]:
        raise TaskError(f"good and bad continuation are both {continuations[0]!r}")
    tokens, other = wording.tokens(text), None
    places = _places(wording, text, evidence) if expects_evidence else ()
    if counterfactual is not None:
        other = wording.tokens(str(counterfactual).strip())
        if len(other) != len(tokens):
            raise TaskError(f"the counterfactual has {len(other)} tokens, the prefix {len(tokens)}")
    return Example(text, tokens, int(ids[0] or 0), int(ids[1] or 0), places, other)


def _places(wording: Wording, text: str, evidence: Any) -> tuple[int, ...]:
    """Positions of the word or words; the whole given string first, then its parts."""
    if evidence is None or str(evidence).strip().lower() in _NONE:
        raise TaskError("no evidence is given")
    given = list(evidence) if isinstance(evidence, list | tuple) else [str(evidence).strip()]
    if len(given) == 1 and not wording.find(text, given[0]):
        given = given[0].split()
    found: set[int] = set()
    for word in given:
        places = wording.find(text, str(word))
        if not places:
            raise TaskError(f"the evidence {word!r} is not in the prefix {text!r}")
        found |= set(places)
    return tuple(sorted(found))
