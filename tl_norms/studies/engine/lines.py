"""Texts in files. A line that cannot be read is a value with a reason, not an exception."""

import glob
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import MissingExtraError
from ...files import is_file, no_file
from ..errors import StudyInputError

_OBJECTS = (".jsonl", ".ndjson")
_TABLES = {".csv": "csv", ".tsv": "csv", ".json": "json", ".parquet": "parquet", ".arrow": "arrow"}
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".lz4")


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
    """The texts of a file, read when they are asked for, as often as they are asked for.

    Text and JSON lines are read line by line, so that only bad lines are left out, each of them named. Tables (.csv,
    .tsv, .json, .parquet, .arrow) and compressed files (.gz, .bz2, .xz, .zst, .lz4) are read by the `datasets` library,
    row by row; there a damaged file is an error.

    Args:
        path: a text file with one text a line (UTF-8); a .jsonl or .ndjson file with one object a line; or a table
        field: the key or column of the text

    Yields:
        Line or Unreadable, which every study takes, or rows of a table. Blank lines are no texts and are passed over.

    Raises:
        StudyInputError: there is no such file, or `datasets` cannot read it.
        MissingExtraError: a table or compressed file, and `datasets` is not installed.

    Example:
        >>> studies.mixing_ratio(model, studies.TextFile("corpus.txt"))         # doctest: +SKIP
    """

    def __init__(self, path: str | os.PathLike, field: str = "text"):
        if not is_file(path):
            raise StudyInputError(f"{no_file(path)} of texts.")
        self.path, self.field = Path(path).expanduser(), field

    def __iter__(self) -> Iterator:
        suffixes = [suffix for suffix in self.path.suffixes if suffix not in _PACKED]
        kind = suffixes[-1] if suffixes else ""
        if kind in _TABLES or self.path.suffix in _PACKED:
            return self._of_library("json" if kind in _OBJECTS else _TABLES.get(kind, "text"))
        return self._of_lines(self._of_object if kind in _OBJECTS else _plain)

    def _of_lines(self, read: Callable[[str], str]) -> Iterator[Line | Unreadable]:
        with open(self.path, "rb") as file:
            for number, raw in enumerate(file, start=1):
                if raw.strip():
                    yield _one(number, raw, read)

    def _of_library(self, format: str) -> Iterator[dict[str, str]]:
        """Rows as `datasets` reads them, without a copy of the file."""
        try:
            from datasets import load_dataset
        except ImportError as error:
            raise MissingExtraError(f"reading {self.path.suffix} files needs datasets: pip install datasets") from error
        options: dict[str, Any] = {"sep": "\t"} if ".tsv" in self.path.suffixes else {}
        try:
            name = glob.escape(str(self.path.resolve()))
            rows = load_dataset(format, data_files=name, split="train", streaming=True, **options)
            row: Any
            for row in rows:
                if format != "text":
                    yield row
                elif row["text"].strip():
                    yield {self.field: row["text"]}
        except Exception as error:  # pyarrow, pandas and zlib have their own idea of what to raise
            raise StudyInputError(
                f"{str(self.path)!r} cannot be read by datasets as {format}: {type(error).__name__}: {str(error)[:200]}"
            ) from error

    def _of_object(self, line: str) -> str:
        try:
            found = json.loads(line, parse_int=float)  # of any number of digits
        except json.JSONDecodeError as error:
            raise ValueError(f"is not JSON ({error.msg})") from error
        except RecursionError as error:
            raise ValueError("is JSON nested too deeply to be read") from error
        if not isinstance(found, dict):
            raise ValueError(f"has no text in field {self.field!r}; it is no object but {type(found).__name__}")
        if not isinstance(found.get(self.field), str):
            raise ValueError(f"has no text in field {self.field!r}; it has {', '.join(list(found)[:8]) or 'none'}")
        return found[self.field]


def _plain(line: str) -> str:
    return line.rstrip("\r\n")


def _one(number: int, raw: bytes, read: Callable[[str], str]) -> Line | Unreadable:
    try:
        return Line(number, read(raw.decode("utf-8-sig" if number == 1 else "utf-8")))
    except UnicodeDecodeError as error:
        return Unreadable(number, f"is not UTF-8 (byte {error.start})")
    except ValueError as error:
        return Unreadable(number, str(error))
