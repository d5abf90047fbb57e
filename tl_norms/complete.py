"""Carry the source vectors of one block through its held steps, and compare every scope with the model.

What is compared is the sum of the terms that maps are made of, at every position; the worst one counts. The error of a
residual connection is relative to the branch it adds, not to the stream, which may be hundreds of times as long.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from .blocks.structure import Add, Attention, FeedForward, Step
from .causes import cause
from .errors import DecompositionError
from .freeze import FrozenBlock
from .linear.carry.dense import ChosenPairs
from .linear.carry.pairs import Sources, added, attend, attend_across, attend_to_past, start, through
from .linear.graph import HeldStep
from .linear.measure.lengths import needs_vectors
from .linear.measure.measures import Length, Measure
from .linear.measure.spots import Spots, chosen_keys
from .linear.operators import Mixing
from .linear.required import judged
from .tolerances import TOLERANCE

_COLUMNS = 64  # neurons compared where only their pre-activations are hooked


@dataclass(frozen=True)
class Completed:
    """Source vectors of one scope, their sum compared with the model's activation."""

    scope: str
    point: int
    sources: Sources
    error: Float[Tensor, ""]


def completed(frozen: FrozenBlock, scopes: tuple[str, ...], check: bool = True) -> Iterator[Completed]:
    """Take the steps that the scopes need: each scope as soon as it is made and compared.

    What does not add up is found before anything is built on it; attention is compared whether asked for or not.
    """
    block = frozen.block
    points: dict[int, Sources] = {}
    frozen.attention()  # which says how many texts and positions there are
    if block.reads_stream(scopes):
        points[0] = start(frozen.real(0))
    for number in block.needed(scopes):
        step = block.steps[number - 1]
        points[number] = _carried(frozen, number, points)
        if step.scope is None or not (step.scope in scopes or isinstance(step.operation, Attention)):
            continue
        error = completeness(frozen, step, points, number, check)
        if step.scope in scopes:
            yield Completed(step.scope, number, points[number], error)


def _carried(frozen: FrozenBlock, number: int, points: dict[int, Sources]) -> Sources:
    held = frozen.step(number)
    if isinstance(held.operator, Mixing):
        values, mixing = frozen.mixing(number)
        attended = attend if mixing.pattern.shape[-2] == mixing.pattern.shape[-1] else attend_to_past
        made = (attend_across if frozen.block.crosses(number) else attended)(values, mixing)
    elif held.operator is not None:
        made = through(held.operator, points[held.reads])
    elif held.other is not None:
        made = added(points[held.reads], points[held.other], held.scale, held.other_scale)
        made = made if held.beside is None else replace(made, rest=made.rest + held.beside)
    else:
        raise TypeError("a sum needs two points")
    return made if held.edit is None else through(held.edit, made)


def completeness(
    frozen: FrozenBlock, step: Step, points: dict[int, Sources], number: int, check: bool = True
) -> Tensor:
    """|total - activation| at the worst position, relative to the largest of the vectors involved.

    nan if TransformerLens has no hook for this scope and the model's own modules cannot tell either.

    Raises:
        DecompositionError: the error is above the tolerance, or not a number.
    """
    activations, sources = frozen.activations, points[number]
    found = _compared_with(frozen, step)
    if found is None:
        return torch.tensor(torch.nan)
    total, name = sources.total, " + ".join(step.truth.plus) if step.truth else "what the model's module gives"
    coarse = torch.finfo(activations.coarsest).eps
    tolerance = TOLERANCE[activations.coarsest]
    if step.truth is not None and step.truth.through is not None:  # compare a few of the neurons it is mapped to
        projection = frozen.reader.projection(step.truth.through)
        total = total @ projection.weight[:, :_COLUMNS].to(total)
        total = total if projection.bias is None else total + projection.bias[:_COLUMNS].to(total)
        found = found[..., :_COLUMNS]
        size = torch.maximum(torch.linalg.vector_norm(total, dim=-1), torch.linalg.vector_norm(found, dim=-1))
    else:
        size = _size(frozen, step, points, number)
    if isinstance(step.operation, Add):
        size = torch.add(size, sources.sizes[3], alpha=2 * coarse / tolerance)  # rounding of the cached sum itself
    relative = torch.linalg.vector_norm(total - found, dim=-1) / size.clamp_min(torch.finfo(size.dtype).tiny)
    if activations.mask is not None:
        relative = relative.masked_fill(~activations.real(relative), 0)
    error = relative.max()

    def judge(error: float) -> None:
        if error <= tolerance:
            return
        raise DecompositionError(
            f"layer {frozen.block.layer}, scope {step.scope!r}: the parts miss {name} by {error:.1e} "
            f"(tolerance {tolerance:.0e}). {cause(frozen, step, number, total, found)}"
        )

    if check:
        judged(error, judge)
    return error


def _size(frozen: FrozenBlock, step: Step, points: dict[int, Sources], number: int) -> Tensor:
    """What an error is relative to: of a sum, the branches it adds, without the stream that they are added to."""
    if not isinstance(step.operation, Add):
        return points[number].largest
    size = abs(step.operation.scale) * points[step.reads].largest
    other = step.operation.other
    if other and isinstance(frozen.block.steps[other - 1].operation, Attention | FeedForward):  # a branch as well
        size = torch.maximum(size, abs(step.operation.other_scale) * points[other].largest)
    return size


def _compared_with(frozen: FrozenBlock, step: Step) -> Tensor | None:
    """The model's activation of a scope: hooked, or what its own module makes of the input that was compared before."""
    if step.truth is None:
        return frozen.recomputed(step)
    found = frozen.activations.truth(step.truth)
    return found if step.truth.sent_by is None else frozen.sent(step.truth.sent_by, found)


@dataclass
class OneByOne:
    """Vectors formed one by one, and what their rounding is relative to, by point: of all scopes of a block."""

    points: dict[int, Tensor] = field(default_factory=dict)
    sizes: dict[int, Tensor] = field(default_factory=dict)


def compare_pairs(
    frozen: FrozenBlock,
    completed: Completed,
    values: Tensor,
    measure: Measure,
    formed: dict[int, OneByOne] | None = None,
) -> None:
    """Measures, against vectors formed one by one through the held steps: a few for every key.

    Norms before a feed-forward have been compared by `factors`. `formed` keeps the vectors, by the attention that they
    come from, for the next scopes of this block.

    Raises:
        DecompositionError: a number is another.
    """
    sources, n, device = completed.sources, values.shape[1], values.device
    factored = isinstance(measure, Length)
    formed = {} if formed is None else formed
    if sources.past:  # all keys at once, but those that are a query's own
        keys = chosen_keys(n, values.shape[2], causal=False, crossed=True, device=device)
        own = torch.arange(n, device=device) + sources.past
        pairs = ChosenPairs(torch.where(keys == own, -1, keys))
        at = frozen.block.attention()[0]
        _compare(frozen, at, pairs, completed, values, measure, formed.setdefault(at, OneByOne()))
        return
    if not factored or needs_vectors(sources):
        at = frozen.block.attention()[0]
        pairs = ChosenPairs(chosen_keys(n, n, causal=sources.causal, device=device))
        _compare(frozen, at, pairs, completed, values[:, :, :n], measure, formed.setdefault(at, OneByOne()))
    crossing = frozen.block.cross()
    if sources.cross is not None and crossing is not None and not (factored and not needs_vectors(sources.cross)):
        far = values[:, :, n:]
        pairs = ChosenPairs(chosen_keys(n, far.shape[2], causal=False, crossed=True, device=device))
        _compare(frozen, crossing[0], pairs, completed, far, measure, formed.setdefault(crossing[0], OneByOne()))


def _compare(
    frozen: FrozenBlock,
    at: int,
    pairs: ChosenPairs,
    completed: Completed,
    values_found: Tensor,
    measure: Measure,
    formed: OneByOne,
) -> None:
    point, points, sizes = completed.point, formed.points, formed.sizes
    if at not in points:
        values, mixing = frozen.mixing(at)
        edit = frozen.step(at).edit
        attended = pairs.attended(values, mixing)
        points[at] = attended if edit is None else edit(attended)
        sizes[at] = points[at].norm(dim=-1)
    zero = torch.zeros_like(points[at])
    for number in sorted({at, *frozen.block.needed_up_to(point)} - set(points)):
        held = frozen.step(number)
        if isinstance(held.operator, Mixing):
            points[number], sizes[number] = zero, zero[..., 0]
            continue
        points[number], sizes[number] = _one_by_one(held, points, sizes, zero)
    vectors, total = points.get(point, zero), completed.sources.total
    keys = pairs.keys.to(vectors.device)
    spots = Spots(
        torch.arange(keys.shape[1], device=keys.device).expand_as(keys),
        keys,
        measure.of(vectors, total).transpose(0, 1),
        measure.sizes(sizes.get(point, zero[..., 0]), total).transpose(0, 1),
    )
    name = "norms" if isinstance(measure, Length) else "numbers"
    spots.compare(values_found, f"layer {frozen.block.layer}: the {name} of {completed.scope!r}")


def _one_by_one(
    held: HeldStep, points: dict[int, Tensor], sizes: dict[int, Tensor], zero: Tensor
) -> tuple[Tensor, Tensor]:
    """A point from those before it, and the size that its rounding is relative to."""
    read, read_size = points.get(held.reads, zero), sizes.get(held.reads, zero[..., 0])
    if held.operator is not None:
        made = held.operator(read)
        tiny = torch.finfo(made.dtype).tiny
        size = made.norm(dim=-1) * (read_size / read.norm(dim=-1).clamp_min(tiny)).clamp_min(1)
        return held.made(made, offsets=False), size
    other, other_size = zero, zero[..., 0]
    if held.other is not None:
        other, other_size = points.get(held.other, zero), sizes.get(held.other, zero[..., 0])
    made = read * held.scale + other * held.other_scale
    return held.made(made, offsets=False), read_size * abs(held.scale) + other_size * abs(held.other_scale)
