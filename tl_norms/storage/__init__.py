"""Results in files: safetensors for the tensors, JSON beside them in the same file, and no pickle.

storable.py   what every result can do: `save`, `to`, `cpu`
tree.py       a result as JSON and tensors, and back
classes.py    the classes that a file may name
file.py       one file, written and read, with its version
errors.py     what can be wrong with a file
"""

from .errors import (
    DamagedFileError,
    NewerFileError,
    NotAResultError,
    ResultFileError,
    ResultPathError,
    UnknownResultError,
    UnstorableError,
)
from .file import load, save
from .storable import Storable

__all__ = [
    "DamagedFileError",
    "NewerFileError",
    "NotAResultError",
    "ResultFileError",
    "ResultPathError",
    "Storable",
    "UnknownResultError",
    "UnstorableError",
    "load",
    "save",
]
