"""What a hook did to a tensor, as a held step: a multiple of what was there, or something else in its place."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .operators import Scaling

Edits = Literal["refuse", "replace", "add"]


@dataclass(frozen=True)
class HeldEdit:
    """An edit of vectors, or of heads of mixed values.

    Attributes:
        scaling: what becomes of the sources, and what belongs to none; factor [... 1], offset [... d]
        edited: where anything was changed
        multiple: where it was a multiple of what was there
    """

    scaling: Scaling
    edited: Bool[Tensor, "..."]
    multiple: Bool[Tensor, "..."]

    @property
    def factor(self) -> Tensor:
        """[...], what the sources are multiplied with."""
        return torch.as_tensor(self.scaling.factor)[..., 0]


def hold_edit(
    made: Float[Tensor, "... d"], found: Float[Tensor, "... d"], mode: Edits, tolerance: float
) -> HeldEdit | None:
    """The edit that turned `made`, what the held step gives, into `found`, what the run had; None if there is none.

    mode="replace": a multiple of what was there scales the sources (zero: they contributed nothing); anything else
    takes their place and belongs to the remainder. mode="add": the sources stay, the difference is the remainder's.
    """
    size = torch.maximum(made.norm(dim=-1), found.norm(dim=-1))
    allowed = tolerance * size
    edited = (made - found).norm(dim=-1) > allowed
    if not bool(edited.any()):
        return None
    one = torch.ones_like(size)
    square = made.square().sum(-1)
    factor = (found * made).sum(-1) / torch.where(square > 0, square, one)
    multiple = edited & ((found - factor[..., None] * made).norm(dim=-1) <= allowed) & (square > 0)
    if mode == "add":
        offset = (found - made) * edited[..., None]
        return HeldEdit(Scaling(one[..., None], offset), edited, multiple)
    kept = torch.where(multiple, factor, torch.where(edited, 0.0, one))
    offset = found * (edited & ~multiple)[..., None]
    return HeldEdit(Scaling(kept[..., None], offset), edited, multiple)
