"""Removing coordinates instead of positions: the expected target when each is kept with some probability."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

from .removals import Replacement, replacing
from .running import device_of, embedding_hook, output
from .targets import Target


@dataclass(frozen=True)
class SoftSubsets:
    """f(coordinates of position j kept with probability q_j), mean over draws that all methods share.

    Args:
        model, tokens, target, replacement: as for `Subsets` with the removal "replace"
        draws: random choices of coordinates per set of rates
        seed: of the uniform numbers: a coordinate is kept where its number is below its rate
    """

    model: nn.Module
    tokens: Int[Tensor, " pos"]
    target: Target
    replacement: Replacement = "mean"
    draws: int = 8
    seed: int = 0

    @torch.no_grad()
    def __call__(self, keep: Float[np.ndarray, "sets pos"]) -> Float[np.ndarray, " sets"]:
        """The mean of f over draws, for each row of rates."""
        device = device_of(self.model)
        filling = replacing(self.model, self.replacement)
        generator = torch.Generator().manual_seed(self.seed)
        uniform = torch.rand(self.draws, len(self.tokens), len(filling), generator=generator)
        found = []
        for rates in torch.from_numpy(np.asarray(keep, np.float32)):
            kept = (uniform < rearrange(rates, "pos -> pos 1")).to(device)
            tokens = repeat(self.tokens.to(device), "pos -> draws pos", draws=self.draws)
            edits = {embedding_hook(self.model): _filled(kept, filling)}
            values = self.target.value(output(self.model, tokens, edits, at=self.target.hook(self.model)))
            found.append(float(values.double().mean()))
        return np.array(found)


def _filled(kept: Tensor, filling: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.where(kept.to(x.device), x, filling.to(x))
