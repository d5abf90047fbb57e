"""The steps of a block, each a function from source vectors to source vectors.

    start        the stream enters: v_ii = x_i
    attend       v_ij = sum_h a^h_ij f^h(x_j),      rest = b_O
    attend_across   the same from the positions of another sequence
    add          two decompositions of two summands
    normalise    v_ij -> (v_ij - mean v_ij) / s_i * gain,   rest -> the same + beta
    feed_forward integrated gradients of the activation, see `integrated`

Every step also moves the rest, so that after it `total` is again the model's activation.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from . import integrated
from .sources import CrossSources, Sources
from .terms import Mixture, Neurons, Terms

Bias = Literal["player", "fixed"]


def start(stream: Tensor) -> Sources:
    """The stream as its own only source, [b q d]."""
    zero = torch.zeros_like(stream)
    return Sources(terms=(), off=zero, own=stream, rest=zero, causal=True)


def attend(
    mixture: Mixture, bias: Tensor | None, *, gate: Tensor | None = None, inner: "InnerNorm | None" = None
) -> Sources:
    """Attention with its pattern held; bias [d].

    A gate, [b q h d_head] or [b q h 1], multiplies the mixed values; an inner norm follows. Both are held fixed too.
    """
    causal = is_causal(mixture.pattern)
    terms: Terms
    if gate is None and inner is None:
        terms = (mixture,)
        off, own = mixture.sums()
    else:
        heads = _in_head_space(mixture)
        weight = mixture.weight.flatten(0, 1)
        off, own = heads.sums()
        if gate is not None:
            factor = gate.expand(*gate.shape[:3], mixture.weight.shape[1]).flatten(2)
            off, own = off * factor, own * factor
        scale = None
        if inner is not None:
            scale, weight = inner.scale(off + own), inner.into(weight)
            off, own = off * scale[..., None], own * scale[..., None]
        if gate is None:
            terms = (Mixture(mixture.pattern, mixture.values, weight.unflatten(0, mixture.weight.shape[:2]), scale),)
        elif gate.shape[-1] == 1:  # one number per head and query: a change of the pattern
            pattern = mixture.pattern * gate[..., 0].transpose(1, 2)[..., None]
            terms = (Mixture(pattern, mixture.values, weight.unflatten(0, mixture.weight.shape[:2]), scale),)
        else:
            terms = (Neurons(((heads,),), (factor,), weight, scale),)
        off, own = off @ weight, own @ weight
    rest = torch.zeros_like(own) if bias is None else bias.expand_as(own)
    return Sources(terms, off, own, rest, causal)


def attend_across(mixture: Mixture, bias: Tensor | None) -> Sources:
    """Attention to another sequence, [b h q s], with its pattern held: no position is its own source."""
    off = mixture.sum()
    zero = torch.zeros_like(off)
    rest = zero if bias is None else bias.expand_as(off)
    return Sources((), zero, zero, rest, causal=True, cross=CrossSources((mixture,), off))


def _in_head_space(mixture: Mixture) -> Mixture:
    """The same mixture in front of the output projection: heads side by side, [h * d_head] wide."""
    n_heads, d_head, _ = mixture.weight.shape
    identity = torch.eye(n_heads * d_head, dtype=mixture.weight.dtype, device=mixture.weight.device)
    return Mixture(mixture.pattern, mixture.values, identity.unflatten(0, (n_heads, d_head)))


def is_causal(pattern: Tensor, rows: int = 128) -> bool:
    """Whether no query gives weight to a later key: [b h q k]."""
    n = pattern.shape[-1]
    if bool(pattern[..., 0, 1:].any()):
        return False
    for first in range(0, n, rows):
        last = min(first + rows, n)
        if bool(pattern[..., first:last, last:].any()) or bool(pattern[..., first:last, first:last].triu(1).any()):
            return False
    return True


def add(left: Sources, right: Sources) -> Sources:
    """The decomposition of a sum."""
    return Sources(
        left.terms + right.terms,
        left.off + right.off,
        left.own + right.own,
        left.rest + right.rest,
        left.causal and right.causal,
        cross=_added(left.cross, right.cross),
    )


def _added(left: CrossSources | None, right: CrossSources | None) -> CrossSources | None:
    if left is None or right is None:
        return left or right
    return CrossSources(left.terms + right.terms, left.off + right.off)


def times(sources: Sources, factor: float) -> Sources:
    """The decomposition of a multiple."""
    return sources if factor == 1.0 else sources.mapped(Multiple(factor))


@dataclass(frozen=True)
class Multiple:
    """x -> x * factor."""

    factor: float

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.factor


def statistics(x: Tensor, center: bool, eps: float) -> Tensor:
    """The scale s_i = sqrt(var(x_i) + eps) (RMS: mean square) of the full vector: [b q]."""
    if center:
        x = x - x.mean(-1, keepdim=True)
    return (x.square().mean(-1) + eps).sqrt()


@dataclass(frozen=True)
class Norming:
    """What a norm with its scale held fixed does to the last axis: centre it, multiply by the gain."""

    center: bool
    gain: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        if not self.center:
            return x if self.gain is None else x * self.gain
        x = x - x.mean(-1, keepdim=True)
        return x if self.gain is None else x.mul_(self.gain)


def normalise(
    sources: Sources, full: Tensor, *, center: bool, eps: float, gain: Tensor | None, beta: Tensor | None
) -> Sources:
    """A layer norm whose scale is that of the full vector, [b q d], held fixed."""
    scale = statistics(full, center, eps)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))  # an all-zero (masked) vector stays zero
    normed = sources.mapped(Norming(center, gain)).scaled(1 / scale)
    return normed if beta is None else replace(normed, rest=normed.rest + beta)


@dataclass(frozen=True)
class Projection:
    """x -> x @ weight + bias: weight [d m], bias [m]."""

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.weight if self.bias is None else x @ self.weight + self.bias


@dataclass(frozen=True)
class InnerNorm:
    """A norm in front of an output projection, its scale held fixed: part of the projection."""

    center: bool
    eps: float
    gain: Tensor | None = None

    def scale(self, full: Tensor) -> Tensor:
        """1 / s_i of the full vector, [b q]."""
        return 1 / statistics(full, self.center, self.eps).clamp_min(torch.finfo(full.dtype).tiny)

    def into(self, weight: Tensor) -> Tensor:
        """The projection [m d] behind the norm, as one behind the scale alone."""
        weight = weight if self.gain is None else self.gain[:, None] * weight
        return weight - weight.mean(0, keepdim=True) if self.center else weight


@dataclass(frozen=True)
class Unit:
    """y = g(into(x)) out, or gated (g(into(x)) * (up(x) + up_offset)) out; one expert of a mixture likewise.

    `limit` bounds the gate from above and |up|; scale_in and scale_out, [b q], are a router's weights, held fixed.
    """

    into: Projection
    up: Projection | None
    out: Projection
    activation: integrated.Activation
    up_offset: float = 0.0
    limit: float | None = None
    inner: InnerNorm | None = None
    scale_in: Tensor | None = None
    scale_out: Tensor | None = None

    def sent(self) -> Tensor | None:
        """The positions whose result can differ from zero, [b q] bool; None if that may be all of them."""
        scale = self.scale_out
        if scale is None and self.up is not None and self.into.bias is None and self.up.bias is self.out.bias is None:
            scale = self.scale_in  # zero in, zero out
        if scale is None or bool((scale != 0).all()):
            return None
        return scale != 0


def feed_forward(sources: Sources, full: Tensor, unit: Unit, bias: Bias = "player") -> Sources:
    """The feed-forward of x = full, [b q d], by integrated gradients at its activation.

    bias="player": the rest of the input (with b_in) moves along the path like a source; its share becomes rest.
    bias="fixed": it stays where it is; the path starts from it, and g there becomes rest.
    """
    sent = unit.sent()
    if unit.scale_in is not None:
        sources, full = sources.scaled(unit.scale_in), full * unit.scale_in[..., None]

    def gathered(vectors: Tensor) -> Tensor:
        return vectors if sent is None else vectors[sent]

    off, own, rest, x = (gathered(v) for v in (sources.off, sources.own, sources.rest, full))
    branches = (unit.into,) if unit.up is None else (unit.into, unit.up)
    still = [branch(rest) for branch in branches]  # [b q m], or [sent m]
    if bias == "player":
        step = [branch(x).double() for branch in branches]
        begin = [torch.zeros_like(u) for u in step]
    else:
        tokens = gathered(sources.others) + own
        step = [(tokens @ branch.weight).double() for branch in branches]
        begin = [u.double() for u in still]
    coefficients, base, end = _integrate(unit, begin, step)
    weight = unit.out.weight
    if unit.inner is not None:
        scale = unit.inner.scale(end)[..., None]
        coefficients, base = [c * scale for c in coefficients], base * scale
        weight = unit.inner.into(weight)
    coefficients, base = [c.to(full.dtype) for c in coefficients], base.to(full.dtype)
    if bias == "player":
        base = base + sum(u * c for u, c in zip(still, coefficients, strict=True))

    def through(vectors: Tensor) -> Tensor:
        shares = [vectors @ b.weight * c for b, c in zip(branches, coefficients, strict=True)]
        return sum(shares[1:], shares[0]) @ weight

    def everywhere(vectors: Tensor) -> Tensor:
        return vectors if sent is None else full.new_zeros(full.shape).masked_scatter_(sent[..., None], vectors)

    rows = None if sent is None else torch.where(sent, sent.flatten().cumsum(0).view_as(sent) - 1, -1)
    shares = tuple(coefficients)

    def neurons(terms: Terms) -> Terms:
        inputs = tuple(tuple(term.into(b.weight) for term in terms) for b in branches)
        return (Neurons(inputs, shares, weight, rows=rows),) if terms else ()

    cross = None
    if sources.cross is not None:
        cross = CrossSources(neurons(sources.cross.terms), everywhere(through(gathered(sources.cross.off))))
    rest = everywhere(Projection(weight, unit.out.bias)(base))
    off, own = everywhere(through(off)), everywhere(through(own))
    made = Sources(neurons(sources.terms), off, own, rest, sources.causal, cross=cross)
    return made if unit.scale_out is None else made.scaled(unit.scale_out)


def _integrate(unit: Unit, begin: list[Tensor], step: list[Tensor]) -> tuple[list[Tensor], Tensor, Tensor]:
    """Coefficients per branch, and the neurons at the beginning and at the end of the path, all float64 [b q m]."""
    g = unit.activation
    if unit.up is None:
        return [integrated.slope(g, begin[0], step[0])], g(begin[0]), g(begin[0] + step[0])

    def neurons(u: Tensor, w: Tensor) -> Tensor:
        if unit.limit is not None:
            u, w = u.clamp(max=unit.limit), w.clamp(-unit.limit, unit.limit)
        return g(u) * (w + unit.up_offset)

    if unit.limit is None:
        pair = integrated.gated(g, begin[0], step[0], begin[1] + unit.up_offset, step[1])
    else:
        pair = integrated.clipped_gated(
            g, begin[0], step[0], begin[1], step[1], limit=unit.limit, offset=unit.up_offset
        )
    return list(pair), neurons(*begin), neurons(begin[0] + step[0], begin[1] + step[1])
