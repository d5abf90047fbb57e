"""What a block is: a chain of steps between named points, as data.

Point 0 is the block's input; step number p makes point p from earlier points. A step that ends a scope names it and
says which activation of the model it must equal (its `truth`). The same four operations, in other orders, spell every
layout; nothing here knows an architecture.

    post-LN    attn . res(0) . ln . ff . res(3) . ln
    pre-LN     attn . res(0) . ln . ff . res(2)
    parallel   attn . [ln(0) . ff] . their sum . res(0)
    decoder    attn . res(0) . ln . cross . res(3) . ln . ff . res(6) . ln        of an encoder-decoder, post-LN
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from ..errors import UnknownScopeError


@dataclass(frozen=True)
class Truth:
    """An activation of the model, as hook names: the sum of `plus` less the sum of `minus`.

    `through` names a projection that the total must go through first, where only its image is hooked; `sent_by` a
    module whose output projection the hooked tensor has still to go through.
    """

    plus: tuple[str, ...]
    minus: tuple[str, ...] = ()
    through: str | None = None
    sent_by: str | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the activation itself is hooked."""
        return self.through is None and self.sent_by is None and not self.minus

    @property
    def hooks(self) -> tuple[str, ...]:
        return self.plus + self.minus


@dataclass(frozen=True)
class NormKind:
    """Which of the forms that norm modules take this one has; its weights are read afresh by it."""

    center: bool  # LayerNorm subtracts the mean, RMSNorm does not
    eps: str  # the attribute that holds epsilon; "" for the configuration's
    gain: str = "weight"  # "weight", "1 + weight" or "" for none


@dataclass(frozen=True)
class FeedForwardKind:
    """Which of the forms that feed-forwards take this one has."""

    activation: str  # where the function is: see forms.activation
    swapped: bool = False  # the activation acts on the second of two projections
    factor: float = 1.0  # multiplies the input of the activation
    inner: tuple[str, NormKind] | None = None  # a norm before the output projection: its name in the module


@dataclass(frozen=True)
class MixtureKind:
    """How a mixture adds up: its experts' activation, and the factors of the routed sum and of each shared expert.

    No factors: the shared expert is multiplied by the sigmoid of its own gate.
    """

    activation: str
    factors: tuple[float, ...] | None
    shared: tuple[tuple[str, FeedForwardKind], ...] = ()


@dataclass(frozen=True)
class Gate:
    """What the mixed values are multiplied with, position by position: an activation of a hooked tensor."""

    hook: str
    function: str  # a name in torch or torch.nn.functional


@dataclass(frozen=True)
class Attention:
    """Mix values by the pattern, then project out. `module` is the attention's path in the model.

    Between the two there may be a gate or a norm; both are held fixed. `clip` bounds the values after their hook.
    """

    module: str
    pattern: str  # hook names
    values: str
    heads_first: bool = False  # values are [batch head pos d_head]
    clip: float | None = None
    gate: Gate | None = None
    inner_norm: str | None = None  # a module path
    output: str = ""  # hook name of what it writes
    mixed: str = ""  # hook name of what enters the output projection
    inner_kind: NormKind | None = None

    @property
    def hooks(self) -> tuple[str, ...]:
        names = (self.pattern, self.values)
        return names + ((self.gate.hook,) if self.gate else ()) + ((self.output,) if self.inner_norm else ())


@dataclass(frozen=True)
class CrossAttention(Attention):
    """The same over the positions of another sequence: the values are those of the encoder's output."""


@dataclass(frozen=True)
class Add:
    """scale * the point read + other_scale * another point + what other branches of the block wrote.

    Those other branches (a state-space mixer beside the attention) mix positions in a way that keeps no sources apart:
    they belong to the remainder.
    """

    other: int
    scale: float = 1.0
    other_scale: float = 1.0
    beside: tuple[tuple[str, float], ...] = ()  # hook name, scale

    @property
    def hooks(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.beside)


@dataclass(frozen=True)
class Norm:
    """A layer norm, with the hook of its output. `refused` says why its form is not known, if it is not."""

    module: str
    output: Truth | None
    kind: NormKind | None = None
    refused: str = ""

    @property
    def hooks(self) -> tuple[str, ...]:
        return self.output.hooks if self.output else ()


@dataclass(frozen=True)
class FeedForward:
    """A feed-forward, with the hook of its output. `refused` says why its form is not known, if it is not."""

    module: str
    output: Truth | None = None
    kind: FeedForwardKind | MixtureKind | None = None
    refused: str = ""

    @property
    def hooks(self) -> tuple[str, ...]:
        return self.output.hooks if self.output else ()


Operation = Attention | Add | Norm | FeedForward


@dataclass(frozen=True)
class Step:
    """One operation on the point `reads`."""

    operation: Operation
    reads: int
    scope: str | None = None
    truth: Truth | None = None


@dataclass(frozen=True)
class Block:
    """One layer: where its stream enters, and its chain of steps."""

    layer: int
    stream: str  # hook name of point 0
    steps: tuple[Step, ...]

    @property
    def scopes(self) -> tuple[str, ...]:
        return tuple(step.scope for step in self.steps if step.scope is not None)

    def point(self, scope: str) -> int:
        """The number of the point that a scope ends at."""
        for number, step in enumerate(self.steps, start=1):
            if step.scope == scope:
                return number
        raise UnknownScopeError(f"layer {self.layer} has no scope {scope!r}; it has {', '.join(self.scopes)}.")

    def crosses(self, number: int) -> bool:
        """Whether a step is cross-attention."""
        return isinstance(self.steps[number - 1].operation, CrossAttention)

    def needed(self, scopes: tuple[str, ...]) -> tuple[int, ...]:
        """The points to make, in order, for these scopes."""
        return self.needed_up_to(*(self.point(scope) for scope in scopes))

    def needed_up_to(self, *points: int) -> tuple[int, ...]:
        """The points to make, in order, for these points."""
        wanted = set(points)
        for number in range(len(self.steps), 0, -1):
            if number in wanted:
                step = self.steps[number - 1]
                wanted.add(step.reads)
                if isinstance(step.operation, Add):
                    wanted.add(step.operation.other)
        return tuple(sorted(wanted - {0}))

    def reads_stream(self, scopes: tuple[str, ...]) -> bool:
        """Whether these scopes need the block's input itself (attention alone does not: it needs the values)."""
        return any(
            (step.reads == 0 and not isinstance(step.operation, Attention))
            or (isinstance(step.operation, Add) and step.operation.other == 0)
            for step in self._chosen(scopes)
        )

    def attention(self) -> tuple[int, Attention]:
        """The self-attention step and the number of its point."""
        return next((n, s.operation) for n, s in enumerate(self.steps, start=1) if type(s.operation) is Attention)

    def cross(self) -> tuple[int, CrossAttention] | None:
        """The cross-attention step and the number of its point, in the decoder of an encoder-decoder."""
        crossed = (
            (n, s.operation) for n, s in enumerate(self.steps, start=1) if isinstance(s.operation, CrossAttention)
        )
        return next(crossed, None)

    def hooks(self, scopes: tuple[str, ...], *, edits: bool = False) -> tuple[str, ...]:
        """The activations that these scopes need, each once; self-attention's always, for value norms and weights.

        With `edits`, also those in which a hook's change of the run would show.
        """
        names = [self.stream] if self.reads_stream(scopes) else []
        names += self.attention()[1].hooks
        for step in self._chosen(scopes):
            names += step.operation.hooks
            checked = edits or step.scope in scopes or isinstance(step.operation, Attention)
            if edits and isinstance(step.operation, Attention) and step.operation.mixed:
                names.append(step.operation.mixed)
            if checked and step.truth is not None:
                names += step.truth.hooks
        return tuple(dict.fromkeys(names))

    def _chosen(self, scopes: tuple[str, ...]) -> list[Step]:
        return [self.steps[number - 1] for number in self.needed(scopes)]


@dataclass(frozen=True)
class Affine:
    """x -> x @ weight + bias, weight [in out]."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class NormForm:
    """A norm: centred (LayerNorm) or not (RMSNorm), with its effective gain and bias.

    `folded`: it had a gain that TransformerLens moved into the next weights; otherwise no gain means that it never had
    one.
    """

    center: bool
    eps: float
    gain: Tensor | None
    beta: Tensor | None
    folded: bool = False


@dataclass(frozen=True)
class FeedForwardWeights:
    """y = act(into(x)) out, or gated (act(into(x)) * (up(x) + up_offset)) out; one expert of a mixture likewise.

    `limit` bounds the gate from above and |up|; `inner` is a norm before `out`; `scale_in` and `scale_out` are the
    router's weights on input and output, [batch pos], held fixed.
    """

    into: Affine
    up: Affine | None
    out: Affine
    activation: Callable[[Tensor], Tensor]
    up_offset: float = 0.0
    limit: float | None = None
    inner: NormForm | None = None
    scale_in: Tensor | None = None
    scale_out: Tensor | None = None


@runtime_checkable
class Reader(Protocol):
    """What a kind of model must tell: its blocks, and the weights of their steps.

    Forms are decided once per model and kept in the steps; weights are read afresh at every call.
    """

    model: nn.Module
    stack: str  # the attribute of the model that holds the blocks

    def blocks(self) -> tuple[Block | None, ...]:
        """One per layer; None for a layer without attention."""
        ...

    def decided(self, what: Hashable, decide: Callable[[], Any]) -> Any:
        """What `decide` finds on the model's weights; found once as long as they stay."""
        ...

    def attention_output(self, step: Attention) -> Affine: ...

    def attention_values(self, step: Attention) -> Affine:
        """The values of all heads side by side, one for each input of the output projection."""
        ...

    def norm(self, step: Norm) -> NormForm: ...

    def inner_norm(self, step: Attention) -> NormForm: ...

    def feed_forward(self, step: FeedForward, x: Tensor) -> tuple[FeedForwardWeights, ...]:
        """Its experts, or itself alone, for this input [batch pos d_model]; routing is that of the model's own call."""
        ...

    def projection(self, name: str) -> Affine: ...

    def output_projection(self, name: str) -> Affine:
        """That of an attention or a feed-forward, as it is."""
        ...

    def recompute(self, step: Norm | FeedForward, x: Tensor) -> Tensor:
        """What the model's own module makes of an input, with no user hook firing."""
        ...

    def value_bias(self, step: Attention) -> Tensor | None: ...

    def equivalents(self, hook: str) -> tuple[str, ...]:
        """All names under which a cache may hold this hook."""
        ...


@dataclass
class Chain:
    """Collects the steps of a block while it is being read."""

    steps: list[Step] = field(default_factory=list)

    def add(self, operation: Operation, reads: int, scope: str | None = None, truth: Truth | None = None) -> int:
        """Append a step; the number of its point."""
        self.steps.append(Step(operation, reads, scope, truth))
        return len(self.steps)
