"""Token vectors of a causal stack without the positions that no source reaches: one row per (source, position).

A source reaches its own position and those after it. Everything but attention works on single positions, so luggage is
stacked as rows, [b p d], and what operators hold is taken at the position of each row. Attention lays the values out
by source and position, mixes, and takes the rows again.

Axes: b batch, p row, s source, q position.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..operators import Mixing


@dataclass(frozen=True)
class Rows:
    """The (source, position) pairs of some sources, source by source.

    Attributes:
        sources: positions at which the sources stand, in their order
        n: positions that there are
    """

    sources: tuple[int, ...]
    n: int
    device: torch.device

    @property
    def first(self) -> int:
        """The first position that any of them reaches."""
        return self.sources[0]

    @cached_property
    def positions(self) -> Int[Tensor, " p"]:
        """Of every row."""
        parts = [torch.arange(source, self.n, device=self.device) for source in self.sources]
        return torch.cat(parts)

    @cached_property
    def places(self) -> Int[Tensor, " p"]:
        """Where a row stands if sources are laid out by position, from the first position on."""
        width, first = self.n - self.first, self.first
        parts = [
            torch.arange(number * width + source - first, (number + 1) * width, device=self.device)
            for number, source in enumerate(self.sources)
        ]
        return torch.cat(parts)

    def laid_out(self, x: Float[Tensor, "b p *d"]) -> Float[Tensor, "s b q *d"]:
        """By source and position; zero where a source does not reach."""
        n_sources, width = len(self.sources), self.n - self.first
        whole = x.new_zeros(len(x), n_sources * width, *x.shape[2:])
        return whole.index_copy_(1, self.places, x).unflatten(1, (n_sources, width)).movedim(1, 0)

    def taken(self, x: Float[Tensor, "s b q *d"]) -> Float[Tensor, "b p *d"]:
        """The rows of what is laid out."""
        return x.movedim(0, 1).flatten(1, 2).index_select(1, self.places)

    def alone(self, stream: Float[Tensor, "b q d"]) -> Float[Tensor, "b p d"]:
        """Every source alone in a stream of zeros."""
        lengths = [self.n - source for source in self.sources]
        begins = [sum(lengths[:number]) for number in range(len(lengths))]
        x = stream.new_zeros(len(stream), sum(lengths), stream.shape[-1])
        x[:, begins] = stream[:, list(self.sources)]
        return x


@dataclass(frozen=True)
class RowsMixed:
    """Attention on rows: `mixing` between positions from the first on, `send` with what it holds at every row."""

    rows: Rows
    mixing: Mixing
    sending: Mixing
    offset: Tensor | None = None

    def __call__(self, x: Float[Tensor, "b p h e"]) -> Float[Tensor, "b p d"]:
        return self.sending.send(self.rows.taken(self.mixing.mixed(self.rows.laid_out(x))))

    def transpose(self, g: Float[Tensor, "b p d"]) -> Float[Tensor, "b p h e"]:
        raise NotImplementedError("rows are carried forward only")


def within(sources: Sequence[int], n: int, most: int) -> int:
    """How many of the sources, one at least, have no more rows than `most`."""
    total = 0
    for number, source in enumerate(sources):
        total += n - source
        if total > most and number:
            return number
    return len(sources)
