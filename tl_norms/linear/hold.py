"""Hold a step: weights and the activation that really entered it, to an operator (see `operators`)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from . import integrated, tables
from .operators import HeldFeedForward, HeldNorm, Projection
from .pieces import is_card

Bias = Literal["player", "fixed"]
Rule = Literal["ig", "half", "gate", "drop"]


@dataclass(frozen=True)
class NormWeights:
    """A norm before its scale is known."""

    center: bool
    eps: float
    gain: Float[Tensor, "*h d"] | None = None  # [h d]: one for every head
    beta: Float[Tensor, "*h d"] | None = None


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


def inverse_scale(full: Float[Tensor, "*b d"], center: bool, eps: float) -> Float[Tensor, "*b"]:
    """1 / sqrt(var(x_i) + eps) (RMS: mean square) of the full vector; 1 where that vanishes (a masked position)."""
    if center:  # one pass, and no copies of the vectors
        inverse = torch.native_layer_norm(full, full.shape[-1:], None, None, eps)[2][..., 0]
    else:
        inverse = (torch.linalg.vector_norm(full, dim=-1).square() / full.shape[-1] + eps).rsqrt()
    return inverse if eps > 0 else inverse.masked_fill(inverse.isinf(), 1)


def hold_norm(full: Float[Tensor, "*b d"], weights: NormWeights) -> HeldNorm:
    """A norm whose scale is that of the full vector."""
    scale = inverse_scale(full, weights.center, weights.eps)
    return HeldNorm(weights.center, scale, weights.gain, weights.beta)


def hold_feed_forward(
    full: Float[Tensor, "b q d"], unit: Unit, bias: Bias = "player", rest: Tensor | None = None, rule: Rule = "ig"
) -> HeldFeedForward:
    """The feed-forward of x = full with one coefficient per neuron and branch held.

    rule="ig": integrated gradients at the activation, and at a gate's product.
    rule="half": a gated unit act(G) U gives one half of its change to each branch in proportion; what integrated
    gradients give when act(G) and U grow alike. rule="gate": act(G) is held, all goes to the up branch. Plain
    feed-forwards have one product only: all three are one. rule="drop": nothing passes, all is offset.

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
        wide = torch.promote_types(full.dtype, torch.float32)  # completeness does not wait for more
        step = [_affine(branch, x).to(wide) for branch in unit.branches]
        begin = None
    else:
        still = entering(torch.zeros_like(full) if rest is None else rest)
        step = [((x - still) @ branch.weight).double() for branch in unit.branches]
        begin = [_affine(branch, still).double() for branch in unit.branches]
    shares, base, last = _coefficients(unit, begin, step, rule)
    out = unit.out.weight
    if unit.inner is not None:
        inner = hold_norm(last(), unit.inner)
        scale = inner.inverse_scale[..., None]
        shares, base = [(branch, c * scale) for branch, c in shares], base * scale
        out = inner.into(out)
    shares, base = [(branch, c.to(full.dtype)) for branch, c in shares], base.to(full.dtype)
    biases: tuple[Tensor | None, ...] = ()
    if bias == "player":  # the biases' own share; that of the rest of the input comes with the rest
        biases = tuple(branch.bias for branch, _ in shares)
    else:  # less what the operator will make of the rest, which did not move
        for branch, c in shares:
            base = base - (still @ branch.weight) * c
    added = unit.out.bias
    if unit.inner is not None and unit.inner.beta is not None:
        sent_beta = unit.inner.beta @ unit.out.weight
        added = sent_beta if added is None else added + sent_beta
    rows = None
    if sent is not None:
        rows = torch.where(sent, sent.flatten().cumsum(0).view_as(sent) - 1, -1)
    return HeldFeedForward(
        tuple(branch.weight for branch, _ in shares),
        tuple(c for _, c in shares),
        out,
        biases,
        _of_neurons(base, len(out)) if is_card(base.device) or bool(base.any()) else None,
        added,
        unit.scale_in,
        unit.scale_out,
        rows,
    )


def _of_neurons(base: Tensor, width: int) -> Tensor:
    """One number for all neurons, as [] or [.. 1] (an activation with parameters), for each of them."""
    return base.expand(*base.shape[:-1], width)


def _affine(projection: Projection, x: Tensor) -> Tensor:
    y = projection(x)
    return y if projection.bias is None else y.add_(projection.bias)


def _coefficients(
    unit: Unit, begin: list[Tensor] | None, step: list[Tensor], rule: Rule
) -> tuple[list[tuple[Projection, Tensor]], Tensor, Callable[[], Tensor]]:
    """Branches with their coefficients, what the path begins with, and the neurons at its end when asked for, [b q m].

    begin=None: the path comes from zero, where all neurons are the same number. All stay in the precision of `step`.
    """
    g, limit, shift = unit.activation, unit.limit, unit.up_offset
    start = [u.new_zeros(()) for u in step] if begin is None else begin
    stop = step if begin is None else [u + d for u, d in zip(start, step, strict=True)]

    def gate(u: Tensor) -> Tensor:
        return g(u if limit is None else u.clamp(max=limit))

    def partner(w: Tensor) -> Tensor:
        return w if limit is None else w.clamp(-limit, limit)

    def neurons(u: Tensor, w: Tensor | None = None) -> Tensor:
        return gate(u) if w is None else gate(u) * (partner(w) + shift)

    def last() -> Tensor:
        return neurons(*stop)

    if rule == "drop":
        return [], last(), last
    first = neurons(*start)
    if unit.up is None:
        return [(unit.into, _slope(gate, begin, step, 0))], first, last
    if rule == "ig":
        if limit is not None:
            wide = [u.double().expand(step[0].shape) for u in (start[0], step[0], start[1], step[1])]
            pair = integrated.clipped_gated(g, *wide, limit=limit, offset=shift)
        elif begin is None:
            pair = tables.gated_from_zero(g, step[0], step[1], shift, in_place=unit.inner is None)
        else:
            pair = integrated.gated(g, start[0], step[0], start[1] + shift, step[1])
        return [(unit.into, pair[0]), (unit.up, pair[1])], first, last
    up_slope = torch.ones_like(step[1]) if limit is None else _slope(partner, begin, step, 1)
    if rule == "gate":
        return [(unit.up, gate(stop[0]) * up_slope)], gate(stop[0]) * (partner(start[1]) + shift), last
    to_gate = _slope(gate, begin, step, 0) * ((partner(start[1]) + partner(stop[1])) / 2 + shift)
    return [(unit.into, to_gate), (unit.up, (gate(start[0]) + gate(stop[0])) / 2 * up_slope)], first, last


def _slope(g: integrated.Activation, begin: list[Tensor] | None, step: list[Tensor], branch: int) -> Tensor:
    """The mean slope of g along the path of one branch."""
    if begin is None:
        return tables.slope_from_zero(g, step[branch])
    return integrated.slope(g, begin[branch], step[branch])
