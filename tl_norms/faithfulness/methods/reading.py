"""Which row of a map explains a target."""

from jaxtyping import Float
from torch import Tensor

from ..targets import Target


def row(scores: Float[Tensor, "*batch query key"], target: Target) -> Float[Tensor, "*batch key"]:
    """The position that predicts; with a probe the positions whose states are pooled."""
    if target.probe is None:
        return scores[..., target.at, :]
    if target.probe.pool == "mean":
        return scores.mean(-2)
    return scores[..., 0 if target.probe.pool == "first" else -1, :]


def rows(target: Target, n: int) -> tuple[int, ...]:
    """Which rows of n those are; their mean explains the target."""
    if target.probe is None:
        return (target.at,)
    return tuple(range(n)) if target.probe.pool == "mean" else (0 if target.probe.pool == "first" else -1,)
