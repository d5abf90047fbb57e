"""A held layer of a model: a held block in which attention is cut at the values, and what it reads from elsewhere."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from .graph import HeldBlock
from .integrated_attention import IntegratedAttention
from .operators import Chain, Mixing


@dataclass(frozen=True)
class HeldAttention:
    """One attention of a held layer, cut at the values.

    Attributes:
        values_point, point: of the values and of what attention writes, in the held block
        reads: point 0, or the negative number of what is read from elsewhere
        values: of every key and head, grouped heads repeated
        path, mixing: from what is read to the values, and from the values to what is written
        integrated: with its softmax integrated: the operators that make the mixed values, which `values_point` then
            is, each with what it reads (a point, or the negative number of what is read from elsewhere); the pattern
            of `mixing` is then the mean pattern
    """

    values_point: int
    point: int
    reads: int
    values: Float[Tensor, "b k h e"]
    path: Chain
    mixing: Mixing
    integrated: tuple[tuple[int, IntegratedAttention], ...] = ()

    @property
    def nodes(self) -> int:
        """Of the quadrature, if the softmax is integrated."""
        return len(self.integrated[0][1].path.nodes) if self.integrated else 0


@dataclass(frozen=True)
class HeldFeedForward:
    """One feed-forward of a held layer: the points it reads and writes, with the model's activations there."""

    reads: int
    point: int
    entered: Float[Tensor, "b q d"]
    wrote: Float[Tensor, "b q d"]


@dataclass(frozen=True)
class HeldLayer:
    """One layer of one run.

    Attributes:
        block: the held steps; point 0 is the stream that enters, the last point the one that enters the next layer
        attention, crossing: self- and cross-attention; None where there is none
        elsewhere: what -1, -2, .. are: the layer whose input is read, or None for the encoder's output
        feed_forwards: in their order
        written: without attention: how long what this layer adds to the stream is, relative to the stream, mean
    """

    layer: int
    block: HeldBlock
    attention: HeldAttention | None = None
    crossing: HeldAttention | None = None
    elsewhere: tuple[int | None, ...] = ()
    feed_forwards: tuple[HeldFeedForward, ...] = ()
    written: float = 0.0

    @property
    def last(self) -> int:
        return len(self.block.steps)
