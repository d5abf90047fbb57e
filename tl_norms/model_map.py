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
from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor, nn

from .blocks.activations import Activations, check_whole_run
from .blocks.ends import Joins, head, joins, memory
from .blocks.logit_path import LogitPath
from .blocks.queries import logit_paths
from .blocks.structure import Attention, Block, CrossAttention, FeedForward, Reader
from .blocks.values import ValuePath, value_paths
from .edits import Edit, described
from .errors import DecompositionError, UnknownOptionError, UnsupportedArchitectureError
from .freeze import FrozenBlock
from .freeze_ends import HeldHead, hold_head, hold_way
from .freeze_queries import hold_logits
from .freeze_values import hold_path
from .linear.edits import Edits, hold_edit
from .linear.graph import HeldBlock, HeldStep
from .linear.heads import JoinHeads
from .linear.hold import Rule
from .linear.layers import HeldAttention, HeldFeedForward, HeldLayer
from .linear.operators import Chain, Mixing, Scaling, applied
from .linear.required import together
from .plan import reader_of
from .tolerances import WHOLE_MODEL

AttentionRule = Literal["held", "integrated"]


@dataclass
class HeldStack:
    """All layers of one stack of one run, each held when it is asked for.

    Attributes:
        memory: what these blocks read of an encoder
        keep: whether layers stay held; otherwise each is let go as soon as its user does
        logits: the ways to the logits of attentions whose softmax is integrated; None: patterns are held
        ff, edits: as for `FrozenBlock`; found: the edits of the layers held so far
    """

    reader: Reader
    activations: Activations
    joins: Joins
    paths: dict[str, ValuePath]
    memory: Float[Tensor, "b k d"] | None = None
    keep: bool = False
    logits: dict[str, LogitPath] | None = None
    ff: Rule = "ig"
    edits: Edits = "refuse"
    found: list[Edit] = field(default_factory=list)
    _layers: dict[int, HeldLayer] = field(default_factory=dict)

    @property
    def n_layers(self) -> int:
        return len(self.joins.streams)

    @property
    def tolerance(self) -> float:
        return WHOLE_MODEL[self.activations.coarsest]

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
        with together():
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
        self.frozen = FrozenBlock(stack.reader, stack.activations, block, edits=stack.edits, ff=stack.ff)
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
                reads, entered = self.numbers[held.reads], self.frozen.real(held.reads)
                feed_forwards.append(HeldFeedForward(reads, self.numbers[number], entered, self.frozen.real(number)))
        factors = self.stack.joins.factors
        factor = factors[self.source.layer] if self.source.layer < len(factors) else 1.0
        edit = self._edited_stream(factor)
        if factor != 1 or edit is not None:
            self._add(HeldStep(len(self.steps), scale=factor, edit=edit))
        self.stack.found.extend(self.frozen.found)
        return HeldLayer(
            self.source.layer,
            HeldBlock(tuple(self.steps)),
            attention.get(False),
            attention.get(True),
            tuple(self.elsewhere),
            tuple(feed_forwards),
        )

    def _edited_stream(self, factor: float) -> Scaling | None:
        """What a hook did to the stream between this layer and the next."""
        after = self.source.layer + 1
        if self.stack.edits == "refuse" or after == self.stack.n_layers:
            return None
        made, found = self.frozen.real(len(self.source.steps)) * factor, self.stack.stream(after)
        return self._edit(made, found, self.stack.joins.streams[after], self.stack.real())

    def _edit(self, made: Tensor, found: Tensor, hook: str, real: Tensor) -> Scaling | None:
        made = made * real.reshape(*real.shape, *[1] * (made.ndim - 2))
        edit = hold_edit(made, found, self.stack.edits, self.stack.tolerance)
        if edit is None:
            return None
        self.frozen.found.append(described(self.source.layer, hook, edit, real))
        return edit.scaling

    def _attention(self, number: int, operation: Attention) -> HeldAttention:
        values, mixing = self.frozen.mixing(number)
        edit = self.frozen.step(number).edit
        path = self.stack.paths[operation.module]
        reads = 0
        if path.layer != self.source.layer:
            self.elsewhere.append(path.layer)
            reads = -len(self.elsewhere)
        x = self.stack.outside(path.layer)
        real = self.stack.activations.real_keys(operation, x)
        allowed = self.stack.tolerance if self.stack.edits == "refuse" else float("inf")  # edits of values are steps
        padded = self.stack.activations.padded(operation)
        held = hold_path(self.stack.reader, path, operation, x, values, real if padded else None, allowed)
        if self.stack.edits != "refuse":
            changed = self._edit(applied(held, x), values, operation.values, real)
            held = held if changed is None else Chain((*held.steps, changed))
        if self.stack.logits is not None:
            return self._integrated(number, operation, reads, x, values, held, mixing)
        at = self._add(HeldStep(reads, held))
        point = self._add(HeldStep(at, mixing, edit=edit))
        self.numbers[number] = point
        return HeldAttention(at, point, reads, values, held, mixing)

    def _integrated(
        self, number: int, operation: Attention, reads: int, x: Tensor, values: Tensor, path: Chain, mixing: Mixing
    ) -> HeldAttention:
        """Attention with its softmax integrated: queries, keys and values to mixed values, then to what is written."""
        logits = (self.stack.logits or {})[operation.module]
        own = number - 1 if isinstance(operation, CrossAttention) else 0  # whose queries they are
        stream = self.frozen.real(own)
        source = None if reads == own else x
        parts = hold_logits(
            self.stack.reader, logits, operation, stream, source, path, mixing.pattern, self.stack.tolerance
        )
        sources = (self.numbers[own],) if source is None else (self.numbers[own], reads)
        integrated = tuple(zip(sources, parts, strict=True))
        points = [self._add(HeldStep(place, part)) for place, part in integrated]
        at = points[0] if len(points) == 1 else self._add(HeldStep(points[0], other=points[1]))
        join = JoinHeads(mixing.weight, mixing.bias, mixing.gate, mixing.inner, mixing.added)
        point = self._add(HeldStep(at, join, edit=self.frozen.step(number).edit))
        self.numbers[number] = point
        mean = replace(mixing, pattern=parts[0].mean)
        return HeldAttention(at, point, reads, values, path, mean, integrated)

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

    @property
    def edits(self) -> tuple[Edit, ...]:
        """Of all layers held so far, each once."""
        found = [*(self.encoder.found if self.encoder is not None else ()), *self.stack.found]
        return tuple(dict.fromkeys(sorted(found, key=lambda edit: edit.layer)))


def hold_model(
    model: nn.Module,
    activations: Activations,
    reader: Reader | None = None,
    *,
    keep: bool = False,
    attention: AttentionRule = "held",
    ff: Rule = "ig",
    edits: Edits = "refuse",
) -> ModelMap:
    """The held map of a run.

    Args:
        activations: of the stack that leads to the outputs (the decoder of an encoder-decoder)
        keep: whether held layers stay
        attention: "held" patterns, or "integrated" softmaxes
        ff: the rule by which feed-forwards pass vectors on, see `hold_feed_forward`
        edits: what to do where a hook changed an activation, see `AnalysisOptions`

    Raises:
        UnsupportedArchitectureError: a value path, a join or an end of the model is not understood.
        MissingActivationError: the run lacks an activation.
    """
    _check_options(attention, ff, edits)
    reader = reader or reader_of(model)
    check_whole_run(reader, activations)
    paths = dict(value_paths(reader))
    hook = next((path.stream for path in paths.values() if path.layer is None), None)
    encoder, to_memory, read = None, None, None
    if hook is not None:
        inner = reader_of(model, "encoder")
        encoder = HeldStack(inner, activations.of_source(inner), joins(inner), dict(value_paths(inner)), keep=keep)
        encoder.logits, encoder.ff, encoder.edits = _logits(inner, attention), ff, edits
        last = encoder.stream(encoder.n_layers)
        to_memory = hold_way(inner, memory(inner, hook).steps, last)
        read = activations.source(hook) if hook else applied(to_memory, last)
        _check_memory(encoder, applied(to_memory, last), read)
    stack = HeldStack(reader, activations, joins(reader), paths, read, keep, _logits(reader, attention), ff, edits)
    way = head(reader)
    held = None if way is None else hold_head(reader, activations, way, stack.stream(stack.n_layers))
    return ModelMap(model, stack, held, encoder, to_memory)


def _check_options(attention: str, ff: str, edits: str) -> None:
    if attention not in ("held", "integrated"):
        raise UnknownOptionError(f"attention is {attention!r}; expected 'held' or 'integrated'.")
    if ff not in ("ig", "half", "gate", "drop"):
        raise UnknownOptionError(f"ff is {ff!r}; expected 'ig', 'half', 'gate' or 'drop'.")
    if edits not in ("refuse", "replace", "add"):
        raise UnknownOptionError(f"edits is {edits!r}; expected 'refuse', 'replace' or 'add'.")


def _logits(reader: Reader, attention: str) -> dict[str, LogitPath] | None:
    return dict(logit_paths(reader)) if attention == "integrated" else None


def _check_memory(encoder: HeldStack, made: Tensor, read: Tensor) -> None:
    error = float(((made - read).norm(dim=-1) / read.norm(dim=-1).amax().clamp_min(1e-30))[encoder.real()].amax())
    if not error <= encoder.tolerance:
        raise DecompositionError(
            f"what leaves the encoder misses what the decoder reads by {error:.1e} (tolerance {encoder.tolerance:.0e})."
            f" Likely causes: a hook edited it during the run, or the model's weights changed since."
        )


def map_hooks(model: nn.Module, reader: Reader, *, edits: bool = False) -> list[str]:
    """The activations that the map of a model needs; with `edits`, also those in which a hook's change would show."""
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
                names += block.hooks((block.scopes[-1],), edits=edits)
        names += between.last.hooks
        names += [path.stream for path in value_paths(one).values() if path.stream]
    way = head(reader)
    if way is not None and way.hook:
        names.append(way.hook)
    return list(dict.fromkeys(names))
