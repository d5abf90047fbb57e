"""What stands between a stream and a head's logits or output: rotary embeddings, and heads joined again."""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from .operators import HeldNorm


@dataclass(frozen=True)
class Rotary:
    """Rotary position embedding: linear at every position, x -> x cos + rotated(x) sin on r coordinates.

    `interleaved`: pairs are neighbours (GPT-J), not halves (NeoX, Llama). `last`: it is the last r coordinates that are
    turned (latent attention), not the first. cos and sin are the model's own, a scaling of
    its attention included, one entry per coordinate.
    """

    cos: Float[Tensor, "*b pos r"]
    sin: Float[Tensor, "*b pos r"]
    interleaved: bool = False
    last: bool = False
    offset: Tensor | None = None

    def __call__(self, x: Float[Tensor, "*s h e"]) -> Float[Tensor, "*t pos h e"]:
        turned, kept = self._split(x)
        turned = turned * self.cos[..., None, :] + self._rotated(turned) * self.sin[..., None, :]
        return self._joined(turned, kept.expand(*turned.shape[:-1], -1))  # an offset has no positions yet

    def transpose(self, g: Float[Tensor, "*s pos h e"]) -> Float[Tensor, "*s pos h e"]:
        turned, kept = self._split(g)
        turned = turned * self.cos[..., None, :] - self._rotated(turned * self.sin[..., None, :])
        return self._joined(turned, kept)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        width = self.cos.shape[-1]
        if self.last:
            return x[..., x.shape[-1] - width :], x[..., : x.shape[-1] - width]
        return x[..., :width], x[..., width:]

    def _joined(self, turned: Tensor, kept: Tensor) -> Tensor:
        return torch.cat([kept, turned] if self.last else [turned, kept], -1)

    def _rotated(self, x: Tensor) -> Tensor:
        """A quarter turn of every pair, (a, b) -> (-b, a): its adjoint is its negative."""
        if self.interleaved:
            first, second = x[..., 0::2], x[..., 1::2]
            return torch.stack([-second, first], -1).flatten(-2)
        first, second = x.chunk(2, -1)
        return torch.cat([-second, first], -1)


@dataclass(frozen=True)
class JoinHeads:
    """The mixed values of every head to what attention writes: what stands behind the pattern in `Mixing`.

    `added` is what a hook has put in.
    """

    weight: Float[Tensor, "h e d"]
    bias: Float[Tensor, " d"] | None = None
    gate: Tensor | None = None  # [b q h e] or [b q h 1]
    inner: HeldNorm | None = None  # on [b q (h e)]
    added: Float[Tensor, "b q d"] | None = None

    @property
    def offset(self) -> Tensor | None:
        beta = None if self.inner is None else self.inner.beta
        sent = None if beta is None else beta @ self._flat
        there = [part for part in (self.bias, sent, self.added) if part is not None]
        return sum(there[1:], there[0]) if there else None

    def __call__(self, x: Float[Tensor, "*s b q h e"]) -> Float[Tensor, "*s b q d"]:
        mixed = x if self.gate is None else x * self.gate
        mixed = rearrange(mixed, "... h e -> ... (h e)")
        return (mixed if self.inner is None else self.inner(mixed)) @ self._flat

    def transpose(self, g: Float[Tensor, "*s b q d"]) -> Float[Tensor, "*s b q h e"]:
        g = g @ self._flat.T
        g = g if self.inner is None else self.inner.transpose(g)
        g = rearrange(g, "... (h e) -> ... h e", h=len(self.weight))
        return g if self.gate is None else g * self.gate

    @property
    def _flat(self) -> Tensor:
        return rearrange(self.weight, "h e d -> (h e) d")
