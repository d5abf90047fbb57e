"""Pairs: the source vectors v_ij of one block, never stored as [query, key, d_model], and how held steps carry them.

Everything between two activations is linear once activations are held fixed, so the vectors of a block are always a sum
of a few terms (see `terms`), whatever steps were taken. Beside the terms there are two vectors per position: `own`,
v_ii, which is the diagonal of every map, and `rest`, what belongs to no source. The sum over the other sources is taken
from the terms themselves, so that the total, which is compared with the model's activation, is the sum of the very
vectors that are measured.

After cross-attention a second sequence has put in vectors too: the same kinds of terms over other keys, kept beside
the first.

Axes: b batch, q query, k key, d d_model (or any width in between).
"""

from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property, reduce, singledispatch
from typing import Any, ClassVar

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ..operators import Gain, HeldFeedForward, HeldNorm, Mixing, Operator, Parallel, Scaling
from ..pieces import is_card, pieces
from .terms import Hidden, Linear, MixedHeads, Mixture, Neurons, Sent, Terms, pairs, sum_of_others

_SMALL = 1 << 16  # numbers that cost less to copy than an operation to start


@dataclass(frozen=True)
class CrossSources:
    """What the positions of another sequence have put in: v_is for every s of them. None of them is the own one.

    Attributes:
        terms: how to form v_is
        image: the sources that these are a linear image of, if they are known
        before: these are earlier positions of the same sequence, whose keys come first; else those of another come last
    """

    terms: Terms
    image: "Image | None" = None
    before: bool = False
    causal: ClassVar[bool] = False

    @property
    def n_keys(self) -> int:
        return self.terms[0].n_keys

    @property
    def like(self) -> Float[Tensor, "b q m"]:
        """A vector for each query, for its shape and dtype."""
        return self.others

    @cached_property
    def others(self) -> Float[Tensor, "b q d"]:
        """sum_s v_is, from the terms."""
        return sum_of_others(self.terms)

    def mapped(self, function: Linear) -> "CrossSources":
        """The same after a linear function of the last axis."""
        terms = tuple(term.mapped(function) for term in self.terms)
        return CrossSources(terms, Image(self, function, None), self.before)

    def scaled(self, scale: Tensor) -> "CrossSources":
        """The same times one number per query, [b q]."""
        terms = tuple(term.scaled(scale) for term in self.terms)
        return CrossSources(terms, _scaled(self.image, scale), self.before)


class Summed:
    """An activation in three parts, `others + own + rest`, and how long these are."""

    own: Float[Tensor, "b q d"]
    rest: Float[Tensor, "b q d"]

    @cached_property
    def others(self) -> Float[Tensor, "b q d"]:
        """sum_{j != i} v_ij."""
        raise NotImplementedError

    @cached_property
    def total(self) -> Float[Tensor, "b q d"]:
        return self.others + self.own + self.rest

    @cached_property
    def sizes(self) -> Float[Tensor, "4 b q"]:
        """The norms of others, own, rest and total."""
        return norms_of((self.others, self.own, self.rest, self.total))

    @cached_property
    def largest(self) -> Float[Tensor, "b q"]:
        """The greatest of the four."""
        return self.sizes.amax(0)

    def mixing_ratio(self) -> Float[Tensor, "b q"]:
        """|others| / (|others| + |own|); 0 where both vanish."""
        others, own = self.sizes[0], self.sizes[1]
        return others / (others + own).clamp_min(torch.finfo(own.dtype).tiny)


@dataclass(frozen=True)
class Sources(Summed):
    """The decomposition of one activation: `others + own + rest` is the activation itself.

    Attributes:
        terms: how to form v_ij for j != i (the diagonal of the terms is not used)
        own: v_ii, one vector: attention to self and the bypassed stream together
        rest: what belongs to no source (biases, betas)
        causal: no source j > i exists
        image: the sources that these are a linear image of, if they are known
        cross: what another sequence's positions have put in, after cross-attention
    """

    terms: Terms
    own: Float[Tensor, "b q d"]
    rest: Float[Tensor, "b q d"]
    causal: bool
    image: "Image | None" = None
    cross: CrossSources | None = None

    @property
    def like(self) -> Float[Tensor, "b q d"]:
        """A vector for each query, for its shape and dtype."""
        return self.own

    @cached_property
    def context(self) -> Float[Tensor, "b q d"]:
        """sum_{j != i} v_ij over the positions of the same sequence, from the terms."""
        return sum_of_others(self.terms) if self.terms else torch.zeros_like(self.own)

    @cached_property
    def others(self) -> Float[Tensor, "b q d"]:
        """The sum over all sources but the own position, those of another sequence included."""
        return self.context if self.cross is None else self.context + self.cross.others

    @property
    def n_keys(self) -> int:
        """Positions of the same sequence, then those of the other (or its own past first)."""
        return self.own.shape[1] + (0 if self.cross is None else self.cross.n_keys)

    @property
    def past(self) -> int:
        """How many keys come before that of the first query."""
        return self.cross.n_keys if self.cross is not None and self.cross.before else 0

    def in_order(self, own: Tensor, cross: Tensor, dim: int) -> Tensor:
        """Numbers for the keys of the same sequence and for the others, joined in the order of the keys."""
        return torch.cat([cross, own] if self.past else [own, cross], dim=dim)

    def mapped(self, function: Linear) -> "Sources":
        """The same after a linear function of the last axis."""
        return replace(
            self,
            terms=tuple(term.mapped(function) for term in self.terms),
            own=function(self.own),
            rest=function(self.rest),
            image=Image(self, function, None),
            cross=None if self.cross is None else self.cross.mapped(function),
        )

    def scaled(self, scale: Float[Tensor, "b q"]) -> "Sources":
        """The same times one number per query."""
        return replace(
            self,
            terms=tuple(term.scaled(scale) for term in self.terms),
            own=self.own * scale[..., None],
            rest=self.rest * scale[..., None],
            image=_scaled(self.image, scale),
            cross=None if self.cross is None else self.cross.scaled(scale),
        )

    def shares(self) -> Float[Tensor, "3 b q"]:
        """|own|, |context| and |the other sequence| over the sum of the three; 0 where all vanish."""
        cross = torch.zeros_like(self.own) if self.cross is None else self.cross.others
        sizes = norms_of((self.own, self.context, cross))
        return sizes / sizes.sum(0).clamp_min(torch.finfo(sizes.dtype).tiny)

    def vectors(self, batch: int, queries: slice, keys: slice) -> Float[Tensor, "q k d"]:
        """v_ij with its diagonal, keys in their order: another sequence's last, the own past first."""
        n, n_keys, past = self.own.shape[1], self.n_keys, self.past
        numbers = torch.arange(n_keys, device=self.own.device)
        rows, columns = numbers[:n][queries], numbers[keys]
        first, last = keys.start or 0, n_keys if keys.stop is None else min(keys.stop, n_keys)
        block = self.own.new_zeros(len(rows), len(columns), self.own.shape[-1])
        sides = [(self.terms, past, n)]
        sides += [] if self.cross is None else [(self.cross.terms, 0 if past else n, n_keys - n)]
        for terms, at, length in sides:
            chosen = slice(min(max(first - at, 0), length), min(max(last - at, 0), length))
            if terms and chosen.stop > chosen.start:
                there = slice(chosen.start + at - first, chosen.stop + at - first)
                block[:, there] = pairs(terms, batch, queries, chosen).transpose(0, 1)
        row, column = (rows[:, None] + past == columns).nonzero(as_tuple=True)
        block[row, column] = self.own[batch, rows[row]]
        return block


@dataclass(frozen=True)
class Image:
    """v_ij = scale_i * function(that of other sources): reuse vectors already formed for `of`."""

    of: Sources | CrossSources
    function: Linear
    scale: Float[Tensor, "b q"] | None

    def __call__(self, vectors: Tensor, batch: int, queries: slice) -> Tensor:
        """From pairs [k q d] to pairs."""
        vectors = self.function(vectors)
        return vectors if self.scale is None else vectors * self.scale[batch, queries, None]


def start(stream: Float[Tensor, "b q d"]) -> Sources:
    """The stream as its own only source: v_ii = x_i."""
    return Sources(terms=(), own=stream, rest=torch.zeros_like(stream), causal=True)


def attend(values: Float[Tensor, "b k h e"], mixing: Mixing) -> Sources:
    """v_ij = sum_h a^h_ij f^h(x_j) from the values of the keys; the output bias is the rest."""
    heads = MixedHeads(mixing.pattern, values)
    term = _attended(heads, mixing)
    if isinstance(term, Mixture) and term.sent.kept and mixing.inner is None:
        own = term.sent.own
    else:
        own = mixing.send(rearrange(heads.own, "b q (h e) -> b q h e", h=values.shape[2]))
    rest = torch.zeros_like(own) if mixing.offset is None else mixing.offset.expand_as(own)
    return Sources((term,), own, rest, is_causal(mixing.pattern))


def attend_across(values: Float[Tensor, "b k h e"], mixing: Mixing) -> Sources:
    """The same from the positions of another sequence: no position is its own source."""
    term = _attended(MixedHeads(mixing.pattern, values, crossed=True), mixing)
    zero = torch.zeros_like(term.others)
    rest = zero if mixing.offset is None else mixing.offset.expand_as(zero)
    return Sources((), zero, rest, causal=True, cross=CrossSources((term,)))


def attend_to_past(values: Float[Tensor, "b k h e"], mixing: Mixing) -> Sources:
    """The same where queries are the last positions only: the keys before them are nobody's own."""
    past = mixing.pattern.shape[-1] - mixing.pattern.shape[-2]
    own = attend(values[:, past:], replace(mixing, pattern=mixing.pattern[..., past:]))
    heads = MixedHeads(mixing.pattern[..., :past], values[:, :past], crossed=True)
    return replace(own, cross=CrossSources((_attended(heads, mixing),), before=True))


def _attended(heads: MixedHeads, mixing: Mixing) -> Mixture | Neurons:
    """A gate per head is a change of the pattern; one per neuron makes a hidden layer; an inner norm joins W_O."""
    projection, scale = mixing.weight, None
    n_heads, d_head = projection.shape[:2]
    if mixing.inner is not None:
        behind = mixing.inner.into(rearrange(projection, "h e d -> (h e) d"))
        projection, scale = rearrange(behind, "(h e) d -> h e d", h=n_heads), mixing.inner.inverse_scale
    if mixing.gate is not None and mixing.gate.shape[-1] > 1:
        identity = torch.eye(n_heads * d_head, dtype=projection.dtype, device=projection.device)
        plain = Mixture(Sent(heads, rearrange(identity, "(h e) m -> h e m", h=n_heads)))
        gate = rearrange(mixing.gate, "b q h e -> b q (h e)")
        return Neurons(Hidden(((plain,),), (gate,)), rearrange(projection, "h e d -> (h e) d"), scale)
    if mixing.gate is not None:
        heads = replace(heads, pattern=heads.pattern * rearrange(mixing.gate, "b q h 1 -> b h q 1"))
    return Mixture(Sent(heads, projection), scale)


def added(left: Sources, right: Sources, scale: float = 1.0, other_scale: float = 1.0) -> Sources:
    """The decomposition of scale * left + other_scale * right."""
    left, right = _times(left, scale), _times(right, other_scale)
    return Sources(
        left.terms + right.terms,
        left.own + right.own,
        left.rest + right.rest,
        left.causal and right.causal,
        cross=_crossed(left.cross, right.cross),
    )


def _crossed(left: CrossSources | None, right: CrossSources | None) -> CrossSources | None:
    if left is None or right is None:
        return left or right
    return CrossSources(left.terms + right.terms, before=left.before)


def _times(sources: Sources, factor: float) -> Sources:
    return sources if factor == 1.0 else sources.mapped(Multiple(factor))


@dataclass(frozen=True)
class Multiple:
    """x -> x * factor."""

    factor: float

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.factor


@singledispatch
def through(operator: Operator, sources: Sources) -> Sources:
    """Source vectors after a held step at one position."""
    raise TypeError(f"pairs cannot be carried through a {type(operator).__name__}")


@through.register
def _(operator: HeldNorm, sources: Sources) -> Sources:
    normed = sources.mapped(Gain(operator.center, operator.gain)).scaled(operator.inverse_scale)
    return normed if operator.offset is None else replace(normed, rest=normed.rest + operator.offset)


@through.register
def _(operator: HeldFeedForward, sources: Sources) -> Sources:
    def neurons(terms: Terms) -> Terms:
        if not terms:
            return ()
        if not operator.branches:  # nothing passes; the keys are still there
            return tuple(term.mapped(Multiple(0.0)) for term in terms)
        entering = terms if operator.scale_in is None else tuple(term.scaled(operator.scale_in) for term in terms)
        inputs = tuple(tuple(term.into(weight) for term in entering) for weight in operator.branches)
        return (Neurons(Hidden(inputs, operator.coefficients, operator.rows), operator.out, operator.scale_out),)

    own, rest = _own_and_rest(operator, sources)
    return Sources(
        neurons(sources.terms) if operator.branches else (),
        own,
        rest if operator.offset is None else rest + operator.offset,
        sources.causal,
        cross=None if sources.cross is None else replace(sources.cross, terms=neurons(sources.cross.terms), image=None),
    )


def _own_and_rest(operator: HeldFeedForward, sources: Sources) -> tuple[Tensor, Tensor]:
    """Both through a feed-forward, as one product of twice as many rows; a card is not asked whether one is zero."""
    if sources.rest.device.type == "cpu" and not bool(sources.rest.any()):
        own = operator(sources.own)
        return own, torch.zeros_like(own)
    own, rest = operator(torch.stack((sources.own, sources.rest)))
    return own, rest


@through.register
def _(operator: Scaling, sources: Sources) -> Sources:
    """Multiplied, per position: what a hook did to a point."""
    scale = torch.as_tensor(operator.factor, dtype=sources.own.dtype, device=sources.own.device)
    made = sources.scaled(scale.expand(*sources.own.shape[:-1], 1)[..., 0])
    return made if operator.offset is None else replace(made, rest=made.rest + operator.offset)


@through.register
def _(operator: Parallel, sources: Sources) -> Sources:
    return reduce(added, [through(part, sources) for part in operator.parts])


def is_causal(pattern: Float[Tensor, "b h q k"], rows: int | None = None) -> bool:
    """Whether no query gives weight to a later key; `rows` queries at a time are looked at."""
    n = pattern.shape[-1]
    if not is_card(pattern.device) and bool(pattern[..., 0, 1:].any()):  # a card would wait once more for that
        return False
    if rows is None:
        rows = max(128, pieces(pattern.device).copied // (pattern.shape[:2].numel() * n * pattern.element_size()))
    later = []
    for first in range(0, n, rows):
        last = min(first + rows, n)
        later += [pattern[..., first:last, last:].any(), pattern[..., first:last, first:last].triu(1).any()]
    return not bool(torch.stack(later).any())


def fresh(part: Any) -> Any:
    """The same dataclasses over the same tensors, with nothing remembered of what was computed from them."""
    if isinstance(part, tuple):
        return tuple(fresh(one) for one in part)
    if is_dataclass(part) and not isinstance(part, type | Image):
        changed = {field.name: fresh(getattr(part, field.name)) for field in fields(part)}
        return replace(part, **changed)
    return part


def versions(part: Any) -> tuple[int, ...]:
    """How often each tensor that vectors would be formed of has been written to: weights, patterns, values."""
    if isinstance(part, Tensor):
        return () if part.is_inference() else (part._version,)
    if isinstance(part, tuple):
        return tuple(number for one in part for number in versions(one))
    if is_dataclass(part) and not isinstance(part, Image):
        return versions(tuple(getattr(part, field.name) for field in fields(part)))
    return ()


def norms_of(parts: tuple[Float[Tensor, "b q d"], ...]) -> Float[Tensor, "part b q"]:
    """The norm of every vector of several tensors."""
    if parts[0].numel() <= _SMALL:  # one operation more than enough
        return torch.linalg.vector_norm(torch.stack(parts), dim=-1)
    return torch.stack([torch.linalg.vector_norm(part, dim=-1) for part in parts])


def _scaled(image: Image | None, scale: Tensor) -> Image | None:
    """The image times one number per query."""
    if image is None:
        return None
    return replace(image, scale=scale if image.scale is None else image.scale * scale)
