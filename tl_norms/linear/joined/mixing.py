"""Attention of several layers of one shape, what the vectors of its pairs give, and the comparison of the two.

Starting an operation costs as much as thousands of numbers, so layers stand one after the other on the batch axis,
b = (layer text), and only output projections are applied layer by layer.

    LayersMixing    attention of the layers, cut at the values
    JoinedPairs     what their pairs give: norms and sums, for the vectors and for each image of them under norms
    ChosenPairs     norms of a pair for every key and query, to compare with what is returned

Axes: b layer and text, h head, q query, k key, e d_head, d d_model, s chosen pairs of a key.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from ..measure.spots import chosen_queries, combination
from ..operators import HeldNorm


@dataclass(frozen=True)
class LayersMixing:
    """Attention of several layers, cut at the values; queries and keys are the same positions.

    Attributes:
        weights: the output projection of each layer
        bias: of each layer, repeated for its texts
        causal: no query of any layer sees a later key
    """

    pattern: Float[Tensor, "b h q k"]
    values: Float[Tensor, "b k h e"]
    weights: tuple[Float[Tensor, "h e d"], ...]
    bias: Float[Tensor, "b 1 d"] | None
    causal: bool

    @property
    def n_texts(self) -> int:
        """Of one layer."""
        return len(self.pattern) // len(self.weights)

    @property
    def width(self) -> int:
        """d_model."""
        return self.weights[0].shape[-1]

    @cached_property
    def by_layer(self) -> tuple[Float[Tensor, "h bk e"], ...]:
        """The values of each layer."""
        return rearrange(self.values, "(l b) k h e -> l h (b k) e", l=len(self.weights)).unbind()

    @cached_property
    def chosen(self) -> tuple[Int[Tensor, "s k"], Int[Tensor, "s k"]]:
        """Queries and keys of pairs to compare: one of every key and of every query."""
        n = self.pattern.shape[-1]
        return chosen_queries(n, n, causal=self.causal, crossed=False, device=self.pattern.device)

    def chosen_pairs(
        self, norms: Sequence[Float[Tensor, "b s k"]], head_norms: Float[Tensor, "b h k"]
    ) -> "ChosenPairs":
        """The chosen pairs, whose vectors have these norms."""
        sizes = (self.chosen_weights.abs() * head_norms[:, :, None]).sum(1)
        return ChosenPairs(*self.chosen, tuple(norms), sizes)

    @cached_property
    def chosen_weights(self) -> Float[Tensor, "b h s k"]:
        """The weights of the chosen pairs."""
        queries, keys = self.chosen
        return self.pattern[:, :, queries.clamp_min(0), keys]

    @cached_property
    def combination(self) -> tuple[Float[Tensor, "k h 1"], Float[Tensor, "h k"]]:
        """One weight for every key and head, and their sizes."""
        return combination(*self.pattern.shape[1:3], self.pattern.dtype, self.pattern.device)

    @property
    def combined_values(self) -> Float[Tensor, "b 1 h e"]:
        """The values of all keys, by these weights."""
        return (self.combination[0] * self.values).sum(1, keepdim=True)

    def sent(self, rows: Float[Tensor, "b r h e"]) -> Float[Tensor, "b r d"]:
        """Mixed values through the output projections of their layers."""
        n_layers = len(self.weights)
        parts = rearrange(rows, "(l b) r h e -> l (b r) (h e)", l=n_layers).unbind()
        made = rows.new_empty(n_layers, parts[0].shape[0], self.width)
        for out, part, weight in zip(made.unbind(), parts, self.weights, strict=True):
            torch.mm(part, weight.flatten(0, 1), out=out)
        return rearrange(made, "l (b r) d -> (l b) r d", b=self.n_texts)


@dataclass(frozen=True)
class ChosenPairs:
    """Vectors of a pair for every key and query, summed up apart from all others.

    Attributes:
        queries, keys: of the pairs, -1 for none
        norms: of their vectors, and of each image of them, without the scales of norms
        sizes: what rounding is relative to: the norms of what each vector is the sum of
    """

    queries: Int[Tensor, "s k"]
    keys: Int[Tensor, "s k"]
    norms: tuple[Float[Tensor, "b s k"], ...]
    sizes: Float[Tensor, "b s k"]


@dataclass(frozen=True)
class JoinedPairs:
    """What the vectors of all pairs give; one entry for the vectors, and one for each image of them under norms.

    Attributes:
        norms: without the scales of norms; the diagonal is not valid
        others: the sums over j != i, likewise
        own: v_ii, of attention alone
        chosen: what norms are compared with once they are what is returned
    """

    norms: tuple[Float[Tensor, "b q k"], ...]
    others: tuple[Float[Tensor, "b q d"], ...]
    own: Float[Tensor, "b q d"]
    chosen: ChosenPairs


def image(vectors: Float[Tensor, "b s r d"], norm: HeldNorm, rows: slice = slice(None)) -> Float[Tensor, "b s r d"]:
    """Vectors of some layers and texts through a norm, but for its scale; in place, as nobody needs them unchanged."""
    if norm.center:
        vectors.sub_(vectors.mean(-1, keepdim=True))
    return vectors if norm.gain is None else vectors.mul_(norm.gain[rows, None])


def joined(parts: list[Tensor], dim: int = 0) -> Tensor:
    """Pieces as one tensor."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
