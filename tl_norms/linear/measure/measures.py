"""What can be measured of a vector v_ij that a source put into position i, beside the position's whole vector y_i.

    l2      |v|                                  length, >= 0
    l1      sum of |v|'s coordinates             >= 0
    alti    max(0, |y|_1 - |y - v|_1)            how much nearer v brings y (Ferrando et al. 2022), >= 0
    share   <v, y> / |y|^2                       signed; shares of all sources and of the remainder add up to 1
    Onto    <v, u> for directions u              signed; adds up to <y, u> with the remainder; a trailing axis

A measure works on dense vectors, as many at a time as the caller formed. `share` and `Onto` are linear in v: their
covectors can be carried back instead (see `covectors`), and no pair vector is needed.

Axes: b batch, h head, q query, k key, e d_head, d d_model, r direction, *s anything.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import NonFiniteError, UnknownOptionError

MeasureName = Literal["l2", "l1", "alti", "share"]


@runtime_checkable
class Measure(Protocol):
    """A number, or some, for each vector v, [*s d]; `total` is y, broadcast against v."""

    name: ClassVar[str]
    signed: ClassVar[bool]  # values below zero mean something; those of all sources and of the remainder add up

    def of(self, vectors: Float[Tensor, "*s d"], total: Float[Tensor, "... d"]) -> Tensor: ...

    def covectors(self, total: Float[Tensor, "*s d"]) -> Float[Tensor, "*#s r d"] | None:
        """c with value = <v, c>, r of them for every y; None for a measure that is not linear in v."""
        ...

    def sizes(self, lengths: Float[Tensor, "*s"], total: Float[Tensor, "... d"]) -> Tensor:
        """The most that a change of v by these lengths can change its value: what rounding is relative to."""
        ...


@dataclass(frozen=True)
class Length:
    """|v|."""

    name: ClassVar[str] = "l2"
    signed: ClassVar[bool] = False

    def of(self, vectors: Float[Tensor, "*s d"], total: Float[Tensor, "... d"]) -> Float[Tensor, "*s"]:
        return vectors.norm(dim=-1)

    def covectors(self, total: Tensor) -> None:
        return None

    def sizes(self, lengths: Float[Tensor, "*s"], total: Float[Tensor, "... d"]) -> Float[Tensor, "*s"]:
        return lengths


@dataclass(frozen=True)
class AbsoluteSum:
    """sum of the absolute coordinates of v."""

    name: ClassVar[str] = "l1"
    signed: ClassVar[bool] = False

    def of(self, vectors: Float[Tensor, "*s d"], total: Float[Tensor, "... d"]) -> Float[Tensor, "*s"]:
        return torch.linalg.vector_norm(vectors, 1, dim=-1)

    def covectors(self, total: Tensor) -> None:
        return None

    def sizes(self, lengths: Float[Tensor, "*s"], total: Float[Tensor, "... d"]) -> Float[Tensor, "*s"]:
        return lengths * total.shape[-1] ** 0.5


@dataclass(frozen=True)
class Alti:
    """max(0, |y|_1 - |y - v|_1), Ferrando et al. 2022, before rows are brought to 1."""

    name: ClassVar[str] = "alti"
    signed: ClassVar[bool] = False

    def of(self, vectors: Float[Tensor, "*s d"], total: Float[Tensor, "... d"]) -> Float[Tensor, "*s"]:
        return nearer(vectors, total).clamp_min_(0)

    def covectors(self, total: Tensor) -> None:
        return None

    def sizes(self, lengths: Float[Tensor, "*s"], total: Float[Tensor, "... d"]) -> Float[Tensor, "*s"]:
        return lengths * total.shape[-1] ** 0.5


@dataclass(frozen=True)
class Share:
    """<v, y> / |y|^2; 0 where y vanishes."""

    name: ClassVar[str] = "share"
    signed: ClassVar[bool] = True

    def of(self, vectors: Float[Tensor, "*s d"], total: Float[Tensor, "... d"]) -> Float[Tensor, "*s"]:
        return torch.einsum("...d,...d->...", vectors, _inverse(total))

    def covectors(self, total: Float[Tensor, "*s d"]) -> Float[Tensor, "*s 1 d"]:
        return _inverse(total)[..., None, :]

    def sizes(self, lengths: Float[Tensor, "*s"], total: Float[Tensor, "... d"]) -> Float[Tensor, "*s"]:
        return lengths * _inverse(total).norm(dim=-1)


@dataclass(frozen=True)
class Onto:
    """<v, u> for every direction u, [d] or [r d]: a logit's row, a probe, features; a trailing axis [r] in any case."""

    directions: Float[Tensor, "*r d"]
    name: ClassVar[str] = "onto"
    signed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.directions.ndim not in (1, 2):
            raise UnknownOptionError(
                f"Onto expects directions of shape [d_model] or [direction d_model], but these are "
                f"{list(self.directions.shape)}. Pass directions.reshape(-1, directions.shape[-1])."
            )
        if not self.directions.is_meta and not bool(self.directions.isfinite().all()):
            raise NonFiniteError("a direction of Onto holds nan or infinity: expected finite numbers.")

    def __repr__(self) -> str:
        return f"Onto(directions {list(self.directions.shape)})"

    def of(self, vectors: Float[Tensor, "*s d"], total: Float[Tensor, "... d"]) -> Float[Tensor, "*s r"]:
        return vectors @ self.covectors(total).mT

    def covectors(self, total: Float[Tensor, "*s d"]) -> Float[Tensor, "r d"]:
        width = self.directions.shape[-1]
        if width != total.shape[-1]:
            raise UnknownOptionError(
                f"the directions of Onto have width {width}, but the vectors of this scope have width "
                f"{total.shape[-1]}. Pass directions of shape [direction {total.shape[-1]}]."
            )
        return self.directions.reshape(-1, width).to(total)

    def sizes(self, lengths: Float[Tensor, "*s"], total: Float[Tensor, "... d"]) -> Float[Tensor, "*s r"]:
        return lengths[..., None] * self.covectors(total).norm(dim=-1)


MEASURES: dict[str, Measure] = {"l2": Length(), "l1": AbsoluteSum(), "alti": Alti(), "share": Share()}


def measure_of(measure: object) -> Measure:
    """The measure of a name (`MeasureName`), or the measure itself.

    Raises:
        UnknownOptionError: there is none of that name.
    """
    if isinstance(measure, str):
        if measure not in MEASURES:
            raise UnknownOptionError(
                f"measure={measure!r} is none of {', '.join(map(repr, MEASURES))} and no measure such as "
                f"Onto(directions). Pass measure='l2' for lengths."
            )
        return MEASURES[measure]
    if isinstance(measure, type) or not isinstance(measure, Measure):
        raise UnknownOptionError(
            f"measure is a {type(measure).__name__}; expected one of {', '.join(map(repr, MEASURES))} or a measure "
            f"such as Onto(directions). Pass measure='l2' for lengths, measure=Onto(directions) for directions."
        )
    return measure


def nearer(vectors: Float[Tensor, "*s d"], total: Float[Tensor, "... d"]) -> Float[Tensor, "*s"]:
    """|y|_1 - |y - v|_1, coordinate by coordinate: min(w, 2 |y| - w) with w = v sign(y), which does not cancel."""
    toward = torch.where(total < 0, -vectors, vectors)
    return torch.minimum(toward, torch.sub(2 * total.abs(), toward)).sum(-1)


def mixture_onto(
    pattern: Float[Tensor, "b h q k"],
    values: Float[Tensor, "b k h e"],
    weight: Float[Tensor, "h e d"],
    directions: Float[Tensor, "r d"],
    scale: Float[Tensor, "b q"] | None = None,
) -> Float[Tensor, "b q k r"]:
    """<v_ij, u_r> of v_ij = scale_i sum_h a^h_ij v^h_j W^h: O(n^2 h) per direction, no pair vectors."""
    sent = torch.einsum("bkhe,hed,rd->bkhr", values, weight, directions)
    found = torch.einsum("bhqk,bkhr->bqkr", pattern, sent)
    return found if scale is None else found * scale[..., None, None]


def mixture_toward(
    pattern: Float[Tensor, "b h q k"],
    values: Float[Tensor, "b k h e"],
    weight: Float[Tensor, "h e d"],
    covectors: Float[Tensor, "b q d"],
    scale: Float[Tensor, "b q"] | None = None,
) -> Float[Tensor, "b q k"]:
    """<v_ij, c_i> with a covector for every query, such as y_i / |y_i|^2: O(n^2 h e), one head at a time."""
    covectors = covectors if scale is None else covectors * scale[..., None]
    found = pattern.new_zeros(len(pattern), *pattern.shape[2:])
    for head in range(pattern.shape[1]):
        at_values = covectors @ weight[head].T
        found.addcmul_(pattern[:, head], at_values @ values[:, :, head].transpose(1, 2))
    return found


def _inverse(total: Tensor) -> Tensor:
    """y / |y|^2, 0 where y vanishes; squares neither underflow nor overflow."""
    largest = total.abs().amax(-1, keepdim=True)
    largest = largest.masked_fill(largest == 0, 1.0)
    direction = total / largest
    squared = direction.square().sum(-1, keepdim=True)
    return direction / squared.masked_fill(squared == 0, 1.0) / largest
