"""Hold the steps between a stream and queries, keys or values: norms, projections, constants and clamps."""

from torch import Tensor

from .blocks.logit_path import SideStep, Weighed, weights_in
from .blocks.structure import Reader
from .blocks.values import Multiplied, Normed, value_projection, weights_of
from .linear.hold import NormWeights, hold_norm
from .linear.operators import HeldNorm, Operator, Projection, Scaling, applied


class PathInTheMaking:
    """Steps held one after the other, each at what those before it make of the real x."""

    def __init__(self, reader: Reader, x: Tensor):
        self.reader, self.made = reader, x
        self.steps: list[Operator] = []

    def add(self, operator: Operator) -> None:
        self.steps.append(operator)
        self.made = applied(operator, self.made)

    def take(self, step: SideStep) -> None:
        """One step of a path, as it is named."""
        if isinstance(step, Multiplied):
            self.add(Scaling(step.factor))
            return
        if isinstance(step, Normed):
            self.add(self.norm(step))
            return
        weights = weights_in(self.reader, step) if isinstance(step, Weighed) else value_projection(self.reader, step)
        bias = None if weights.bias is None else weights.bias.detach().to(self.made)
        self.add(Projection(weights.weight.detach().to(self.made), bias))

    def norm(self, step: Normed) -> HeldNorm:
        return hold_norm(self.made, norm_weights(self.reader, step, self.made))

    def clamp(self, bound: float | None) -> None:
        """Held as a mask: what is within the bounds passes, the rest is an offset."""
        if bound is not None:
            free = self.made.abs() <= bound
            self.add(Scaling(free.to(self.made), self.made.clamp(-bound, bound).masked_fill(free, 0)))


def norm_weights(reader: Reader, step: Normed, like: Tensor) -> NormWeights:
    """A norm's weights in the dtype and on the device of the activations: [d], or [h d], one for each head."""
    form = weights_of(reader, step)
    gain, beta = (_fitting(part, like) for part in (form.gain, form.beta))
    return NormWeights(form.center, form.eps, gain, beta)


def _fitting(part: Tensor | None, like: Tensor) -> Tensor | None:
    if part is None:
        return None
    part = part.detach().to(like)
    return part if part.ndim == 1 else part.repeat_interleave(like.shape[-2] // len(part), dim=0)  # grouped heads
