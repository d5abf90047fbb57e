"""A second guard on norms and other measures: for some pairs of every key and query the vector is formed plainly.

Sums over sources catch a wrong vector. A norm that was not taken of the vector it stands for (a factor, a chunk, an
index gone wrong) is caught here: which pairs are compared is a fixed rule, so that the same call compares the same.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from ...errors import DecompositionError
from ..pieces import short_products
from ..required import judged

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_SHORT = 1e-2  # of products that a card rounds to TF32


@lru_cache(maxsize=64)
def chosen_keys(
    n_queries: int, n_keys: int, *, causal: bool, device: torch.device, crossed: bool = False
) -> Int[Tensor, "s q"]:
    """Keys whose vectors are formed for each query, s rows of them, -1 for none; every key is in some row.

    In a causal map only the sub-diagonal has a pair of every key and query; a second row reaches further back.
    """
    queries = torch.arange(n_queries, device=device)
    if crossed:
        return torch.stack([(queries + s * n_queries) % n_keys for s in range(math.ceil(n_keys / n_queries))])
    if causal:
        half = queries // 2
        return torch.stack([queries - 1, torch.where(half < queries, half, -1)])
    near, far = (queries + 1) % n_keys, (queries + max(1, n_keys // 2)) % n_keys
    return torch.stack([torch.where(keys == queries, -1, keys) for keys in (near, far)])


@lru_cache(maxsize=64)
def chosen_queries(
    n_queries: int, n_keys: int, *, causal: bool, crossed: bool, device: torch.device
) -> tuple[Int[Tensor, "s k"], Int[Tensor, "s k"]]:
    """The same the other way round: queries whose vectors are formed for each key; every query is in some row.

    The second tensor are the numbers of the keys.
    """
    keys = torch.arange(n_keys)
    if crossed:
        queries = torch.stack([(keys + s * n_keys) % n_queries for s in range(math.ceil(n_queries / n_keys))])
    elif causal:
        queries = torch.where(keys + 1 < n_queries, keys + 1, -1)[None]
    else:
        queries = (keys + max(1, n_queries // 2)) % n_queries
        queries = torch.where(queries == keys, -1, queries)[None]
    return queries.to(device), keys.to(device).expand_as(queries)


@dataclass(frozen=True)
class Spots:
    """Norms of vectors formed the plain way.

    Attributes:
        queries, keys: of the pairs, -1 for none
        norms: of those pairs
        sizes: what rounding is relative to: the norms of what each vector is the sum of
    """

    queries: Int[Tensor, "s p"]
    keys: Int[Tensor, "s p"]
    norms: Float[Tensor, "b s p *directions"]
    sizes: Float[Tensor, "b s p *directions"]

    def compare(self, lengths: Float[Tensor, "b q k *directions"], what: str) -> None:
        """Raise a DecompositionError if the map says another norm for one of the pairs."""
        mapped = lengths[:, self.queries.clamp_min(0), self.keys.clamp_min(0)]
        there = (self.queries >= 0) & (self.keys >= 0)
        there = there.reshape(*there.shape, *[1] * (mapped.ndim - 3))
        agree(mapped, self.norms, self.sizes, what, there)

    def scaled(self, scale: Float[Tensor, "b q"]) -> "Spots":
        """Those of the same vectors times one number per query."""
        at_pairs = scale.abs()[:, self.queries.clamp_min(0)]
        return replace(self, norms=self.norms * at_pairs, sizes=self.sizes * at_pairs)


def agree(found: Tensor, plain: Tensor, size: Tensor, what: str, there: Tensor | None = None) -> None:
    """Raise a DecompositionError where two ways to the same numbers differ by more than rounding of `size`.

    There are numbers to compare only where `there` is True.
    """
    rounded = found.dtype == torch.float32 and short_products(found.device)
    tolerance = _SHORT if rounded else _TOLERANCE[found.dtype]
    off = (found - plain).abs_()
    off = off if there is None else off.masked_fill_(~there, 0)
    tiny = torch.finfo(found.dtype).tiny

    def judge(excess: float) -> None:
        if excess <= tiny:
            return
        worst = (off / (tolerance * size + tiny)).nan_to_num(torch.inf).max() * tolerance
        raise DecompositionError(
            f"{what} differ from vectors formed one by one by {float(worst):.1e} (tolerance {tolerance:.0e}): weights, "
            f"cache or this package were changed while it computed. Run the model and the analysis again; if it stays, "
            f"please report it with the model's name."
        )

    judged(torch.sub(off, size, alpha=tolerance).amax(), judge)


def compare_heads(
    found: Float[Tensor, "b d"], sent: Float[Tensor, "b d"], sizes: Float[Tensor, "h k"], norms: Float[Tensor, "b h k"]
) -> None:
    """A `combination` of the vectors that all heads send from all keys, against that of the values, mapped once."""
    size = (sizes * norms).sum((1, 2)) + norms.amax((1, 2))
    agree(found, sent, size[:, None], "the vectors that heads send")


@lru_cache(maxsize=64)
def chosen_heads(n_heads: int, n_keys: int, device: torch.device) -> Int[Tensor, "s k"]:
    """Heads whose vectors are measured a second time for each key, s rows of them; every head is in some row."""
    rows = math.ceil(n_heads / n_keys)
    return (torch.arange(rows * n_keys, device=device) % n_heads).view(rows, n_keys)


def compare_head_norms(norms: Float[Tensor, "b h k"], again: Float[Tensor, "b s k"]) -> None:
    """Norms of head vectors, against those of `chosen_heads` alone.

    Raises:
        DecompositionError: one of them is another.
    """
    heads = chosen_heads(*norms.shape[1:], norms.device)
    found = norms.gather(1, heads.expand_as(again))
    agree(found, again, again, "norms of the vectors that heads send")


def compare_parts(
    diagonal: Float[Tensor, "*s q"],
    rests: Float[Tensor, "*s q"],
    ratios: Float[Tensor, "*s q"],
    again: Float[Tensor, "3 *s q"],
) -> None:
    """A map's diagonal, the norms of remainders, and mixing ratios, against the norms of others, own and rest.

    Raises:
        DecompositionError: one of them is another.
    """
    others, own, rest = again
    plain = torch.stack([own, rest, ratio_again(others, own)])
    agree(torch.stack([diagonal, rests, ratios]), plain, plain, "norms of parts, and mixing ratios,")


def ratio_again(others: Tensor, own: Tensor) -> Tensor:
    """A mixing ratio by itself, for those that are returned to be compared with."""
    return others / (others + own).clamp_min(torch.finfo(own.dtype).tiny)


def weighed(weights: Float[Tensor, "k h 1"], vectors: Float[Tensor, "k h d"]) -> Float[Tensor, " d"]:
    """The weighted sum of head vectors, as one product in whichever order they lie."""
    if vectors.is_contiguous():
        return weights.flatten() @ vectors.flatten(0, 1)
    return torch.bmm(rearrange(weights, "k h 1 -> h 1 k"), vectors.transpose(0, 1)).sum((0, 1))


@lru_cache(maxsize=64)
def combination(
    n_heads: int, n_keys: int, dtype: torch.dtype, device: torch.device
) -> tuple[Float[Tensor, "k h 1"], Float[Tensor, "h k"]]:
    """One weight for every head and key, and their sizes."""
    numbers = torch.arange(n_heads * n_keys, device=device, dtype=dtype).reshape(n_heads, n_keys)
    weights = (numbers * 1.7).cos()
    return weights.T.contiguous()[..., None], weights.abs()
