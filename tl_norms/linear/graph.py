"""A held block: held steps between numbered points, forward with any luggage and backward with any covector.

Point 0 is what enters the block; step number p makes point p. An operator reads one point; a sum reads two.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .operators import Operator


@dataclass(frozen=True)
class HeldStep:
    """operator(point `reads`), or scale * point `reads` + other_scale * point `other` + beside."""

    reads: int
    operator: Operator | None = None
    other: int | None = None
    scale: float = 1.0
    other_scale: float = 1.0
    beside: Float[Tensor, "b q d"] | None = None  # what other branches of the block wrote: belongs to no source


@dataclass(frozen=True)
class HeldBlock:
    """All held steps of one block; the last point is what leaves it."""

    steps: tuple[HeldStep, ...]

    def forward(self, x: Float[Tensor, "*s b q d"], *, offsets: bool = False) -> list[Tensor]:
        """Every point, point 0 first; with `offsets`, of the affine maps (the real input gives real activations)."""
        points = [x]
        for step in self.steps:
            if step.operator is not None:
                y = step.operator(points[step.reads])
                y = y if not offsets or step.operator.offset is None else y + step.operator.offset
            else:
                y = points[step.reads] * step.scale
                y = y if step.other is None else y + points[step.other] * step.other_scale
                y = y if not offsets or step.beside is None else y + step.beside
            points.append(y)
        return points

    def backward(self, covectors: Mapping[int, Float[Tensor, "*s b q d"]]) -> list[Tensor | None]:
        """Covectors at some points carried back to all: entry p is the whole covector at point p, None for none."""
        found: list[Tensor | None] = [covectors.get(point) for point in range(len(self.steps) + 1)]
        for number in range(len(self.steps), 0, -1):
            step, g = self.steps[number - 1], found[number]
            if g is None:
                continue
            if step.operator is not None:
                _add(found, step.reads, step.operator.transpose(g))
            else:
                _add(found, step.reads, g * step.scale)
                if step.other is not None:
                    _add(found, step.other, g * step.other_scale)
        return found

    def offsets(self) -> list[Tensor | None]:
        """What every step adds by itself, entry p for the step that makes point p (entry 0: nothing)."""
        own = [step.beside if step.operator is None else step.operator.offset for step in self.steps]
        return [None, *own]


def _add(found: list[Tensor | None], point: int, g: Tensor) -> None:
    present = found[point]
    found[point] = g if present is None else torch.add(present, g)
