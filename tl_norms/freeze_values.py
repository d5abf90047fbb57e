"""Hold a value path: from the stream that an attention reads to its values, checked against the cached values."""

import torch
from jaxtyping import Float
from torch import Tensor

from .blocks.structure import Attention, Reader
from .blocks.values import ValuePath
from .errors import DecompositionError
from .freeze_paths import PathInTheMaking
from .linear.operators import Chain, SplitHeads
from .linear.required import judged


def hold_path(
    reader: Reader,
    path: ValuePath,
    attention: Attention,
    x: Float[Tensor, "b k d"],
    values: Float[Tensor, "b k h e"],
    real: Tensor | None,
    tolerance: float,
) -> Chain:
    """The path as one operator, x -> values, scales and clamps held at the real x.

    Args:
        x: the stream that is read
        values: the cached values as attention uses them, grouped heads repeated
        real: which positions are not padding, [b k] bool; None for all

    Raises:
        DecompositionError: the path does not give the cached values.
    """
    held = PathInTheMaking(reader, x)
    for step in path.steps:
        held.take(step)
    n_heads, d_head = values.shape[-2:]
    n_kv = held.made.shape[-1] // d_head
    held.add(SplitHeads(n_kv, n_heads // n_kv))
    if path.head_norm is not None:
        held.add(held.norm(path.head_norm))
    held.clamp(attention.clip)
    _check(attention, held.made, values, real, tolerance)
    return Chain(tuple(held.steps))


def _check(attention: Attention, made: Tensor, values: Tensor, real: Tensor | None, tolerance: float) -> None:
    """The rebuilt values are the cached ones, at every real position."""
    off = made - values
    if real is not None:
        off = off.masked_fill_(~real[..., None, None], 0)
    off, size = (part.flatten(2).norm(dim=-1) for part in (off, values))

    def judge(error: float) -> None:
        if error <= tolerance:
            return
        raise DecompositionError(
            f"{attention.module}: the values rebuilt from the stream miss {attention.values} by {error:.1e} (tolerance "
            f"{tolerance:.0e}). Likely causes: the model's weights changed after the cache was made, or a hook edited "
            f"the values or the stream during the run. Run the model again without it."
        )

    judged((off / size.amax().clamp_min(torch.finfo(size.dtype).tiny)).amax(), judge)
