"""Source vectors of joined layers at the points of their chain: attention, then norms and sums with the stream."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from ..carry.pairs import Summed
from ..graph import HeldStep
from ..operators import HeldNorm
from .mixing import JoinedPairs, LayersMixing


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

    def norms(self) -> Float[Tensor, "b q k"]:
        """|v_ij| for all pairs."""
        norms = self.pairs.norms[self.image]
        scaled = norms.clone() if self.scale is None else norms * self.scale[..., None].abs()
        scaled.diagonal(dim1=-2, dim2=-1).copy_(self.sizes[1])
        return scaled


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
