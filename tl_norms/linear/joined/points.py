"""Source vectors of joined layers at the points of their chain: attention, then norms and sums with the stream.

What is compared with vectors found another way are the very numbers that are returned.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from ..carry.pairs import Summed, norms_of
from ..graph import HeldStep
from ..measure.spots import Spots, compare_parts
from ..operators import HeldNorm
from .mixing import JoinedPairs, LayersMixing

_POSITIONS = 32  # at most, whose own vectors and sums are measured twice


@dataclass(frozen=True)
class Point(Summed):
    """Source vectors of the layers at one point of the chain: `others + own + rest` is the activation itself.

    Attributes:
        pairs: what the vectors of pairs give
        image: which of their images these are
        scale: what the image is multiplied with, for every query
        own: v_ii, attention to self and the stream together
        rest: what belongs to no source
    """

    pairs: JoinedPairs
    image: int
    scale: Float[Tensor, "b q"] | None
    own: Float[Tensor, "b q d"]
    rest: Float[Tensor, "b q d"]

    @cached_property
    def others(self) -> Float[Tensor, "b q d"]:
        """sum_{j != i} v_ij."""
        others = self.pairs.others[self.image]
        return others if self.scale is None else others * self.scale[..., None]

    def norms(self, out: Float[Tensor, "b q k"]) -> None:
        """|v_ij| for all pairs, into `out`."""
        norms = self.pairs.norms[self.image]
        if self.scale is None:
            out.copy_(norms)
        else:
            torch.mul(norms, self.scale[..., None].abs(), out=out)
        out.diagonal(dim1=-2, dim2=-1).copy_(self.sizes[1])

    def chosen(self) -> Spots:
        """The norms of chosen pairs, as they are returned."""
        chosen = self.pairs.chosen
        spots = Spots(chosen.queries, chosen.keys, chosen.norms[self.image], chosen.sizes)
        return spots if self.scale is None else spots.scaled(self.scale)


@dataclass(frozen=True)
class Measured:
    """The numbers of several points, one after the other, as they are returned.

    Attributes:
        maps: |v_ij|
        rests: the norms of what belongs to no source
        ratios: |others| / (|others| + |own|)
    """

    maps: Float[Tensor, "p b q k"]
    rests: Float[Tensor, "p b q"]
    ratios: Float[Tensor, "p b q"]


def measured(points: Sequence[Point]) -> Measured:
    """All numbers of some points, compared with what their vectors give once more.

    Raises:
        DecompositionError: a number is another.
    """
    own = points[0].own
    maps = own.new_empty(len(points), *own.shape[:2], own.shape[1])
    for point, out in zip(points, maps.unbind(), strict=True):
        point.norms(out)
    found = Measured(maps, _stacked([p.sizes[2] for p in points]), _stacked([p.mixing_ratio() for p in points]))
    chosen = [point.chosen() for point in points]
    norms, sizes = (_stacked([getattr(one, name) for one in chosen]).flatten(0, 1) for name in ("norms", "sizes"))
    Spots(chosen[0].queries, chosen[0].keys, norms, sizes).compare(found.maps.flatten(0, 1), "norms of pairs")
    some = slice(None, None, math.ceil(own.shape[1] / _POSITIONS))
    parts = [tuple(part[:, some] for part in (point.others, point.own, point.rest)) for point in points]
    again = torch.stack([norms_of(three) for three in parts], dim=1)
    diagonal = found.maps.diagonal(dim1=-2, dim2=-1)
    compare_parts(diagonal[..., some], found.rests[..., some], found.ratios[..., some], again)
    return found


def _stacked(parts: list[Tensor]) -> Tensor:
    return parts[0][None] if len(parts) == 1 else torch.stack(parts)


def attended(mixing: LayersMixing, pairs: JoinedPairs) -> Point:
    """What attention writes; its bias belongs to no source."""
    rest = torch.zeros_like(pairs.own) if mixing.bias is None else mixing.bias.expand_as(pairs.own)
    return Point(pairs, 0, None, pairs.own, rest)


def after(step: HeldStep, point: Point, stream: Tensor) -> Point:
    """Source vectors after a norm, or after a sum with the stream."""
    if isinstance(step.operator, HeldNorm):
        own, rest = step.operator(torch.stack([point.own, point.rest]))
        rest = rest if step.operator.offset is None else rest + step.operator.offset
        scale = step.operator.inverse_scale
        scale = scale if point.scale is None else point.scale * scale
        return replace(point, image=point.image + 1, scale=scale, own=own, rest=rest)
    if step.operator is not None or step.other is None:
        raise TypeError("only norms, and sums with the stream, follow here")
    stream = stream if step.other_scale == 1 else stream * step.other_scale
    if step.scale == 1:
        return replace(point, own=point.own + stream)
    scale = torch.full_like(point.own[..., 0], step.scale) if point.scale is None else point.scale * step.scale
    return replace(point, scale=scale, own=point.own * step.scale + stream, rest=point.rest * step.scale)
