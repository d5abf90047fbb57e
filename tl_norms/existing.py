"""Which pairs of a map exist."""

import torch
from jaxtyping import Bool
from torch import Tensor


def existing_pairs(
    n_queries: int,
    n_keys: int,
    *,
    causal: bool,
    mask: Tensor | None = None,
    source_mask: Tensor | None = None,
    past: int = 0,
) -> Bool[Tensor, "batch query key"]:
    """Pairs of real positions, key <= query if the model is causal; one text if none differ. On the CPU.

    Keys beyond the queries are those of another sequence (after cross-attention), or the `past` ones of the same,
    which come first: all of them are seen.

    Args:
        mask: [batch pos], True or 1 at real positions; source_mask: the same for the other sequence
    """
    near = torch.ones(n_queries, n_queries, dtype=torch.bool)
    far = torch.ones(n_queries, n_keys - n_queries, dtype=torch.bool)
    near = near.tril() if causal else near
    pairs = torch.cat([far, near] if past else [near, far], dim=1)[None]
    if mask is not None:
        real = mask.bool().cpu()
        pairs = pairs & real[:, :, None]
        pairs[..., :n_queries] &= real[:, None, :]
    if source_mask is not None and n_keys > n_queries:
        real = source_mask.bool().cpu()
        pairs = pairs.expand(len(real), -1, -1).clone()
        pairs[..., n_queries:] &= real[:, None, :]
    return pairs
