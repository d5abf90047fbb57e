"""Chunks of source tokens walked through the held map of a run, and what belongs to no source beside them.

Sources are numbered: positions of the stack first, then, in an encoder-decoder, positions of the encoder. Those of the
stack start at a cut of it; those of the encoder at its input, and reach the stack through what it reads of the encoder.
Values that a layer shares with a stream from before the start belong to no source, and so do all biases, but for those
of the first values if they are asked for.

Axes: s source, b batch, q position, k encoder position, d d_model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import MemoryBudgetError
from .linear.carry.forward import NotByPositionError, at_rows, carry, later, owning, widest
from .linear.carry.pairs import is_causal
from .linear.carry.rows import Rows, within
from .linear.graph import HeldBlock
from .linear.layers import HeldLayer
from .linear.operators import applied
from .linear.pieces import pieces
from .model_map import HeldStack, ModelMap


@dataclass(frozen=True)
class Chunk:
    """Sources that are walked together, and the first position that any of them reaches."""

    sources: tuple[int, ...]
    first: int = 0


@dataclass
class Walk:
    """The layers from a cut on, held once for all chunks.

    Attributes:
        start: the cut at which the stack's own sources start
        stop: the last layer that is walked
        first_bias: whether the offset of the first layer's values stays with its sources
    """

    map: ModelMap
    start: int
    stop: int
    first_bias: bool = False
    _blocks: dict[int, list[HeldBlock]] = field(default_factory=dict)

    @property
    def stack(self) -> HeldStack:
        return self.map.stack

    @cached_property
    def layers(self) -> list[HeldLayer]:
        return [self.stack.layer(number) for number in range(self.start, self.stop + 1)]

    @cached_property
    def encoder_layers(self) -> list[HeldLayer]:
        encoder = self.map.encoder
        return [] if encoder is None else [encoder.layer(number) for number in range(encoder.n_layers)]

    @cached_property
    def origin(self) -> Float[Tensor, "b q d"]:
        return self.stack.stream(self.start)

    @property
    def n_own(self) -> int:
        """Positions of the stack."""
        return self.origin.shape[1]

    @cached_property
    def n_sources(self) -> int:
        encoder = self.map.encoder
        return self.n_own + (0 if encoder is None else encoder.stream(0).shape[1])

    @cached_property
    def causal(self) -> bool:
        """Whether no source reaches an earlier position, and positions can be cut off every operator."""
        for layer in self.layers:
            mixing = None if layer.attention is None else layer.attention.mixing
            if mixing is not None and not is_causal(mixing.pattern):
                return False
        try:
            for layer in self.layers:
                later(layer, 0)
        except NotByPositionError:
            return False
        return True

    @cached_property
    def in_rows(self) -> bool:
        """Whether positions that no source reaches are left out altogether."""
        if not self.causal or self.first_bias or self.map.encoder is not None:
            return False
        try:
            for layer in self.layers:
                at_rows(layer, Rows((0,), 1, self.origin.device))
        except NotByPositionError:
            return False
        return True

    # ---- vectors

    def chunks(self, sources: Sequence[int], max_memory: int | None) -> Iterator[Chunk]:
        """Sources in pieces that fit the budget.

        Raises:
            MemoryBudgetError: one source alone does not.
        """
        own = sorted(source for source in sources if source < self.n_own)
        far = [source for source in sources if source >= self.n_own]
        at = 0
        while at < len(own):
            first = own[at] if self.causal else 0
            size = self._size(own[at], self.n_own - first, max_memory)
            if self.in_rows:
                most = max(1, pieces(self.origin.device).rows // len(self.origin))
                size = within(own[at : at + size] if max_memory is not None else own[at:], self.n_own, most)
            elif self.causal:  # the sources of a chunk share their first position: few enough that little is wasted
                size = min(size, max(self.n_own // 8, 256 // self.n_own, 1))
            yield Chunk(tuple(own[at : at + size]), first)
            at += size
        size = self._size(far[0], self.n_own, max_memory) if far else 1
        for at in range(0, len(far), size):
            yield Chunk(tuple(far[at : at + size]))

    def _size(self, source: int, n_positions: int, max_memory: int | None) -> int:
        n_batch = len(self.origin)
        each = self.bytes_of(source, n_positions)
        if max_memory is not None and max_memory < self.bytes_of(source, self.n_own):
            least = max(self.bytes_of(one, self.n_own) for one in (0, self.n_sources - 1))
            raise MemoryBudgetError(
                f"max_memory is {max_memory} bytes, but the vectors of one source token need {least} on their way "
                f"through a layer. Pass max_memory={least} or more, or a shorter text."
            )
        rows = pieces(self.origin.device).rows // (n_positions * n_batch)
        return max(1, rows if max_memory is None else min(rows, max_memory // each))

    def bytes_of(self, source: int, n_positions: int) -> int:
        """What the vectors of one source need at most while they are walked, at so many positions."""
        n_batch, _, d = self.origin.shape
        size = self.origin.element_size() * n_batch
        most = n_positions * (max(widest(layer, d) for layer in self.layers) + d * len(self._shared))
        if source >= self.n_own and self.map.encoder is not None:
            x = self.map.encoder.stream(0)
            width = x.shape[-1]
            # the encoder's output is read by every layer of the decoder
            most += x.shape[1] * (2 * width + max(widest(layer, width) for layer in self.encoder_layers))
        return size * most

    @cached_property
    def _shared(self) -> set[int]:
        """Cuts whose stream later layers read."""
        return {cut for layer in self.layers for cut in layer.elsewhere if cut is not None and cut >= self.start}

    def carried(self, chunk: Chunk) -> Iterator[tuple[int, Float[Tensor, "s b q d"]]]:
        """The vectors of a chunk after every layer, at positions from its first on."""
        if self.in_rows and chunk.sources[0] < self.n_own:
            yield from self._carried_in_rows(Rows(chunk.sources, self.n_own, self.origin.device))
            return
        if chunk.sources[0] < self.n_own:
            x, memory = _apart(self.origin, chunk.sources, chunk.first), None
        else:
            x, memory = None, self._through_the_encoder([source - self.n_own for source in chunk.sources])
        blocks = self._from(chunk.first)
        if self.first_bias and x is not None:
            blocks = [owning(blocks[0], self.layers[0], chunk.sources, chunk.first), *blocks[1:]]
        passed: dict[int, Tensor | None] = {}
        for number, (layer, block) in enumerate(zip(self.layers, blocks, strict=True), self.start):
            if number in self._shared:
                passed[number] = x
            elsewhere = [memory if cut is None else passed.get(cut) for cut in layer.elsewhere]
            x = carry(block, x, elsewhere)
            n_batch, n, d = self.origin.shape
            if x is None:  # nothing of the encoder has been read yet
                yield number, self.origin.new_zeros(len(chunk.sources), n_batch, n - chunk.first, d)
            else:
                yield number, x

    def _carried_in_rows(self, rows: Rows) -> Iterator[tuple[int, Float[Tensor, "s b q d"]]]:
        x: Tensor | None = rows.alone(self.origin)
        for number, layer in enumerate(self.layers, self.start):
            x = carry(at_rows(layer, rows), x)
            if x is not None:
                yield number, rows.laid_out(x)

    def _from(self, first: int) -> list[HeldBlock]:
        if first == 0:
            return [layer.block for layer in self.layers]
        return [later(layer, first) for layer in self.layers]

    def _through_the_encoder(self, positions: Sequence[int]) -> Float[Tensor, "s b k d"] | None:
        encoder, way = self.map.encoder, self.map.to_memory
        if encoder is None or way is None:
            return None
        x: Tensor | None = _apart(encoder.stream(0), positions, 0)
        passed: dict[int, Tensor | None] = {}
        for number, layer in enumerate(self.encoder_layers):
            passed[number] = x
            block = owning(layer.block, layer, positions, 0) if self.first_bias and number == 0 else layer.block
            x = carry(block, x, [None if cut is None else passed.get(cut) for cut in layer.elsewhere])
        return None if x is None else way(x)

    # ---- what belongs to no source

    def remainders(self) -> Iterator[tuple[int, Float[Tensor, "b q d"]]]:
        """r after every layer, at real positions: what the affine map makes of nothing."""
        memory = self._remainder_of_the_encoder()
        r = torch.zeros_like(self.origin)
        passed: dict[int, Tensor] = {}
        real = self.stack.real()[..., None]
        for number, layer in enumerate(self.layers, self.start):
            passed[number] = r
            elsewhere = []
            for cut in layer.elsewhere:
                if cut is not None:
                    elsewhere.append(passed[cut] if cut >= self.start else self.stack.stream(cut))
                else:
                    elsewhere.append(self.stack.outside(None) if memory is None else memory)
            block = self._without_first_bias(layer, number == self.start)
            r = block.forward(r, elsewhere, offsets=True)[-1].masked_fill(~real, 0)
            yield number, r

    def _remainder_of_the_encoder(self) -> Tensor | None:
        encoder, way = self.map.encoder, self.map.to_memory
        if encoder is None or way is None:
            return None
        r = torch.zeros_like(encoder.stream(0))
        passed: dict[int, Tensor] = {}
        for number, layer in enumerate(self.encoder_layers):
            passed[number] = r
            block = self._without_first_bias(layer, number == 0)
            r = block.forward(r, [r if cut is None else passed[cut] for cut in layer.elsewhere], offsets=True)[-1]
        return applied(way, r)

    def _without_first_bias(self, layer: HeldLayer, is_first: bool) -> HeldBlock:
        return owning(layer.block, layer, (), 0) if self.first_bias and is_first else layer.block


def _apart(stream: Float[Tensor, "b q d"], positions: Sequence[int], first: int) -> Float[Tensor, "s b q d"]:
    """Every position alone in a stream of zeros."""
    n_batch, n, d = stream.shape
    x = stream.new_zeros(len(positions), n_batch, n - first, d)
    for number, position in enumerate(positions):
        x[number, :, position - first] = stream[:, position]
    return x
