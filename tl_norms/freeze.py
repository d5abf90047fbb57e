"""Hold the steps of one block: structure and weights from `blocks`, activations of a run, operators of `linear`.

This is where the two halves of the package meet. What enters a step is the model's own activation where it is hooked
and what the held steps before it give where it is not; scales, coefficients and patterns are those of that input.
"""

from dataclasses import dataclass, field, replace
from typing import TypeGuard

import torch
from einops import rearrange
from torch import Tensor

from .blocks.activations import Activations
from .blocks.structure import (
    Affine,
    Attention,
    Block,
    FeedForward,
    FeedForwardWeights,
    Norm,
    NormForm,
    Reader,
    Step,
    Truth,
)
from .edits import Edit, described
from .linear.edits import Edits, HeldEdit, hold_edit
from .linear.graph import HeldStep
from .linear.hold import Bias, NormWeights, Rule, Unit, hold_feed_forward, hold_norm
from .linear.operators import Mixing, Operator, Parallel, Projection, applied
from .tolerances import TOLERANCE


@dataclass
class FrozenBlock:
    """One block of one run; its steps are held when they are first asked for.

    Attributes:
        bias: how the feed-forward treats biases, see `hold_feed_forward`
        ff: the rule by which the feed-forward passes vectors on, see `hold_feed_forward`
        edits: what to do where a hook changed an activation, see `AnalysisOptions`
        found: the edits of the steps held so far
    """

    reader: Reader
    activations: Activations
    block: Block
    bias: Bias = "player"
    edits: Edits = "refuse"
    ff: Rule = "ig"
    found: list[Edit] = field(default_factory=list)
    _steps: dict[int, HeldStep] = field(default_factory=dict)
    _values: dict[int, Tensor] = field(default_factory=dict)
    _real: dict[int, Tensor] = field(default_factory=dict)

    def step(self, number: int) -> HeldStep:
        """The held step that makes a point."""
        if number not in self._steps:
            held = self._held(number)
            self._steps[number] = held if self.edits == "refuse" else self._with_edit(number, held)
        return self._steps[number]

    def mixing(self, number: int) -> tuple[Tensor, Mixing]:
        """An attention step, cut at the values: the values of all keys, [b k h e], and how they are mixed."""
        operator = self.step(number).operator
        if not isinstance(operator, Mixing):
            raise TypeError(f"step {number} of layer {self.block.layer} is no attention")
        return self._values[number], operator

    def attention(self) -> tuple[Tensor, Mixing]:
        """Self-attention, cut at the values."""
        return self.mixing(self.block.attention()[0])

    def real(self, point: int) -> Tensor:
        """The model's activation at a point, [b q d]."""
        if point not in self._real:
            self._real[point] = self._activation(point)
        return self._real[point]

    def _activation(self, point: int) -> Tensor:
        if point == 0:
            return self.activations.vectors(self.block.stream)
        read = self.block.steps[point - 1]
        # a norm's output is made: transformers computes norms in float32 whatever the model's dtype
        if not isinstance(read.operation, Norm) and self._is_hooked(read.truth):
            return self.activations.truth(read.truth)
        step = self.step(point)
        return step.made(self._unedited(point, step), offsets=True)

    def _unedited(self, number: int, held: HeldStep) -> Tensor:
        """What a held step gives for the model's activations."""
        if isinstance(held.operator, Mixing):
            return applied(held.operator, self._values[number])
        if held.operator is not None:
            return applied(held.operator, self.real(held.reads))
        total = self.real(held.reads) * held.scale
        total = total if held.other is None else total + self.real(held.other) * held.other_scale
        return total if held.beside is None else total + held.beside

    def _with_edit(self, number: int, held: HeldStep) -> HeldStep:
        """The step with what a hook did to its point, if the run has something else there than the step gives."""
        truth = self.block.steps[number - 1].truth
        if not self._is_hooked(truth):
            return held
        found = self.activations.truth(truth)
        edit = self._edit(self._unedited(number, held), found, truth.plus[0])
        return held if edit is None else replace(held, edit=edit.scaling)

    def _edit(self, made: Tensor, found: Tensor, hook: str) -> HeldEdit | None:
        real = self.activations.real(found)
        made = made * real.reshape(*real.shape, *[1] * (made.ndim - 2))
        held = hold_edit(made, found, self.edits, TOLERANCE[self.activations.coarsest])
        if held is not None:
            self.found.append(described(self.block.layer, hook, held, real))
        return held

    def _is_hooked(self, truth: Truth | None) -> TypeGuard[Truth]:
        return truth is not None and truth.is_plain and self.activations.has(truth)

    def suspected_edit(self, number: int) -> Edit | None:
        """What a hook may have changed on the way to a point: some positions or heads only, or set to zero."""
        if self.edits != "refuse":
            return None
        trial = FrozenBlock(self.reader, self.activations, self.block, self.bias, "replace", self.ff)
        for earlier in self.block.needed_up_to(number):
            trial.step(earlier)
        return next((edit for edit in trial.found if not edit.everywhere or edit.heads or edit.factor == 0), None)

    def recomputed(self, step: Step) -> Tensor | None:
        """What the model's own module makes of the real input of a step; None for a sum."""
        if not isinstance(step.operation, Norm | FeedForward):
            return None
        return self.reader.recompute(step.operation, self.real(step.reads))

    def live(self, number: int, x: Tensor) -> Tensor:
        """What a norm or a feed-forward makes of another input, [b q d], nothing held."""
        operation = self.block.steps[number - 1].operation
        if isinstance(operation, Norm):
            return applied(self._norm(operation, x), x)
        if not isinstance(operation, FeedForward):
            raise TypeError(f"step {number} of layer {self.block.layer} is no norm and no feed-forward")
        parts = [_unit(part, x) for part in self.reader.feed_forward(operation, x)]
        made = [hold_feed_forward(x, unit, rule="drop").offset for unit in parts]  # nothing passes: all is offset
        return sum((part for part in made if part is not None), torch.zeros_like(x))

    def written(self, number: int, mixed: Tensor) -> Tensor:
        """What attention writes for other mixed values, [s b q h e]: its gate held, a norm after it live."""
        operation = self.block.steps[number - 1].operation
        _, mixing = self.mixing(number)
        if isinstance(operation, Attention) and operation.inner_norm is not None:
            form = _norm_weights(self.reader.inner_norm(operation), mixed)
            mixing = replace(mixing, inner=hold_norm(rearrange(mixing.gated(mixed), "... h e -> ... (h e)"), form))
        made = mixing.send(mixed)
        return made if mixing.offset is None else made + mixing.offset

    def sent(self, module: str, hidden: Tensor) -> Tensor:
        """Mixed values or neurons through the output projection of their module."""
        hidden = rearrange(hidden, "b q ... -> b q (...)")
        return applied(_like(self.reader.output_projection(module), hidden), hidden)

    def rest(self, point: int) -> Tensor | None:
        """What belongs to no source at a point, [b q d] or broadcast against it; None for nothing.

        Only where biases are held fixed do coefficients depend on it.
        """
        if point == 0:
            return None
        step = self.step(point)
        before = None if isinstance(step.operator, Mixing) else self.rest(step.reads)
        if step.operator is not None:
            like = self.real(step.reads) if before is not None else None
            offset = step.operator.offset
            made = offset if before is None or like is None else applied(step.operator, before.expand_as(like))
        else:
            other = None if step.other is None else self.rest(step.other)
            parts = [(before, step.scale), (other, step.other_scale), (step.beside, 1.0)]
            there = [part * scale for part, scale in parts if part is not None]
            made = sum(there[1:], there[0]) if there else None
        if step.edit is None:
            return made
        made = None if made is None else step.edit(made)
        if step.edit.offset is None:
            return made
        return step.edit.offset if made is None else made + step.edit.offset

    def _held(self, number: int) -> HeldStep:
        step = self.block.steps[number - 1]
        operation = step.operation
        if isinstance(operation, Attention):
            return HeldStep(step.reads, self._mixing(number, operation))
        if isinstance(operation, Norm):
            return HeldStep(step.reads, self._norm(operation, self.real(step.reads)))
        if isinstance(operation, FeedForward):
            return HeldStep(step.reads, self._feed_forward(operation, step.reads))
        beside = [scale * self.activations.vectors(hook) for hook, scale in operation.beside]
        return HeldStep(
            step.reads,
            None,
            operation.other,
            operation.scale,
            operation.other_scale,
            sum(beside[1:], beside[0]) if beside else None,
        )

    def _mixing(self, number: int, operation: Attention) -> Mixing:
        output = self.reader.attention_output(operation)
        pattern, values = self.activations.attention(operation, output.weight.shape[0])
        self._values[number] = values
        output = _like(output, values)
        weight = rearrange(output.weight, "(h e) d -> h e d", h=pattern.shape[1])
        plain = Mixing(pattern, weight, output.bias, self.activations.gate(operation, values))
        if operation.inner_norm is None:
            return plain if self.edits == "refuse" else self._with_edited_heads(operation, plain, values)
        mixed = plain.gated(plain.mixed(values))
        form = _norm_weights(self.reader.inner_norm(operation), values)
        return replace(plain, inner=hold_norm(rearrange(mixed, "b q h e -> b q (h e)"), form))

    def _with_edited_heads(self, operation: Attention, plain: Mixing, values: Tensor) -> Mixing:
        """Attention whose mixed values a hook changed: per position and head."""
        hook = Truth((operation.mixed,))
        if not operation.mixed or not self.activations.has(hook):
            return plain
        made = plain.gated(plain.mixed(values))
        found = rearrange(self.activations.truth(hook), "b q ... -> b q (...)").reshape(made.shape)
        edit = self._edit(made, found, operation.mixed)
        if edit is None:
            return plain
        factor, put = edit.factor[..., None], edit.scaling.offset
        weight = rearrange(plain.weight, "h e d -> (h e) d")
        sent = None if put is None else rearrange(put, "b q h e -> b q (h e)") @ weight
        return replace(plain, gate=factor if plain.gate is None else plain.gate * factor, added=sent)

    def _norm(self, operation: Norm, full: Tensor) -> Operator:
        return hold_norm(full, _norm_weights(self.reader.norm(operation), full))

    def _feed_forward(self, operation: FeedForward, reads: int) -> Operator:
        full = self.real(reads)
        rest = self.rest(reads) if self.bias == "fixed" else None
        rest = None if rest is None else rest.expand_as(full)
        units = [_unit(part, full) for part in self.reader.feed_forward(operation, full)]
        held = [hold_feed_forward(full, unit, self.bias, rest, self.ff) for unit in units]
        return held[0] if len(held) == 1 else Parallel(tuple(held))


def _cast(tensor: Tensor | None, like: Tensor) -> Tensor | None:
    return None if tensor is None else tensor.detach().to(device=like.device, dtype=like.dtype)


def _norm_weights(form: NormForm, like: Tensor) -> NormWeights:
    return NormWeights(form.center, form.eps, _cast(form.gain, like), _cast(form.beta, like))


def _unit(weights: FeedForwardWeights, like: Tensor) -> Unit:
    """A feed-forward in the dtype and on the device of the activations."""
    return Unit(
        into=_like(weights.into, like),
        up=None if weights.up is None else _like(weights.up, like),
        out=_like(weights.out, like),
        activation=weights.activation,
        up_offset=weights.up_offset,
        limit=weights.limit,
        inner=None if weights.inner is None else _norm_weights(weights.inner, like),
        scale_in=_cast(weights.scale_in, like),
        scale_out=_cast(weights.scale_out, like),
    )


def _like(affine: Affine, like: Tensor) -> Projection:
    """Weights in the dtype and on the device of the activations."""
    bias = None if affine.bias is None else affine.bias.detach().to(like)
    return Projection(affine.weight.detach().to(like), bias)
