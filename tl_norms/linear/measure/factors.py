"""The norms of all pairs of a head mixture in O(n^2 H^2), without a vector of width d per pair.

|sum_h a_h t_h| depends on the H weights and on the H x H triangle R of the source's head vectors, R^T R = T T^T:
|sum_h a_h t_h| = |R a|. The triangle is made once per source. It must be accurate where heads nearly cancel: in
float32 it is the Cholesky factor of the Gram matrix, accepted where every head keeps a good part of its norm outside
the span of those before it; where one does not, the Gram matrix is made again in float64 (a float32 one has lost the
digits that cancel). A singular Gram matrix, and float64, take a QR decomposition instead.

While head vectors are at hand, they are compared with the values and weights that they were made of, and a few vectors
of pairs are summed up the plain way, for the finished map to be compared with (see `spots`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ..carry.terms import Linear, Mixture
from ..pieces import pieces
from . import formed
from .spots import (
    Spots,
    chosen_heads,
    chosen_queries,
    combination,
    compare_head_norms,
    compare_heads,
    weighed,
)

_APART = 1 / 16  # a head's squared norm outside the span of the heads before it: float32 is enough above this share
_FEW_KEYS = 64  # up to here, and two more per head, a batched matrix product beats H^2 / 2 planes


@dataclass(frozen=True)
class Factors:
    """R with |R a| = |sum_h a_h t_h| for every key, zero where g > h, and norms to compare with."""

    triangle: Tensor  # [b g h k]
    spots: Spots


def head_norms(mixture: Mixture) -> Float[Tensor, "b h k"]:
    """|t_h| of every key, the norm of what each head would send."""
    return formed.head_norms(mixture) if mixture.few else _measured(mixture, None)[0]


def factored(
    mixture: Mixture, causal: bool, functions: Sequence[Linear] = ()
) -> tuple[Float[Tensor, "b h k"], list[Factors]]:
    """The norms of head vectors, and the factors of the mixture and of its images under linear functions."""
    return _measured(mixture, functions, causal)


def _measured(
    mixture: Mixture, functions: Sequence[Linear] | None, causal: bool = False
) -> tuple[Tensor, list[Factors]]:
    """Norms, and factors unless `functions` is None: the same norms to the last digit either way."""
    values, pattern = mixture.values, mixture.pattern
    n_batch, n_keys, n_heads = values.shape[:3]
    n = n_batch * n_keys
    combined, sizes = combination(n_heads, n_keys, values.dtype, values.device)  # of the vectors of all keys and heads
    width = mixture.through(mixture.sent.projection.new_zeros(1, mixture.sent.projection.shape[-1])).shape[-1]
    combined, found = combined.repeat(n_batch, 1, 1), values.new_zeros(n_batch, width)
    crossed = mixture.sent.mixed.crossed
    queries_of, keys_of = chosen_queries(pattern.shape[2], n_keys, causal=causal, crossed=crossed, device=values.device)
    chosen = pattern[:, :, queries_of.clamp_min(0), keys_of]  # the weights of the chosen pairs, [b h s k]
    weights = rearrange(chosen, "b h s k -> (b k) s h").contiguous()
    images: list[Linear | None] = [] if functions is None else [None, *functions]
    twice = rearrange(chosen_heads(n_heads, n_keys, values.device).repeat(1, n_batch), "s k -> k s")
    norms: list[Tensor] = []
    again: list[Tensor] = []
    made: list[list[Tensor]] = [[] for _ in images]
    plain: list[list[Tensor]] = [[] for _ in images]
    chunk = max(1, pieces(values.device).head_vectors // (n_heads * found.shape[-1] * values.element_size()))
    for first in range(0, n, chunk):
        keys = slice(first, min(first + chunk, n))
        vectors = mixture.vectors_of(keys)  # [k h d]
        norms.append(torch.linalg.vector_norm(vectors, dim=-1))
        few = vectors[torch.arange(len(vectors), device=vectors.device)[:, None], twice[keys]]
        again.append(torch.linalg.vector_norm(few, dim=-1))
        _add_up(found, combined[keys], vectors, first, n_keys)
        some = torch.bmm(weights[keys], vectors) if images else vectors  # [k s d]
        for number, function in enumerate(images):
            image, one = (vectors, some) if function is None else (function(vectors), function(some))
            plain[number].append(torch.linalg.vector_norm(one, dim=-1))
            made[number].append(triangles(image))
    heads = rearrange(torch.cat(norms), "(b k) h -> b h k", b=n_batch).contiguous()
    sent = (combined.view(n_batch, n_keys, n_heads, 1) * values).sum(1).flatten(1)
    compare_heads(found, mixture.through(sent @ mixture.sent.projection.flatten(0, 1)), sizes, heads)
    compare_head_norms(heads, rearrange(torch.cat(again), "(b k) s -> b s k", b=n_batch))
    size = (chosen.abs() * heads[:, :, None]).sum(1)  # what rounding is relative to where heads cancel
    factors = []
    for triangle, lengths in zip(made, plain, strict=True):
        spots = Spots(queries_of, keys_of, rearrange(torch.cat(lengths), "(b k) s -> b s k", b=n_batch), size)
        factors.append(Factors(rearrange(torch.cat(triangle), "(b k) g h -> b g h k", b=n_batch).contiguous(), spots))
    return heads, factors


def _add_up(found: Tensor, weights: Tensor, vectors: Tensor, first: int, n_keys: int) -> None:
    """The weighted sum of some head vectors into that of their text."""
    at = first
    while at < first + len(vectors):  # a chunk may hold keys of several texts
        text, stop = at // n_keys, min((at // n_keys + 1) * n_keys, first + len(vectors))
        part = slice(at - first, stop - first)
        found[text] += weighed(weights[part], vectors[part])
        at = stop


def triangles(vectors: Float[Tensor, "k h d"]) -> Float[Tensor, "k g h"]:
    """R with |R a| = |sum_h a_h t_h|, upper triangular, for the vectors t of every key."""
    if vectors.dtype != torch.float32:
        return _orthogonal_triangle(vectors)
    gram = vectors @ vectors.transpose(1, 2)
    factor, failed = torch.linalg.cholesky_ex(gram, upper=True)
    apart = factor.diagonal(dim1=1, dim2=2).square() >= _APART * gram.diagonal(dim1=1, dim2=2)
    doubtful = ((failed != 0) | ~apart.all(-1)).nonzero()[:, 0]
    if len(doubtful):
        factor[doubtful] = _careful_triangle(vectors[doubtful].double()).float()
    return factor


def _careful_triangle(vectors: Tensor) -> Tensor:
    """The same with a Gram matrix in float64, and by QR where even that is singular."""
    factor, failed = torch.linalg.cholesky_ex(vectors @ vectors.transpose(1, 2), upper=True)
    singular = failed.nonzero()[:, 0]
    if len(singular):
        factor[singular] = _orthogonal_triangle(vectors[singular])
    return factor


def _orthogonal_triangle(vectors: Tensor) -> Tensor:
    """The same by QR, which never squares the condition number; padded with zero rows when h > d."""
    triangle = torch.linalg.qr(vectors.transpose(1, 2), mode="r").R
    missing = vectors.shape[1] - triangle.shape[1]
    return torch.nn.functional.pad(triangle, (0, 0, 0, missing)) if missing else triangle


def mixture_norms(
    mixture: Mixture, factors: Factors, *, causal: bool, rows: int = 512
) -> tuple[Float[Tensor, "b q k"], Spots]:
    """|sum_h a^h_ij t^h_j| for all pairs (the diagonal included, without any residual), and norms to compare with."""
    out = factors.triangle.new_zeros(len(mixture.pattern), *mixture.pattern.shape[2:])
    squares(mixture.pattern, factors.triangle, out, causal=causal, rows=rows)
    out.sqrt_()
    if mixture.scale is None:
        return out, factors.spots
    return out.mul_(mixture.scale[..., None].abs()), factors.spots.scaled(mixture.scale)


def squares(
    pattern: Float[Tensor, "b h q k"],
    triangle: Float[Tensor, "b g h k"],
    out: Float[Tensor, "b q k"],
    *,
    causal: bool,
    rows: int = 512,
) -> None:
    """sum_g (sum_h R_gh a_h)^2 into `out`, some texts and queries at a time; if causal, only where keys are seen."""
    n_batch, n_heads, n_queries, n_keys = pattern.shape
    sizes = pieces(out.device)
    few_keys = n_keys <= _FEW_KEYS + 2 * n_heads
    if few_keys or not sizes.planes:
        square, numbers = _squares_by_products, sizes.tile // (n_heads * out.element_size())
        most = max(16, numbers // n_keys)
        rows = min(most, 512) if sizes.planes else most
    else:
        square, numbers = _squares_by_planes, sizes.planes
    if causal and not few_keys:
        rows = min(rows, max(128, n_queries // 4))  # finer pieces skip more of the upper triangle
    at_once = max(1, numbers // (min(rows, n_queries) * n_keys))
    for b in range(0, n_batch, at_once):
        texts = slice(b, b + at_once)
        for first in range(0, n_queries, rows):
            queries = slice(first, min(first + rows, n_queries))
            keys = slice(0, queries.stop if causal else n_keys)
            square(pattern[texts, :, queries, keys], triangle[texts, :, :, keys], out[texts, queries, keys])


def _squares_by_planes(weights: Tensor, triangle: Tensor, out: Tensor) -> None:
    """Into out [b q k], head by head: the H x H product is too narrow for a matrix product."""
    component = torch.empty_like(out, memory_format=torch.contiguous_format)
    planes, rows = weights.unbind(1), [row.unbind(1) for row in triangle[..., None, :].unbind(1)]
    for g, row in enumerate(rows):
        torch.mul(planes[g], row[g], out=component)
        for h in range(g + 1, len(planes)):
            component.addcmul_(planes[h], row[h])
        out.addcmul_(component, component)


def _squares_by_products(weights: Tensor, triangle: Tensor, out: Tensor) -> None:
    """The same as one H x H matrix product per key: with few keys, H^2 / 2 small planes would be mostly overhead."""
    by_key = [rearrange(part, "b g h k -> (b k) g h").contiguous() for part in (triangle, weights)]
    components = rearrange(torch.bmm(*by_key), "(b k) g q -> b k g q", b=len(out))
    out.copy_(components.square_().sum(2).transpose(1, 2))
