"""One file: written, and read with everything that can be wrong with it said."""

import json
import os
import struct
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from ..errors import MissingExtraError
from .errors import DamagedFileError, NewerFileError, NotAResultError, ResultPathError, UnstorableError
from .storable import Storable
from .tree import Reader, Writer

FORMAT = 1
_FORMAT, _VERSION, _RESULT = "tl_norms_format", "tl_norms_version", "tl_norms_result"
_LARGEST_HEADER = 100_000_000  # of safetensors


def save(result: Storable, path: str | PathLike) -> None:
    """Write a result to one file, see `Storable.save`."""
    _safetensors()
    from safetensors.torch import save_file

    from .. import __version__

    if not isinstance(result, Storable):
        raise UnstorableError(f"expected a result of tl_norms, got {type(result).__name__}.")
    writer = Writer()
    tree = writer.written(result.for_storage(), "")
    facts = {_FORMAT: str(FORMAT), _VERSION: __version__, _RESULT: json.dumps(tree, allow_nan=False)}
    target = _path(path)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        save_file(writer.tensors, unfinished, metadata=facts)
        os.replace(unfinished, target)
    except Exception as error:  # safetensors raises its own error for a folder that is not there
        unfinished.unlink(missing_ok=True)
        raise ResultPathError(f"cannot write {str(path)!r}: {error}") from error


def load(path: str | PathLike, *, device: torch.device | str = "cpu") -> Any:
    """Read a result that was written by its `save`.

    Nothing but the classes of this package is made, and no code is run: the file is safetensors with JSON inside. Files
    of older versions are read; what they lack has its default.

    Args:
        path: the file
        device: where the tensors go

    Returns:
        The result, of the class that was saved, with the same numbers, dtypes and token strings.

    Raises:
        ResultPathError: there is no such file, or it cannot be read.
        NotAResultError: the file was not written by `save`.
        NewerFileError, UnknownResultError: it was written by a newer version, or holds a class that is not known.
        DamagedFileError: it is cut off, or its parts do not fit together.
        MissingExtraError: safetensors is not installed.

    Example:
        >>> norms = tl_norms.load("norms.safetensors")                          # doctest: +SKIP
    """
    _safetensors()
    from safetensors import SafetensorError, safe_open

    source = _path(path)
    header = _header(source, path)
    tree = _tree(header, path)
    try:
        with safe_open(source, framework="pt", device=str(device)) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    except SafetensorError as error:
        raise DamagedFileError(f"{str(path)!r} is damaged: {error}") from error
    return Reader(tensors).read(tree)


def _path(path: str | PathLike) -> Path:
    try:
        return Path(path).expanduser()
    except (TypeError, RuntimeError) as error:
        raise ResultPathError(f"path is {path!r}; expected the path of a file.") from error


def _header(source: Path, path: Any) -> dict[str, Any]:
    """The JSON at the beginning of a safetensors file: 8 bytes with its length, then itself."""
    try:
        with source.open("rb") as file:
            start = file.read(9)
            size = struct.unpack("<Q", start[:8])[0] if len(start) == 9 else 0
            if start[8:] != b"{" or not 2 <= size <= _LARGEST_HEADER:
                raise NotAResultError(f"{str(path)!r} is no file of tl_norms: it was not written by save().")
            text = start[8:] + file.read(size - 1)
    except (OSError, ValueError) as error:
        if isinstance(error, NotAResultError):
            raise
        what = "is a folder" if source.is_dir() else getattr(error, "strerror", None) or error
        raise ResultPathError(f"cannot read {str(path)!r}: {what}") from error
    if len(text) < size:
        raise DamagedFileError(f"{str(path)!r} is cut off: its description has {len(text)} of {size} bytes.")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NotAResultError(f"{str(path)!r} is no file of tl_norms: it is not safetensors.") from error
    return header


def _tree(header: dict[str, Any], path: Any) -> Any:
    """The JSON of the result, if this version knows the form."""
    facts = header.get("__metadata__")
    if not isinstance(facts, dict) or _FORMAT not in facts:
        raise NotAResultError(
            f"{str(path)!r} is a safetensors file, but no result of tl_norms: it was not written by save()."
        )
    if not str(facts[_FORMAT]).isdigit():
        raise DamagedFileError(f"{str(path)!r} has format {facts[_FORMAT]!r}, which is no number.")
    if int(facts[_FORMAT]) > FORMAT:
        raise NewerFileError(
            f"{str(path)!r} has format {facts[_FORMAT]}, written by tl_norms {facts.get(_VERSION, '?')}; this version "
            f"reads formats up to {FORMAT}: pip install -U tl_norms"
        )
    try:
        return json.loads(facts[_RESULT])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise DamagedFileError(f"{str(path)!r} does not say what its tensors are.") from error


def _safetensors() -> None:
    try:
        import safetensors  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("saving and loading need safetensors: pip install safetensors") from error
