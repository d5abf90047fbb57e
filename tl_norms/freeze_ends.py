"""Hold the ends of a model: from the last stream to its outputs, and from an encoder's last stream to its decoder.

The outputs themselves are read from the model: its unembedding's hook, or its own modules run on the cached last
stream. The held head is never asked for them.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .blocks.activations import Activations
from .blocks.compat import without_user_hooks
from .blocks.ends import Activated, EndStep, Head, Mapped, Pooled
from .blocks.modules import affine, unwrap
from .blocks.structure import Affine, Reader, Truth
from .blocks.values import Multiplied, Normed, find
from .freeze_paths import norm_weights
from .linear.hold import hold_norm
from .linear.operators import Chain, Operator, Projection, Scaling, Selected, applied
from .linear.tables import slope_from_zero


def hold_way(reader: Reader, steps: tuple[EndStep, ...], x: Float[Tensor, "b q d"]) -> Chain:
    """The steps as one operator, held at the real x."""
    held: list[Operator] = []
    for step in steps:
        held.append(_held(reader, step, x))
        x = applied(held[-1], x)
    return Chain(tuple(held))


def _held(reader: Reader, step: EndStep, x: Tensor) -> Operator:
    if isinstance(step, Normed):
        return hold_norm(x, norm_weights(reader, step, x))
    if isinstance(step, Multiplied):
        return Scaling(step.factor)
    if isinstance(step, Mapped):
        weights = _weights(reader, step.module)
        bias = None if weights.bias is None else weights.bias.detach().to(x)
        return Projection(weights.weight.detach().to(x), bias)
    if isinstance(step, Activated):  # integrated gradients from zero: slope * x + g(0)
        at_zero = step.function(x.new_zeros(x.shape[-1]))
        return Scaling(slope_from_zero(step.function, x), at_zero if bool(at_zero.any()) else None)
    return Selected(step.position, x.shape[-2])


def _weights(reader: Reader, module: str) -> Affine:
    part: Any = find(reader.model, module)
    if hasattr(reader.model, "adapter"):
        return affine(part, module)
    return Affine(part.W, part.b)  # HookedEncoder's masked-language head


@dataclass(frozen=True)
class HeldHead:
    """The way to the outputs of one run.

    Attributes:
        before: from the last stream to what the unembedding reads
        outputs: the weights of the unembedding, [d vocab] (rows are cast when they are used)
    """

    reader: Reader
    activations: Activations
    head: Head
    last: Float[Tensor, "b q d"]
    before: Chain
    outputs: Affine

    @property
    def n_outputs(self) -> int:
        return self.outputs.weight.shape[1]

    def logits(self, positions: Int[Tensor, " b"]) -> Float[Tensor, "b vocab"]:
        """The model's own outputs at one position of every row."""
        return self._ends(self._raw(positions))[1]

    def columns(
        self, ids: Int[Tensor, " t"], positions: Int[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b t"], Float[Tensor, "b t"]]:
        """For some outputs at one position of every row: covectors of what the unembedding reads, constants, and the
        model's own values. Softcaps are secants through zero and the real value."""
        factor, value = self._ends(self._raw(positions)[:, ids])
        weight = self.outputs.weight[:, ids].detach().to(self.last).T
        bias = factor.new_zeros(len(ids)) if self.outputs.bias is None else self.outputs.bias[ids].detach().to(factor)
        return factor[..., None] * weight, factor * bias, value

    def _ends(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """What every output of the unembedding is multiplied with, and the model's outputs."""
        scaled = raw * self.head.scale
        if self.head.cap is None:
            return torch.full_like(raw, self.head.scale), scaled
        capped = self.head.cap * torch.tanh(scaled / self.head.cap)
        flat = scaled.abs() < 1e-6
        secant = torch.where(flat, torch.ones_like(raw), capped / torch.where(flat, torch.ones_like(raw), scaled))
        return secant * self.head.scale, capped

    def _raw(self, positions: Int[Tensor, " b"]) -> Float[Tensor, "b vocab"]:
        """What the model's unembedding gave, from its hook or its own modules."""
        rows = torch.arange(len(positions), device=self.last.device)
        if self.head.hook and self.activations.has(Truth((self.head.hook,))):
            found = self.activations.tensor(self.head.hook)
            return (found if self.head.pooled else found[rows, positions]).to(self.last)
        x = self.last if self.head.pooled else self.last[rows, positions][:, None]
        model = self.reader.model
        with torch.no_grad(), without_user_hooks(model):
            x = x.to(_dtype(model))
            for step in self.head.steps:
                x = _by_the_model(model, step, x)
            return find(model, self.head.unembed)(x).reshape(len(x), -1).to(self.last)


def _dtype(model) -> torch.dtype:
    return next(p.dtype for p in model.parameters() if p.is_floating_point())


def _by_the_model(model, step: EndStep, x: Tensor) -> Tensor:
    if isinstance(step, Multiplied):
        return x * step.factor
    if isinstance(step, Activated):
        return step.function(x)
    if isinstance(step, Pooled):
        return x[:, step.position]
    module: Any = find(model, step.module)
    if isinstance(step, Mapped) and hasattr(module, "W") and not hasattr(model, "adapter"):
        return x @ module.W + module.b
    return unwrap(module)(x)


def hold_head(reader: Reader, activations: Activations, head: Head, last: Float[Tensor, "b q d"]) -> HeldHead:
    """The head, held at the real last stream."""
    unembed: Any = find(reader.model, head.unembed)
    if hasattr(reader.model, "adapter"):
        outputs = affine(unembed, head.unembed)
    else:
        outputs = Affine(unembed.W_U, unembed.b_U)
    return HeldHead(reader, activations, head, last, hold_way(reader, head.steps, last), outputs)
