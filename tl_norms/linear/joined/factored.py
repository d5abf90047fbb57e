"""Where the vectors of all pairs are many: their norms from one triangle per key (see `measure.factors`).

Head vectors are formed a few keys at a time, and read as seldom as can be: their own part, the chosen pairs and the
combination that they are compared by come from one product.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ..carry.terms import MixedHeads
from ..measure.factors import squares, triangles
from ..measure.spots import chosen_heads, compare_head_norms, compare_heads
from ..operators import HeldNorm
from ..pieces import pieces
from .mixing import JoinedPairs, LayersMixing, image, joined


def fits(mixing: LayersMixing) -> bool:
    """Whether the head vectors of one layer are few enough to be read layer by layer."""
    numbers = mixing.values.shape[:3].numel() // len(mixing.weights) * mixing.width
    return numbers * mixing.pattern.element_size() <= pieces(mixing.pattern.device).kept


def factor_pairs(mixing: LayersMixing, norms: tuple[HeldNorm, ...]) -> tuple[JoinedPairs, Float[Tensor, "b h k"]]:
    """Norms of all pairs and of their images under one norm after the other, their sums, and norms of head vectors.

    Raises:
        DecompositionError: head vectors are not those that the values give.
    """
    n_texts, (n_batch, n_heads, n, _) = mixing.n_texts, mixing.pattern.shape
    probes = _probes(mixing)
    made, head_norms, again = [], [], []
    numbers = torch.arange(n, device=probes.device)
    measured_twice = chosen_heads(n_heads, n, probes.device)
    factors: list[list[Tensor]] = [[] for _ in (None, *norms)]
    lengths: list[list[Tensor]] = [[] for _ in factors]
    at_once = max(1, pieces(mixing.pattern.device).head_vectors // (n_heads * mixing.width * probes.element_size()))
    for text in range(n_batch):
        layer, row = text // n_texts, slice(text, text + 1)
        first_key = text % n_texts * n
        for first in range(0, n, at_once):
            keys = slice(first, min(first + at_once, n))
            values = mixing.by_layer[layer][:, first_key + keys.start : first_key + keys.stop]
            heads = torch.bmm(values, mixing.weights[layer])  # [h k d]
            head_norms.append(torch.linalg.vector_norm(heads, dim=-1))
            few = heads[measured_twice[:, keys], numbers[: heads.shape[1]]]
            again.append(torch.linalg.vector_norm(few, dim=-1))
            vectors = heads.transpose(0, 1)
            some = torch.bmm(probes[text, keys], vectors)  # [k r d]: own, combination, chosen
            made.append(some[:, :2].clone() if norms else some[:, :2])
            some = some[:, 2:]
            for number, norm in enumerate((None, *norms)):
                if norm is not None:
                    vectors, some = image(vectors[None], norm, row)[0], image(some[None], norm, row)[0]
                lengths[number].append(torch.linalg.vector_norm(some, dim=-1))
                factors[number].append(triangles(vectors))
    made = rearrange(joined(made), "(b k) r d -> b k r d", b=n_batch)
    mixed = rearrange(MixedHeads(mixing.pattern, mixing.values).others, "b q (h e) -> b q h e", h=n_heads)
    sent = mixing.sent(torch.cat([mixed, mixing.combined_values], dim=1))
    others = [sent[:, :-1]]
    for norm in norms:
        others.append(image(others[-1].clone()[:, None], norm)[:, 0])
    of_heads = rearrange(joined(head_norms, 1), "h (b k) -> b h k", b=n_batch).contiguous()
    compare_heads(made[:, :, 1].sum(1), sent[:, -1], mixing.combination[1], of_heads)
    compare_head_norms(of_heads, rearrange(joined(again, 1), "s (b k) -> b s k", b=n_batch))
    found = JoinedPairs(
        norms=tuple(_norms(mixing, joined(parts)) for parts in factors),
        others=tuple(others),
        own=made[:, :, 0],
        chosen=mixing.chosen_pairs(
            [rearrange(joined(parts), "(b k) s -> b s k", b=n_batch) for parts in lengths], of_heads
        ),
    )
    return found, of_heads


def _probes(mixing: LayersMixing) -> Float[Tensor, "b k r h"]:
    """Weights of a key's head vectors: for its own query, for a combination of all, and for the chosen queries."""
    own = rearrange(mixing.pattern.diagonal(dim1=-2, dim2=-1), "b h k -> b k 1 h")
    combined = rearrange(mixing.combination[0], "k h 1 -> 1 k 1 h").expand_as(own)
    return torch.cat([own, combined, rearrange(mixing.chosen_weights, "b h s k -> b k s h")], dim=2)


def _norms(mixing: LayersMixing, triangle: Float[Tensor, "bk g h"]) -> Float[Tensor, "b q k"]:
    """|sum_h a^h_ij t^h_j| from the triangles of all keys, some layers and texts at a time."""
    n_batch, _, n, _ = mixing.pattern.shape
    triangle = rearrange(triangle, "(b k) g h -> b g h k", b=n_batch).contiguous()
    out = triangle.new_zeros(n_batch, n, n)
    squares(mixing.pattern, triangle, out, causal=mixing.causal)
    return out.sqrt_()
