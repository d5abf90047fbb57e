"""Alignments as text in Pharaoh and NAACL format."""

import os
from collections.abc import Iterable
from pathlib import Path

from .errors import AlignmentInputError
from .links import GoldLinks, Link, link_set


def write_pharaoh(
    links: Iterable[Iterable[Link] | GoldLinks],
    path: str | os.PathLike | None = None,
    *,
    one_based: bool = False,
    reverse: bool = False,
) -> str:
    """Links as text in Pharaoh format, a line per sentence pair, sorted; also into a file if there is a path.

    Example:
        >>> write_pharaoh([{(1, 2), (0, 0)}, GoldLinks({(0, 0)}, {(0, 1)})])
        '0-0 1-2\\n0-0 0p1\\n'
    """
    lines = []
    for number, sentence in enumerate(links):
        words = [
            f"{a}{'-' if mark == 'S' else 'p'}{b}" for a, b, mark in _marked(sentence, number, int(one_based), reverse)
        ]
        lines.append(" ".join(words) + "\n")
    return _written("".join(lines), path)


def write_naacl(
    links: Iterable[Iterable[Link] | GoldLinks], path: str | os.PathLike | None = None, *, reverse: bool = False
) -> str:
    """Links as text in NAACL format, a line per link, sorted; also into a file if there is a path.

    Sentence pairs without links have no line: pass their number when reading (`n_sentences`).

    Example:
        >>> write_naacl([{(0, 0)}, GoldLinks({(0, 0)}, {(0, 1)})])
        '1 1 1 S\\n2 1 1 S\\n2 1 2 P\\n'
    """
    lines = []
    for number, sentence in enumerate(links):
        lines += [f"{number + 1} {a} {b} {mark}\n" for a, b, mark in _marked(sentence, number, 1, reverse)]
    return _written("".join(lines), path)


def _marked(sentence: Iterable[Link] | GoldLinks, number: int, first: int, reverse: bool) -> list[tuple[int, int, str]]:
    gold = sentence if isinstance(sentence, GoldLinks) else GoldLinks(link_set(sentence, f"sentence {number}"))
    return [
        (target + first, source + first, mark) if reverse else (source + first, target + first, mark)
        for source, target in sorted(gold.possible)
        for mark in ["S" if (source, target) in gold.sure else "P"]
    ]


def _written(text: str, path: str | os.PathLike | None) -> str:
    if path is None:
        return text
    try:
        Path(path).expanduser().write_text(text, encoding="utf-8")
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise AlignmentInputError(f"{str(path)[:200]!r} cannot be written: {error}.") from error
    return text
