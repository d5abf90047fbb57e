"""Products of source vectors with fixed directions, from the factored form: no vector is formed up to attention.

A direction is one more linear step: its product with the output projection of every head is formed once, and pairs have
as many numbers as there are directions.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ..carry.pairs import Sources
from ..carry.terms import Neurons, Product
from ..pieces import pieces
from .spots import agree


def projected_pairs(
    sources: Sources, directions: Float[Tensor, "r d"], max_memory: int | None
) -> Float[Tensor, "b q k r"]:
    """<v_ij, u_r>, the keys of another sequence last; over keys they add up to that of the total less the rest.

    Raises:
        DecompositionError: they do not.
    """
    made = sources.mapped(Product(directions.T))
    n_batch, n_queries = made.own.shape[:2]
    out = made.own.new_empty(n_batch, n_queries, sources.n_keys, len(directions))
    terms = made.terms + (() if made.cross is None else made.cross.terms)
    step = sources.n_keys
    if any(isinstance(term, Neurons) for term in terms):
        width = max(term.hidden.coefficients[0].shape[-1] for term in terms if isinstance(term, Neurons))
        step = max(1, int((max_memory or pieces(out.device).neurons) // (4 * n_queries * width * out.element_size())))
    for b in range(n_batch):
        for first in range(0, sources.n_keys, step):
            keys = slice(first, min(first + step, sources.n_keys))
            out[b, :, keys] = made.vectors(b, slice(0, n_queries), keys)
    plain = (sources.total - sources.rest) @ directions.T
    sizes = out.abs().sum(2) + sources.total.norm(dim=-1)[..., None] * directions.norm(dim=-1)
    agree(out.sum(2), plain, sizes, "projections, summed over sources,")
    return out


def projected_heads(
    pattern: Float[Tensor, "b h q k"], values: Float[Tensor, "b k h e"], weight: Float[Tensor, "h e r"]
) -> Float[Tensor, "b h q k r"]:
    """a^h_ij <v^h_j, w^h_r>."""
    heads = torch.einsum("bkhe,her->bhkr", values, weight)
    return pattern[..., None] * heads[:, :, None]
