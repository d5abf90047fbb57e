"""Hold a value path: from the stream that an attention reads to its values, checked against the cached values."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from .blocks.structure import Attention, Reader
from .blocks.values import Multiplied, Normed, Projected, ValuePath, value_projection, weights_of
from .errors import DecompositionError
from .linear.hold import NormWeights, hold_norm
from .linear.operators import Chain, Operator, Projection, Scaling, SplitHeads, applied


def hold_path(
    reader: Reader,
    path: ValuePath,
    attention: Attention,
    x: Float[Tensor, "b k d"],
    values: Float[Tensor, "b k h e"],
    real: Tensor,
    tolerance: float,
) -> Chain:
    """The path as one operator, x -> values, scales and clamps held at the real x.

    Args:
        x: the stream that is read
        values: the cached values as attention uses them, grouped heads repeated
        real: which positions are not padding, [b k] bool

    Raises:
        DecompositionError: the path does not give the cached values.
    """
    steps: list[Operator] = []
    made = x
    for step in path.steps:
        operator = _held(reader, step, made)
        steps.append(operator)
        made = applied(operator, made)
    n_heads, d_head = values.shape[-2:]
    n_kv = made.shape[-1] // d_head
    split = SplitHeads(n_kv, n_heads // n_kv)
    steps.append(split)
    made = split(made)
    if path.head_norm is not None:
        norm = hold_norm(made, norm_weights(reader, path.head_norm, made))
        steps.append(norm)
        made = applied(norm, made)
    if attention.clip is not None:
        free = made.abs() <= attention.clip
        clamp = Scaling(free.to(made), made.clamp(-attention.clip, attention.clip).masked_fill(free, 0))
        steps.append(clamp)
        made = applied(clamp, made)
    _check(attention, made, values, real, tolerance)
    return Chain(tuple(steps))


def _held(reader: Reader, step: Normed | Multiplied | Projected, x: Tensor) -> Operator:
    if isinstance(step, Normed):
        return hold_norm(x, norm_weights(reader, step, x))
    if isinstance(step, Multiplied):
        return Scaling(step.factor)
    weights = value_projection(reader, step)
    bias = None if weights.bias is None else weights.bias.detach().to(x)
    return Projection(weights.weight.detach().to(x), bias)


def norm_weights(reader: Reader, step: Normed, like: Tensor) -> NormWeights:
    """A norm's weights in the dtype and on the device of the activations."""
    form = weights_of(reader, step)
    gain, beta = (None if part is None else part.detach().to(like) for part in (form.gain, form.beta))
    return NormWeights(form.center, form.eps, gain, beta)


def _check(attention: Attention, made: Tensor, values: Tensor, real: Tensor, tolerance: float) -> None:
    """The rebuilt values are the cached ones, at every real position."""
    off = rearrange((made - values).masked_fill(~real[..., None, None], 0), "b k h e -> b k (h e)").norm(dim=-1)
    size = rearrange(values, "b k h e -> b k (h e)").norm(dim=-1)
    error = float((off / size.amax().clamp_min(torch.finfo(size.dtype).tiny)).amax())
    if not error <= tolerance:
        raise DecompositionError(
            f"{attention.module}: the values rebuilt from the stream miss {attention.values} by {error:.1e} (tolerance "
            f"{tolerance:.0e}). Likely causes: the model's weights changed after the cache was made, or a hook edited "
            f"the values or the stream during the run. Run the model again without it."
        )
