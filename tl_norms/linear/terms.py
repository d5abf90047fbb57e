"""The terms that source vectors are sums of: how v_ij is made for a block of pairs, and what a linear step does to it.

    Mixture    v_ij = s_i  sum_h a^h_ij (x^h_j W^h)               attention: heads mixed by the pattern
    Neurons    v_ij = s_i (sum_p z^p_ij * c^p_i) W                a feed-forward or a gate: elementwise, then W

where z^p is itself a sum of terms. `Heads` is a mixture in front of neurons whose products x^h_j W^h are at hand.

A linear step is applied to W, and that when W is first needed: lengths that follow from those of other sources never
need it.

Axes: b batch, h head, q query, k key, d d_model (or any width in between), m d_mlp.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, reduce

import torch
from torch import Tensor

Linear = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Product:
    """x -> x @ weight. (Linear functions are objects, not closures, so that what they hold can be seen and copied.)"""

    weight: Tensor  # [d m]

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.weight


@dataclass(frozen=True)
class Mixture:
    """v_ij = scale_i * sum_h pattern[h, i, j] * (values[j, h] @ weight[h]), weight = functions(projection)."""

    pattern: Tensor  # [b h q k]
    values: Tensor  # [b k h d_head]
    projection: Tensor  # [h d_head d]
    scale: Tensor | None = None  # [b q]
    functions: tuple[Linear, ...] = ()

    @cached_property
    def weight(self) -> Tensor:
        """[h d_head d]"""
        return _through(self.functions, self.projection)

    @property
    def n_keys(self) -> int:
        return self.pattern.shape[-1]

    @property
    def width(self) -> int:
        return self.weight.shape[-1]

    def mapped(self, function: Linear) -> "Mixture":
        return replace(self, functions=(*self.functions, function))

    def into(self, weight: Tensor) -> "Mixture | Heads":
        """The same through a wide projection [d m]: its product with all heads' weights, or of few keys with theirs."""
        n_batch, n_keys = self.values.shape[:2]
        if n_batch * n_keys >= self.projection.shape[1]:
            return self.mapped(Product(weight))
        vectors = torch.einsum("bkhe,hed->bhkd", self.values, self.weight)
        return Heads(self.pattern, vectors @ weight, self.scale)

    def scaled(self, scale: Tensor) -> "Mixture":
        return replace(self, scale=scale if self.scale is None else self.scale * scale)

    def head_vectors(self, batch: int, keys: slice) -> Tensor:
        """What each head would send from each key: [h k d]."""
        return torch.bmm(self.values[batch, keys].transpose(0, 1), self.weight)

    def pairs(self, batch: int, queries: "Queries", keys: slice) -> Tensor:
        """v_ij for a block of queries and keys: [k q d] (keys first: one small matrix product per key)."""
        return _mixed(self.pattern, self.scale, self.head_vectors(batch, keys), batch, queries, keys)

    def sums(self) -> tuple[Tensor, Tensor]:
        """sum_{j != i} v_ij and v_ii, both [b q d], from two mixtures in head space."""
        both = self.values.new_empty(2, *self.values.shape)
        off, own = both
        torch.mul(self.pattern.diagonal(dim1=-2, dim2=-1).transpose(1, 2)[..., None], self.values, out=own)
        others = torch.empty_like(self.pattern[0, 0])  # one head at a time: no copy of the whole pattern
        for b in range(len(off)):
            for h in range(self.pattern.shape[1]):
                others.copy_(self.pattern[b, h]).fill_diagonal_(0)
                torch.mm(others, self.values[b, :, h], out=off[b, :, h])
        off, own = both.flatten(3) @ self.weight.flatten(0, 1)
        if self.scale is not None:
            off, own = off * self.scale[..., None], own * self.scale[..., None]
        return off, own

    def sum(self) -> Tensor:
        """sum_j v_ij over all keys, [b q d]."""
        mixed = (self.pattern @ self.values.transpose(1, 2)).transpose(1, 2)  # [b q h d_head]
        total = mixed.flatten(2) @ self.weight.flatten(0, 1)
        return total if self.scale is None else total * self.scale[..., None]


@dataclass(frozen=True)
class Heads:
    """A mixture whose head vectors are at hand: v_ij = scale_i * sum_h pattern[h, i, j] * vectors[h, j]."""

    pattern: Tensor  # [b h q k]
    vectors: Tensor  # [b h k d]
    scale: Tensor | None = None  # [b q]

    @property
    def n_keys(self) -> int:
        return self.pattern.shape[-1]

    @property
    def width(self) -> int:
        return self.vectors.shape[-1]

    def pairs(self, batch: int, queries: "Queries", keys: slice) -> Tensor:
        """v_ij for a block of queries and keys: [k q d]."""
        return _mixed(self.pattern, self.scale, self.vectors[batch, :, keys], batch, queries, keys)


def _mixed(
    pattern: Tensor, scale: Tensor | None, head_vectors: Tensor, batch: int, queries: "Queries", keys: slice
) -> Tensor:
    weights = pattern[batch, :, :, keys][:, queries].permute(2, 1, 0)  # [k q h]
    if scale is not None:  # h numbers per pair, where the product has d
        weights = weights * scale[batch, queries, None]
    return torch.bmm(weights, head_vectors.transpose(0, 1))


@dataclass(frozen=True)
class Neurons:
    """v_ij = scale_i * (sum_p inputs_p[i, j] * coefficients_p[i]) @ weight, weight = functions(projection)."""

    inputs: "tuple[tuple[Mixture | Heads | Neurons, ...], ...]"  # p of them, each with vectors of width m
    coefficients: tuple[Tensor, ...]  # p of them, [b q m], or [row m] with `rows`
    projection: Tensor  # [m d]
    scale: Tensor | None = None  # [b q]
    rows: Tensor | None = None  # [b q]: the row of the coefficients, -1 where they are all zero (an expert not chosen)
    functions: tuple[Linear, ...] = ()

    @cached_property
    def weight(self) -> Tensor:
        """[m d]"""
        return _through(self.functions, self.projection)

    @property
    def n_keys(self) -> int:
        return self.inputs[0][0].n_keys

    @property
    def width(self) -> int:
        return self.weight.shape[-1]

    def mapped(self, function: Linear) -> "Neurons":
        return replace(self, functions=(*self.functions, function))

    def into(self, weight: Tensor) -> "Neurons":
        return self.mapped(Product(weight))

    def scaled(self, scale: Tensor) -> "Neurons":
        return replace(self, scale=scale if self.scale is None else self.scale * scale)

    def pairs(self, batch: int, queries: "Queries", keys: slice, hidden: Tensor | None = None) -> Tensor:
        """v_ij for a block of queries and keys: [k q d]; `hidden` if it is known already."""
        vectors = (self.hidden(batch, queries, keys) if hidden is None else hidden) @ self.weight
        if self.rows is not None:
            row = self.rows[batch, queries]
            some = vectors.new_zeros(len(vectors), len(row), vectors.shape[-1])
            some[:, row >= 0] = vectors
            vectors = some
        if self.scale is not None:
            vectors *= self.scale[batch, queries, None]
        return vectors

    def hidden(self, batch: int, queries: "Queries", keys: slice) -> Tensor:
        """sum_p inputs_p * coefficients_p, [k q m]: the same for all that differ in weight and scale only.

        With `rows`, only for the queries that have one.
        """
        total: Tensor | None = None
        chosen: Queries = queries
        if self.rows is not None:
            row = self.rows[batch, queries]
            numbers = torch.arange(self.rows.shape[1], device=row.device)[queries]
            chosen, row = numbers[row >= 0], row[row >= 0]
        for terms, coefficient in zip(self.inputs, self.coefficients, strict=True):
            share = pairs(terms, batch, chosen, keys)
            factor = coefficient[batch, queries] if self.rows is None else coefficient[row]
            total = share.mul_(factor) if total is None else total.addcmul_(share, factor)
        assert total is not None
        return total


def _through(functions: tuple[Linear, ...], projection: Tensor) -> Tensor:
    return reduce(lambda weight, function: function(weight), functions, projection)


Terms = tuple[Mixture | Neurons, ...]
Queries = slice | Tensor  # a block of them, or their numbers


def pairs(terms: "tuple[Mixture | Heads | Neurons, ...]", batch: int, queries: Queries, keys: slice) -> Tensor:
    """The sum of the terms for a block of queries and keys, j != i: [k q d], freshly allocated."""
    first, *others = terms
    vectors = first.pairs(batch, queries, keys)
    for term in others:
        vectors += term.pairs(batch, queries, keys)
    return vectors
