"""A held block: held steps between numbered points, forward with any vectors and backward with any covector.

Point 0 is what enters the block; step number p makes point p. An operator reads one point; a sum reads two. Negative
numbers are what a block reads from elsewhere: -1 the first, -2 the second (an encoder's output, an earlier stream).
"""

from collections.abc import Container, Mapping, MutableMapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .operators import Operator, Scaling, carried_back, inner


@dataclass(frozen=True)
class HeldStep:
    """operator(point `reads`), or scale * point `reads` + other_scale * point `other` + beside."""

    reads: int
    operator: Operator | None = None
    other: int | None = None
    scale: float = 1.0
    other_scale: float = 1.0
    beside: Float[Tensor, "b q d"] | None = None  # what other branches of the block wrote: belongs to no source
    edit: Scaling | None = None  # what a hook did to the point

    def made(self, y: Tensor, *, offsets: bool) -> Tensor:
        """The point from what operator or sum give: with what a hook did to it."""
        if self.edit is None:
            return y
        y = self.edit(y)
        return y + self.edit.offset if offsets and self.edit.offset is not None else y

    def carried_back(self, g: Tensor, leading: int) -> tuple[dict[int, Tensor], Tensor | None]:
        """The covectors of all points that are read, and <g, offset> over all but the leading axes."""
        credit = None if self.edit is None or self.edit.offset is None else inner(g, self.edit.offset, leading)
        g = g if self.edit is None else self.edit.transpose(g)
        if self.operator is not None:
            x, own = carried_back(self.operator, g, leading)
            carried = {self.reads: x}
        else:
            own = None if self.beside is None else inner(g, self.beside, leading)
            carried = {self.reads: g if self.scale == 1 else g * self.scale}
            if self.other is not None:
                other = g if self.other_scale == 1 else g * self.other_scale
                before = carried.get(self.other)
                carried[self.other] = other if before is None else before + other
        return carried, own if credit is None else credit if own is None else credit + own

    @property
    def offset(self) -> Tensor | None:
        """What the step adds by itself, broadcast against [b q d]."""
        own = self.beside if self.operator is None else self.operator.offset
        if self.edit is None:
            return own
        own = None if own is None else self.edit(own)
        if self.edit.offset is None:
            return own
        return self.edit.offset if own is None else own + self.edit.offset


@dataclass(frozen=True)
class HeldBlock:
    """All held steps of one block; the last point is what leaves it."""

    steps: tuple[HeldStep, ...]

    def forward(
        self, x: Float[Tensor, "*s b q d"], elsewhere: Sequence[Tensor] = (), *, offsets: bool = False
    ) -> list[Tensor]:
        """Every point, point 0 first; with `offsets`, of the affine maps (the real input gives real activations)."""
        points = [x]
        for step in self.steps:
            if step.operator is not None:
                y = step.operator(points[step.reads] if step.reads >= 0 else elsewhere[-1 - step.reads])
                y = y if not offsets or step.operator.offset is None else y + step.operator.offset
            else:
                y = points[step.reads] * step.scale
                y = y if step.other is None else y + points[step.other] * step.other_scale
                y = y if not offsets or step.beside is None else y + step.beside
            points.append(step.made(y, offsets=offsets))
        return points

    def backward(
        self,
        covectors: Mapping[int, Float[Tensor, "*s b q d"]],
        elsewhere: MutableMapping[int, Tensor] | None = None,
        credits: MutableMapping[int, Tensor] | None = None,
        *,
        down_to: int = 0,
        stop: Container[int] = (),
    ) -> list[Tensor | None]:
        """Covectors at some points carried back to all: entry p is the whole covector at point p, None for none.

        Those of what is read from elsewhere are added to `elsewhere`, by their negative numbers; what the steps that
        are taken add by themselves gives <covector, offset>, [*s b], to `credits`, by point. Steps up to and
        including `down_to` are not taken: with the number of the values' step, entry 0 is the covector along the skip
        connection alone, and entry `down_to` that of the values.
        """
        found: list[Tensor | None] = [covectors.get(point) for point in range(len(self.steps) + 1)]
        leading = next(iter(covectors.values())).ndim - 2
        for number in range(len(self.steps), down_to, -1):
            step, g = self.steps[number - 1], found[number]
            if g is None or number in stop:
                continue
            carried, credit = step.carried_back(g, leading)
            if credits is not None and credit is not None:
                credits[number] = credit
            for point, covector in carried.items():
                if point >= 0:
                    _add(found, point, covector)
                elif elsewhere is not None:
                    before = elsewhere.get(point)
                    elsewhere[point] = covector if before is None else before + covector
        return found

    def offsets(self) -> list[Tensor | None]:
        """What every step adds by itself, entry p for the step that makes point p (entry 0: nothing)."""
        return [None, *(step.offset for step in self.steps)]


def _add(found: list[Tensor | None], point: int, g: Tensor) -> None:
    present = found[point]
    found[point] = g if present is None else torch.add(present, g)
