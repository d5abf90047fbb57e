"""Held steps: with the activations of one run held fixed, every step of a model is an affine operator on the stream.

An operator is called for its linear part; `offset` is what it adds to that and what belongs to no source; `transpose`
is its adjoint, <transpose(g), x> = <g, operator(x)>. What is carried may have leading axes of its own (*s: source
tokens, targets), over which operators broadcast.

    Projection       x -> x W                                        + b
    Scaling          x -> x * factor                                 a gate, a router's weight, a clamp
    Selected         one position out of many                        what a classifier reads
    HeldNorm         x -> (x - mean x) / s_i * gain                  + beta
    HeldFeedForward  x -> (sum_p (x W_p) * c_p) W_out                + what biases and g(0) give
    SplitHeads       [.. (kv e)] -> [.. (kv group) e]                grouped heads repeated
    Mixing           v_j -> sum_h a^h_ij v^h_j W_O^h                 + b_O: the only one that moves between positions
    Chain            one after the other
    Parallel         the sum of several of one input

Axes: b batch, h head, q query, k key, e d_head, d d_model (or any width in between), m d_mlp, *s anything.
"""

from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Protocol, runtime_checkable

import torch
from einops import rearrange, repeat
from einops import reduce as pooled
from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
class Operator(Protocol):
    """An affine map with its linear part, its adjoint and its offset apart."""

    @property
    def offset(self) -> Tensor | None:
        """What is added to the linear part, broadcast against [b q m]; None for nothing."""
        ...

    def __call__(self, x: Float[Tensor, "*s b q d"]) -> Float[Tensor, "*s b q m"]: ...

    def transpose(self, g: Float[Tensor, "*s b q m"]) -> Float[Tensor, "*s b q d"]: ...


def applied(operator: Operator, x: Tensor) -> Tensor:
    """The whole affine map."""
    y = operator(x)
    return y if operator.offset is None else y + operator.offset


def carried_back(operator: Operator, g: Tensor, leading: int) -> tuple[Tensor, Tensor | None]:
    """transpose(g), and <g, offset> over all but the leading axes; from the same products where that saves some."""
    if isinstance(operator, HeldFeedForward):
        return operator.carried_back(g)
    if isinstance(operator, Parallel):
        found = [carried_back(part, g, leading) for part in operator.parts]
        credits = [credit for _, credit in found if credit is not None]
        x = reduce(torch.add, [x for x, _ in found])
        return x, reduce(torch.add, credits) if credits else None
    own = operator.offset
    return operator.transpose(g), None if own is None else inner(g, own, leading)


def inner(covector: Tensor, vector: Tensor, leading: int) -> Tensor:
    """<covector, vector> over all but the leading axes of the covector."""
    products = covector @ vector if vector.ndim == 1 else covector * vector
    return products.flatten(leading).sum(-1)


@dataclass(frozen=True)
class Projection:
    """x -> x @ weight + bias."""

    weight: Float[Tensor, "d m"]
    bias: Float[Tensor, " m"] | None = None

    @property
    def offset(self) -> Tensor | None:
        return self.bias

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.weight

    def transpose(self, g: Tensor) -> Tensor:
        return g @ self.weight.T


@dataclass(frozen=True)
class Scaling:
    """x -> x * factor, elementwise: a number, or a tensor that broadcasts against [b q m]."""

    factor: Tensor | float
    offset: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.factor

    def transpose(self, g: Tensor) -> Tensor:
        return g * self.factor


@dataclass(frozen=True)
class Selected:
    """One position out of q, which stands for the sequence: [.. q d] -> [.. 1 d]."""

    position: int
    n_positions: int
    offset: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return x[..., self.position : self.position + 1, :]

    def transpose(self, g: Tensor) -> Tensor:
        whole = g.new_zeros(*g.shape[:-2], self.n_positions, g.shape[-1])
        whole[..., self.position : self.position + 1, :] = g
        return whole


@dataclass(frozen=True)
class HeldNorm:
    """x -> (x - mean x) * inverse_scale * gain + beta, with the scale of the real vector held (RMS: no mean)."""

    center: bool
    inverse_scale: Float[Tensor, "*b"]  # one for every vector
    gain: Float[Tensor, "*h d"] | None = None  # [h d]: one for every head
    beta: Float[Tensor, "*h d"] | None = None

    @property
    def offset(self) -> Tensor | None:
        return self.beta

    def __call__(self, x: Tensor) -> Tensor:
        scale = self.inverse_scale[..., None]
        if x.shape[:-1] != scale.shape[:-1] or (not self.center and self.gain is None):  # one bias for all positions
            return Gain(self.center, self.gain)(x) * scale
        return Gain(self.center, self.gain)(x).mul_(scale)

    def transpose(self, g: Tensor) -> Tensor:
        g = g * self.inverse_scale[..., None]
        g = g if self.gain is None else g.mul_(self.gain)
        return g.sub_(g.mean(-1, keepdim=True)) if self.center else g

    def into(self, weight: Float[Tensor, "d m"]) -> Float[Tensor, "d m"]:
        """The projection after this norm as one before it, but for the scale: norm(x) W = scale * x into(W)."""
        weight = weight if self.gain is None else self.gain[:, None] * weight
        return weight - weight.mean(0, keepdim=True) if self.center else weight


@dataclass(frozen=True)
class Gain:
    """A norm without its scale: x -> (x - mean x) * gain."""

    center: bool
    gain: Float[Tensor, "*h d"] | None

    def __call__(self, x: Tensor) -> Tensor:
        if not self.center:
            return x if self.gain is None else x * self.gain
        x = x - x.mean(-1, keepdim=True)
        return x if self.gain is None else x.mul_(self.gain)


@dataclass(frozen=True)
class HeldFeedForward:
    """x -> (sum_p (x W_p) * c_p) W_out * scale_out + offset: one coefficient per neuron and branch, held.

    The offset is ((sum_p b_p * c_p + base) W_out + added) * scale_out, made when it is asked for. Without branches
    nothing passes: all is offset. `scale_in` multiplies what enters (a router's weight). With `rows`, only some
    positions are sent through (an expert of a mixture): coefficients then have one row for each of them.
    """

    branches: tuple[Tensor, ...]  # p of them, [d m]
    coefficients: tuple[Tensor, ...]  # p of them, [b q m], or [row m] with `rows`
    out: Float[Tensor, "m d"]
    biases: tuple[Tensor | None, ...] = ()  # p of them, [m], or none at all
    base: Tensor | None = None  # neurons that no input makes, [m] or as the coefficients
    added: Float[Tensor, " d"] | None = None
    scale_in: Float[Tensor, "b q"] | None = None
    scale_out: Float[Tensor, "b q"] | None = None
    rows: Int[Tensor, "b q"] | None = None  # the row of the coefficients, -1 where there is none

    @property
    def offset(self) -> Float[Tensor, "b q d"] | Float[Tensor, " d"] | None:
        return self._offset

    @cached_property
    def _offset(self) -> Tensor | None:
        hidden = [] if self.base is None else [self.base]
        hidden += [bias * c for c, bias in zip(self.coefficients, self.biases, strict=False) if bias is not None]
        made = [sum(hidden[1:], hidden[0]) @ self.out] if hidden else []
        made += [] if self.added is None else [self.added]
        if not made:
            return None
        offset = sum(made[1:], made[0])
        if self.rows is not None:
            n_rows = int((self.rows >= 0).sum())
            offset = self._everywhere(offset.expand(n_rows, -1))
        return offset if self.scale_out is None else offset * self.scale_out[..., None]

    def __call__(self, x: Tensor) -> Tensor:
        if not self.branches:
            return x.new_zeros(*x.shape[:-1], self.out.shape[1])
        x = self._gathered(x if self.scale_in is None else x * self.scale_in[..., None])
        hidden: Tensor | None = None
        for weight, c in zip(self.branches, self.coefficients, strict=True):
            neurons = x @ weight
            hidden = neurons.mul_(c) if hidden is None else hidden.addcmul_(neurons, c)
        y = self._everywhere((x if hidden is None else hidden) @ self.out)
        return y if self.scale_out is None else y * self.scale_out[..., None]

    def transpose(self, g: Tensor) -> Tensor:
        return self._back(g, credited=False)[0]

    def carried_back(self, g: Float[Tensor, "*s b q d"]) -> tuple[Float[Tensor, "*s b q d"], Tensor | None]:
        """transpose(g), and <g, offset> from the same products, [*s b]; None without an offset."""
        return self._back(g, credited=True)

    def _back(self, g: Tensor, credited: bool) -> tuple[Tensor, Tensor | None]:
        like, x, credits = g, None, []
        g = self._gathered(g if self.scale_out is None else g * self.scale_out[..., None])
        if credited and self.added is not None:
            credits.append(g @ self.added)
        if self.branches or (credited and self.base is not None):
            hidden = g @ self.out.T
            if credited and self.base is not None:
                credits.append(hidden @ self.base if self.base.ndim == 1 else (hidden * self.base).sum(-1))
            for number, (weight, c) in enumerate(zip(self.branches, self.coefficients, strict=True), start=1):
                neurons = hidden.mul_(c) if number == len(self.branches) else hidden * c
                x = neurons @ weight.T if x is None else _plus_product(x, neurons, weight.T)
                bias = self.biases[number - 1] if self.biases else None
                if credited and bias is not None:
                    credits.append(neurons @ bias)
        whole = torch.zeros_like(like) if x is None else self._everywhere(x)
        whole = whole if x is None or self.scale_in is None else whole * self.scale_in[..., None]
        if not credits:
            return whole, None
        credit = sum(credits[1:], credits[0])
        return whole, self._everywhere(credit[..., None])[..., 0].sum(-1)

    def _gathered(self, x: Tensor) -> Tensor:
        return x if self.rows is None else x[..., self.rows >= 0, :]

    def _everywhere(self, x: Tensor) -> Tensor:
        if self.rows is None:
            return x
        whole = x.new_zeros(*x.shape[:-2], *self.rows.shape, x.shape[-1])
        whole[..., self.rows >= 0, :] = x
        return whole


def _plus_product(total: Tensor, left: Tensor, right: Float[Tensor, "m d"]) -> Tensor:
    """total + left @ right, in the memory of `total`."""
    total.view(-1, total.shape[-1]).addmm_(left.reshape(-1, left.shape[-1]), right)
    return total


@dataclass(frozen=True)
class SplitHeads:
    """Heads out of one vector, grouped ones repeated: [.. (kv e)] -> [.. (kv group) e]."""

    n_kv_heads: int
    group: int = 1
    offset: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return repeat(x, "... (kv e) -> ... (kv group) e", kv=self.n_kv_heads, group=self.group)

    def transpose(self, g: Tensor) -> Tensor:
        return pooled(g, "... (kv group) e -> ... (kv e)", "sum", kv=self.n_kv_heads)


@dataclass(frozen=True)
class Mixing:
    """Values of keys to vectors of queries, the pattern held: sum_h a^h_ij v^h_j (* gate) W_O^h + bias.

    A gate and an inner norm stand between the mixed values and the output projection; both are held. `added` is what a
    hook has put in.
    """

    pattern: Float[Tensor, "b h q k"]
    weight: Float[Tensor, "h e d"]
    bias: Float[Tensor, " d"] | None = None
    gate: Tensor | None = None  # [b q h e] or [b q h 1]
    inner: HeldNorm | None = None  # on [b q (h e)]
    added: Float[Tensor, "b q d"] | None = None

    @property
    def offset(self) -> Tensor | None:
        beta = None if self.inner is None else self.inner.beta
        sent = None if beta is None else beta @ rearrange(self.weight, "h e d -> (h e) d")
        there = [part for part in (self.bias, sent, self.added) if part is not None]
        return sum(there[1:], there[0]) if there else None

    def __call__(self, x: Float[Tensor, "*s b k h e"]) -> Float[Tensor, "*s b q d"]:
        return self.send(self.mixed(x))

    def mixed(self, values: Float[Tensor, "*s b k h e"]) -> Float[Tensor, "*s b q h e"]:
        """Values mixed by the pattern, before gate, inner norm and output projection."""
        return torch.einsum("bhqk,...bkhe->...bqhe", self.pattern, values)

    def gated(self, mixed: Float[Tensor, "*s b q h e"]) -> Float[Tensor, "*s b q h e"]:
        """Mixed values times the gate, if there is one."""
        return mixed if self.gate is None else mixed * self.gate

    def send(self, mixed: Float[Tensor, "*s b q h e"]) -> Float[Tensor, "*s b q d"]:
        """From mixed values to what attention writes."""
        mixed = self.gated(mixed)
        mixed = rearrange(mixed, "... h e -> ... (h e)")
        mixed = mixed if self.inner is None else self.inner(mixed)
        return mixed @ rearrange(self.weight, "h e d -> (h e) d")

    def transpose(self, g: Float[Tensor, "*s b q d"]) -> Float[Tensor, "*s b k h e"]:
        return torch.einsum("bhqk,...bqhe->...bkhe", self.pattern, self.at_mixed(g))

    def at_mixed(self, g: Float[Tensor, "*s b q d"]) -> Float[Tensor, "*s b q h e"]:
        """A covector of what attention writes, carried back to the mixed values of every head."""
        g = g @ rearrange(self.weight, "h e d -> d (h e)")
        g = g if self.inner is None else self.inner.transpose(g)
        return self.gated(rearrange(g, "... (h e) -> ... h e", h=len(self.weight)))


@dataclass(frozen=True)
class Chain:
    """One operator after the other."""

    steps: tuple[Operator, ...]

    @property
    def offset(self) -> Tensor | None:
        return self._offset

    @cached_property
    def _offset(self) -> Tensor | None:
        total: Tensor | None = None
        for step in self.steps:
            total = None if total is None else step(total)
            if step.offset is not None:
                total = step.offset if total is None else total + step.offset
        return total

    def __call__(self, x: Tensor) -> Tensor:
        return reduce(lambda y, step: step(y), self.steps, x)

    def transpose(self, g: Tensor) -> Tensor:
        return reduce(lambda y, step: step.transpose(y), reversed(self.steps), g)


@dataclass(frozen=True)
class Parallel:
    """The sum of several operators of one input: the experts of a mixture."""

    parts: tuple[Operator, ...]

    @property
    def offset(self) -> Tensor | None:
        offsets = [part.offset for part in self.parts if part.offset is not None]
        return sum(offsets[1:], offsets[0]) if offsets else None

    def __call__(self, x: Tensor) -> Tensor:
        return reduce(torch.add, [part(x) for part in self.parts])

    def transpose(self, g: Tensor) -> Tensor:
        return reduce(torch.add, [part.transpose(g) for part in self.parts])
