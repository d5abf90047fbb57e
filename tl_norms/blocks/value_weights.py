"""The value projection of an attention, as one affine map for all heads."""

from typing import Any

import einops
from torch import Tensor, nn

from ..errors import UnsupportedArchitectureError
from .structure import Affine


def value_weights(attention: nn.Module, name: str, width: int) -> Affine:
    """x -> the values of all heads side by side, `width` numbers; values of grouped heads once for each head.

    Raises:
        UnsupportedArchitectureError: the values are no affine map of the stream.
    """
    given: Any = attention
    try:
        weight, bias = given.W_V, getattr(given, "b_V", None)
    except AttributeError as error:
        raise UnsupportedArchitectureError(f"{name} has no W_V that can be read: {error}.") from error
    if not isinstance(weight, Tensor) or weight.ndim != 3 or width % (weight.shape[0] * weight.shape[-1]):
        shape = list(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise UnsupportedArchitectureError(
            f"{name}.W_V is {shape}; expected [head d_model d_head], as many heads as fit the {width} inputs of W_O."
        )
    n_heads, _, d_head = weight.shape
    repeats = width // d_head // n_heads
    merged = einops.repeat(weight, "group d_model d_head -> d_model (group repeats d_head)", repeats=repeats)
    if bias is None:
        return Affine(merged, None)
    by_head = bias.reshape(n_heads, d_head)
    return Affine(merged, einops.repeat(by_head, "group d_head -> (group repeats d_head)", repeats=repeats))
