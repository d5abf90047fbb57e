"""Paths as users give them."""

import os
from pathlib import Path


def is_file(path: str | os.PathLike) -> bool:
    """Whether there is a file; False also for what can be no path: too long a name, a null byte, no path at all."""
    return _asked(path, Path.is_file)


def is_folder(path: str | os.PathLike) -> bool:
    """Whether there is a folder; False also for what can be no path."""
    return _asked(path, Path.is_dir)


def no_file(path: object) -> str:
    """Why what is given for a file is none: it is a folder, or nothing is there."""
    shown = repr(str(path)[:200])
    return f"{shown} is a folder; give a file" if is_folder(str(path)) else f"there is no file {shown}"


def _asked(path: str | os.PathLike, question) -> bool:
    try:
        return question(Path(path).expanduser())
    except (OSError, ValueError, TypeError, RuntimeError):  # RuntimeError: "~nobody" without a home
        return False
