"""Edits of a run, as results list them and as messages name them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .linear.edits import HeldEdit

_SHOWN = 4


@dataclass(frozen=True)
class Edit:
    """What a hook did to one activation.

    Attributes:
        layer: the block
        hook: the activation, by its hook name
        positions: where, (text, position) pairs
        heads: which heads, where the activation has them
        factor: what it was multiplied with, if it was one number everywhere; None for anything else in its place
        everywhere: all real positions
    """

    layer: int
    hook: str
    positions: tuple[tuple[int, int], ...]
    heads: tuple[int, ...]
    factor: float | None
    everywhere: bool

    def __str__(self) -> str:
        where = f"head{'s' * (len(self.heads) > 1)} {_listed(self.heads)}, " if self.heads else ""
        batched = any(text for text, _ in self.positions)
        shown = [f"{t}:{p}" if batched else p for t, p in self.positions]
        places = "all positions" if self.everywhere else f"position{'s' * (len(shown) > 1)} {_listed(shown)}"
        what = "other numbers" if self.factor is None else f"× {self.factor:.3g}"
        return f"{self.hook} was changed at {where}{places}: {what}"


def described(layer: int, hook: str, held: HeldEdit, real: Tensor) -> Edit:
    """A held edit in words; `real` [b q] are the positions that are not padding."""
    edited = held.edited.flatten(2).any(-1) if held.edited.ndim > 2 else held.edited
    heads = tuple(held.edited.flatten(0, 1).any(0).nonzero()[:, 0].tolist()) if held.edited.ndim > 2 else ()
    factors = held.factor[held.edited]
    single = bool(held.multiple[held.edited].all()) and bool((factors - factors[0]).abs().max() < 1e-3)
    return Edit(
        layer,
        hook,
        tuple((int(b), int(q)) for b, q in edited.nonzero().tolist()),
        heads,
        float(factors[0]) if single else None,
        bool(torch.equal(edited & real, real)),
    )


def _listed(values) -> str:
    values = list(values)
    shown = ", ".join(map(str, values[:_SHOWN]))
    return shown if len(values) <= _SHOWN else f"{shown} and {len(values) - _SHOWN} more"
