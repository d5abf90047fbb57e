"""The attention of one stack of an encoder-decoder's attribution: the decoder's own, cross-attention, the encoder's."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..errors import UnknownLayerError, UnknownOptionError
from .errors import PlotInputError

Stack = Literal["decoder", "cross", "encoder"]
STACKS: dict[str, str] = {
    "decoder": "the decoder's self-attention",
    "cross": "cross-attention (source tokens)",
    "encoder": "the encoder's self-attention",
}
SHORT: dict[str, str] = {"decoder": "decoder", "cross": "cross-attention", "encoder": "encoder"}


@dataclass(frozen=True)
class OneStack:
    """The edges of one stack, by the names that the figures of an attribution ask for.

    Attributes:
        result: the attribution
        stack: which
        layers: those that have attention of this kind
        crossing: whether queries are the decoder's and keys the encoder's
    """

    result: Any
    stack: Stack
    layers: tuple[int, ...]

    @property
    def crossing(self) -> bool:
        return self.stack == "cross"

    @property
    def token_strings(self) -> Any:
        return getattr(self.result, "source_strings" if self.stack == "encoder" else "token_strings", None)

    @property
    def source_strings(self) -> Any:
        return getattr(self.result, "source_strings", None) if self.crossing else None

    @property
    def target_name(self) -> Any:
        return self.result.target_name

    @property
    def model_name(self) -> Any:
        return getattr(self.result, "model_name", None)

    def edges(self, layer: int) -> Tensor:
        """[*batch head query key]"""
        if self.crossing:
            return self.result.cross_edges(layer)
        return self.result.edges(layer, self.stack)


def has_stacks(result: Any) -> bool:
    """Whether a result is the attribution of an encoder-decoder."""
    return getattr(result, "source_stream", None) is not None and callable(getattr(result, "cross_edges", None))


def one_stack(result: Any, stack: Stack | None) -> Any:
    """One stack of an encoder-decoder's attribution, the decoder's own for None; any other result as it is.

    Raises:
        PlotInputError: another stack, or one of a result that has no such choice.
    """
    if stack is not None and stack not in get_args(Stack):
        raise PlotInputError(f"stack is {stack!r}: expected 'decoder', 'cross', 'encoder' or None.")
    if not has_stacks(result):
        if stack is not None:
            raise PlotInputError("stack= is for the attribution of an encoder-decoder: leave it out.")
        return result
    return OneStack(result, stack or "decoder", _layers(result, stack or "decoder"))


def head_totals(result: Any, stack: Stack) -> tuple[tuple[int, ...], Tensor]:
    """The layers of one stack and what each of its heads gives, [layer *batch head].

    Raises:
        PlotInputError: the encoder's, of an attribution without its edges.
    """
    if stack == "decoder":
        return tuple(result.layers), result.heads
    if stack == "cross" and getattr(result, "cross_heads", None) is not None:
        return tuple(result.layers), result.cross_heads
    found = one_stack(result, stack)
    try:
        return found.layers, torch.stack([found.edges(layer).sum((-1, -2)) for layer in found.layers])
    except UnknownOptionError as error:
        raise PlotInputError(f"the heads of {STACKS[stack]} are read off the edges. {error}") from error


def _layers(result: Any, stack: Stack) -> tuple[int, ...]:
    """The layers that have attention of this kind."""
    if stack == "decoder":
        return tuple(result.layers)
    if stack == "encoder":
        return tuple(range(len(result.source_stream) - 1))  # its cuts, less one
    there = []
    for layer in result.layers:
        try:
            result.cross_edges(layer)
        except UnknownLayerError:
            continue
        except UnknownOptionError:
            return tuple(result.layers)
        there.append(layer)
    return tuple(there)
