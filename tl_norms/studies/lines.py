"""Texts in files: one a line, or one JSON object a line. A line that cannot be read is a value, not an exception."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import StudyInputError


@dataclass(frozen=True)
class Line:
    """One text of a file, with the number of its line, from 1."""

    number: int
    text: str


@dataclass(frozen=True)
class Unreadable:
    """A line that holds no text, and why."""

    number: int
    reason: str


class TextFile:
    """The texts of a file, read as they are asked for, as often as they are asked for.

    Args:
        path: a text file, one text a line (UTF-8), or a .jsonl or .ndjson file, one object a line
        field: the key of the text in each object

    Yields:
        Line or Unreadable, which every study takes. Blank lines are no texts and are passed over.

    Raises:
        StudyInputError: there is no such file.

    Example:
        >>> studies.mixing_ratio(model, studies.TextFile("corpus.txt"))         # doctest: +SKIP
    """

    def __init__(self, path: str | Path, field: str = "text"):
        self.path, self.field = Path(path).expanduser(), field
        if not self.path.is_file():
            raise StudyInputError(f"there is no file {str(path)!r} to read texts from.")

    def __iter__(self) -> Iterator[Line | Unreadable]:
        read = self._of_object if self.path.suffix in (".jsonl", ".ndjson") else _plain
        with open(self.path, "rb") as file:
            for number, raw in enumerate(file, start=1):
                if raw.strip():
                    yield _one(number, raw, read)

    def _of_object(self, line: str) -> str:
        try:
            found = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"is not JSON ({error.msg})") from error
        if not isinstance(found, dict) or not isinstance(found.get(self.field), str):
            keys = ", ".join(found) if isinstance(found, dict) else type(found).__name__
            raise ValueError(f"has no text in field {self.field!r}; it has {keys}")
        return found[self.field]


def _plain(line: str) -> str:
    return line.rstrip("\r\n")


def _one(number: int, raw: bytes, read) -> Line | Unreadable:
    try:
        return Line(number, read(raw.decode("utf-8-sig" if number == 1 else "utf-8")))
    except UnicodeDecodeError as error:
        return Unreadable(number, f"is not UTF-8 (byte {error.start})")
    except ValueError as error:
        return Unreadable(number, str(error))
