"""The file that an interrupted study goes on from: plain arrays, no pickles, replaced in one step."""

import importlib.metadata
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np

from ...files import is_file
from ..errors import ResumeError
from .partial import Partial

_SECONDS = 5.0  # between two writes
_VERSION = "3"  # of the format, and of the package's own code that numbers depend on


class Notebook:
    """Keeps the partial result of a study in a file.

    Args:
        path: the file, None to keep nothing
        fingerprint: of study, options and model; a file with another one is refused
    """

    def __init__(self, path: Path | None, fingerprint: dict[str, str]):
        self.path = path
        self.fingerprint = {"version of the format": _VERSION, **fingerprint}
        self._written = time.monotonic()

    def read(self, *, needed: bool = False) -> Partial:
        """The partial result; an empty one if there is no file yet, unless it is needed.

        Raises:
            ResumeError: there is no file, it is damaged, or it was made with something else.
        """
        if self.path is None or not is_file(self.path):
            if needed:
                raise ResumeError(
                    f"there is no file {str(self.path)[:200]!r}, which was given as a part of the result."
                )
            return Partial()
        try:
            with np.load(self.path, allow_pickle=False) as file:
                arrays = dict(file)
            kept = {name.partition("/")[2]: str(arrays[name]) for name in arrays if name.startswith("fingerprint/")}
            made = str(arrays.get("made", "an older version of tl_norms"))
            partial = Partial.of_arrays(arrays)
        except Exception as error:  # numpy, zipfile and json have their own idea of what to raise
            raise ResumeError(
                f"{str(self.path)!r} is no file of a study, or is damaged ({type(error).__name__}). "
                f"Delete it to start again, or give another name."
            ) from error
        others = [name for name, value in self.fingerprint.items() if kept.get(name) != value]
        if others:
            shown = "; ".join(f"{name}: {kept.get(name, 'not said')}" for name in kept or self.fingerprint)
            now = "; ".join(f"{name}: {self.fingerprint[name]}" for name in others)
            raise ResumeError(
                f"{str(self.path)!r} belongs to another {', another '.join(others)}. It was made with {made}; {shown}. "
                f"Now it is {now}. Give another file name, or delete it to start again."
            )
        return partial

    def write(self, partial: Partial, *, now: bool = False) -> None:
        """Write, if the last time was a while ago or `now`.

        Raises:
            ResumeError: the file cannot be written.
        """
        if self.path is None or (not now and time.monotonic() - self._written < _SECONDS):
            return
        arrays: dict[str, Any] = {f"fingerprint/{name}": np.array(value) for name, value in self.fingerprint.items()}
        arrays |= {"made": np.array(_made_with()), **partial.arrays()}
        beside = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        try:
            with open(beside, "wb") as file:
                np.savez(file, **arrays)
            os.replace(beside, self.path)
        except OSError as error:
            raise ResumeError(f"{str(self.path)[:200]!r} cannot be written: {error.strerror or error}.") from error
        finally:
            _remove(beside)
        self._written = time.monotonic()


def _remove(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError:  # too long a name, no permission: then it is not there either
        pass


def _made_with() -> str:
    """Versions and date, for the message when the file does not fit."""
    found = [f"Python {platform.python_version()}"]
    for name in ("tl_norms", "torch", "transformers", "transformer_lens"):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return f"{', '.join(found)} on {time.strftime('%Y-%m-%d')}"
