"""Options of all studies, checked before anything is read or measured."""

import math
import operator
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, TypeVar, get_args

from torch import nn
from typing_extensions import TypedDict

from ...files import is_folder
from ...linear.hold import Bias
from ...options import Layers
from ..errors import StudyInputError

_Kind = TypeVar("_Kind")
BIASES: tuple[Bias, ...] = get_args(Bias)


class RunOptions(TypedDict, total=False):
    """Options that every study over a corpus takes.

    Keys:
        field: the key of the text where the corpus yields mappings (a `datasets` object), "text"
        limit: read this many texts, None for all
        max_length: tokens per text, special ones included, at most the model's context
        stride: longer texts are cut into windows, and this many tokens lie from one window's start to the next; None
            cuts them off, with a TruncatedTextWarning. A token in several windows counts in the first of them.
        batch_tokens: positions per batch, padding included, 4096
        chunk: texts that are read, sorted by length and batched together, and sent to a worker together, 128
        progress: a progress bar; None for one where stderr is a terminal
        resume: a file to write the partial result to every few seconds, and to go on from if it exists
        share: (k, n) for the k-th of n shares of the corpus, k from 0: every n-th chunk. For the jobs of an array, each
            with a `resume` file of its own
        parts: files that other runs of the same study over the same corpus wrote, all or some of its shares: what is
            in them is not measured again
        executor: any concurrent.futures.Executor to run chunks on; then `model` should be a function without arguments
            that makes the model, which each worker calls once
    """

    field: str
    limit: int | None
    max_length: int | None
    stride: int | None
    batch_tokens: int
    chunk: int
    progress: bool | None
    resume: str | os.PathLike | None
    share: tuple[int, int]
    parts: Iterable[str | os.PathLike]
    executor: Executor | None


DEFAULTS = RunOptions(
    field="text",
    limit=None,
    max_length=None,
    stride=None,
    batch_tokens=4096,
    chunk=128,
    progress=None,
    resume=None,
    share=(0, 1),
    parts=(),
    executor=None,
)


def checked(options: Mapping[str, Any]) -> RunOptions:
    """All options of a run, those not given as they are by default.

    Raises:
        StudyInputError: an unknown option, or a value that means nothing.
    """
    if unknown := [name for name in options if name not in DEFAULTS]:
        raise StudyInputError(f"there is no option {unknown[0]!r}; expected one of {', '.join(DEFAULTS)}.")
    found: Any = {**DEFAULTS, **options}
    if not isinstance(found["field"], str):
        raise _bad("field", found["field"], "the key of the text, a string")
    for name in ("limit", "max_length", "stride"):
        found[name] = None if found[name] is None else whole(name, found[name], 1, or_none=True)
    for name in ("batch_tokens", "chunk"):
        found[name] = whole(name, found[name], 1)
    one_of("progress", found["progress"], (True, False, None))
    found["share"] = _share(found["share"])
    found["resume"] = None if found["resume"] is None else _path("resume", found["resume"])
    if found["resume"] is not None and (is_folder(found["resume"]) or not is_folder(found["resume"].parent)):
        what = "is a folder" if is_folder(found["resume"]) else "is in a folder that does not exist"
        raise StudyInputError(f"resume={str(found['resume'])[:200]!r} {what}; expected the name of a file.")
    parts = found["parts"]
    if isinstance(parts, str | os.PathLike):
        parts = (parts,)
    if not isinstance(parts, Iterable) or isinstance(parts, bytes):
        raise _bad("parts", parts, "files of other shares: a path or several")
    found["parts"] = tuple(_path("parts", part) for part in parts)
    if found["executor"] is not None and not callable(getattr(found["executor"], "submit", None)):
        raise _bad("executor", found["executor"], "a concurrent.futures.Executor, or None")
    return found


def whole(name: str, value: Any, least: int | None = None, *, or_none: bool = False) -> int:
    """A whole number, numpy's too."""
    at_least = "" if least is None else f" of at least {least}"
    try:
        found = operator.index(value)
    except TypeError:
        found = None
    if found is None or isinstance(value, bool) or abs(found) > sys.maxsize or (least is not None and found < least):
        raise _bad(name, value, f"a whole number{at_least}{', or None' * or_none}")
    return found


def share_of_one(name: str, value: Any) -> float:
    """A number above 0 and below 1."""
    try:
        found = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not 0 < found < 1:
        raise _bad(name, value, "a share between 0 and 1, or None")
    return found


def one_of(name: str, value: _Kind, among: Sequence[_Kind]) -> _Kind:
    """One of a few values."""
    if not any(value is known or (isinstance(value, str) and value == known) for known in among):
        raise _bad(name, value, " or ".join(map(repr, among)))
    return value


def chosen(layers: Layers) -> tuple[int, ...] | None:
    """Layers asked for, as a value that can be compared.

    Raises:
        StudyInputError: no whole numbers, none at all, or one twice.
    """
    if layers is None:
        return None
    given: list[Any] = list(layers) if isinstance(layers, Iterable) and not isinstance(layers, str) else [layers]
    try:
        found = tuple(operator.index(layer) for layer in given if not isinstance(layer, bool))
    except TypeError:
        found = ()
    if len(found) != len(given) or not found or len(set(found)) < len(found) or max(map(abs, found)) > sys.maxsize:
        raise _bad("layers", layers, "a layer number, several different ones, or None for all")
    return found


def function(name: str, value: Any, of: str) -> Callable[..., Any]:
    """Something that can be called."""
    if not callable(value):
        raise _bad(name, value, f"a function {of}")
    return value


def made(model: Any) -> nn.Module:
    """The model itself, from what is given as one.

    Raises:
        StudyInputError: neither a model nor a function that makes one.
    """
    found = model if isinstance(model, nn.Module) or not callable(model) else model()
    if isinstance(found, nn.Module):
        return found
    what = f"a function that returned {type(found).__name__}" if callable(model) else f"{type(model).__name__}"
    raise StudyInputError(
        f"model is {what}; expected a model, or a function without arguments that makes one: "
        f"TransformerBridge.boot_transformers(name)."
    )


def _share(value: Any) -> tuple[int, int]:
    try:
        k, n = (operator.index(part) for part in value if not isinstance(part, bool))
    except (TypeError, ValueError):
        k, n = 0, 0
    if not 0 <= k < n:
        raise _bad("share", value, "(k, n), the k-th of n shares with 0 <= k < n")
    return k, n


def _path(name: str, value: Any) -> Path:
    try:
        return Path(value).expanduser()
    except (TypeError, RuntimeError):
        raise _bad(name, value, "the path of a file") from None


def _bad(name: str, value: Any, expected: str) -> StudyInputError:
    try:
        shown = repr(value)
    except Exception:  # whole numbers of 5,000 digits have no repr
        shown = type(value).__name__
    return StudyInputError(f"{name} is {shown if len(shown) <= 80 else shown[:77] + '...'}; expected {expected}.")
