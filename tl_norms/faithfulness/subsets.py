"""f(S): the target with only some positions kept. Every set is run once, inputs of one length together."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from . import forest
from .errors import FaithfulnessInputError
from .removals import Replacement, check_removals, narrowed, prove, removed
from .running import device_of, edited, remembering
from .targets import Target, joined


@dataclass
class Subsets:
    """f(S) of one input: the target with only the positions in S kept. Every set is run once.

    Args:
        model: a TransformerBridge, HookedTransformer or HookedEncoder
        tokens: [pos]
        target: what f is
        removal: "cut", "replace" or "swap"
        replacement: for "replace"
        counterfactual: token ids of the same length, for "swap"
        batch_tokens: positions per run

    Raises:
        RemovalError: this removal is not proved on this model.
        UnsupportedArchitectureError: "cut", and attention that has no scores, pattern or mask to edit.
    """

    model: nn.Module
    tokens: Int[Tensor, " pos"]
    target: Target
    removal: str
    replacement: Replacement = "mean"
    counterfactual: Int[Tensor, " pos"] | None = None
    batch_tokens: int = 1024
    _known: dict[bytes, float] = field(default_factory=dict, repr=False)
    _asked: dict[bytes, np.ndarray] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        check_removals((self.removal,), self.replacement)
        if self.removal == "swap" and (self.counterfactual is None or self.counterfactual.shape != self.tokens.shape):
            raise FaithfulnessInputError("swap needs a counterfactual of the same number of tokens.")
        prove(self.model, self.removal, self.replacement)

    def __call__(self, kept: Bool[np.ndarray, "sets pos"]) -> Float[np.ndarray, " sets"]:
        """f of each set, in the order given."""
        keys = self.ask(kept)
        run_asked([self])
        return np.array([self._known[key] for key in keys])

    def ask(self, kept: Bool[np.ndarray, "sets pos"]) -> list[bytes]:
        """Have these sets run with the next run of this input, or of others together with it."""
        kept = np.asarray(kept, bool) | self._unchanged()
        keys = [row.tobytes() for row in kept]
        self._asked.update((key, row) for key, row in zip(keys, kept, strict=True) if key not in self._known)
        return keys

    def _unchanged(self) -> Bool[np.ndarray, " pos"]:
        """Positions whose removal puts the same token there: the same input must give the same number, to the bit."""
        other = self.counterfactual if self.removal == "swap" else self.replacement
        if self.removal == "cut" or other is None or isinstance(other, str):
            return np.zeros(len(self.tokens), bool)
        return (self.tokens == other).cpu().numpy()

    @property
    def runs(self) -> int:
        """Rows that went through the model so far."""
        return len(self._known)


_shared: "ContextVar[dict | None]" = ContextVar("shared subsets", default=None)


def shared_subsets() -> AbstractContextManager[None]:
    """While this lasts, `subsets_of` gives the same object for the same input, so that every set is run once."""
    return remembering(_shared)


def subsets_of(model: nn.Module, tokens: Int[Tensor, " pos"], target: Target, removal: str, *options: Any) -> "Subsets":
    """`Subsets(model, tokens, target, removal, *options)`, shared where sharing is on."""
    known = _shared.get()
    own = Subsets(model, tokens, target, removal, *options)
    if known is None:
        return own
    way: Any = own.replacement if removal == "replace" else None
    if removal == "swap" and own.counterfactual is not None:
        way = tuple(own.counterfactual.tolist())
    key = (id(model), *tokens.tolist(), target.good, target.bad, target.at, id(target.probe), removal, way)
    return known.setdefault(key, own)


@torch.no_grad()
def run_asked(inputs: Sequence[Subsets]) -> None:
    """Run every set that was asked for and is not known; inputs of one length go through the model together.

    All need the same model, removal and replacement, and the same probe.
    """
    by_length: dict[int, dict[int, Subsets]] = {}
    for one in inputs:
        by_length.setdefault(len(one.tokens), {})[id(one)] = one
    for length, together in by_length.items():
        rows = [(one, key, row) for one in together.values() for key, row in one._asked.items()]
        for one in together.values():
            one._asked.clear()
        if rows and _in_trees(rows):
            continue
        step = max(1, inputs[0].batch_tokens // length)
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            found = _run([one for one, _, _ in part], torch.from_numpy(np.stack([row for _, _, row in part])))
            for (one, key, _), value in zip(part, found.tolist(), strict=True):
                one._known[key] = value


def _in_trees(rows: Sequence[tuple[Subsets, bytes, np.ndarray]]) -> bool:
    """Sets that share their beginnings, each beginning run once; False if this model or target is not made for it."""
    first = rows[0][0]
    model, removal, way = first.model, first.removal, first.replacement
    if any(one.target.probe is not None or one.target.at != -1 for one, _, _ in rows) or not forest.fits(model):
        return False
    paths = []
    for one, _, row in rows:
        other = None if one.counterfactual is None else one.counterfactual.tolist()
        paths.append(forest.path_of(one.tokens.tolist(), row.tolist(), removal, way, other))
    try:
        logits = forest.run_paths(model, paths, way, first.batch_tokens)
    except forest.HiddenError:
        return False
    values = joined([one.target for one, _, _ in rows]).value(logits[:, None])
    for (one, key, _), value in zip(rows, values.double().tolist(), strict=True):
        one._known[key] = value
    return True


def _run(inputs: Sequence[Subsets], kept: Bool[Tensor, "sets pos"]) -> Float[Tensor, " sets"]:
    """f of one set of each input."""
    first = inputs[0]
    model, removal = first.model, first.removal
    kept = kept.to(device_of(model))
    tokens = torch.stack([one.tokens for one in inputs]).to(kept.device)
    others = [one.counterfactual for one in inputs]
    other = None if removal != "swap" else torch.stack([ids for ids in others if ids is not None])
    target = joined([one.target for one in inputs])
    at = target.hook(model)
    with edited(model, {} if at else narrowed(model, target.at)):
        found = removed(model, tokens, kept, removal, first.replacement, other, at)
    target = replace(target, at=0) if found.shape[1] == 1 and not at else target
    return target.value(found, kept if removal == "cut" else None).double().cpu()
