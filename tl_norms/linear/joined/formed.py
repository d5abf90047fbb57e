"""Where the vectors of all pairs are few: all are formed, and both norms and sums are taken of the very same vectors.

What is compared comes from the same head vectors by weights of its own, and head vectors are compared with the values.
"""

from functools import lru_cache

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from ..measure.spots import chosen_heads, compare_head_norms, compare_heads
from ..operators import HeldNorm
from ..pieces import pieces
from .mixing import JoinedPairs, LayersMixing, image, joined


def few(mixing: LayersMixing) -> bool:
    """Whether forming the vectors of all pairs is the fastest way to their norms."""
    return _numbers(mixing) <= pieces(mixing.pattern.device).formed


def _numbers(mixing: LayersMixing) -> int:
    """In the vectors of all pairs of one layer."""
    return mixing.n_texts * mixing.pattern.shape[-1] ** 2 * mixing.width


def form_pairs(mixing: LayersMixing, norms: tuple[HeldNorm, ...]) -> tuple[JoinedPairs, Float[Tensor, "b h k"]]:
    """All pairs, a few layers at a time, their images under one norm after the other, and the norms of head vectors.

    Raises:
        DecompositionError: head vectors are not those that the values give.
    """
    n_layers, n_texts = len(mixing.weights), mixing.n_texts
    n_heads, n = mixing.pattern.shape[1:3]
    by_key = rearrange(_by_key(mixing), "(l b) k r h -> l (b k) r h", l=n_layers).unbind()
    values = rearrange(mixing.combined_values, "(l b) 1 h e -> l b (h e)", l=n_layers).unbind()
    measured = n + len(mixing.chosen[0])  # rows whose norms are wanted: all queries, chosen ones again
    lengths: list[list[Tensor]] = [[] for _ in (None, *norms)]
    chosen: list[list[Tensor]] = [[] for _ in lengths]
    sums: list[list[Tensor]] = [[] for _ in lengths]
    own, head_norms, again = [], [], []
    step = max(1, min(pieces(mixing.pattern.device).formed // _numbers(mixing), n_layers))
    heads_room = by_key[0].new_empty(step, n_heads, n_texts * n, mixing.width)
    pairs_room = by_key[0].new_empty(step, n_texts * n, measured + 2, mixing.width)
    combined = by_key[0].new_empty(n_layers, n_texts, mixing.width)
    twice = _rows_of_heads(n_heads, n, n_texts, combined.device)
    for first in range(0, n_layers, step):
        layers = range(first, min(first + step, n_layers))
        heads, vectors = heads_room[: len(layers)], pairs_room[: len(layers)]
        for layer, sent, formed in zip(layers, heads.unbind(), vectors.unbind(), strict=True):
            weight = mixing.weights[layer]
            torch.bmm(mixing.by_layer[layer], weight, out=sent)
            torch.mm(values[layer], weight.flatten(0, 1), out=combined[layer])  # while the weight is in the cache
            torch.bmm(by_key[layer], sent.transpose(0, 1), out=formed)
        head_norms.append(torch.linalg.vector_norm(heads, dim=-1))
        again.append(torch.linalg.vector_norm(heads.flatten(1, 2).index_select(1, twice), dim=-1))
        vectors = rearrange(vectors, "l (b k) r d -> (l b) k r d", b=n_texts)
        own.append(vectors[:, :, measured].clone())
        for number, norm in enumerate((None, *norms)):
            rows = slice(first * n_texts, layers.stop * n_texts)
            vectors = vectors if norm is None else image(vectors, norm, rows)
            lengths[number].append(torch.linalg.vector_norm(vectors[:, :, :n], dim=-1))
            chosen[number].append(torch.linalg.vector_norm(vectors[:, :, n:measured], dim=-1))
            sums[number].append(vectors.sum(1))
    of_heads = rearrange(joined(head_norms), "l h (b k) -> (l b) h k", b=n_texts)
    again = rearrange(joined(again), "l (s b k) -> (l b) s k", b=n_texts, k=n)
    total = [joined(parts) for parts in sums]
    compare_heads(total[0][:, measured + 1], combined.flatten(0, 1), mixing.combination[1], of_heads)
    compare_head_norms(of_heads, again)
    found = JoinedPairs(
        norms=tuple(joined(parts).transpose(1, 2) for parts in lengths),
        others=tuple(one[:, :n] for one in total),
        own=joined(own),
        chosen=mixing.chosen_pairs([joined(parts).transpose(1, 2) for parts in chosen], of_heads),
    )
    return found, of_heads


@lru_cache(maxsize=64)
def _rows_of_heads(n_heads: int, n: int, n_texts: int, device: torch.device) -> Int[Tensor, " sbk"]:
    """The places of the heads measured twice among the vectors of all heads and keys."""
    heads = chosen_heads(n_heads, n, device).repeat(1, n_texts)
    return (heads * (n_texts * n) + torch.arange(n_texts * n, device=device)).flatten()


def _by_key(mixing: LayersMixing) -> Float[Tensor, "b k r h"]:
    """Weights of a key's head vectors: for other queries, chosen ones again, its own, and a combination of all."""
    n_batch, n_heads, n, _ = mixing.pattern.shape
    measured = n + len(mixing.chosen[0])
    rows = mixing.pattern.new_empty(n_batch, n, measured + 2, n_heads)
    rows[:, :, :n] = rearrange(mixing.pattern, "b h q k -> b k q h")
    rows[:, :, n:measured] = rearrange(mixing.chosen_weights, "b h s k -> b k s h")
    own = rows[:, :, :n].diagonal(dim1=1, dim2=2)  # [b h k]
    rows[:, :, measured] = own.transpose(1, 2)
    own.zero_()
    rows[:, :, measured + 1] = mixing.combination[0][..., 0]
    return rows
