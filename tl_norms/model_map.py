"""The held map of a whole model for one run: all blocks of a stack, joined, with both ends.

    read     Block, ValuePath, Joins, Head        blocks/           names, decided once per model
    hold     HeldLayer, HeldHead                  this file         operators and the real activations, layer by layer
    carry    backward                             attribution       a direction from the end to every cut
             forward                              propagation       token vectors from the start to every cut

In a held layer attention is two steps, the values (a value path, from the stream) and their mixing, so that the cut at
the values is a point like any other. What a layer reads from elsewhere (an encoder's output, the stream of an earlier
layer whose values it shares) has negative numbers, in the order of `HeldLayer.elsewhere`. A layer without attention is
its skip connection: what it wrote belongs to no source.
"""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .blocks.activations import Activations
from .blocks.ends import Joins, head, joins, memory
from .blocks.structure import Attention, Block, CrossAttention, FeedForward, Reader
from .blocks.values import ValuePath, value_paths
from .errors import DecompositionError, UnsupportedArchitectureError
from .freeze import FrozenBlock
from .freeze_ends import HeldHead, hold_head, hold_way
from .freeze_values import hold_path
from .linear.graph import HeldBlock, HeldStep
from .linear.layers import HeldAttention, HeldLayer
from .linear.operators import Chain, applied
from .plan import reader_of

TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@dataclass
class HeldStack:
    """All layers of one stack of one run, each held when it is asked for.

    Attributes:
        memory: what these blocks read of an encoder
        keep: whether layers stay held; otherwise each is let go as soon as its user does
    """

    reader: Reader
    activations: Activations
    joins: Joins
    paths: dict[str, ValuePath]
    memory: Float[Tensor, "b k d"] | None = None
    keep: bool = False
    _layers: dict[int, HeldLayer] = field(default_factory=dict)

    @property
    def n_layers(self) -> int:
        return len(self.joins.streams)

    @property
    def tolerance(self) -> float:
        return TOLERANCE[self.activations.coarsest]

    def stream(self, cut: int) -> Float[Tensor, "b q d"]:
        """What enters a layer; after the last one, what leaves it."""
        if cut < self.n_layers:
            return self.activations.vectors(self.joins.streams[cut])
        return self.activations.truth(self.joins.last)

    def real(self) -> Bool[Tensor, "b q"]:
        """Which positions are not padding."""
        return self.activations.real(self.stream(0))

    def layer(self, number: int) -> HeldLayer:
        """One layer, held."""
        if number in self._layers:
            return self._layers[number]
        made = self._held(number)
        if self.keep:
            self._layers[number] = made
        return made

    def _held(self, number: int) -> HeldLayer:
        block = self.reader.blocks()[number]
        if block is None:
            return self._skipped(number)
        return _LayerInTheMaking(self, block).held()

    def _skipped(self, number: int) -> HeldLayer:
        """A layer without attention: the skip connection carries, what it writes is an offset."""
        before, after = self.stream(number), self.stream(number + 1)
        wrote = after - before
        size = float(wrote.norm(dim=-1).mean() / after.norm(dim=-1).mean().clamp_min(1e-30))
        return HeldLayer(number, HeldBlock((HeldStep(0, beside=wrote),)), written=size)

    def outside(self, source: int | None) -> Tensor:
        """What a layer reads from elsewhere: an earlier stream, or the encoder's output."""
        if source is not None:
            return self.stream(source)
        if self.memory is None:
            raise UnsupportedArchitectureError("these blocks read an encoder that is not there")
        return self.memory


class _LayerInTheMaking:
    """The steps of a layer, renumbered: every attention becomes two of them."""

    def __init__(self, stack: HeldStack, block: Block):
        self.stack, self.source = stack, block
        self.frozen = FrozenBlock(stack.reader, stack.activations, block)
        self.steps: list[HeldStep] = []
        self.numbers = {0: 0}
        self.elsewhere: list[int | None] = []

    def held(self) -> HeldLayer:
        attention: dict[bool, HeldAttention] = {}
        feed_forwards = []
        for number in self.source.needed((self.source.scopes[-1],)):
            step = self.source.steps[number - 1]
            if isinstance(step.operation, Attention):
                attention[isinstance(step.operation, CrossAttention)] = self._attention(number, step.operation)
                continue
            held = self.frozen.step(number)
            other = None if held.other is None else self.numbers[held.other]
            self.numbers[number] = self._add(replace(held, reads=self.numbers[held.reads], other=other))
            if isinstance(step.operation, FeedForward):
                feed_forwards.append((self.numbers[number], self.frozen.real(number)))
        factors = self.stack.joins.factors
        factor = factors[self.source.layer] if self.source.layer < len(factors) else 1.0
        if factor != 1:
            self._add(HeldStep(len(self.steps), scale=factor))
        return HeldLayer(
            self.source.layer,
            HeldBlock(tuple(self.steps)),
            attention.get(False),
            attention.get(True),
            tuple(self.elsewhere),
            tuple(feed_forwards),
        )

    def _attention(self, number: int, operation: Attention) -> HeldAttention:
        values, mixing = self.frozen.mixing(number)
        path = self.stack.paths[operation.module]
        reads = 0
        if path.layer != self.source.layer:
            self.elsewhere.append(path.layer)
            reads = -len(self.elsewhere)
        x = self.stack.outside(path.layer)
        real = self.stack.activations.real_keys(operation, x)
        held = hold_path(self.stack.reader, path, operation, x, values, real, self.stack.tolerance)
        at = self._add(HeldStep(reads, held))
        point = self._add(HeldStep(at, mixing))
        self.numbers[number] = point
        return HeldAttention(at, point, reads, values, held, mixing)

    def _add(self, step: HeldStep) -> int:
        self.steps.append(step)
        return len(self.steps)


@dataclass
class ModelMap:
    """The held map of one run.

    Attributes:
        stack: the blocks whose last stream leads to the model's outputs
        head: the way to the outputs; None for a model without a head
        encoder, to_memory: of an encoder-decoder: the encoder's blocks, and the way from its last stream to what the
            decoder reads
    """

    model: nn.Module
    stack: HeldStack
    head: HeldHead | None
    encoder: HeldStack | None = None
    to_memory: Chain | None = None

    @property
    def activations(self) -> Activations:
        return self.stack.activations


def hold_model(
    model: nn.Module, activations: Activations, reader: Reader | None = None, *, keep: bool = False
) -> ModelMap:
    """The held map of a run.

    Args:
        activations: of the stack that leads to the outputs (the decoder of an encoder-decoder)
        keep: whether held layers stay

    Raises:
        UnsupportedArchitectureError: a value path, a join or an end of the model is not understood.
        MissingActivationError: the run lacks an activation.
    """
    reader = reader or reader_of(model)
    paths = dict(value_paths(reader))
    hook = next((path.stream for path in paths.values() if path.layer is None), None)
    encoder, to_memory, read = None, None, None
    if hook is not None:
        inner = reader_of(model, "encoder")
        encoder = HeldStack(inner, activations.of_source(inner), joins(inner), dict(value_paths(inner)), keep=keep)
        last = encoder.stream(encoder.n_layers)
        to_memory = hold_way(inner, memory(inner, hook).steps, last)
        read = activations.source(hook) if hook else applied(to_memory, last)
        _check_memory(encoder, applied(to_memory, last), read)
    stack = HeldStack(reader, activations, joins(reader), paths, read, keep)
    way = head(reader)
    held = None if way is None else hold_head(reader, activations, way, stack.stream(stack.n_layers))
    return ModelMap(model, stack, held, encoder, to_memory)


def _check_memory(encoder: HeldStack, made: Tensor, read: Tensor) -> None:
    error = float(((made - read).norm(dim=-1) / read.norm(dim=-1).amax().clamp_min(1e-30))[encoder.real()].amax())
    if not error <= encoder.tolerance:
        raise DecompositionError(
            f"what leaves the encoder misses what the decoder reads by {error:.1e} (tolerance {encoder.tolerance:.0e})."
            f" Likely causes: a hook edited it during the run, or the model's weights changed since."
        )


def map_hooks(model: nn.Module, reader: Reader) -> list[str]:
    """The activations that the map of a model needs."""
    names: list[str] = []
    readers = [reader]
    paths = value_paths(reader)
    if any(path.layer is None for path in paths.values()):
        readers.append(reader_of(model, "encoder"))
    for one in readers:
        between = joins(one)
        names += between.streams
        for block in one.blocks():
            if block is not None:
                names += block.hooks((block.scopes[-1],))
        names += between.last.hooks
        names += [path.stream for path in value_paths(one).values() if path.stream]
    way = head(reader)
    if way is not None and way.hook:
        names.append(way.hook)
    return list(dict.fromkeys(names))


def check_one_stack(reader: Reader) -> None:
    """Refuse models without any attention."""
    if not any(block is not None for block in reader.blocks()):
        raise UnsupportedArchitectureError(
            f"{type(reader.model).__name__} has no layer with attention, so there are no sources to tell apart."
        )
