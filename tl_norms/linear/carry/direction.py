"""Carry covectors back through a held layer: what each of its parts gives to a number read off its output.

g is the covector of what leaves the layer. Of what enters it: g^0 = M^T g, so that <g^0, x> + <what belongs to no
source> = <g, x'>. The cut at the values splits g^0 in two: along the skip connection (with all that reads the stream
beside the attention), and through the values.

Axes: *s targets, b batch, q position, k key, h head, e d_head, d d_model.
"""

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from ..layers import HeldAttention, HeldLayer


@dataclass(frozen=True)
class LayerCredit:
    """What one layer gives.

    Attributes:
        entering: covector of the stream that enters
        elsewhere: covectors of what is read from elsewhere, by its negative number
        offset: <g, offset> of all its steps but those of the value path; value_offset: of the value path
        bypass: what every position gives along the skip connection
        heads, crossing_heads: what every head writes gives, all queries and keys added
        ffn: what the feed-forward wrote at every position gives
        ways: with the softmax integrated: what every position gives through queries, keys and values
        attended, crossed: covectors of what attention and cross-attention write
    """

    entering: Float[Tensor, "*s b q d"]
    elsewhere: dict[int, Tensor]
    offset: Float[Tensor, "*s b"]
    value_offset: Float[Tensor, "*s b"]
    bypass: Float[Tensor, "*s b q"]
    ffn: Float[Tensor, "*s b q"]
    ways: tuple[Tensor, Tensor, Tensor] | None = None
    heads: Float[Tensor, "*s b h"] | None = None
    crossing_heads: Float[Tensor, "*s b h"] | None = None
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
    found = layer.block.backward({layer.last: g}, elsewhere.covectors, down_to=cut)
    offset, value_offset, ffn = _zero(g), _zero(g), g.new_zeros(g.shape[:-1])
    for number, step in enumerate(layer.block.steps, start=1):
        covector = found[number]
        own = None if number <= cut or covector is None else step.offset
        if own is not None and covector is not None:
            offset = offset + inner(covector, own, g)
    for point, wrote in layer.feed_forwards:
        covector = found[point]
        ffn = ffn if covector is None else ffn + (covector * wrote).sum(-1)
    skip = found[0]
    entering = g.new_zeros(g.shape) if skip is None else skip
    bypass = (entering * x).sum(-1)
    at_values = None if attention is None else found[attention.values_point]
    ways: tuple[Tensor, Tensor, Tensor] | None = None
    if attention is not None and at_values is not None:
        if attention.integrated:
            carried, ways, value_offset = _by_ways(attention, at_values, g)
        else:
            carried = [(attention.reads, attention.path.transpose(at_values))]
            own = attention.path.offset
            value_offset = value_offset if own is None else inner(at_values, own, g)
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
        ffn,
        ways,
        None if attention is None else head_sums(at_values, attention, g),
        None if crossing is None else head_sums(found[crossing.values_point], crossing, g),
        None if attention is None else _before_edit(layer, attention.point, found[attention.point]),
        None if crossing is None else _before_edit(layer, crossing.point, found[crossing.point]),
    )


def _by_ways(
    attention: HeldAttention, at_mixed: Float[Tensor, "*s b q h e"], g: Tensor
) -> tuple[list[tuple[int, Tensor]], tuple[Tensor, Tensor, Tensor], Tensor]:
    """Back through an integrated softmax: covectors of what is read, what positions give by each way, the offset."""
    carried: list[tuple[int, Tensor]] = []
    found: dict[int, Tensor] = {}
    offset = _zero(g)
    for reads, part in attention.integrated:
        ways = zip(
            (part.queries, part.keys, part.values), (part.q, part.k, part.v), part.at_heads(at_mixed), strict=True
        )
        for number, (operator, real, covector) in enumerate(ways):
            if operator is not None and covector is not None:
                carried.append((reads, operator.transpose(covector)))
                linear = real if operator.offset is None else real - operator.offset
                found[number] = (covector * linear).sum((-1, -2))
        own = part.offset
        offset = offset if own is None else offset + inner(at_mixed, own, g)
    return carried, (found[0], found[1], found[2]), offset


def _before_edit(layer: HeldLayer, point: int, g: Tensor | None) -> Tensor | None:
    """A covector of a point as its step made it, before a hook changed it."""
    edit = layer.block.steps[point - 1].edit
    return g if g is None or edit is None else edit.transpose(g)


def head_sums(at_values: Tensor | None, attention: HeldAttention, g: Tensor) -> Float[Tensor, "*s b h"]:
    """What every head gives: the covectors of the values with the values, all keys added."""
    if at_values is None:
        return g.new_zeros(*g.shape[:-2], attention.values.shape[2])
    if attention.integrated:
        return (at_values * attention.integrated[0][1].mixed).sum((-1, -3))
    return (at_values * attention.values).sum((-1, -3))


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
        heads, crossing_heads: by source token
        ffn: all positions added
    """

    entering: Float[Tensor, "*s b q d"]
    offset: Float[Tensor, "*s b"]
    heads: Float[Tensor, "*s b h k"] | None
    crossing_heads: Float[Tensor, "*s b h source"] | None
    ffn: Float[Tensor, "*s b"]


def direct_through(layer: HeldLayer, g: Float[Tensor, "*s b q d"]) -> DirectCredit:
    """One layer back along its skip connection; its attention and feed-forward are met as writers."""
    writers = {point for point, _ in layer.feed_forwards}
    attentions = [part for part in (layer.attention, layer.crossing) if part is not None]
    writers |= {part.point for part in attentions}
    found = layer.block.backward({layer.last: g}, stop=writers)
    ffn_points = {point for point, _ in layer.feed_forwards}
    offset, ffn = _zero(g), _zero(g)
    for number, own in enumerate(layer.block.offsets()):
        covector = found[number]
        if own is not None and covector is not None and number not in ffn_points:
            offset = offset + inner(covector, own, g)
    for point, wrote in layer.feed_forwards:
        covector = found[point]
        ffn = ffn if covector is None else ffn + inner(covector, wrote, g)
    heads = [
        None if part is None else _by_key(_before_edit(layer, part.point, found[part.point]), part)
        for part in (layer.attention, layer.crossing)
    ]
    for part in attentions:
        attended = _before_edit(layer, part.point, found[part.point])
        if part.integrated and attended is not None:
            offset = offset + logit_credits(attended, part)[1].sum((-1, -2))
    entering = found[0]
    return DirectCredit(g.new_zeros(g.shape) if entering is None else entering, offset, heads[0], heads[1], ffn)


def _by_key(attended: Tensor | None, attention: HeldAttention) -> Tensor | None:
    if attended is None:
        return None
    moved = (attention.mixing.transpose(attended) * attention.values).sum(-1).transpose(-1, -2)
    return moved if not attention.integrated else moved + logit_credits(attended, attention)[0].sum(-2)


def inner(covector: Tensor, vector: Tensor, like: Float[Tensor, "*s b q d"]) -> Float[Tensor, "*s b"]:
    """<covector, vector> over all but the leading axes of `like` and the batch."""
    return (covector * vector).flatten(like.ndim - 2).sum(-1)


def _zero(g: Tensor) -> Tensor:
    return g.new_zeros(g.shape[:-2])
