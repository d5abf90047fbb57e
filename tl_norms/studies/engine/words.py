"""Values and functions in words that are the same in every process.

Values are written out, long ones as digests; functions by name and code, with what they refer to. What shows only an
address in memory cannot be distinguished from others of its kind and is refused.
"""

import enum
import functools
import hashlib
import importlib.metadata
import os
import re
import sys
import types
from collections.abc import Mapping, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import StudyInputError

SCALARS = (bool, int, float, complex, str, bytes, type(None), type(...), range, slice, re.Pattern, np.generic)
SCALARS += (np.dtype, torch.dtype)
_OWN = __name__.partition(".")[0]


class UntoldError(Exception):
    """Something that cannot be distinguished from others of its kind; the message says what."""


def told(option: str, value: Any) -> str:
    """One option of a study in words.

    Raises:
        StudyInputError: two values of this kind cannot be told apart.
    """
    try:
        return words(value)
    except (UntoldError, RecursionError) as error:
        what = str(error) if isinstance(error, UntoldError) else "objects within objects without end"
        raise StudyInputError(
            f"{option}= cannot be distinguished from others in a file to resume from: it holds {what}, which looks "
            f"the same whatever it does. Say what it is in an attribute, function.version = 'tagger 3', and change "
            f"that with the function; or leave resume= and parts= out."
        ) from None


def words(value: Any, within: tuple[int, ...] = ()) -> str:
    """Any value in words, with a digest of what is long.

    Raises:
        UntoldError: it holds something that shows only its address.
    """
    if id(value) in within:
        return "itself"
    inner = functools.partial(words, within=(*within, id(value)))
    if isinstance(value, enum.Enum):
        return str(value)
    if isinstance(value, SCALARS):
        return _short(repr(value))
    if isinstance(value, os.PathLike):
        return _short(os.fspath(value))
    if isinstance(value, Tensor | np.ndarray):
        tensor = torch.as_tensor(value)
        return f"{tensor.dtype} {tuple(tensor.shape)} {bytes_of(tensor)}"
    if isinstance(value, nn.Module):
        return f"{name_of(type(value))} {inner(dict(value.state_dict()))}"
    if isinstance(value, Mapping):
        return _short("{" + ", ".join(sorted(f"{inner(key)}: {inner(one)}" for key, one in value.items())) + "}")
    if isinstance(value, Set):
        return _short("{" + ", ".join(sorted(map(inner, value))) + "}")
    if isinstance(value, list | tuple):
        return _short("(" + ", ".join(map(inner, value)) + ")")
    if isinstance(value, types.ModuleType):
        return f"module {value.__name__} {_version(value.__name__)}"
    version = getattr(value, "version", None)
    if callable(value) and isinstance(version, str):
        return f"{name_of(value if hasattr(value, '__qualname__') else type(value))} version {version!r}"
    if isinstance(value, types.MethodType):
        return f"method {inner(value.__func__)} of {inner(value.__self__)}"
    if isinstance(value, types.FunctionType):
        return _function(value, inner)
    if isinstance(value, type):
        return _class(value, inner)
    if hasattr(value, "__wrapped__"):  # functools.lru_cache
        return f"{name_of(type(value))} of {inner(value.__wrapped__)}"
    return _object(value, inner)


def name_of(value: Any) -> str:
    """Module and name of a function or class."""
    return f"{getattr(value, '__module__', None) or ''}.{getattr(value, '__qualname__', type(value).__name__)}"


def bytes_of(tensor: Tensor) -> str:
    """A digest of all bytes of a tensor."""
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return hashlib.blake2b(flat.view(torch.uint8).numpy().data, digest_size=16).hexdigest()


def digest(text: str | bytes) -> str:
    """64 bits of a text."""
    given = text.encode(errors="backslashreplace") if isinstance(text, str) else text
    return hashlib.blake2b(given, digest_size=8).hexdigest()


def _object(value: Any, inner) -> str:
    """What pickle would rebuild the object from."""
    if isinstance(value, types.BuiltinFunctionType) and isinstance(value.__self__, types.ModuleType | types.NoneType):
        return name_of(value)
    try:
        parts = value.__reduce_ex__(2)
    except Exception:  # locks, files, generators, compiled objects
        raise UntoldError(f"a {name_of(type(value))}") from None
    if isinstance(parts, str) and not _version(type(value).__module__):
        raise UntoldError(f"a {name_of(type(value))}")
    how = parts if isinstance(parts, str) else inner(parts[1:3])
    more = "" if isinstance(parts, str) else " ".join(inner(tuple(part)) for part in parts[3:] if part is not None)
    return f"{inner(type(value))} {how} {more}"


def _function(function: types.FunctionType, inner) -> str:
    """Name, code, defaults, closure and the globals it refers to; of installed packages the version for the code."""
    code, parts = function.__code__, {"defaults": function.__defaults__, "keywords": function.__kwdefaults__}
    for key, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            parts[key] = cell.cell_contents
        except ValueError:  # not filled yet
            parts[key] = None
    version = _version(function.__module__)
    if not version:
        parts |= {key: function.__globals__[key] for key in _names(code) if key in function.__globals__}
    said = [version or _code(code)]
    for key, one in sorted(parts.items()):
        try:
            said.append(f"{key}={inner(one)}")
        except UntoldError as error:
            raise UntoldError(str(error) if " = " in str(error) else f"{key} = {error}") from None
    return f"{name_of(function)} {digest(' '.join(said))}"


def _class(kind: type, inner) -> str:
    """Name and, for classes that no version tells from others, what is in their body."""
    version = _version(kind.__module__)
    if version:
        return f"{name_of(kind)} {version}"
    body = {}
    for key, one in vars(kind).items():
        one = one.__func__ if isinstance(one, staticmethod | classmethod) else one
        one = one.fget if isinstance(one, property) else one
        if isinstance(one, (types.FunctionType, *SCALARS, list, tuple, dict)):
            body[key] = one
    skipped = ("__module__", "__doc__", "__dict__", "__weakref__", "__firstlineno__", "__static_attributes__")
    said = [f"{key}={inner(one)}" for key, one in sorted(body.items()) if key not in skipped]
    return f"{name_of(kind)} {digest(' '.join([*said, *(inner(base) for base in kind.__bases__)]))}"


def _code(code: types.CodeType) -> str:
    """What the code does, without where it stands."""
    constants = []
    for one in code.co_consts:
        if isinstance(one, types.CodeType):
            constants.append(_code(one))
        else:
            constants.append(repr(sorted(map(repr, one))) if isinstance(one, frozenset) else repr(one))
    return digest(repr((code.co_code, code.co_names, code.co_varnames, code.co_freevars, code.co_argcount, constants)))


def _names(code: types.CodeType) -> set[str]:
    """Names that code refers to, functions within it included."""
    inner = [_names(one) for one in code.co_consts if isinstance(one, types.CodeType)]
    return set(code.co_names).union(*inner)


@functools.cache
def _version(module: str | None) -> str:
    """The version of the installed package that a module belongs to; "" for the user's own modules."""
    top = (module or "").partition(".")[0]
    if top == _OWN:
        return "of the file's format"
    if top in sys.stdlib_module_names and top != "__main__":
        return f"of Python {sys.version_info.major}.{sys.version_info.minor}"
    file = getattr(sys.modules.get(top), "__file__", None) or ""
    if "site-packages" not in file and "dist-packages" not in file:
        return ""
    names = importlib.metadata.packages_distributions().get(top, ())
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in sorted(set(names)))


def _short(text: str) -> str:
    """A text, or the beginning and a digest of a long one."""
    return text if len(text) <= 80 else f"{text[:40]}... {digest(text)}"
