"""Alignment files: Pharaoh format, one sentence pair a line, and NAACL format, one link a line."""

import os
import re
from collections.abc import Iterable, Sequence
from typing import Literal

from .errors import AlignmentFormatError, AlignmentInputError
from .links import GoldLinks, Lengths, Link, check_range
from .reading import text_of

Lines = str | os.PathLike | Iterable[str]
"""The path of a file, or its lines."""
Format = Literal["pharaoh", "naacl"]

_NUMBER = r"([0-9]{1,9})"  # no text has more words; Python does not read numbers of 5,000 digits
_PHARAOH = re.compile(_NUMBER + r"([-p])" + _NUMBER)
_MARK, _CONFIDENCE = r"(?:\s+([SP]))?", r"(?:\s+[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)?"
_NAACL = re.compile(r"\s+".join([_NUMBER] * 3) + _MARK + _CONFIDENCE)


def read_pharaoh(
    source: Lines, *, one_based: bool = False, reverse: bool = False, lengths: Lengths | None = None
) -> list[GoldLinks]:
    """Links in Pharaoh format: a line per sentence pair, `0-0 1p2`, sure links with `-` and possible ones with `p`.

    Args:
        source: the path of a file, or its lines. A blank line is a sentence pair without links.
        one_based: words are numbered from 1 in the file
        reverse: the file has target-source, not source-target
        lengths: (source words, target words) of each sentence pair, to check numbers against

    Returns:
        One GoldLinks per line, (source, target) from 0.

    Raises:
        AlignmentFormatError: something else on a line, or (with `lengths`) a link out of range: with the line's number.
        AlignmentInputError: there is no such file, or (with `lengths`) the number of sentence pairs differs.

    Example:
        >>> read_pharaoh(["0-0 1p2"])[0].sure
        frozenset({(0, 0)})
    """
    name, lines = _lines(source)
    found = []
    for number, line in enumerate(lines, start=1):
        sure: set[Link] = set()
        possible: set[Link] = set()
        for word in line.split():
            match = _PHARAOH.fullmatch(word)
            if match is None:
                raise AlignmentFormatError(
                    f"line {number} of {name}: {word[:60]!r} is no link; expected Pharaoh format: '0-0 1-2 2p3'."
                )
            link = _link(match[1], match[3], one_based, reverse, f"line {number} of {name}: {word!r}")
            (sure if match[2] == "-" else possible).add(link)
        found.append(GoldLinks(frozenset(sure), frozenset(possible)))
    _check(found, lengths, one_based, name, [f"line {number} of {name}" for number in range(1, len(found) + 1)])
    return found


def read_naacl(
    source: Lines,
    *,
    reverse: bool = False,
    zero_is_null: bool = False,
    n_sentences: int | None = None,
    lengths: Lengths | None = None,
) -> list[GoldLinks]:
    """Links in NAACL format (Mihalcea and Pedersen 2003): a line per link, `sentence source target [S|P] [confidence]`.

    Sentences and words are numbered from 1. A link without a mark is sure; confidences are passed over.

    Args:
        source: the path of a file, or its lines. Blank lines are passed over.
        reverse: the file has the target word before the source word
        zero_is_null: word 0 is the empty word, whose links are no links between words and are left out
        n_sentences: how many sentence pairs there are; None for the length of `lengths`, or the last one with a link
        lengths: (source words, target words) of each sentence pair, to check numbers against

    Returns:
        One GoldLinks per sentence pair, (source, target) from 0; without links where the file has none of a sentence.

    Raises:
        AlignmentFormatError: something else on a line, or (with `lengths`) a link out of range: with the line's number.
        AlignmentInputError: there is no such file, or a sentence beyond the last.

    Example:
        >>> [sorted(gold.possible) for gold in read_naacl(["1 1 1 S", "3 2 1 P"])]
        [[(0, 0)], [], [(1, 0)]]
    """
    name, lines = _lines(source)
    last = len(lengths) if n_sentences is None and lengths is not None else n_sentences
    sure: dict[int, set[Link]] = {}
    possible: dict[int, set[Link]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"line {number} of {name}"
        match = _NAACL.fullmatch(line.strip())
        if match is None:
            raise AlignmentFormatError(
                f"{where}: {line.strip()[:60]!r} is no link; expected NAACL format 'sentence source target [S|P] "
                f"[confidence]', such as '1 3 2 S'."
            )
        sentence = int(match[1])
        if sentence < 1:
            raise AlignmentFormatError(f"{where}: sentence 0; the sentences of NAACL files are numbered from 1.")
        if last is not None and sentence > last:
            raise AlignmentInputError(f"{where}: sentence {sentence}, but there are {last} sentence pairs.")
        if zero_is_null and 0 in (int(match[2]), int(match[3])):
            continue
        hint = " If 0 is the empty word, pass zero_is_null=True."
        link = _link(match[2], match[3], True, reverse, f"{where}: {line.strip()!r}", hint)
        if lengths is not None:
            _in_range(link, lengths[sentence - 1], where)
        ((possible if match[4] == "P" else sure).setdefault(sentence, set())).add(link)
    n = max([*sure, *possible], default=0) if last is None else last
    found = [GoldLinks(frozenset(sure.get(s, ())), frozenset(possible.get(s, ()))) for s in range(1, n + 1)]
    _check(found, lengths, True, name, None)
    return found


def read_gold(
    source: Lines,
    *,
    format: Format | None = None,
    one_based: bool = False,
    reverse: bool = False,
    lengths: Lengths | None = None,
) -> list[GoldLinks]:
    """Links of a file in Pharaoh or NAACL format.

    Args:
        source: the path of a file, or its lines
        format: "pharaoh" or "naacl"; None to tell by the first line that is not blank
        one_based, reverse, lengths: see `read_pharaoh`; NAACL files are numbered from 1 in any case

    Raises:
        AlignmentFormatError: neither format, or see `read_pharaoh` and `read_naacl`.
    """
    if format not in (None, "pharaoh", "naacl"):
        raise AlignmentInputError(
            f"unknown format {format!r}; expected 'pharaoh' or 'naacl', or None to tell by content."
        )
    name, lines = _lines(source)
    if format is None:
        number, first = next(((n, line.strip()) for n, line in enumerate(lines, 1) if line.strip()), (0, ""))
        if not first or _PHARAOH.fullmatch(first.split()[0]):
            format = "pharaoh"
        elif _NAACL.fullmatch(first):
            format = "naacl"
        else:
            raise AlignmentFormatError(
                f"line {number} of {name}: {first[:60]!r} is neither Pharaoh format ('0-0 1-2 2p3', a line per "
                f"sentence pair) nor NAACL format ('1 3 2 S': sentence, source, target, a line per link)."
            )
    given = _Named(name, lines)
    if format == "naacl":
        return read_naacl(given, reverse=reverse, lengths=lengths)
    return read_pharaoh(given, one_based=one_based, reverse=reverse, lengths=lengths)


class _Named(list):
    """Lines that know where they come from."""

    def __init__(self, name: str, lines: Sequence[str]):
        super().__init__(lines)
        self.name = name


def _lines(source: Lines) -> tuple[str, list[str]]:
    if isinstance(source, _Named):
        return source.name, source
    if not isinstance(source, str | os.PathLike):
        if not isinstance(source, Iterable) or isinstance(source, bytes):
            raise AlignmentInputError(f"the alignment is {type(source).__name__}; expected a file, or a list of lines.")
        return "the alignment", [str(line) for line in source]
    return repr(str(source)), text_of(source, "alignments", " (For lines, pass a list of them.)").splitlines()


def _link(source: str, target: str, one_based: bool, reverse: bool, where: str, hint: str = "") -> Link:
    first, second = int(source) - one_based, int(target) - one_based
    if first < 0 or second < 0:
        hint = hint or " Leave one_based out if the file counts from 0."
        raise AlignmentFormatError(f"{where} has word 0, where words are numbered from 1.{hint}")
    return (second, first) if reverse else (first, second)


def _in_range(link: Link, length: tuple[int, int], where: str, hint: str = "") -> None:
    try:
        check_range([link], *length, where, hint)
    except AlignmentInputError as error:
        raise AlignmentFormatError(str(error)) from None


def _check(
    found: list[GoldLinks], lengths: Lengths | None, one_based: bool, name: str, where: list[str] | None
) -> None:
    """Counts, and the ranges of the links of each line."""
    if lengths is None:
        return
    if len(found) != len(lengths):
        raise AlignmentInputError(f"{name} has links of {len(found)} sentence pairs, but there are {len(lengths)}.")
    if where is None:
        return
    everything = [number for gold in found for link in gold.possible for number in link]
    hint = (
        ""
        if one_based or not everything or min(everything) == 0
        else " If they count from 1: one_based=True (--one-based)."
    )
    for gold, length, line in zip(found, lengths, where, strict=True):
        for link in sorted(gold.possible):
            _in_range(link, length, line, hint)
