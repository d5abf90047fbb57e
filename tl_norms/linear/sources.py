"""Source vectors: what token j has put into position i, never stored as [query, key, d_model].

Everything between two activations is linear once activations are held fixed, so the vectors of a block are always a sum
of a few terms (see `terms`), whatever steps were taken. A linear step is a scale per query and a linear function of the
last axis; it is applied to the weights of the terms, once, and to three vectors per position (`off`, `own`, `rest`), so
that totals, mixing ratios and completeness cost O(n d) and no pair is ever formed for them.

Behind cross-attention a second sequence has put in vectors too: the same kinds of terms over other keys, kept beside
the first.

Axes: b batch, q query, k key, d d_model (or any width in between).
"""

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from .terms import Linear, Terms, pairs


@dataclass(frozen=True)
class CrossSources:
    """What the positions of another sequence have put in: v_is for every s of them. None of them is the own one.

    Attributes:
        terms: how to form v_is
        off: sum_s v_is, [b q d]
        image: the sources that these are a linear image of, if they are known
    """

    terms: Terms
    off: Tensor
    image: "Image | None" = None
    causal: ClassVar[bool] = False

    @property
    def n_keys(self) -> int:
        return self.terms[0].n_keys

    def mapped(self, function: Linear) -> "CrossSources":
        """The same after a linear function of the last axis."""
        terms = tuple(term.mapped(function) for term in self.terms)
        return CrossSources(terms, function(self.off), Image(self, function, None))

    def scaled(self, scale: Tensor) -> "CrossSources":
        """The same times one number per query, [b q]."""
        terms = tuple(term.scaled(scale) for term in self.terms)
        return CrossSources(terms, self.off * scale[..., None], _scaled(self.image, scale))


@dataclass(frozen=True)
class Sources:
    """The decomposition of one activation: `others + own + rest` is the activation itself.

    Attributes:
        terms: how to form v_ij for j != i (the diagonal of the terms is not used)
        off: sum_{j != i} v_ij over the positions of the same sequence, [b q d]
        own: v_ii, one vector: attention to self and the bypassed stream together, [b q d]
        rest: what belongs to no source (biases, betas), [b q d]
        causal: no source j > i exists
        image: the sources that these are a linear image of, if they are known
        cross: what another sequence's positions have put in, behind cross-attention
    """

    terms: Terms
    off: Tensor
    own: Tensor
    rest: Tensor
    causal: bool = False
    image: "Image | None" = None
    cross: CrossSources | None = None

    @property
    def others(self) -> Tensor:
        """What all sources but the own position have put in, [b q d]."""
        return self.off if self.cross is None else self.off + self.cross.off

    @property
    def total(self) -> Tensor:
        return self.others + self.own + self.rest

    @property
    def n_keys(self) -> int:
        """Positions of the same sequence, then those of the other."""
        return self.own.shape[1] + (0 if self.cross is None else self.cross.n_keys)

    def mapped(self, function: Linear) -> "Sources":
        """The same after a linear function of the last axis."""
        return replace(
            self,
            terms=tuple(term.mapped(function) for term in self.terms),
            off=function(self.off),
            own=function(self.own),
            rest=function(self.rest),
            image=Image(self, function, None),
            cross=None if self.cross is None else self.cross.mapped(function),
        )

    def scaled(self, scale: Tensor) -> "Sources":
        """The same times one number per query, [b q]."""
        column = scale[..., None]
        return replace(
            self,
            terms=tuple(term.scaled(scale) for term in self.terms),
            off=self.off * column,
            own=self.own * column,
            rest=self.rest * column,
            image=_scaled(self.image, scale),
            cross=None if self.cross is None else self.cross.scaled(scale),
        )

    def mixing_ratio(self) -> Tensor:
        """|others| / (|others| + |own|), [b q]; 0 where both vanish."""
        return self.lengths((self.others, self.own))[0]

    def shares(self) -> Tensor:
        """|own|, |off| and |cross| over their sum, [3 b q]; 0 where all vanish."""
        cross = torch.zeros_like(self.off) if self.cross is None else self.cross.off
        return self.lengths((self.own, self.off, cross))

    @staticmethod
    def lengths(parts: tuple[Tensor, ...]) -> Tensor:
        """Each part's length over the sum of the lengths, [part b q]."""
        sizes = torch.stack([part.norm(dim=-1) for part in parts])
        return sizes / sizes.sum(0).clamp_min(torch.finfo(sizes.dtype).tiny)

    def vectors(self, batch: int, queries: slice, keys: slice) -> Tensor:
        """v_ij with its diagonal, [q k d]; keys of the other sequence come behind those of this one."""
        n = self.own.shape[1]
        numbers = torch.arange(self.n_keys, device=self.own.device)
        rows, columns = numbers[:n][queries], numbers[keys]
        near = slice(
            *(min(int(edge), n) for edge in (keys.start or 0, self.n_keys if keys.stop is None else keys.stop))
        )
        block = self.own.new_zeros(len(rows), len(columns), self.own.shape[-1])
        n_near = len(numbers[near])
        if self.terms and n_near:
            block[:, :n_near] = pairs(self.terms, batch, queries, near).transpose(0, 1)
        if self.cross is not None and len(columns) > n_near:
            far = slice(int(columns[n_near]) - n, int(columns[-1]) + 1 - n)
            block[:, n_near:] = pairs(self.cross.terms, batch, queries, far).transpose(0, 1)
        row, column = (rows[:, None] == columns).nonzero(as_tuple=True)
        block[row, column] = self.own[batch, rows[row]]
        return block


@dataclass(frozen=True)
class Image:
    """v_ij = scale_i * function(that of other sources): whoever has formed those need not form these anew."""

    of: Sources | CrossSources
    function: Linear
    scale: Tensor | None  # [b q]

    def __call__(self, vectors: Tensor, batch: int, queries: slice) -> Tensor:
        """From pairs [k q d] to pairs."""
        vectors = self.function(vectors)
        return vectors if self.scale is None else vectors * self.scale[batch, queries, None]


def versions(part: Any) -> tuple[int, ...]:
    """How often each tensor that vectors would be formed of has been written to: weights, patterns, values."""
    if isinstance(part, Tensor):
        return () if part.is_inference() else (part._version,)
    if isinstance(part, tuple):
        return tuple(number for one in part for number in versions(one))
    if is_dataclass(part) and not isinstance(part, Image):
        return versions(tuple(getattr(part, field.name) for field in fields(part)))
    return ()


def _scaled(image: Image | None, scale: Tensor) -> Image | None:
    """The image times one number per query; two such numbers are not kept track of."""
    return None if image is None or image.scale is not None else replace(image, scale=scale)
