"""Carry covectors back through a held layer: what each of its parts gives to a number read off its output.

g is the covector of what leaves the layer. Of what enters it: g^0 = M^T g, so that <g^0, x> + <what belongs to no
source> = <g, x'>. The cut at the values splits g^0 in two: along the skip connection (with all that reads the stream
beside the attention), and through the values.

Axes: *s targets, b batch, q position, k key, h head, e d_head, d d_model.
"""

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from ..layers import HeldAttention, HeldFeedForward, HeldLayer
from ..operators import inner


@dataclass(frozen=True)
class Reading:
    """A number read off real activations: the covector of a point, and what is there."""

    covector: Float[Tensor, "..."]  # [*s b q *d]
    real: Float[Tensor, "b q *d"]

    def by_position(self) -> Float[Tensor, "*s b q"]:
        leading = self.covector.ndim - self.real.ndim
        return (self.covector * self.real).flatten(leading + 2).sum(-1)

    def by_head(self) -> Float[Tensor, "*s b h"]:
        return (self.covector * self.real).sum((-1, -3))

    def by_key(self) -> Float[Tensor, "*s b h k"]:
        return (self.covector * self.real).sum(-1).transpose(-1, -2)


@dataclass(frozen=True)
class WrittenBy:
    """What the feed-forwards that read one point gave to a number: as written, and as their operators make it.

    Attributes:
        wrote: at each point that they write
        entered: at the point that they read, without what others that read it carried there
        offset: <g, what they add by themselves>
    """

    wrote: tuple[Reading, ...]
    entered: Reading
    offset: Float[Tensor, "*s b"]


@dataclass(frozen=True)
class LayerCredit:
    """What one layer gives, as covectors and activations: numbers are made of them where they are returned.

    Attributes:
        entering: covector of the stream that enters
        elsewhere: covectors of what is read from elsewhere, by its negative number
        offset: <g, offset> of all its steps but those of the value path; value_offset: of the value path
        bypass: the stream that enters, along the skip connection
        feed_forwards: by the point that they read
        ways: with the softmax integrated: of queries, keys and values
        heads, crossing_heads: of values, or of the mixed values where the softmax is integrated
        attended, crossed: covectors of what attention and cross-attention write
    """

    entering: Float[Tensor, "*s b q d"]
    elsewhere: dict[int, Tensor]
    offset: Float[Tensor, "*s b"]
    value_offset: Float[Tensor, "*s b"]
    bypass: Reading
    feed_forwards: tuple[WrittenBy, ...] = ()
    ways: tuple[Reading, Reading, Reading] | None = None
    heads: Reading | None = None
    crossing_heads: Reading | None = None
    attended: Float[Tensor, "*s b q d"] | None = None
    crossed: Float[Tensor, "*s b q d"] | None = None


@dataclass
class _Elsewhere:
    covectors: dict[int, Tensor] = field(default_factory=dict)

    def add(self, number: int, g: Tensor) -> None:
        before = self.covectors.get(number)
        self.covectors[number] = g if before is None else before + g


def back_through(layer: HeldLayer, g: Float[Tensor, "*s b q d"], x: Float[Tensor, "b q d"]) -> LayerCredit:
    """One layer back, cut at its values on the way; x is the stream that really enters."""
    attention, crossing = layer.attention, layer.crossing
    elsewhere = _Elsewhere()
    cut = 0 if attention is None else attention.values_point
    credits: dict[int, Tensor] = {}
    found = layer.block.backward({layer.last: g}, elsewhere.covectors, credits, down_to=cut)
    offset, value_offset = sum(credits.values(), _zero(g)), _zero(g)
    entering = g.new_zeros(g.shape) if found[0] is None else found[0]
    bypass = Reading(entering, x)
    at_values = None if attention is None else found[attention.values_point]
    ways: tuple[Reading, Reading, Reading] | None = None
    if attention is not None and at_values is not None:
        if attention.integrated:
            carried, ways, value_offset = _by_ways(attention, at_values, g)
        else:
            carried = [(attention.reads, attention.path.transpose(at_values))]
            own = attention.path.offset
            value_offset = value_offset if own is None else inner(at_values, own, g.ndim - 2)
        for reads, through in carried:
            if reads == 0:
                entering = entering + through
            else:
                elsewhere.add(reads, through)
    return LayerCredit(
        entering,
        elsewhere.covectors,
        offset,
        value_offset,
        bypass,
        _written(layer, found, credits, g, cut),
        ways,
        None if attention is None else _heads(at_values, attention, g),
        None if crossing is None else _heads(found[crossing.values_point], crossing, g),
        None if attention is None else _before_edit(layer, attention.point, found[attention.point]),
        None if crossing is None else _before_edit(layer, crossing.point, found[crossing.point]),
    )


def _written(
    layer: HeldLayer, found: list[Tensor | None], credits: dict[int, Tensor], g: Tensor, cut: int
) -> tuple[WrittenBy, ...]:
    """What the feed-forwards wrote, by the point that they read; steps up to `cut` carried nothing."""
    by_read: dict[int, list[HeldFeedForward]] = {}
    for one in layer.feed_forwards:
        if found[one.point] is not None:
            by_read.setdefault(one.reads, []).append(one)
    made = []
    for reads, group in by_read.items():
        points = {one.point for one in group}
        entered = found[reads]
        entered = g.new_zeros(g.shape) if entered is None else entered
        for number, step in enumerate(layer.block.steps, start=1):  # what others that read the same point carried there
            covector = found[number]
            if number <= cut or number in points or covector is None:
                continue
            if reads in (step.reads, step.other):
                entered = entered - step.carried_back(covector, g.ndim - 2)[0][reads]
        wrote, offset = [], _zero(g)
        for one in group:
            covector = found[one.point]
            if covector is not None:
                wrote.append(Reading(covector, one.wrote))
                offset = offset + credits[one.point] if one.point in credits else offset
        made.append(WrittenBy(tuple(wrote), Reading(entered, group[0].entered), offset))
    return tuple(made)


def _by_ways(
    attention: HeldAttention, at_mixed: Float[Tensor, "*s b q h e"], g: Tensor
) -> tuple[list[tuple[int, Tensor]], tuple[Reading, Reading, Reading], Tensor]:
    """Back through an integrated softmax: covectors of what is read, queries, keys and values, the offset."""
    carried: list[tuple[int, Tensor]] = []
    found: dict[int, Reading] = {}
    offset = _zero(g)
    for reads, part in attention.integrated:
        ways = zip(
            (part.queries, part.keys, part.values), (part.q, part.k, part.v), part.at_heads(at_mixed), strict=True
        )
        for number, (operator, real, covector) in enumerate(ways):
            if operator is not None and covector is not None:
                carried.append((reads, operator.transpose(covector)))
                found[number] = Reading(covector, real if operator.offset is None else real - operator.offset)
        own = part.offset
        offset = offset if own is None else offset + inner(at_mixed, own, g.ndim - 2)
    return carried, (found[0], found[1], found[2]), offset


def _before_edit(layer: HeldLayer, point: int, g: Tensor | None) -> Tensor | None:
    """A covector of a point as its step made it, before a hook changed it."""
    edit = layer.block.steps[point - 1].edit
    return g if g is None or edit is None else edit.transpose(g)


def _heads(at_values: Tensor | None, attention: HeldAttention, g: Tensor) -> Reading:
    """The covectors of the values with the values: what every head gives, all keys added."""
    real = attention.integrated[0][1].mixed if attention.integrated else attention.values
    return Reading(g.new_zeros(*g.shape[:-3], *real.shape) if at_values is None else at_values, real)


def edge_credits(attended: Float[Tensor, "*s b q d"], attention: HeldAttention) -> Float[Tensor, "*s b h q k"]:
    """a^h_ij <g_i, v^h_j W_O^h>: what every head gives by what it moved from key j to query i."""
    g = attention.mixing.at_mixed(attended)
    scores = g.transpose(-3, -2) @ attention.values.permute(0, 2, 3, 1)  # [*s b h q e] @ [b h e k]
    return scores * attention.mixing.pattern


def logit_credits(
    attended: Float[Tensor, "*s b q d"], attention: HeldAttention
) -> tuple[Float[Tensor, "*s b h q k"], Float[Tensor, "*s b h q"]]:
    """What every logit gives to an integrated softmax, and what sinks give."""
    g = attention.mixing.at_mixed(attended)
    if not attention.integrated:
        scores = attention.mixing.pattern.new_zeros(*attended.shape[:-3], *attention.mixing.pattern.shape)
        return scores, scores.sum(-1)
    whole = attention.integrated[0][1].logit_credits(g)
    n_keys = attention.mixing.pattern.shape[-1]
    return whole[..., :n_keys], whole[..., n_keys:].sum(-1)


@dataclass(frozen=True)
class DirectCredit:
    """What one layer writes gives to a number read off the stream after it, through nothing but its own norms.

    Attributes:
        entering: covector of the stream that enters, along the skip connection alone
        offset: of the steps on the way
        attended, crossed: covectors of what attention and cross-attention write; `by_key` makes numbers of them
        feed_forwards: at the points that they write
    """

    entering: Float[Tensor, "*s b q d"]
    offset: Float[Tensor, "*s b"]
    attended: Float[Tensor, "*s b q d"] | None
    crossed: Float[Tensor, "*s b q d"] | None
    feed_forwards: tuple[Reading, ...]


def direct_through(layer: HeldLayer, g: Float[Tensor, "*s b q d"]) -> DirectCredit:
    """One layer back along its skip connection; its attention and feed-forwards only write."""
    writers = {one.point for one in layer.feed_forwards}
    parts = (layer.attention, layer.crossing)
    found = layer.block.backward({layer.last: g}, stop=writers | {part.point for part in parts if part is not None})
    offset = _zero(g)
    for number, own in enumerate(layer.block.offsets()):
        covector = found[number]
        if own is not None and covector is not None and number not in writers:
            offset = offset + inner(covector, own, g.ndim - 2)
    wrote = []
    for one in layer.feed_forwards:
        covector = found[one.point]
        if covector is not None:
            wrote.append(Reading(covector, one.wrote))
    attended = [None if part is None else _before_edit(layer, part.point, found[part.point]) for part in parts]
    for part, covector in zip(parts, attended, strict=True):
        if part is not None and part.integrated and covector is not None:
            offset = offset + logit_credits(covector, part)[1].sum((-1, -2))
    entering = found[0]
    entering = g.new_zeros(g.shape) if entering is None else entering
    return DirectCredit(entering, offset, attended[0], attended[1], tuple(wrote))


def by_key(attended: Float[Tensor, "*s b q d"], attention: HeldAttention) -> Float[Tensor, "*s b h k"]:
    """What every head gives by what it moved from each key (and did to its logits), all queries added."""
    moved = Reading(attention.mixing.transpose(attended), attention.values).by_key()
    return moved if not attention.integrated else moved + logit_credits(attended, attention)[0].sum(-2)


def _zero(g: Tensor) -> Tensor:
    return g.new_zeros(g.shape[:-2])
