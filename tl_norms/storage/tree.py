"""A result as JSON and tensors, and back.

Numbers, strings, booleans and None are themselves in JSON. All else is an object with one key that says what it is:

    {"tensor": name}   {"array": name}   {"tuple": [..]}   {"list": [..]}   {"dict": [[key, value], ..]}
    {"float": "nan" | "inf" | "-inf"}    {"class": name, "fields": {..}}
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .classes import class_named, is_known
from .errors import DamagedFileError, NewerFileError, ResultFileError, UnstorableError


@dataclass
class Writer:
    """Turns a result into JSON and collects its tensors; a tensor met twice is stored once."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    _seen: dict[tuple, tuple[str, Tensor]] = field(default_factory=dict)

    def written(self, value: Any, path: str) -> Any:
        """The JSON of a value.

        Raises:
            UnstorableError: a value of a kind that files do not hold.
        """
        if value is None or type(value) in (bool, str, int):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"float": str(value)}
        if isinstance(value, Tensor):
            return {"tensor": self._stored(value, path)}
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            return {"array": self._stored(torch.from_numpy(np.ascontiguousarray(value)), path)}
        if type(value) in (tuple, list):
            rows = [self.written(one, f"{path}.{number}") for number, one in enumerate(value)]
            return {type(value).__name__: rows}
        if type(value) is dict:
            pairs = enumerate(value.items())
            return {"dict": [[self.written(k, f"{path}.k{n}"), self.written(v, f"{path}.{k}")] for n, (k, v) in pairs]}
        if is_known(value) and is_dataclass(value):
            parts = {f.name: self.written(getattr(value, f.name), f"{path}.{f.name}") for f in fields(value)}
            return {"class": type(value).__name__, "fields": parts}
        raise UnstorableError(
            f"{path} is a {type(value).__name__}; expected a tensor, an array of numbers, a number, a string, a tuple, "
            f"a list, a dict or a result of tl_norms."
        )

    def _stored(self, value: Tensor, path: str) -> str:
        key = (value.data_ptr(), value.dtype, value.device, value.shape, value.stride())
        if value.numel() == 0 or key not in self._seen:
            name = path.lstrip(".") or "value"
            while name in self.tensors:  # two keys of a dict may print alike
                name += "'"
            # a copy: views of one tensor may share no memory in a safetensors file
            self.tensors[name] = value.detach().cpu().contiguous().clone()
            self._seen[key] = (name, value)  # kept alive: memory that is let go gets a second owner
        return self._seen[key][0]


@dataclass(frozen=True)
class Reader:
    """Turns JSON and tensors into a result."""

    tensors: Mapping[str, Tensor]

    def read(self, value: Any) -> Any:
        """The value of a piece of JSON.

        Raises:
            UnknownResultError, NewerFileError, DamagedFileError
        """
        if not isinstance(value, dict):
            if isinstance(value, list):
                raise DamagedFileError("the file holds a list that does not say what it is.")
            return value
        if set(value) == {"class", "fields"} and isinstance(value["fields"], dict):
            return self._object(value["class"], value["fields"])
        if len(value) == 1:
            ((kind, content),) = value.items()
            reader = self._kinds().get(kind)
            if reader is not None:
                try:
                    return reader(content)
                except (TypeError, ValueError) as error:
                    if isinstance(error, ResultFileError):
                        raise
                    raise DamagedFileError(f"the file holds a {kind} that cannot be read: {error}") from error
        raise NewerFileError(f"the file holds a value of a kind that this version does not know: {sorted(value)}.")

    def _kinds(self) -> dict[str, Callable[[Any], Any]]:
        return {
            "tensor": self._tensor,
            "array": lambda name: self._tensor(name).cpu().numpy(),
            "tuple": lambda rows: tuple(self.read(row) for row in rows),
            "list": lambda rows: [self.read(row) for row in rows],
            "dict": lambda pairs: {self.read(key): self.read(one) for key, one in pairs},
            "float": float,
        }

    def _tensor(self, name: Any) -> Tensor:
        if name not in self.tensors:
            raise DamagedFileError(f"the file lacks the tensor {name!r}.")
        return self.tensors[name]

    def _object(self, name: Any, parts: dict[str, Any]) -> Any:
        kind = class_named(name)
        known = {f.name: f for f in fields(kind)}
        if unknown := sorted(set(parts) - set(known)):
            raise NewerFileError(
                f"the file's {name} has {', '.join(unknown)}, which this version does not know: pip install -U tl_norms"
            )
        needed = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
        if missing := [n for n in needed if n not in parts]:
            raise DamagedFileError(f"the file's {name} lacks {', '.join(missing)}.")
        values = {key: self.read(one) for key, one in parts.items()}
        try:
            return kind(**values)
        except TypeError as error:
            raise DamagedFileError(f"the file's {name} cannot be made: {error}") from error


def moved(value: Any, device: torch.device | str, seen: dict[int, Any] | None = None) -> Any:
    """The same value with its tensors on another device; what is shared stays shared."""
    seen = {} if seen is None else seen
    if id(value) in seen:
        return seen[id(value)]

    def again(part: Any) -> Any:
        return moved(part, device, seen)

    if isinstance(value, Tensor):
        made = value.to(device)
    elif type(value) in (tuple, list):
        made = type(value)(again(part) for part in value)
    elif type(value) is dict:
        made = {key: again(part) for key, part in value.items()}
    elif is_dataclass(value) and not isinstance(value, type):
        made = type(value)(**{f.name: again(getattr(value, f.name)) for f in fields(value)})
    else:
        made = value
    seen[id(value)] = made
    return made
