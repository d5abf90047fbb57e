"""The numbers of all layers: of several at once where they are of one shape, of all others one by one.

What an operation costs to start is most of what a short text costs, so layers of one shape are read as one. Nothing is
explained here: where anything is not as it must be, layers are taken one by one, which says what, and where.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from .blocks.activations import Activations
from .blocks.joined import joined, shape_of
from .blocks.structure import Add, Attention, Block, Norm, Reader, Truth
from .errors import DecompositionError, TLNormsError
from .layer_numbers import LayerNumbers, layer_numbers, unpadded
from .linear.carry.pairs import is_causal
from .linear.graph import HeldStep
from .linear.hold import NormWeights, hold_norm
from .linear.joined.factored import factor_pairs, fits
from .linear.joined.formed import few, form_pairs
from .linear.joined.mixing import LayersMixing
from .linear.joined.points import Point, after, attended, measured
from .linear.measure.measures import Length
from .linear.operators import HeldNorm
from .linear.pieces import pieces
from .linear.required import judged, together
from .plan import Plan
from .tolerances import TOLERANCE


def numbers_of_layers(
    plan: Plan, activations: Activations, numbers: Sequence[int], *, afresh: bool = False
) -> list[LayerNumbers]:
    """The numbers of some blocks of the plan, every scope compared with the model.

    Small weights are stacked once per model, as long as its weights stay; with `afresh` they are read again: a plan
    made some time ago does not know whether they stayed.

    Raises:
        As `layer_numbers`.
    """
    found: dict[int, LayerNumbers] = {}
    for group in _groups(plan, activations, numbers):
        try:
            with together():
                made = _at_once(plan, activations, [plan.blocks[number] for number in group], afresh)
        except TLNormsError:
            continue
        found.update(zip(group, made, strict=True))  # nothing is kept before all is judged
    return [found[number] if number in found else layer_numbers(plan, activations, number) for number in numbers]


def _groups(plan: Plan, activations: Activations, numbers: Sequence[int]) -> list[list[int]]:
    """Blocks of one shape each, no more of them than patterns are copied at little cost."""
    shapes = _shapes(plan)
    if shapes is None:
        return []
    groups: dict[object, list[int]] = {}
    for number in numbers:
        shape = shapes[plan.blocks[number].layer]
        if shape is not None:
            groups.setdefault(shape, []).append(number)
    return [part for group in groups.values() for part in _parts(group, _at_most(plan, activations, group[0]))]


def worth_holding(plan: Plan, tensors: Mapping[str, Tensor], number: int) -> bool:
    """Whether a block of a run under way, which made these activations, is better taken with others like it."""
    shapes, block = _shapes(plan), plan.blocks[number]
    if shapes is None or shapes[block.layer] is None:
        return False
    return _at_most(plan, plan.activations(tensors, True), number) > 1


def _shapes(plan: Plan) -> dict[int, Hashable | None] | None:
    """By layer; None where every block is taken by itself."""
    if not isinstance(plan.options.measure, Length) or plan.options.edits != "refuse":
        return None
    what = ("shapes", plan.scopes)
    return plan.reader.decided(what, lambda: {b.layer: shape_of(b, plan.scopes) for b in _all(plan.reader)})


def _parts(group: list[int], at_most: int) -> list[list[int]]:
    return [group[first : first + at_most] for first in range(0, len(group), at_most)]


def _at_most(plan: Plan, activations: Activations, number: int) -> int:
    """Layers like this one that are taken at once."""
    pattern = activations.tensors.get(plan.blocks[number].attention()[1].pattern)
    if pattern is None:
        return 1
    return max(1, pieces(pattern.device).copied // max(1, pattern.numel() * pattern.element_size()))


def _all(reader: Reader) -> list[Block]:
    return [block for block in reader.blocks() if block is not None]


class _OneByOne(TLNormsError):
    """Layers differ in more than their names, or are too large to be taken at once."""


@dataclass
class _HeldLayers:
    """The steps of several layers of one run, held."""

    plan: Plan
    activations: Activations
    blocks: list[Block]
    afresh: bool

    def mixing(self) -> LayersMixing:
        operations = [block.attention()[1] for block in self.blocks]
        outputs = [self.plan.reader.attention_output(operation) for operation in operations]
        pattern, values = self.activations.attention(operations[0], outputs[0].weight.shape[0])
        if pattern.shape[2] != pattern.shape[3] or len({one.weight.shape for one in outputs}) > 1:
            raise _OneByOne("queries go on from a key-value cache, or projections differ")
        n_heads = pattern.shape[1]
        weights = [one.weight.detach().to(values).unflatten(0, (n_heads, -1)) for one in outputs]  # [h e d]
        bias = self._rows(self._kept("bias", values, lambda: _stacked([one.bias for one in outputs], values)), values)
        return LayersMixing(pattern, values, tuple(weights), bias, is_causal(pattern))

    def step(self, number: int) -> HeldStep:
        """A norm, or a sum with the stream."""
        step = self.blocks[0].steps[number - 1]
        if isinstance(step.operation, Norm):
            return HeldStep(step.reads, self._norm(number, self.real(step.reads)))
        if not isinstance(step.operation, Add):
            raise TypeError(f"step {number} is no norm and no sum")
        return HeldStep(step.reads, None, 0, step.operation.scale, step.operation.other_scale)

    def _norm(self, number: int, full: Tensor) -> HeldNorm:
        def read() -> NormWeights:
            operations = [block.steps[number - 1].operation for block in self.blocks]
            forms = [self.plan.reader.norm(operation) for operation in operations if isinstance(operation, Norm)]
            if len({(form.center, form.eps) for form in forms}) > 1:
                raise _OneByOne("norms differ")
            gain, beta = (_stacked([getattr(form, name) for form in forms], full) for name in ("gain", "beta"))
            return NormWeights(forms[0].center, forms[0].eps, gain, beta)

        weights = self._kept(number, full, read)
        gain, beta = self._rows(weights.gain, full), self._rows(weights.beta, full)
        return hold_norm(full, NormWeights(weights.center, weights.eps, gain, beta))

    def _kept(self, what: Hashable, like: Tensor, read: Callable[[], Any]) -> Any:
        """Small weights of all layers, stacked once as long as they stay; what has gone stale does not add up."""
        if self.afresh or not self.plan.options.check:
            return read()
        layers = tuple(block.layer for block in self.blocks)
        return self.plan.reader.decided(("rows", what, layers, like.dtype, like.device), read)

    def _rows(self, rows: Tensor | None, like: Tensor) -> Tensor | None:
        """One for each layer and text, [b 1 d]."""
        texts = len(like) // len(self.blocks)
        return rows if rows is None or texts == 1 else rows.repeat_interleave(texts, dim=0)

    def real(self, number: int) -> Tensor:
        """The model's activation at a point."""
        if number == 0:
            return self.activations.vectors(self.blocks[0].stream)
        step = self.blocks[0].steps[number - 1]
        if not isinstance(step.operation, Norm) and step.truth is not None and self.activations.has(step.truth):
            return self.truth(step.truth)
        if not isinstance(step.operation, Add):
            raise _OneByOne("what a norm reads is not hooked")
        made = self.real(step.reads) * step.operation.scale
        return made + self.real(0) * step.operation.other_scale

    def truth(self, truth: Truth) -> Tensor:
        return self.activations.truth(truth)


def _stacked(parts: list[Tensor | None], like: Tensor) -> Float[Tensor, "layer 1 d"] | None:
    """One row for each layer; None if no layer has any."""
    there = [part for part in parts if part is not None]
    if not there:
        return None
    if len(there) < len(parts) or len({part.shape for part in there}) > 1 or there[0].ndim > 1:
        raise _OneByOne("only some layers have this bias or gain, or it is of another shape")
    return torch.stack(there).detach().to(like)[:, None]


def _at_once(plan: Plan, activations: Activations, blocks: list[Block], afresh: bool) -> list[LayerNumbers]:
    """Hold the layers, carry their pairs, compare, measure."""
    scopes = plan.scopes
    hooks = plan.reader.decided(("hooks", scopes), lambda: {b.layer: b.hooks(scopes) for b in _all(plan.reader)})
    held = _HeldLayers(plan, joined(activations, [hooks[block.layer] for block in blocks]), blocks, afresh)
    first = blocks[0]
    needed, reads_stream = plan.reader.decided(
        ("chain", first.layer, scopes), lambda: (first.needed(scopes), first.reads_stream(scopes))
    )
    mixing = held.mixing()
    if not (few(mixing) or fits(mixing)):
        raise _OneByOne("head vectors are many")
    steps = {number: held.step(number) for number in needed if number > 1}
    norms = tuple(step.operator for step in steps.values() if isinstance(step.operator, HeldNorm))
    pairs, head_norms = (form_pairs if few(mixing) else factor_pairs)(mixing, norms)
    stream = held.real(0) if reads_stream else pairs.own
    points: dict[int, Point] = {}
    errors: dict[str, Tensor] = {}
    chosen: dict[str, Point] = {}
    for number in needed:
        step = first.steps[number - 1]
        points[number] = (
            after(steps[number], points[number - 1], stream) if steps.get(number) else attended(mixing, pairs)
        )
        if step.scope is None or not (step.scope in scopes or isinstance(step.operation, Attention)):
            continue
        error = _errors(held, number, points)
        if plan.options.check:
            judged(error.max(), lambda worst: _refuse(worst, TOLERANCE[held.activations.coarsest]))
        if step.scope in scopes:
            chosen[step.scope], errors[step.scope] = points[number], error
    return _by_layer(held, activations, mixing, head_norms, chosen, errors)


def _errors(held: _HeldLayers, number: int, points: dict[int, Point]) -> Tensor:
    """|total - activation| at the worst position of every layer, as in `completeness`."""
    step, point, activations = held.blocks[0].steps[number - 1], points[number], held.activations
    if step.truth is None:
        raise _OneByOne("what is to be compared is not hooked")
    off = torch.linalg.vector_norm(point.total - held.truth(step.truth), dim=-1)
    size = point.largest
    if isinstance(step.operation, Add):
        coarse = 2 * torch.finfo(activations.coarsest).eps / TOLERANCE[activations.coarsest]
        size = abs(step.operation.scale) * points[step.reads].largest
        size = torch.add(size, point.sizes[3], alpha=coarse)
    relative = off / size.clamp_min(torch.finfo(size.dtype).tiny)
    if activations.mask is not None:
        relative = relative.masked_fill(~activations.real(relative), 0)
    return rearrange(relative, "(l b) q -> l (b q)", l=len(held.blocks)).amax(-1)


def _refuse(worst: float, tolerance: float) -> None:
    if not worst <= tolerance:
        raise DecompositionError(f"parts miss activations by {worst:.1e} (tolerance {tolerance:.0e}).")


def _by_layer(
    held: _HeldLayers,
    activations: Activations,
    mixing: LayersMixing,
    head_norms: Tensor,
    points: dict[str, Point],
    errors: dict[str, Tensor],
) -> list[LayerNumbers]:
    n_layers = len(held.blocks)
    masked = held.activations.mask is not None

    def split(numbers: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        parts = {scope: one.chunk(n_layers) for scope, one in numbers.items()}
        return [{scope: part[layer] for scope, part in parts.items()} for layer in range(n_layers)]

    found = measured(list(points.values()))
    rests = dict(zip(points, found.rests, strict=True))
    rests = {scope: unpadded(rest, held.activations) for scope, rest in rests.items()} if masked else rests
    maps = split(dict(zip(points, found.maps, strict=True)))
    ratios = split(dict(zip(points, found.ratios, strict=True)))
    remainders = split(rests)
    heads = head_norms.chunk(n_layers)
    worst = {scope: error.unbind() for scope, error in errors.items()}
    return [
        LayerNumbers(
            layer=block.layer,
            maps=maps[layer],
            ratios=ratios[layer],
            shares={},
            errors={scope: error[layer] for scope, error in worst.items()},
            value_norms=heads[layer],
            pattern=activations.tensor(block.attention()[1].pattern),
            remainders=remainders[layer],
            causal=mixing.causal,
        )
        for layer, block in enumerate(held.blocks)
    ]
