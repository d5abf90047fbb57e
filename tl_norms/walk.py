"""The steps of one block, taken on source vectors, and the check of what comes out.

This is where the two halves of the package meet: names and weights from `blocks`, mathematics from `linear`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

from .blocks.activations import Activations
from .blocks.structure import (
    Add,
    Affine,
    Attention,
    Block,
    CrossAttention,
    FeedForward,
    FeedForwardWeights,
    Norm,
    NormForm,
    Operation,
    Reader,
    Truth,
)
from .errors import DecompositionError
from .linear import steps
from .linear.sources import Sources
from .linear.terms import Mixture

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_COLUMNS = 64  # neurons compared where only their pre-activations are hooked


@dataclass(frozen=True)
class Walk:
    """One block of one run."""

    reader: Reader
    activations: Activations
    block: Block
    bias: steps.Bias = "player"

    def heads(self, step: Attention | None = None) -> tuple[Mixture, Tensor | None]:
        """The heads of self-attention, or of this step, before any sum: v_j W_O per head, and the output bias."""
        step = step or self.block.attention()[1]
        output = self.reader.attention_output(step)
        pattern, values = self.activations.attention(step, output.weight.shape[0])
        output = _like(output, values)
        return Mixture(pattern, values, output.weight.unflatten(0, (pattern.shape[1], -1))), output.bias

    def decomposed(
        self, scopes: tuple[str, ...], check: bool, heads: tuple[Mixture, Tensor | None] | None = None
    ) -> Iterator[tuple[str, Sources, float]]:
        """Take the steps that the scopes need: each scope with its source vectors and its error, as soon as it is made.

        What does not add up is found before anything is built on it. `heads` are those of self-attention, if known.
        """
        points: dict[int, Sources] = {}
        if self.block.reads_stream(scopes):
            points[0] = steps.start(self.activations.vectors(self.block.stream))
        for number in self.block.needed(scopes):
            step = self.block.steps[number - 1]
            if isinstance(step.operation, CrossAttention):
                points[number] = steps.attend_across(*self.heads(step.operation))
            elif isinstance(step.operation, Attention):
                points[number] = self._attend(step.operation, *(heads or self.heads()))
            else:
                points[number] = self._take(step.operation, points[step.reads], points)
            if step.scope in scopes:
                yield step.scope, points[number], self.error(step.scope, points[number], check)

    def _attend(self, operation: Attention, mixture: Mixture, bias: Tensor | None) -> Sources:
        gate = self.activations.gate(operation, mixture.values)
        if operation.inner_norm is None:
            return steps.attend(mixture, bias, gate=gate)
        # the first form of the inner norm that gives the cached output: all are tried on the mixed values
        made = [
            steps.attend(mixture, bias, gate=gate, inner=_inner(form, mixture.values))
            for form in (self.reader.inner_norm(operation),)
        ]
        return self._closest(made, Truth((operation.output,)))

    def _take(self, operation: Operation, sources: Sources, points: dict[int, Sources]) -> Sources:
        if isinstance(operation, Norm):
            return self._normalise(operation, sources)
        if isinstance(operation, FeedForward):
            return self._feed_forward(operation, sources)
        assert isinstance(operation, Add)
        made = steps.add(
            steps.times(sources, operation.scale), steps.times(points[operation.other], operation.other_scale)
        )
        for hook, scale in operation.beside:
            made = replace(made, rest=made.rest + scale * self.activations.vectors(hook))
        return made

    def _normalise(self, operation: Norm, sources: Sources) -> Sources:
        full = sources.total
        made = [
            steps.normalise(
                sources,
                full,
                center=form.center,
                eps=form.eps,
                gain=_cast(form.gain, full),
                beta=_cast(form.beta, full),
            )
            for form in self.reader.norm_forms(operation)
        ]
        return self._closest(made, operation.output)

    def _closest(self, made: list[Sources], truth: Truth | None) -> Sources:
        """The form whose total is nearest the model's activation."""
        if len(made) == 1 or truth is None:
            return made[0]
        found = self.activations.truth(truth)
        real = self.activations.real(found)
        return min(made, key=lambda sources: float((sources.total[real] - found[real]).norm()))

    def _feed_forward(self, operation: FeedForward, sources: Sources) -> Sources:
        full = sources.total
        found = None if operation.output is None else self.activations.truth(operation.output)
        parts = self.reader.feed_forward(operation, full, found)
        made = [steps.feed_forward(sources, full, _unit(part, full), self.bias) for part in parts]
        return reduce(steps.add, made)

    def error(self, scope: str, sources: Sources, check: bool) -> float:
        """|total - activation| relative to the largest of the vectors involved, at the worst position.

        nan if this scope's activation is not hooked by TransformerLens.
        """
        truth = self.block.steps[self.block.point(scope) - 1].truth
        if truth is None:
            return float("nan")
        total, found = sources.total, self.activations.truth(truth)
        sizes = [part.norm(dim=-1) for part in (sources.others, sources.own, sources.rest)]
        if truth.through is not None:  # compare a few of the neurons it is mapped to
            projection = _like(self.reader.projection(truth.through), total)
            weight, columns = projection.weight[:, :_COLUMNS], slice(0, _COLUMNS)
            total, found = total @ weight, found[..., columns]
            total = total if projection.bias is None else total + projection.bias[columns]
            sizes = [total.norm(dim=-1)]
        size = torch.stack([*sizes, found.norm(dim=-1)]).amax(0)
        relative = (total - found).norm(dim=-1) / size.clamp_min(torch.finfo(size.dtype).tiny)
        if self.activations.mask is not None:
            relative = relative[self.activations.real(relative)]
        error = float(relative.max()) if relative.numel() else 0.0
        tolerance = TOLERANCE[self.activations.coarsest]
        if check and not error <= tolerance:
            raise DecompositionError(
                f"layer {self.block.layer}, scope {scope!r}: the parts miss {' + '.join(truth.plus)} by {error:.1e} "
                f"(tolerance {tolerance:.0e}). Likely causes: the model's weights or device changed after the cache "
                f"was made; a hook edited an activation inside the block during the run; the model was in training "
                f"mode (call model.eval()). If none applies, the block is not understood: please report it with "
                f"tl_norms.scopes(model) and the model's name."
            )
        return error


def _cast(tensor: Tensor | None, like: Tensor) -> Tensor | None:
    return None if tensor is None else tensor.detach().to(device=like.device, dtype=like.dtype)


def _inner(form: NormForm | None, like: Tensor) -> steps.InnerNorm | None:
    return None if form is None else steps.InnerNorm(form.center, form.eps, _cast(form.gain, like))


def _unit(weights: FeedForwardWeights, like: Tensor) -> steps.Unit:
    """A feed-forward in the dtype and on the device of the activations."""
    return steps.Unit(
        into=_like(weights.into, like),
        up=None if weights.up is None else _like(weights.up, like),
        out=_like(weights.out, like),
        activation=weights.activation,
        up_offset=weights.up_offset,
        limit=weights.limit,
        inner=_inner(weights.inner, like),
        scale_in=_cast(weights.scale_in, like),
        scale_out=_cast(weights.scale_out, like),
    )


def _like(affine: Affine, like: Tensor) -> steps.Projection:
    """Weights in the dtype and on the device of the activations."""
    weight = _cast(affine.weight, like)
    assert weight is not None
    return steps.Projection(weight, _cast(affine.bias, like))
