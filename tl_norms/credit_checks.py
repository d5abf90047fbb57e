"""Does an attribution add up? Compared in the form in which it is returned, all cuts and layers at once."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import DecompositionError

if TYPE_CHECKING:
    from .backward import StackCredit

LIKELY_CAUSES = (
    "Likely causes: the model's weights or device changed after the cache was made; a hook edited an activation during "
    "the run; the model was in training mode (call model.eval())."
)


@dataclass(frozen=True)
class Expected:
    """What the rows of a credit are compared with.

    Attributes:
        typical: what products of such vectors usually are, at every cut
        written: what feed-forwards give as their operators make it of what they read; written_size: its largest part
        entering: what a layer's stream gives
        own: whether a layer has attention, with values of the stream that enters it
    """

    typical: Float[Tensor, "cut t b"]
    written: Float[Tensor, "layer t b"]
    written_size: Float[Tensor, "layer t b"]
    entering: Float[Tensor, "layer t b"]
    own: list[bool]


def check_credit(
    credit: "StackCredit",
    value: Float[Tensor, "t b"],
    expected: Expected,
    tolerance: float,
    stack: str,
    names: tuple[str, ...],
) -> None:
    """Cuts; layers cut at their values; feed-forwards; queries, keys and values.

    Raises:
        DecompositionError: some of them do not add up; nan included.
    """
    cuts = cut_errors(value, credit.stream, credit.beside, credit.offset, expected.typical)
    found = [(stack + "cut {}", cuts)]
    if len(credit.kept):
        parts = [credit.bypass, credit.heads] + ([] if credit.beside is None else [credit.beside[:-1]])
        attended = torch.tensor([number not in credit.unattended for number in range(len(credit.kept))])
        at_values = _errors(value, credit.values_offset, parts, expected.typical[:-1])
        found.append((stack + "layer {}, cut at the values", _only(at_values, attended)))
        wrote = _errors(expected.written, torch.zeros_like(expected.written), [credit.ffn], expected.written_size)
        found.append((stack + "layer {}, feed-forward", wrote))
        if credit.ways is not None:
            ways = [credit.bypass, *credit.ways]
            off = _errors(expected.entering, torch.zeros_like(expected.entering), ways, expected.typical[:-1])
            found.append((stack + "layer {}, queries, keys and values", _only(off, torch.tensor(expected.own))))
    largest = torch.cat([errors.amax(-1) for _, errors in found])  # one comparison, one synchronisation
    if bool((largest <= tolerance).all()):
        return
    for where, errors in found:
        wrong = (~(errors <= tolerance)).any(-1).nonzero().flatten().tolist()
        if wrong:  # what is nearest to the end: the others may follow from it
            raise_if_off(errors[wrong[-1]], tolerance, where.format(wrong[-1]), names)


def _only(errors: Float[Tensor, "row t"], rows: Tensor) -> Float[Tensor, "row t"]:
    return torch.where(rows.to(errors.device)[:, None], errors, torch.zeros_like(errors))


def cut_errors(
    value: Float[Tensor, "t b"],
    stream: Float[Tensor, "cut t b q"],
    beside: Float[Tensor, "cut t b k"] | None,
    offset: Float[Tensor, "cut t b"],
    typical: Float[Tensor, "cut t b"],
) -> Float[Tensor, "cut t"]:
    """How far every cut is from the value, relative to its largest part."""
    return _errors(value, offset, [stream] if beside is None else [stream, beside], typical)


def _errors(
    value: Float[Tensor, "*row t b"], offset: Float[Tensor, "row t b"], parts: list[Tensor], typical: Tensor
) -> Float[Tensor, "row t"]:
    """`relative_error` of many rows: |value - (sum of parts + offset)| by the largest of them, worst of the batch."""
    total = offset + sum(part.sum(-1) for part in parts)
    value = value.expand_as(total)
    sizes = [part.abs().amax(-1) for part in parts if part.shape[-1]]
    size = torch.stack([value.abs(), offset.abs(), typical, *sizes]).amax(0)
    error = (total - value).abs() / size.clamp_min(torch.finfo(size.dtype).tiny)
    return torch.where(total == value, torch.zeros_like(error), error).amax(-1)


def relative_error(value: Tensor, offset: Tensor, *parts: Tensor, typical: Tensor | None = None) -> Float[Tensor, " t"]:
    """|value - (sum of parts + offset)| relative to the largest of them, at the worst row of the batch.

    `typical`, [t b], is what products of such vectors usually are: a logit near zero is rounded like any other.
    """
    typical = torch.zeros_like(offset) if typical is None else typical
    return _errors(value, offset[None], [part.flatten(2)[None] for part in parts], typical[None])[0]


def raise_if_off(error: Tensor, tolerance: float, where: str, names: tuple[str, ...]) -> None:
    """
    Raises:
        DecompositionError: an error is above the tolerance, or not a number.
    """
    wrong = ~(error <= tolerance)
    if bool(wrong.any()):
        at = int(wrong.nonzero()[0])
        raise DecompositionError(
            f"{where} of {names[at]}: the contributions miss the model's own value by {float(error[at]):.1e} of the "
            f"largest of them (tolerance {tolerance:.0e}). {LIKELY_CAUSES}"
        )
