"""The terms that source vectors are sums of: how v_ij is made for a block of pairs, and what a linear step does to it.

    Mixture    v_ij = s_i  F(sum_h a^h_ij x^h_j W^h)              attention: heads mixed by the pattern
    Heads      v_ij = s_i  sum_h a^h_ij t^h_j                     the same from head vectors t already formed
    Neurons    v_ij = s_i  F((sum_p z^p_ij * c^p_i) W)            a feed-forward or a gate: elementwise, then W

where z^p is itself a sum of terms and F a chain of linear functions of the last axis. Every term can also say what its
vectors sum to over the keys, from the very tensors its vectors are made of and without forming any pair: that is what
completeness is checked on.

F is applied to W when a weight is first needed: norms that follow from those of other sources never need it.

Axes: b batch, h head, q query, k key, e d_head, d d_model (or any width in between), m d_mlp.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from ..pieces import pieces

Linear = Callable[[Tensor], Tensor]
Queries = slice | Tensor  # a block of them, or their numbers


@dataclass(frozen=True)
class Product:
    """x -> x @ weight. (Linear functions are objects, not closures, so that what they hold can be seen and copied.)"""

    weight: Float[Tensor, "d m"]

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.weight


@dataclass(frozen=True)
class MixedHeads:
    """Values mixed by the pattern, before the output projection."""

    pattern: Float[Tensor, "b h q k"]
    values: Float[Tensor, "b k h e"]
    crossed: bool = False  # keys are positions of another sequence

    @cached_property
    def own(self) -> Float[Tensor, "b q m"]:
        """a_ii v_i of every head."""
        weights = rearrange(self.pattern.diagonal(dim1=-2, dim2=-1), "b h q -> b q h 1")
        return rearrange(weights * self.values, "b q h e -> b q (h e)")

    @cached_property
    def others(self) -> Float[Tensor, "b q m"]:
        """sum_{j != i} a_ij v_j of every head (of all keys, if those are another sequence's)."""
        if self.crossed:
            return rearrange(self.pattern @ self.values.transpose(1, 2), "b h q e -> b q (h e)")
        n_batch, n_heads, n, _ = self.pattern.shape
        pattern = self.pattern.reshape(n_batch * n_heads, n, n)
        values = rearrange(self.values, "b k h e -> (b h) k e")
        # some heads at a time: no copy of the whole pattern
        at_once = max(1, pieces(pattern.device).copied // (n * n * pattern.element_size()))
        parts = []
        for first in range(0, len(pattern), at_once):
            weights = pattern[first : first + at_once].clone()
            weights.diagonal(dim1=1, dim2=2).zero_()
            parts.append(torch.bmm(weights, values[first : first + at_once]))
        mixed = parts[0] if len(parts) == 1 else torch.cat(parts)
        return rearrange(mixed, "(b h) q e -> b q (h e)", b=n_batch)

    @cached_property
    def by_key(self) -> Float[Tensor, "bk q h"]:
        """The weights, one matrix for every key; without the diagonal, unless keys are another sequence's."""
        weights = self.pattern if self.crossed else _without_diagonal(self.pattern)
        return rearrange(weights, "b h q k -> (b k) q h").contiguous()  # products of strided ones are slow


@dataclass(frozen=True)
class Sent:
    """What attention sends through one output projection: the part of a mixture that linear steps leave alone."""

    mixed: MixedHeads
    projection: Float[Tensor, "h e d"]

    @cached_property
    def others(self) -> Float[Tensor, "b q d"]:
        return self.mixed.others @ rearrange(self.projection, "h e d -> (h e) d")

    @cached_property
    def heads(self) -> Float[Tensor, "b k h d"]:
        """What each head would send from each key, of all keys at once."""
        sent = torch.bmm(rearrange(self.mixed.values, "b k h e -> h (b k) e"), self.projection)
        return rearrange(sent, "h (b k) d -> b k h d", b=len(self.mixed.values))

    @cached_property
    def few(self) -> bool:
        """Whether the vectors of all pairs are so few that forming them all is the fastest way to their norms."""
        n_batch, _, n_queries, n_keys = self.mixed.pattern.shape
        size = n_batch * n_queries * n_keys * self.projection.shape[-1]
        return size <= pieces(self.projection.device).formed

    @cached_property
    def kept(self) -> bool:
        """Whether the vectors of all heads and keys are formed once, and kept as long as their norms are wanted."""
        size = self.mixed.values.shape[:3].numel() * self.projection.shape[-1] * self.projection.element_size()
        return size <= pieces(self.projection.device).kept

    @property
    def own(self) -> Float[Tensor, "b q d"]:
        """sum_h a^h_ii t^h_i, from the head vectors."""
        weights = rearrange(self.mixed.pattern.diagonal(dim1=-2, dim2=-1), "b h q -> (b q) 1 h").contiguous()
        own = torch.bmm(weights, rearrange(self.heads, "b q h d -> (b q) h d"))
        return rearrange(own, "(b q) 1 d -> b q d", b=len(self.heads))


@dataclass
class KeyBlocks:
    """Head vectors of many keys at a time, kept until others are asked for: products of a few rows are slow.

    Attributes:
        at_once: keys for which they are formed together
    """

    at_once: int = 1
    kept: "dict[int, tuple[int, slice, Tensor]]" = field(default_factory=dict)

    def of(self, mixture: "Mixture", batch: int, keys: slice) -> Float[Tensor, "h k d"]:
        """What each head would send from each of some keys, one after the other."""
        if self.at_once <= keys.stop - keys.start:
            return mixture.head_vectors(batch, keys)
        text, there, vectors = self.kept.get(id(mixture), (-1, slice(0, 0), mixture.weight))
        if text != batch or keys.start < there.start or keys.stop > there.stop:
            self.kept.pop(id(mixture), None)
            there = slice(keys.start, min(keys.start + self.at_once, mixture.n_keys))
            vectors = mixture.head_vectors(batch, there)
            self.kept[id(mixture)] = batch, there, vectors
        return vectors[:, keys.start - there.start : keys.stop - there.start]


@dataclass(frozen=True)
class Mixture:
    """v_ij = scale_i * functions(sum_h pattern[h, i, j] * (values[j, h] @ projection[h]))."""

    sent: Sent
    scale: Float[Tensor, "b q"] | None = None
    functions: tuple[Linear, ...] = ()

    @property
    def pattern(self) -> Tensor:
        return self.sent.mixed.pattern

    @property
    def values(self) -> Tensor:
        return self.sent.mixed.values

    @cached_property
    def weight(self) -> Float[Tensor, "h e d"]:
        return _through(self.functions, self.sent.projection)

    @property
    def n_keys(self) -> int:
        return self.pattern.shape[-1]

    @property
    def width(self) -> int:
        return self.weight.shape[-1]

    @property
    def few(self) -> bool:
        """Whether the vectors of all pairs are formed, for their norms and for their sums."""
        return self.sent.few and not any(isinstance(function, Product) for function in self.functions)

    @cached_property
    def formed(self) -> Float[Tensor, "b k q d"]:
        """v_ij of all pairs but for the scale, zero where j = i."""
        heads = rearrange(_through(self.functions, self.sent.heads), "b k h d -> (b k) h d")
        return rearrange(torch.bmm(self.sent.mixed.by_key, heads), "(b k) q d -> b k q d", b=len(self.values))

    @cached_property
    def others(self) -> Float[Tensor, "b q d"]:
        """sum_{j != i} v_ij, of the vectors themselves where they are few."""
        if self.few:
            return _scaled(self.formed.sum(1), self.scale)
        return _scaled(_through(self.functions, self.sent.others), self.scale)

    def mapped(self, function: Linear) -> "Mixture":
        return replace(self, functions=(*self.functions, function))

    def scaled(self, scale: Tensor) -> "Mixture":
        return replace(self, scale=scale if self.scale is None else self.scale * scale)

    def into(self, weight: Float[Tensor, "d m"]) -> "Mixture | Heads":
        """The same through a wide projection: its product with all heads' weights, or of few keys with theirs."""
        n_batch, n_keys = self.values.shape[:2]
        if n_batch * n_keys >= self.sent.projection.shape[1]:
            return self.mapped(Product(weight))
        vectors = torch.einsum("bkhe,hed->bhkd", self.values, self.weight)
        return Heads(self.pattern, vectors @ weight, self.scale, self.sent.mixed.crossed)

    def head_vectors(self, batch: int, keys: slice) -> Float[Tensor, "h k d"]:
        """What each head would send from each key."""
        return torch.bmm(self.values[batch, keys].transpose(0, 1), self.weight)

    def vectors_of(self, rows: slice) -> Float[Tensor, "k h d"]:
        """What each head would send, of some keys of all texts one after the other."""
        if self.sent.kept:
            return self.through(self.sent.heads.flatten(0, 1)[rows])
        values = self.values.flatten(0, 1)[rows]
        return self.through(torch.bmm(values.transpose(0, 1), self.sent.projection).transpose(0, 1))

    def through(self, x: Tensor) -> Tensor:
        """The linear functions, without the scale."""
        return _through(self.functions, x)

    def pairs(
        self, batch: int, queries: Queries, keys: slice, blocks: KeyBlocks | None = None
    ) -> Float[Tensor, "k q d"]:
        """v_ij for a block of queries and keys (keys first: one small matrix product per key)."""
        vectors = self.head_vectors(batch, keys) if blocks is None else blocks.of(self, batch, keys)
        return _mixed(self.pattern, self.scale, vectors, batch, queries, keys)


@dataclass(frozen=True)
class Heads:
    """A mixture whose head vectors are formed already: v_ij = scale_i * sum_h pattern[h, i, j] * vectors[h, j]."""

    pattern: Float[Tensor, "b h q k"]
    vectors: Float[Tensor, "b h k d"]
    scale: Float[Tensor, "b q"] | None = None
    crossed: bool = False

    @property
    def n_keys(self) -> int:
        return self.pattern.shape[-1]

    @property
    def width(self) -> int:
        return self.vectors.shape[-1]

    @cached_property
    def others(self) -> Float[Tensor, "b q d"]:
        """sum_{j != i} v_ij."""
        weights = self.pattern if self.crossed else _without_diagonal(self.pattern)
        return _scaled(torch.einsum("bhqk,bhkd->bqd", weights, self.vectors), self.scale)

    def pairs(
        self, batch: int, queries: Queries, keys: slice, blocks: KeyBlocks | None = None
    ) -> Float[Tensor, "k q d"]:
        """v_ij for a block of queries and keys."""
        return _mixed(self.pattern, self.scale, self.vectors[batch, :, keys], batch, queries, keys)


@dataclass(frozen=True)
class Hidden:
    """Neurons, or gated values: what the terms of each branch give, times one held coefficient per query and neuron."""

    inputs: "tuple[tuple[Mixture | Heads | Neurons, ...], ...]"  # p of them, each with vectors of width m
    coefficients: tuple[Tensor, ...]  # p of them, [b q m], or [row m] with `rows`
    rows: Int[Tensor, "b q"] | None = None  # the row of the coefficients, -1 where they are all zero

    @cached_property
    def others(self) -> Tensor:
        """sum_{j != i} of the hidden vectors, [b q m], or [row m] with `rows`."""
        total: Tensor | None = None
        for terms, coefficient in zip(self.inputs, self.coefficients, strict=True):
            share = sum_of_others(terms)
            share = (share if self.rows is None else share[self.rows >= 0]) * coefficient
            total = share if total is None else total + share
        return _some(total)

    def pairs(
        self, batch: int, queries: Queries, keys: slice, blocks: KeyBlocks | None = None
    ) -> Float[Tensor, "k q m"]:
        """The hidden vectors of a block of pairs; with `rows`, only for the queries that have one."""
        total: Tensor | None = None
        chosen: Queries = queries
        row = None
        if self.rows is not None:
            row = self.rows[batch, queries]
            numbers = torch.arange(self.rows.shape[1], device=row.device)[queries]
            chosen, row = numbers[row >= 0], row[row >= 0]
        for terms, coefficient in zip(self.inputs, self.coefficients, strict=True):
            share = pairs(terms, batch, chosen, keys, blocks)
            factor = coefficient[batch, queries] if row is None else coefficient[row]
            total = share.mul_(factor) if total is None else total.addcmul_(share, factor)
        return _some(total)


@dataclass(frozen=True)
class Neurons:
    """v_ij = scale_i * functions((sum_p inputs_p[i, j] * coefficients_p[i]) @ projection)."""

    hidden: Hidden
    projection: Float[Tensor, "m d"]
    scale: Float[Tensor, "b q"] | None = None
    functions: tuple[Linear, ...] = ()

    @cached_property
    def weight(self) -> Float[Tensor, "m d"]:
        return _through(self.functions, self.projection)

    @property
    def n_keys(self) -> int:
        return self.hidden.inputs[0][0].n_keys

    @property
    def width(self) -> int:
        return self.weight.shape[-1]

    @cached_property
    def others(self) -> Float[Tensor, "b q d"]:
        """sum_{j != i} v_ij."""
        total = _through(self.functions, self.hidden.others @ self.projection)
        if self.hidden.rows is not None:
            sent = self.hidden.rows >= 0
            whole = total.new_zeros(*sent.shape, total.shape[-1])
            whole[sent] = total
            total = whole
        return _scaled(total, self.scale)

    def mapped(self, function: Linear) -> "Neurons":
        return replace(self, functions=(*self.functions, function))

    def scaled(self, scale: Tensor) -> "Neurons":
        return replace(self, scale=scale if self.scale is None else self.scale * scale)

    def into(self, weight: Float[Tensor, "d m"]) -> "Neurons":
        return self.mapped(Product(weight))

    def pairs(
        self,
        batch: int,
        queries: Queries,
        keys: slice,
        blocks: KeyBlocks | None = None,
        hidden: Tensor | None = None,
    ) -> Float[Tensor, "k q d"]:
        """v_ij for a block of queries and keys; `hidden` if it is known already."""
        vectors = (self.hidden.pairs(batch, queries, keys, blocks) if hidden is None else hidden) @ self.weight
        if self.hidden.rows is not None:
            row = self.hidden.rows[batch, queries]
            some = vectors.new_zeros(len(vectors), len(row), vectors.shape[-1])
            some[:, row >= 0] = vectors
            vectors = some
        if self.scale is not None:
            vectors *= self.scale[batch, queries, None]
        return vectors


Term = Mixture | Heads | Neurons
Terms = tuple[Mixture | Neurons, ...]


def pairs(
    terms: tuple[Term, ...], batch: int, queries: Queries, keys: slice, blocks: KeyBlocks | None = None
) -> Float[Tensor, "k q d"]:
    """The sum of the terms for a block of queries and keys, j != i, freshly allocated."""
    first, *others = terms
    vectors = first.pairs(batch, queries, keys, blocks)
    for term in others:
        vectors += term.pairs(batch, queries, keys, blocks)
    return vectors


def sum_of_others(terms: tuple[Term, ...]) -> Float[Tensor, "b q d"]:
    """sum_{j != i} v_ij over all terms, from what the vectors themselves are made of."""
    first, *others = terms
    return sum((term.others for term in others), first.others)


def _through(functions: tuple[Linear, ...], x: Tensor) -> Tensor:
    return reduce(lambda y, function: function(y), functions, x)


def _scaled(vectors: Tensor, scale: Tensor | None) -> Tensor:
    return vectors if scale is None else vectors * scale[..., None]


def _without_diagonal(pattern: Tensor) -> Tensor:
    identity = torch.eye(pattern.shape[-1], dtype=torch.bool, device=pattern.device)
    return pattern.masked_fill(identity, 0)


def _some(total: Tensor | None) -> Tensor:
    if total is None:
        raise ValueError("a hidden layer needs at least one branch")
    return total


def _mixed(
    pattern: Tensor, scale: Tensor | None, head_vectors: Tensor, batch: int, queries: Queries, keys: slice
) -> Tensor:
    weights = pattern[batch, :, :, keys][:, queries].permute(2, 1, 0)  # [k q h]
    if scale is not None:  # h numbers per pair, where the product has d
        weights = weights * scale[batch, queries, None]
    return torch.bmm(weights, head_vectors.transpose(0, 1))
