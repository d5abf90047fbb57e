"""The norms of all pairs where the vectors themselves are few: all are formed, and their sums are what is checked.

For short inputs the vectors of all pairs are fewer numbers than the factors of `factors` cost operations. Nothing is
derived from the vectors but their norms, so that this is also a second implementation for the other to be compared
with. The norms of chosen pairs are compared here too, with vectors made of the values in one go.
"""

from dataclasses import dataclass
from functools import reduce

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from ..carry.terms import Mixture
from .spots import (
    Spots,
    chosen_heads,
    chosen_queries,
    combination,
    compare_head_norms,
    compare_heads,
    weighed,
)


@dataclass(frozen=True)
class Plain:
    """What the norms of formed vectors are compared with: chosen vectors, a query or some for every key.

    Attributes:
        queries, keys: of the pairs, -1 for none
        vectors: weighted values through the output projection, before linear functions and scale
        sizes: what rounding is relative to: the norms of what each vector is the sum of
    """

    queries: Int[Tensor, "s k"]
    keys: Int[Tensor, "s k"]
    vectors: Float[Tensor, "b s k d"]
    sizes: Float[Tensor, "b s k"]


def head_norms(mixture: Mixture) -> Float[Tensor, "b h k"]:
    """|t_h| of every key, the norm of what each head would send."""
    heads, values = mixture.sent.heads, mixture.values
    norms = rearrange(torch.linalg.vector_norm(heads, dim=-1), "b k h -> b h k")
    weights, sizes = combination(*norms.shape[1:], norms.dtype, norms.device)
    sent = (weights * values).sum(1).flatten(1) @ mixture.sent.projection.flatten(0, 1)
    compare_heads(torch.stack([weighed(weights, one) for one in heads]), sent, sizes, norms)
    twice = chosen_heads(*norms.shape[1:], norms.device)
    few = heads[:, torch.arange(heads.shape[1], device=heads.device), twice]
    compare_head_norms(norms, torch.linalg.vector_norm(few, dim=-1))
    return norms


def plain(mixture: Mixture, causal: bool) -> tuple[Float[Tensor, "b h k"], Plain]:
    """Norms of all heads, and vectors of chosen pairs; one call serves all images of a mixture."""
    pattern, values, heads = mixture.pattern, mixture.values, head_norms(mixture)
    queries, keys = chosen_queries(
        *pattern.shape[2:], causal=causal, crossed=mixture.sent.mixed.crossed, device=pattern.device
    )
    weights = pattern[:, :, queries.clamp_min(0), keys]  # [b h s k]
    mixed = rearrange(weights, "b h s k -> b s k h 1") * values[:, None]
    vectors = mixed.flatten(3) @ mixture.sent.projection.flatten(0, 1)
    sizes = (weights.abs() * heads[:, :, None]).sum(1)
    return heads, Plain(queries, keys, vectors, sizes)


def mixture_norms(mixture: Mixture, beside: Plain) -> tuple[Float[Tensor, "b q k"], Spots]:
    """|v_ij| for all pairs j != i, and norms of vectors formed on their own to compare them with."""
    norms = torch.linalg.vector_norm(mixture.formed, dim=-1).transpose(1, 2)
    vectors = reduce(lambda x, function: function(x), mixture.functions, beside.vectors)
    found = torch.linalg.vector_norm(vectors, dim=-1)
    spots = Spots(beside.queries, beside.keys, found, beside.sizes)
    if mixture.scale is None:
        return norms.contiguous(), spots
    return norms * mixture.scale[..., None].abs(), spots.scaled(mixture.scale)
