"""Vectors of chosen pairs, formed the plain way: values of one key per query, carried through the held steps.

Shares nothing with the terms that maps are made of but the held steps themselves.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from ..operators import Mixing


@dataclass(frozen=True)
class ChosenPairs:
    """One key for each query, s times over; -1 for none."""

    keys: Int[Tensor, "s q"]

    def attended(self, values: Float[Tensor, "b k h e"], mixing: Mixing) -> Float[Tensor, "s b q d"]:
        """What attention has put into each query from its chosen key: sum_h a^h_ij f^h(x_j)."""
        keys = self.keys.to(values.device)
        queries = torch.arange(keys.shape[1], device=keys.device).expand_as(keys)
        weights = mixing.pattern[:, :, queries, keys.clamp_min(0)] * (keys >= 0)
        chosen = values[:, keys.clamp_min(0)]  # [b s q h e]
        mixed = rearrange(weights, "b h s q -> s b q h 1") * rearrange(chosen, "b s q h e -> s b q h e")
        return mixing.send(mixed)
