"""Short texts: the vectors of all pairs are formed, for several layers at once.

Where vectors of pairs are few, starting operations costs more than carrying them out. So layers stand one after the
other on the batch axis, b = (layer text), and only output projections are applied layer by layer. Norms are taken of
the very vectors whose sum is compared with the model. Those of chosen pairs are compared with vectors made of the
values in one go, and the vectors that heads send with a combination of them.

    LayersMixing    attention of the layers, cut at the values
    FormedPairs     what their pairs give: norms and sums, for the vectors and for each image of them under norms
    Point           where such vectors stand in the chain: which image, and what is the own part and nobody's

Axes: b layer and text, h head, q query, k key, e d_head, d d_model.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from .carry.pairs import norms_of
from .graph import HeldStep
from .measure.spots import Spots, chosen_queries, combination, compare_heads
from .operators import HeldNorm
from .pieces import pieces


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
    def numbers(self) -> int:
        """In the vectors of all pairs of one layer."""
        return self.n_texts * self.pattern.shape[-1] * self.pattern.shape[-2] * self.weights[0].shape[-1]

    @property
    def few(self) -> bool:
        """Whether forming them all is the fastest way to their norms."""
        return self.numbers <= pieces(self.pattern.device).formed

    def by_key(self) -> Float[Tensor, "b k r h"]:
        """Weights of a key's head vectors: for the other queries, for its own, and for `combination`."""
        n_batch, n_heads, n, _ = self.pattern.shape
        rows = self.pattern.new_empty(n_batch, n, n + 2, n_heads)
        rows[:, :, :n] = rearrange(self.pattern, "b h q k -> b k q h")
        own = rows[:, :, :n].diagonal(dim1=1, dim2=2)  # [b h k]
        rows[:, :, n] = own.transpose(1, 2)
        own.zero_()
        rows[:, :, n + 1] = combination(n_heads, n, rows.dtype, rows.device)[0][..., 0]
        return rows


@dataclass(frozen=True)
class FormedPairs:
    """What the vectors of all pairs give, j != i; one entry for the vectors, and one for each image of them.

    Attributes:
        norms: without the scales of norms
        others: the sums over j, likewise
        own: v_ii, of attention alone
        combined: the combination of what all heads send
        head_norms: of what each head sends
    """

    norms: tuple[Float[Tensor, "b q k"], ...]
    others: tuple[Float[Tensor, "b q d"], ...]
    own: Float[Tensor, "b q d"]
    combined: Float[Tensor, "b d"]
    head_norms: Float[Tensor, "b h k"]

    def compare(self, mixing: LayersMixing, chosen: "ChosenPairs", norms: tuple[HeldNorm, ...]) -> None:
        """Norms against vectors of chosen pairs, made of the values in one go.

        Raises:
            DecompositionError: one of them is another.
        """
        sizes = combination(*self.head_norms.shape[1:], self.own.dtype, self.own.device)[1]
        compare_heads(self.combined, chosen.combined, sizes, self.head_norms)
        size = (chosen.weights.abs() * self.head_norms[:, :, None]).sum(1)
        vectors = chosen.vectors
        for found, norm in zip(self.norms, (None, *norms), strict=True):
            vectors = vectors if norm is None else _image(vectors.clone(), norm)
            plain = torch.linalg.vector_norm(vectors, dim=-1)
            Spots(chosen.queries, chosen.keys, plain, size).compare(found, "the norms of formed vectors")


@dataclass(frozen=True)
class ChosenPairs:
    """What `FormedPairs` is compared with, made of the values in one go: a query or some for every key.

    Attributes:
        queries, keys: of the pairs, -1 for none
        weights: of the heads
        vectors: v_ij
        combined: the combination of what all heads send
    """

    queries: Int[Tensor, "s k"]
    keys: Int[Tensor, "s k"]
    weights: Float[Tensor, "b h s k"]
    vectors: Float[Tensor, "b s k d"]
    combined: Float[Tensor, "b d"]


def form_pairs(mixing: LayersMixing, norms: tuple[HeldNorm, ...]) -> FormedPairs:
    """All pairs, a few layers at a time, and their images under one norm after the other.

    Raises:
        DecompositionError: norms are not those of vectors formed on their own.
    """
    pattern, projections, n_texts = mixing.pattern, mixing.weights, mixing.n_texts
    n_layers, n_heads, n, d_model = len(projections), *pattern.shape[1:3], projections[0].shape[-1]
    by_key = rearrange(mixing.by_key(), "(l b) k r h -> l (b k) r h", l=n_layers).unbind()
    values = rearrange(mixing.values, "(l b) k h e -> l h (b k) e", l=n_layers).unbind()
    queries, keys = chosen_queries(n, n, causal=mixing.causal, crossed=False, device=pattern.device)
    weights = pattern[:, :, queries.clamp_min(0), keys]
    mixed = _chosen_values(mixing.values, weights, n_layers).unbind()
    plain: list[Tensor] = []
    lengths: list[list[Tensor]] = [[] for _ in (None, *norms)]
    sums: list[list[Tensor]] = [[] for _ in lengths]
    own, head_norms = [], []
    step = max(1, pieces(pattern.device).formed // mixing.numbers)
    for first in range(0, n_layers, step):
        layers = range(first, min(first + step, n_layers))
        rows = slice(first * n_texts, layers.stop * n_texts)
        heads = pattern.new_empty(len(layers), n_heads, n_texts * n, d_model)
        vectors = pattern.new_empty(len(layers), n_texts * n, n + 2, d_model)
        for layer, sent, formed in zip(layers, heads.unbind(), vectors.unbind(), strict=True):
            torch.bmm(values[layer], projections[layer], out=sent)
            plain.append(mixed[layer] @ projections[layer].flatten(0, 1))
            torch.bmm(by_key[layer], sent.transpose(0, 1), out=formed)
        head_norms.append(torch.linalg.vector_norm(heads, dim=-1))
        vectors = rearrange(vectors, "l (b k) r d -> (l b) k r d", b=n_texts)
        own.append(vectors[:, :, n].clone())
        for number, norm in enumerate((None, *norms)):
            vectors = vectors if norm is None else _image(vectors, norm, rows)
            lengths[number].append(torch.linalg.vector_norm(vectors[:, :, :n], dim=-1))
            sums[number].append(vectors.sum(1))
    total = [_joined(parts) for parts in sums]
    found = FormedPairs(
        norms=tuple(_joined(parts).transpose(1, 2) for parts in lengths),
        others=tuple(one[:, :n] for one in total),
        own=_joined(own),
        combined=total[0][:, n + 1],
        head_norms=rearrange(_joined(head_norms), "l h (b k) -> (l b) h k", b=n_texts),
    )
    made = rearrange(torch.stack(plain), "l (b r) d -> (l b) r d", b=n_texts)
    vectors = rearrange(made[:, :-1], "b (s k) d -> b s k d", k=n)
    found.compare(mixing, ChosenPairs(queries, keys, weights, vectors, made[:, -1]), norms)
    return found


def _chosen_values(
    values: Float[Tensor, "b k h e"], weights: Float[Tensor, "b h s k"], n_layers: int
) -> Float[Tensor, "l br m"]:
    """The weighted values of the chosen pairs, and last their combination, heads side by side: r rows a text."""
    factors, _ = combination(*values.shape[2:0:-1], values.dtype, values.device)
    mixed = rearrange(weights, "b h s k -> b s k h 1") * values[:, None]
    rows = torch.cat([mixed.flatten(1, 2), (factors * values).sum(1, keepdim=True)], dim=1)
    return rearrange(rows, "(l b) r h e -> l (b r) (h e)", l=n_layers)


def _image(vectors: Float[Tensor, "b s q d"], norm: HeldNorm, rows: slice = slice(None)) -> Float[Tensor, "b s q d"]:
    """Vectors of some layers through a norm, but for its scale, in place: nobody needs them as they were."""
    if norm.center:
        vectors.sub_(vectors.mean(-1, keepdim=True))
    return vectors if norm.gain is None else vectors.mul_(norm.gain[rows, None])


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


@dataclass(frozen=True)
class Point:
    """Source vectors of the layers at one point of the chain: `others + own + rest` is the activation itself.

    Attributes:
        pairs: the vectors that were formed
        image: which of their images these are
        scale: what the image is multiplied with, for every query
        own: v_ii, attention to self and the stream together
        rest: what belongs to no source
    """

    pairs: FormedPairs
    image: int
    scale: Float[Tensor, "b q"] | None
    own: Float[Tensor, "b q d"]
    rest: Float[Tensor, "b q d"]

    @cached_property
    def others(self) -> Float[Tensor, "b q d"]:
        """sum_{j != i} v_ij."""
        others = self.pairs.others[self.image]
        return others if self.scale is None else others * self.scale[..., None]

    @cached_property
    def total(self) -> Float[Tensor, "b q d"]:
        return self.others + self.own + self.rest

    @cached_property
    def sizes(self) -> Float[Tensor, "4 b q"]:
        """The norms of others, own, rest and total."""
        return norms_of((self.others, self.own, self.rest, self.total))

    def norms(self) -> Float[Tensor, "b q k"]:
        """|v_ij| for all pairs."""
        norms = self.pairs.norms[self.image]
        norms = norms.clone(memory_format=torch.contiguous_format) if self.scale is None else _scaled(norms, self.scale)
        norms.diagonal(dim1=-2, dim2=-1).copy_(self.sizes[1])
        return norms

    def mixing_ratio(self) -> Float[Tensor, "b q"]:
        """|others| / (|others| + |own|); 0 where both vanish."""
        others, own = self.sizes[0], self.sizes[1]
        return others / (others + own).clamp_min(torch.finfo(own.dtype).tiny)


def _scaled(norms: Float[Tensor, "b q k"], scale: Float[Tensor, "b q"]) -> Float[Tensor, "b q k"]:
    return (norms * scale[..., None].abs()).contiguous()


def attended(mixing: LayersMixing, pairs: FormedPairs) -> Point:
    """What attention writes; its bias belongs to no source."""
    rest = torch.zeros_like(pairs.own) if mixing.bias is None else mixing.bias.expand_as(pairs.own)
    return Point(pairs, 0, None, pairs.own, rest)


def after(step: HeldStep, point: Point, stream: Tensor) -> Point:
    """Source vectors after a norm, or after a sum with the stream."""
    if isinstance(step.operator, HeldNorm):
        own, rest = step.operator(torch.stack([point.own, point.rest]))
        rest = rest if step.operator.offset is None else rest + step.operator.offset
        scale = step.operator.inverse_scale
        return replace(
            point,
            image=point.image + 1,
            scale=scale if point.scale is None else point.scale * scale,
            own=own,
            rest=rest,
        )
    if step.operator is not None or step.other is None:
        raise TypeError("only norms, and sums with the stream, follow here")
    stream = stream if step.other_scale == 1 else stream * step.other_scale
    if step.scale == 1:
        return replace(point, own=point.own + stream)
    scale = torch.full_like(point.own[..., 0], step.scale) if point.scale is None else point.scale * step.scale
    return replace(point, scale=scale, own=point.own * step.scale + stream, rest=point.rest * step.scale)
