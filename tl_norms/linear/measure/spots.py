"""A second guard on norms and other measures: for some pairs of every key and query the vector is formed plainly.

Sums over sources catch a wrong vector. A norm that was not taken of the vector it stands for (a factor, a chunk, an
index gone wrong) is caught here: which pairs are compared is a fixed rule, so that the same call compares the same.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...errors import DecompositionError

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


def chosen_keys(n_queries: int, n_keys: int, *, causal: bool, crossed: bool = False) -> Int[Tensor, "s q"]:
    """Keys whose vectors are formed for each query, s rows of them, -1 for none; every key is in some row.

    In a causal map only the sub-diagonal has a pair of every key and query; a second row reaches further back.
    """
    queries = torch.arange(n_queries)
    if crossed:
        return torch.stack([(queries + s * n_queries) % n_keys for s in range(math.ceil(n_keys / n_queries))])
    if causal:
        half = queries // 2
        return torch.stack([queries - 1, torch.where(half < queries, half, -1)])
    near, far = (queries + 1) % n_keys, (queries + max(1, n_keys // 2)) % n_keys
    return torch.stack([torch.where(keys == queries, -1, keys) for keys in (near, far)])


@dataclass(frozen=True)
class Spots:
    """Norms of vectors formed the plain way.

    Attributes:
        keys: of each query, -1 for none
        norms: of those pairs, or another measure; directions last, if it has several
        sizes: what rounding is relative to: the norms of what each vector is the sum of
    """

    keys: Int[Tensor, "s q"]
    norms: Float[Tensor, "b s q *r"]
    sizes: Float[Tensor, "b s q *r"]

    def compare(self, lengths: Float[Tensor, "b q k *r"], what: str) -> None:
        """Raise a DecompositionError if the map says another norm for one of the pairs."""
        queries = torch.arange(lengths.shape[1], device=lengths.device).expand_as(self.keys)
        mapped = lengths[:, queries, self.keys.clamp_min(0)]
        there = self.keys >= 0
        agree(mapped[:, there], self.norms[:, there], self.sizes[:, there], what)


def agree(found: Tensor, plain: Tensor, size: Tensor, what: str) -> None:
    """Raise a DecompositionError where two ways to the same numbers differ by more than rounding of `size`."""
    tolerance = _TOLERANCE[found.dtype]
    off = (found - plain).abs()
    allowed = tolerance * size + torch.finfo(found.dtype).tiny
    if bool((off <= allowed).all()):
        return
    worst = (off / allowed).nan_to_num(torch.inf).max() * tolerance
    raise DecompositionError(
        f"{what} differ from vectors formed one by one by {float(worst):.1e} (tolerance {tolerance:.0e}): weights, "
        f"cache or this package were changed while it computed. Run the model and the analysis again; if it stays, "
        f"please report it with the model's name."
    )
