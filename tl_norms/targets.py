"""What an attribution explains: a number that is affine in an activation of the model.

    logit(" are") - logit(" is")            two tokens against each other, at the last position
    logit([" Mary", " Ann"])                a token for every row of the batch
    direction(probe, layer=6, at=3)         a probe on the stream entering layer 6, at position 3
    direction(other, at=weights)            a sentence embedding's product with another vector

Targets add, subtract and are multiplied by numbers. Probabilities are not affine: take a logit or a difference.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import TLNormsError


class TargetError(TLNormsError, ValueError):
    """The target does not exist in this model or run, or is not affine in an activation."""


At = int | Sequence[int] | Tensor


@dataclass(frozen=True)
class Output:
    """One output of the model: a vocabulary id (or a string for the model's tokenizer), at a position.

    A tuple holds one for every row of the batch.
    """

    token: int | str | tuple[int | str, ...]
    at: int
    of_class: bool = False  # of a classifier, which gives one row per text


@dataclass(frozen=True, eq=False)
class Along:
    """<vector, stream entering `layer`> at one position, summed over several, or weighted."""

    vector: Float[Tensor, " d_model"]
    layer: int | None
    at: At


@dataclass(frozen=True)
class Target:
    """A sum of multiples of outputs and directions.

    Attributes:
        terms: pairs of a number and what it multiplies
        name: how results call it
    """

    terms: tuple[tuple[float, Output | Along], ...]
    name: str

    def named(self, name: str) -> "Target":
        """The same under another name."""
        return replace(self, name=name)

    def __add__(self, other: "Target") -> "Target":
        if not isinstance(other, Target):
            return NotImplemented
        return Target(self.terms + other.terms, f"{self.name} + {other.name}")

    def __sub__(self, other: "Target") -> "Target":
        if not isinstance(other, Target):
            return NotImplemented
        right = f"({other.name})" if len(other.terms) > 1 else other.name
        return Target(self.terms + (-1.0 * other).terms, f"{self.name} - {right}")

    def __mul__(self, factor: float) -> "Target":
        if not isinstance(factor, (int, float)):
            return NotImplemented
        inner = f"({self.name})" if len(self.terms) > 1 else self.name
        return Target(tuple((factor * c, term) for c, term in self.terms), f"{factor:g} * {inner}")

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> "Target":
        if divisor == 0:
            raise TargetError(f"{self.name} is divided by zero; expected another number.")
        return self * (1 / divisor)

    def __neg__(self) -> "Target":
        return -1.0 * self


def logit(token: str | int | Sequence[str | int], at: int = -1) -> Target:
    """The logit of a token, as the model gives it (its scale, softcap and bias included).

    Args:
        token: its string, exactly as the tokenizer has it (" are", with the space), or its vocabulary id; or a list of
            them, one for every row of the batch
        at: the position whose prediction this is; negative from the last real token of each row

    Raises:
        TargetError: when the target is used: a string of several tokens, an id or a position out of range, a list of
            another length than the batch.

    Example:
        >>> tl_norms.attribute(cache, tl_norms.logit(" are") - tl_norms.logit(" is"))   # doctest: +SKIP
    """
    rows = list(token) if isinstance(token, (list, tuple)) else [token]
    if not rows or any(not isinstance(one, (str, int)) or isinstance(one, bool) for one in rows):
        raise TargetError(f"token is {token!r}; expected a string or a vocabulary id, or a list of one for every row.")
    chosen = tuple(rows) if isinstance(token, (list, tuple)) else token
    return Target(((1.0, Output(chosen, _position(at))),), f"logit({token!r})" + _where(at))  # type: ignore[arg-type]


def class_logit(label: int) -> Target:
    """The logit of a class of a sequence classifier.

    Heads that read the first position (through a pooler or not) of models that TransformerLens wraps with their head:
    BertForNextSentencePrediction. TransformerLens 4.3 wraps no BertForSequenceClassification or
    RobertaForSequenceClassification; of an encoder alone, targets are directions of its last stream.

    Args:
        label: its number

    Raises:
        TargetError: when the target is used: the model has no such head or class.
    """
    return Target(((1.0, Output(_position(label), 0, of_class=True)),), f"class {label}")


def direction(vector: Float[Tensor, " d_model"], layer: int | None = None, at: At = -1) -> Target:
    """The product of a vector with the stream: a probe, a row of a sparse autoencoder's encoder, an embedding.

    Args:
        vector: [d_model]
        layer: the stream entering this layer, negative from the end; None for what leaves the last block
        at: a position; several, whose products are added; or weights [pos], for instance 1/n each for a mean-pooled
            sentence embedding

    Raises:
        TargetError: the vector has another shape, or, when the target is used, another width, layer or position.

    Example:
        >>> tl_norms.attribute(cache, tl_norms.direction(probe, layer=6, at=3))      # doctest: +SKIP
    """
    try:
        vector = torch.as_tensor(vector)
    except (TypeError, ValueError, RuntimeError):
        raise TargetError(f"the direction is a {type(vector).__name__}; expected a tensor [d_model].") from None
    if vector.ndim != 1 or not vector.is_floating_point():
        raise TargetError(f"the direction has shape {list(vector.shape)} and dtype {vector.dtype}; expected [d_model].")
    if not bool(torch.isfinite(vector).all()):
        raise TargetError("the direction holds NaN or infinity.")
    if isinstance(at, (Tensor, Sequence)) and not isinstance(at, str | bytes):
        if not len(at):
            raise TargetError("at is empty; expected a position, several, or weights [pos].")
        at = at if isinstance(at, Tensor) else [_position(one) for one in at]
    else:
        at = _position(at)
    layer = None if layer is None else _position(layer, "layer")
    where = "" if layer is None else f", layer={layer}"
    return Target(((1.0, Along(vector.detach(), layer, at)),), f"direction({len(vector)} numbers{where})" + _where(at))


def probability(*_: object, **__: object) -> Target:
    """Refused: a probability is not affine in any activation.

    Raises:
        TargetError: always, with the target to use instead.
    """
    raise TargetError(
        "a probability is not affine in the activations, so it has no exact parts. Use a logit, or a difference of "
        "logits, which is the logarithm of a ratio of probabilities: tl_norms.logit(' are') - tl_norms.logit(' is')."
    )


def _position(at: object, name: str = "at") -> int:
    if isinstance(at, bool) or not hasattr(at, "__index__"):
        raise TargetError(f"{name} is {at!r}; expected the number of a {'layer' if name == 'layer' else 'position'}.")
    return int(at.__index__())  # pyright: ignore[reportAttributeAccessIssue]


def _where(at: At) -> str:
    if isinstance(at, int):
        return "" if at == -1 else f" at {at}"
    if isinstance(at, Tensor) and at.is_floating_point():
        return " at weighted positions"
    return f" at {[int(a) for a in at]}"
