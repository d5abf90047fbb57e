"""The steps of a block, each a function from source vectors to source vectors.

    start        the stream enters: v_ii = x_i
    attend       v_ij = sum_h a^h_ij f^h(x_j),      rest = b_O
    add          two decompositions of two summands
    normalise    v_ij -> (v_ij - mean v_ij) / s_i * gain,   rest -> the same + beta
    feed_forward integrated gradients of the activation, see `integrated`

Every step also moves the rest, so that after it `total` is again the model's activation.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from . import integrated
from .sources import Mixture, Neurons, Sources

Bias = Literal["player", "fixed"]


def start(stream: Tensor) -> Sources:
    """The stream as its own only source, [b q d]."""
    zero = torch.zeros_like(stream)
    return Sources(terms=(), off=zero, own=stream, rest=zero, causal=True)


def attend(pattern: Tensor, values: Tensor, weight: Tensor, bias: Tensor | None) -> Sources:
    """Attention with its pattern held: pattern [b h q k], values [b k h d_head], weight [h d_head d], bias [d]."""
    mixture = Mixture(pattern, values, weight)
    off, own = mixture.sums()
    rest = torch.zeros_like(own) if bias is None else bias.expand_as(own)
    return Sources((mixture,), off, own, rest, is_causal(pattern))


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
    )


def statistics(x: Tensor, center: bool, eps: float) -> Tensor:
    """The scale s_i = sqrt(var(x_i) + eps) (RMS: mean square) of the full vector: [b q]."""
    if center:
        x = x - x.mean(-1, keepdim=True)
    return (x.square().mean(-1) + eps).sqrt()


def normalise(
    sources: Sources, full: Tensor, *, center: bool, eps: float, gain: Tensor | None, beta: Tensor | None
) -> Sources:
    """A layer norm whose scale is that of the full vector, [b q d], held fixed."""

    def linear(x: Tensor) -> Tensor:
        if center:
            x = x - x.mean(-1, keepdim=True)
        return x if gain is None else x * gain

    scale = statistics(full, center, eps)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))  # an all-zero (masked) vector stays zero
    normed = sources.mapped(linear).scaled(1 / scale)
    return normed if beta is None else Sources(normed.terms, normed.off, normed.own, normed.rest + beta, normed.causal)


@dataclass(frozen=True)
class Projection:
    """x -> x @ weight + bias: weight [d m], bias [m]."""

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.weight if self.bias is None else x @ self.weight + self.bias


def feed_forward(
    sources: Sources,
    full: Tensor,
    *,
    activation: integrated.Activation,
    into: Projection,
    up: Projection | None,
    out: Projection,
    bias: Bias = "player",
) -> Sources:
    """y = g(u) W_out + b_out, or (g(u) * w) W_out + b_out when gated: u = into(x), w = up(x), x = full [b q d].

    bias="player": the rest of the input (with b_in) moves along the path like a source; its share becomes rest.
    bias="fixed": it stays where it is; the path starts from it, and g there becomes rest.
    """
    branches = (into,) if up is None else (into, up)
    moved = [(sources.off + sources.own) @ branch.weight for branch in branches]  # [b q m]
    still = [branch(sources.rest) for branch in branches]
    here = [branch(full) for branch in branches]
    if bias == "player":
        begin, step = [torch.zeros_like(u).double() for u in here], [u.double() for u in here]
    else:
        begin, step = [u.double() for u in still], [u.double() for u in moved]
    dtype = full.dtype
    if up is None:
        coefficients = (integrated.slope(activation, begin[0], step[0]).to(dtype),)
        base = activation(begin[0]).to(dtype)
    else:
        gate_, up_ = integrated.gated(activation, begin[0], step[0], begin[1], step[1])
        coefficients = (gate_.to(dtype), up_.to(dtype))
        base = (activation(begin[0]) * begin[1]).to(dtype)

    def through(vectors: Tensor) -> Tensor:
        return sum(vectors @ b.weight * c for b, c in zip(branches, coefficients, strict=True)) @ out.weight

    if bias == "player":
        base = base + sum(u * c for u, c in zip(still, coefficients, strict=True))
    terms = ()
    if sources.terms:
        inputs = tuple(tuple(t.mapped(lambda w, b=b: w @ b.weight) for t in sources.terms) for b in branches)
        terms = (Neurons(inputs, coefficients, out.weight),)
    return Sources(terms, through(sources.off), through(sources.own), out(base), sources.causal)
