"""Where the vectors of all pairs are few: all are formed, and both norms and sums are taken of the very same vectors.

Chosen pairs to compare with are made of the values in one go.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ..operators import HeldNorm
from ..pieces import pieces
from .mixing import ChosenPairs, JoinedPairs, LayersMixing, image, joined


def few(mixing: LayersMixing) -> bool:
    """Whether forming the vectors of all pairs is the fastest way to their norms."""
    return _numbers(mixing) <= pieces(mixing.pattern.device).formed


def _numbers(mixing: LayersMixing) -> int:
    """In the vectors of all pairs of one layer."""
    return mixing.n_texts * mixing.pattern.shape[-1] ** 2 * mixing.width


def form_pairs(mixing: LayersMixing, norms: tuple[HeldNorm, ...]) -> tuple[JoinedPairs, Float[Tensor, "b h k"]]:
    """All pairs, a few layers at a time, their images under one norm after the other, and the norms of head vectors.

    Raises:
        DecompositionError: norms are not those of vectors formed on their own.
    """
    n_layers, n_texts = len(mixing.weights), mixing.n_texts
    n_heads, n = mixing.pattern.shape[1:3]
    by_key = rearrange(_by_key(mixing), "(l b) k r h -> l (b k) r h", l=n_layers).unbind()
    lengths: list[list[Tensor]] = [[] for _ in (None, *norms)]
    sums: list[list[Tensor]] = [[] for _ in lengths]
    own, head_norms = [], []
    step = max(1, pieces(mixing.pattern.device).formed // _numbers(mixing))
    for first in range(0, n_layers, step):
        layers = range(first, min(first + step, n_layers))
        heads = by_key[0].new_empty(len(layers), n_heads, n_texts * n, mixing.width)
        vectors = by_key[0].new_empty(len(layers), n_texts * n, n + 2, mixing.width)
        for layer, sent, formed in zip(layers, heads.unbind(), vectors.unbind(), strict=True):
            torch.bmm(mixing.by_layer[layer], mixing.weights[layer], out=sent)
            torch.bmm(by_key[layer], sent.transpose(0, 1), out=formed)
        head_norms.append(torch.linalg.vector_norm(heads, dim=-1))
        vectors = rearrange(vectors, "l (b k) r d -> (l b) k r d", b=n_texts)
        own.append(vectors[:, :, n].clone())
        for number, norm in enumerate((None, *norms)):
            rows = slice(first * n_texts, layers.stop * n_texts)
            vectors = vectors if norm is None else image(vectors, norm, rows)
            lengths[number].append(torch.linalg.vector_norm(vectors[:, :, :n], dim=-1))
            sums[number].append(vectors.sum(1))
    total = [joined(parts) for parts in sums]
    found = JoinedPairs(
        norms=tuple(joined(parts).transpose(1, 2) for parts in lengths),
        others=tuple(one[:, :n] for one in total),
        own=joined(own),
        combined=total[0][:, n + 1],
    )
    of_heads = rearrange(joined(head_norms), "l h (b k) -> (l b) h k", b=n_texts)
    found.compare(mixing, _chosen_pairs(mixing, norms), of_heads)
    return found, of_heads


def _by_key(mixing: LayersMixing) -> Float[Tensor, "b k r h"]:
    """Weights of a key's head vectors: for the other queries, for its own, and for a combination of all."""
    n_batch, n_heads, n, _ = mixing.pattern.shape
    rows = mixing.pattern.new_empty(n_batch, n, n + 2, n_heads)
    rows[:, :, :n] = rearrange(mixing.pattern, "b h q k -> b k q h")
    own = rows[:, :, :n].diagonal(dim1=1, dim2=2)  # [b h k]
    rows[:, :, n] = own.transpose(1, 2)
    own.zero_()
    rows[:, :, n + 1] = mixing.combination[0][..., 0]
    return rows


def _chosen_pairs(mixing: LayersMixing, norms: tuple[HeldNorm, ...]) -> ChosenPairs:
    n = mixing.pattern.shape[-1]
    mixed = rearrange(mixing.chosen_weights, "b h s k -> b s k h 1") * mixing.values[:, None]
    sent = mixing.sent(torch.cat([mixed.flatten(1, 2), mixing.combined_values], dim=1))
    vectors, lengths = rearrange(sent[:, :-1], "b (s k) d -> b s k d", k=n), []
    combined = sent[:, -1]
    for norm in (None, *norms):
        vectors = vectors if norm is None else image(vectors, norm)
        lengths.append(torch.linalg.vector_norm(vectors, dim=-1))
    return ChosenPairs(tuple(lengths), combined)
