"""Hold a step: weights and the activation that really entered it, to an operator (see `operators`)."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from . import integrated
from .operators import HeldFeedForward, HeldNorm, Projection

Bias = Literal["player", "fixed"]


@dataclass(frozen=True)
class NormWeights:
    """A norm before its scale is known."""

    center: bool
    eps: float
    gain: Float[Tensor, " d"] | None = None
    beta: Float[Tensor, " d"] | None = None


@dataclass(frozen=True)
class Unit:
    """y = g(into(x)) out, or gated (g(into(x)) * (up(x) + up_offset)) out; one expert of a mixture likewise.

    `limit` bounds the gate from above and |up|; `inner` is a norm before `out`; scale_in and scale_out, [b q], are a
    router's weights, held fixed.
    """

    into: Projection
    up: Projection | None
    out: Projection
    activation: integrated.Activation
    up_offset: float = 0.0
    limit: float | None = None
    inner: NormWeights | None = None
    scale_in: Float[Tensor, "b q"] | None = None
    scale_out: Float[Tensor, "b q"] | None = None

    @property
    def branches(self) -> tuple[Projection, ...]:
        return (self.into,) if self.up is None else (self.into, self.up)

    def sent(self) -> Tensor | None:
        """The positions whose result can differ from zero, [b q] bool; None if that may be all of them."""
        scale = self.scale_out
        if scale is None and self.up is not None and self.into.bias is None and self.up.bias is self.out.bias is None:
            scale = self.scale_in  # zero in, zero out
        if scale is None or bool((scale != 0).all()):
            return None
        return scale != 0


def inverse_scale(full: Float[Tensor, "b q d"], center: bool, eps: float) -> Float[Tensor, "b q"]:
    """1 / sqrt(var(x_i) + eps) (RMS: mean square) of the full vector; 1 where that vanishes (a masked position)."""
    if center:
        full = full - full.mean(-1, keepdim=True)
    scale = (full.square().mean(-1) + eps).sqrt()
    return 1 / torch.where(scale > 0, scale, torch.ones_like(scale))


def hold_norm(full: Float[Tensor, "b q d"], weights: NormWeights) -> HeldNorm:
    """A norm whose scale is that of the full vector."""
    scale = inverse_scale(full, weights.center, weights.eps)
    return HeldNorm(weights.center, scale, weights.gain, weights.beta)


def hold_feed_forward(
    full: Float[Tensor, "b q d"], unit: Unit, bias: Bias = "player", rest: Tensor | None = None
) -> HeldFeedForward:
    """The feed-forward of x = full by integrated gradients at its activation.

    bias="player": biases (and the rest of the input) move along the path like a source; their share is the offset.
    bias="fixed": they stay where they are and the path starts from them, so that the coefficients depend on `rest`, the
    part of the input that belongs to no source. Such an operator says where *these* sources went; its transpose is not
    that of the feed-forward for any other split of the input, so it serves one block only.
    """
    sent = unit.sent()

    def entering(vectors: Tensor) -> Tensor:
        vectors = vectors if unit.scale_in is None else vectors * unit.scale_in[..., None]
        return vectors if sent is None else vectors[sent]

    x = entering(full)
    if bias == "player":
        step = [_affine(branch, x).double() for branch in unit.branches]
        begin = [torch.zeros_like(u) for u in step]
    else:
        still = entering(torch.zeros_like(full) if rest is None else rest)
        step = [((x - still) @ branch.weight).double() for branch in unit.branches]
        begin = [_affine(branch, still).double() for branch in unit.branches]
    coefficients, base, end = _integrate(unit, begin, step)
    out = unit.out.weight
    if unit.inner is not None:
        inner = hold_norm(end, unit.inner)
        scale = inner.inverse_scale[..., None]
        coefficients, base = [c * scale for c in coefficients], base * scale
        out = inner.into(out)
    coefficients, base = [c.to(full.dtype) for c in coefficients], base.to(full.dtype)
    if bias == "player":  # the biases' own share; that of the rest of the input comes with the rest
        for branch, c in zip(unit.branches, coefficients, strict=True):
            base = base if branch.bias is None else base + branch.bias * c
    else:  # what the operator will make of the rest, which did not move
        for branch, c in zip(unit.branches, coefficients, strict=True):
            base = base - (still @ branch.weight) * c
    offset = base @ out if unit.out.bias is None else base @ out + unit.out.bias
    if unit.inner is not None and unit.inner.beta is not None:
        offset = offset + unit.inner.beta @ unit.out.weight
    rows = None
    if sent is not None:
        rows = torch.where(sent, sent.flatten().cumsum(0).view_as(sent) - 1, -1)
        offset = torch.zeros_like(full).masked_scatter_(sent[..., None], offset)
    if unit.scale_out is not None:
        offset = offset * unit.scale_out[..., None]
    weights = tuple(branch.weight for branch in unit.branches)
    return HeldFeedForward(weights, tuple(coefficients), out, offset, unit.scale_in, unit.scale_out, rows)


def _affine(projection: Projection, x: Tensor) -> Tensor:
    y = projection(x)
    return y if projection.bias is None else y + projection.bias


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
