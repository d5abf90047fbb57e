"""Carry dense vectors forward through held steps, as many sources at a time as the caller stacked, [s b q d].

Only linear parts: what a step adds by itself belongs to no source. A luggage that is None is zero everywhere and costs
nothing. In a causal stack no source reaches a position before its own: `at_rows` takes the held steps at the others
alone (see `rows`); where that is not possible, `later` cuts the positions before the first source of a chunk off them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import singledispatch

import torch
from jaxtyping import Float
from torch import Tensor

from ..graph import HeldBlock, HeldStep
from ..heads import JoinHeads, Rotary
from ..integrated_attention import IntegratedAttention
from ..layers import HeldLayer
from ..operators import (
    Chain,
    HeldFeedForward,
    HeldNorm,
    Mixing,
    Operator,
    Parallel,
    Projection,
    Scaling,
    SplitHeads,
)
from .rows import Rows, RowsMixed


def carry(
    block: HeldBlock, x: Float[Tensor, "*s b q d"] | None, elsewhere: Sequence[Tensor | None] = ()
) -> Float[Tensor, "*s b q d"] | None:
    """The last point of a block, of vectors or of rows; points are let go as soon as no later step reads them."""
    last_use = {step.reads: number for number, step in enumerate(block.steps, 1)}
    for number, step in enumerate(block.steps, 1):
        if step.other is not None:
            last_use[step.other] = max(last_use.get(step.other, 0), number)
    points: dict[int, Tensor | None] = {0: x}
    del x
    for number, step in enumerate(block.steps, 1):
        read = points[step.reads] if step.reads >= 0 else elsewhere[-1 - step.reads]
        if step.operator is not None:
            made = None if read is None else step.operator(read)
        else:
            made = _sum(step, read, None if step.other is None else points[step.other])
        points[number] = made if made is None or step.edit is None else step.edit(made)
        for point in {step.reads, step.other, number} - {None}:
            if point in points and last_use.get(point, 0) <= number and number < len(block.steps):
                del points[point]
        del read, made
    return points[len(block.steps)]


def _sum(step: HeldStep, read: Tensor | None, other: Tensor | None) -> Tensor | None:
    """scale * read + other_scale * other."""
    if other is not None and read is not None and step.scale == 1:
        return torch.add(read, other, alpha=step.other_scale)
    read = read if read is None or step.scale == 1 else read * step.scale
    if other is None:
        return read
    other = other if step.other_scale == 1 else other * step.other_scale
    return other if read is None else read + other


@dataclass(frozen=True)
class Owned:
    """Values whose own offset (the values' bias) stays with their sources; without sources, their linear part.

    Attributes:
        operator: a value path
        own: its offset at every position
        places: where each of the stacked sources stands, and where in the luggage that is
    """

    operator: Operator
    own: Float[Tensor, "b k h e"] | None = None
    places: tuple[tuple[int, int], ...] = ()
    offset: Tensor | None = None

    def __call__(self, x: Float[Tensor, "*s b k d"]) -> Float[Tensor, "*s b k h e"]:
        made = self.operator(x)
        if self.own is None:
            return made
        made = made.clone(memory_format=torch.contiguous_format)  # repeated heads may share memory
        for source, (at, place) in enumerate(self.places):
            made[source, :, place] += self.own[:, at]
        return made

    def transpose(self, g: Float[Tensor, "*s b k h e"]) -> Float[Tensor, "*s b k d"]:
        return self.operator.transpose(g)


def owning(block: HeldBlock, layer: HeldLayer, sources: Sequence[int], first: int) -> HeldBlock:
    """The block with self-attention's value offset at the sources; without sources, without that offset."""
    attention = layer.attention
    if attention is None or attention.path.offset is None:
        return block
    own = torch.as_tensor(attention.path.offset).expand(attention.values.shape) if sources else None
    steps, number = list(block.steps), attention.values_point - 1
    operator = steps[number].operator
    if operator is None:
        raise TypeError("only values with their pattern held have an offset of their own")
    places = tuple((source, source - first) for source in sources)
    steps[number] = replace(steps[number], operator=Owned(operator, own, places))
    return HeldBlock(tuple(steps))


def at_rows(layer: HeldLayer, rows: Rows) -> HeldBlock:
    """The steps of a causal layer for rows of luggage, [b p d].

    Raises:
        NotByPositionError: positions cannot be taken from one of its operators, or it reads from elsewhere.
    """
    if layer.elsewhere or layer.crossing is not None:
        raise NotByPositionError("a layer that reads from elsewhere")
    return HeldBlock(
        tuple(
            replace(
                step,
                operator=None if step.operator is None else from_position(step.operator, rows),
                beside=None,
                edit=None if step.edit is None else from_position(step.edit, rows),
            )
            for step in layer.block.steps
        )
    )


class NotByPositionError(TypeError):
    """Positions cannot be cut off an operator."""


def later(layer: HeldLayer, first: int) -> HeldBlock:
    """The steps of a causal layer for positions from `first` on.

    Raises:
        NotByPositionError: positions cannot be cut off one of its operators.
    """
    crossing = layer.crossing
    crossed = () if crossing is None else tuple(id(part) for _, part in crossing.integrated)
    steps = []
    for number, step in enumerate(layer.block.steps, 1):
        operator = step.operator
        if crossing is not None and number == crossing.values_point and operator is not None:  # of another sequence
            steps.append(step)
            continue
        if isinstance(operator, IntegratedAttention) and id(operator) in crossed:
            operator = _asked_from(operator, first)
        elif crossing is not None and number == crossing.point and isinstance(operator, Mixing):
            operator = _queries(operator, first)
        elif operator is not None:
            operator = from_position(operator, first)
        edit = None if step.edit is None else from_position(step.edit, first)
        steps.append(replace(step, operator=operator, beside=None, edit=edit))
    return HeldBlock(tuple(steps))


@singledispatch
def from_position(operator: Operator, first: int | Rows) -> Operator:
    """The linear part of an operator for positions from `first` on, or for rows."""
    raise NotByPositionError(f"positions cannot be cut off a {type(operator).__name__}")


@from_position.register
def _(operator: Projection, first: int | Rows) -> Projection:
    return operator


@from_position.register
def _(operator: SplitHeads, first: int | Rows) -> SplitHeads:
    return replace(operator, offset=None)


@from_position.register
def _(operator: HeldNorm, first: int | Rows) -> HeldNorm:
    return replace(operator, inverse_scale=_cut(operator.inverse_scale, first))


@from_position.register
def _(operator: Scaling, first: int | Rows) -> Scaling:
    factor = operator.factor
    if isinstance(factor, Tensor) and factor.ndim == 2:
        raise NotByPositionError("a factor of two axes: which one are positions?")
    if isinstance(factor, Tensor) and factor.ndim == 3 and factor.shape[1:] == (1, 1):  # [pos 1 1], beside heads
        return Scaling(factor[_refuse(operator, first) :])
    return Scaling(_cut(factor, first) if isinstance(factor, Tensor) and factor.ndim > 2 else factor)


@from_position.register
def _(operator: HeldFeedForward, first: int | Rows) -> HeldFeedForward:
    scale_in, scale_out = (
        None if part is None else _cut(part, first) for part in (operator.scale_in, operator.scale_out)
    )
    rows, coefficients = operator.rows, operator.coefficients
    if rows is None:
        coefficients = tuple(_cut(c, first) for c in coefficients)
    else:
        rows = _cut(rows, first)
        kept = rows >= 0
        coefficients = tuple(c[rows[kept]] for c in coefficients)
        rows = torch.where(kept, kept.flatten().cumsum(0).view_as(rows) - 1, -1)
    linear = replace(operator, biases=(), base=None, added=None)
    return replace(linear, coefficients=coefficients, scale_in=scale_in, scale_out=scale_out, rows=rows)


@from_position.register
def _(operator: Mixing, first: int | Rows) -> Mixing | RowsMixed:
    sending = _queries(operator, first)
    at = first.first if isinstance(first, Rows) else first
    pattern = operator.pattern[:, :, at:, at:]
    if isinstance(first, Rows):
        return RowsMixed(first, Mixing(pattern, operator.weight), replace(sending, pattern=pattern))
    return replace(sending, pattern=pattern)


def _queries(operator: Mixing, first: int | Rows) -> Mixing:
    """A mixing for the queries from `first` on, of all keys; for rows, only what it sends with."""
    gate = None if operator.gate is None else _cut(operator.gate, first)
    inner = None if operator.inner is None else from_position(operator.inner, first)
    pattern = operator.pattern if isinstance(first, Rows) else operator.pattern[:, :, first:]
    return replace(operator, pattern=pattern, gate=gate, inner=inner, added=None)


@from_position.register
def _(operator: IntegratedAttention, first: int | Rows) -> IntegratedAttention:
    first = _refuse(operator, first)
    keys, values = (None if part is None else from_position(part, first) for part in (operator.keys, operator.values))
    return replace(_asked_from(operator, first), keys=keys, values=values, first_key=first)


def _asked_from(operator: IntegratedAttention, first: int) -> IntegratedAttention:
    """An integrated softmax of the queries from `first` on, over all keys: a source moves its query's every logit."""
    path, held = operator.path, operator.held
    rows = path.from_query(first)
    return replace(
        operator,
        queries=None if operator.queries is None else from_position(operator.queries, first),
        q=operator.q[:, first:],
        path=rows,
        held=held[:, :, first:] if isinstance(held, Tensor) and held.ndim == 4 else held,
        added=None,
    )


@from_position.register
def _(operator: Rotary, first: int | Rows) -> Rotary:
    first = _refuse(operator, first)
    return replace(operator, cos=operator.cos[..., first:, :], sin=operator.sin[..., first:, :])


@from_position.register
def _(operator: JoinHeads, first: int | Rows) -> JoinHeads:
    first = _refuse(operator, first)
    gate = None if operator.gate is None else _cut(operator.gate, first)
    inner = None if operator.inner is None else from_position(operator.inner, first)
    return replace(operator, bias=None, gate=gate, inner=inner, added=None)


@from_position.register
def _(operator: Chain, first: int | Rows) -> Chain:
    return Chain(tuple(from_position(step, first) for step in operator.steps))


@from_position.register
def _(operator: Parallel, first: int | Rows) -> Parallel:
    return Parallel(tuple(from_position(part, first) for part in operator.parts))


def _refuse(operator: Operator, first: int | Rows) -> int:
    if isinstance(first, Rows):
        raise NotByPositionError(f"positions of a {type(operator).__name__} are not taken one by one")
    return first


def _cut(value: Tensor, first: int | Rows) -> Tensor:
    """[b q ..] from a position on, or for rows; one number for all positions stays."""
    if value.ndim < 2 or value.shape[1] == 1:
        return value
    return value.index_select(1, first.positions) if isinstance(first, Rows) else value[:, first:]


def widest(layer: HeldLayer, d_model: int) -> int:
    """Numbers that are alive at once, per position and source, while a layer is walked."""
    return 4 * d_model + max(
        (scratch(step.operator) for step in layer.block.steps if step.operator is not None), default=0
    )


@singledispatch
def scratch(operator: Operator) -> int:
    """Numbers that an operator needs per position and source, its result included."""
    raise TypeError(f"the memory of a {type(operator).__name__} is not known")


@scratch.register
def _(operator: Projection) -> int:
    return operator.weight.shape[1]


@scratch.register
def _(operator: HeldNorm) -> int:
    width = operator.gain.shape[0] if operator.gain is not None else 0
    return 3 * width


@scratch.register
def _(operator: Scaling) -> int:
    return 0


@scratch.register
def _(operator: SplitHeads) -> int:
    return 0


@scratch.register
def _(operator: HeldFeedForward) -> int:
    m, d = operator.out.shape
    return (len(operator.branches) + 2) * m + 2 * d


@scratch.register
def _(operator: Mixing) -> int:
    h, e, d = operator.weight.shape
    return 5 * h * e + d


@scratch.register
def _(operator: Rotary) -> int:
    return 0  # heads are as wide before as after: the chain that it is in counts them


@scratch.register
def _(operator: JoinHeads) -> int:
    h, e, d = operator.weight.shape
    return 4 * h * e + d


@scratch.register
def _(operator: Chain) -> int:
    widths = [_width(step) for step in operator.steps]
    return 2 * max(widths, default=0) + max((scratch(step) for step in operator.steps), default=0)


@scratch.register
def _(operator: Parallel) -> int:
    return max((scratch(part) for part in operator.parts), default=0) + sum(_width(part) for part in operator.parts)


@scratch.register
def _(operator: IntegratedAttention) -> int:
    heads, keys = operator.path.mean.shape[1], operator.path.mean.shape[-1]
    return 6 * heads * (operator.q.shape[-1] + operator.v.shape[-1]) + 4 * heads * keys


def _width(operator: Operator) -> int:
    """Numbers per position that an operator makes, where they are more than it was given."""
    if isinstance(operator, Projection):
        return operator.weight.shape[1]
    if isinstance(operator, HeldFeedForward):
        return operator.out.shape[1]
    return scratch(operator)
