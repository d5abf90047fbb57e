"""The file that an interrupted study goes on from: plain arrays, no pickles, replaced in one step."""

import functools
import hashlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .errors import ResumeError
from .partial import Partial

_SECONDS = 5.0  # between two writes
_VERSION = "2"


class Notebook:
    """Keeps the partial result of a study in a file.

    Args:
        path: the file, None to keep nothing
        fingerprint: of study, options and model; a file with another one is refused
    """

    def __init__(self, path: str | os.PathLike | None, fingerprint: dict[str, str]):
        self.path = None if path is None else Path(path).expanduser()
        self.fingerprint = fingerprint
        self._written = time.monotonic()

    def read(self, *, needed: bool = False) -> Partial:
        """The partial result; an empty one if there is no file yet, unless it is needed."""
        if self.path is None or not self.path.exists():
            if needed:
                raise ResumeError(f"there is no file {str(self.path)!r}, which was given as a part of the result.")
            return Partial()
        try:
            with np.load(self.path, allow_pickle=False) as file:
                arrays = dict(file)
            kept = {name: str(arrays[f"fingerprint/{name}"]) for name in ("version", *self.fingerprint)}
            partial = Partial.of_arrays(arrays)
        except Exception as error:  # numpy, zipfile and json have their own idea of what to raise
            raise ResumeError(
                f"{str(self.path)!r} is no file of a study, or is damaged ({type(error).__name__}). "
                f"Delete it to begin anew, or give another name."
            ) from error
        for name, value in {"version": _VERSION, **self.fingerprint}.items():
            if kept[name] != value:
                raise ResumeError(
                    f"{str(self.path)!r} belongs to another {name}: {kept[name]}, not {value}. "
                    f"Give another file name, or delete it to begin anew."
                )
        return partial

    def write(self, partial: Partial, *, now: bool = False) -> None:
        """Write, if the last time was a while ago or `now`."""
        if self.path is None or (not now and time.monotonic() - self._written < _SECONDS):
            return
        facts = {f"fingerprint/{name}": np.array(value) for name, value in self.fingerprint.items()}
        facts["fingerprint/version"] = np.array(_VERSION)
        beside = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        try:
            with open(beside, "wb") as file:
                arrays: dict[str, Any] = {**facts, **partial.arrays()}
                np.savez(file, **arrays)
            os.replace(beside, self.path)
        finally:
            beside.unlink(missing_ok=True)
        self._written = time.monotonic()


def described(value: Any) -> str:
    """Options in words that are the same in every process: functions by name, mappings by digest."""
    if is_dataclass(value) and not isinstance(value, type):
        parts = [f"{field.name}={described(getattr(value, field.name))}" for field in fields(value)]
        return f"{type(value).__name__}({', '.join(parts)})"
    if isinstance(value, Mapping):
        return hashlib.blake2b(repr(sorted(value.items())).encode(), digest_size=8).hexdigest()
    if isinstance(value, Callable):
        if isinstance(value, functools.partial):
            return f"partial({described(value.func)}, {value.args}, {sorted(value.keywords.items())})"
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__name__)}"
    return repr(value)


def model_fingerprint(model: nn.Module) -> str:
    """Layers, width and a digest of the first numbers of every weight that blocks depend on.

    Heads behind the blocks are left out: where a checkpoint has none, each loading makes a random one.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, weight in sorted(model.state_dict().items()):
        if not _in_front_of_heads(name):
            continue
        first = weight.detach().flatten()[:16].to(torch.float64).cpu().numpy()
        digest.update(f"{name} {tuple(weight.shape)} ".encode() + first.tobytes())
    cfg: Any = model.cfg
    return f"{type(model).__name__}, {cfg.n_layers} layers of {cfg.d_model}, weights {digest.hexdigest()}"


def _in_front_of_heads(name: str) -> bool:
    """Whether a weight is part of the embeddings or of a block: in TransformerLens' names, blocks.3..., pos_embed..."""
    parts = name.split(".")
    ends = ("blocks", "embed", "embed_ln")
    return "unembed" not in parts and any(part.endswith(ends) or part in ("encoder", "decoder") for part in parts)
