"""Files of alignments and sentence pairs as text."""

import os
from pathlib import Path

from ..files import is_file, no_file
from .errors import AlignmentFormatError, AlignmentInputError


def text_of(path: str | os.PathLike, what: str, hint: str = "") -> str:
    """The text of a file in UTF-8, a byte order mark taken off.

    Raises:
        AlignmentInputError: there is no such file, or it cannot be opened.
        AlignmentFormatError: it is no UTF-8.
    """
    shown = repr(str(path)[:200])
    if not is_file(path):
        raise AlignmentInputError(f"{no_file(path)} with {what}.{hint}")
    try:
        return Path(path).expanduser().read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise AlignmentFormatError(f"{shown} is no text in UTF-8 (byte {error.start}).") from error
    except OSError as error:
        raise AlignmentInputError(f"{shown} cannot be read: {error.strerror or error}.") from error
