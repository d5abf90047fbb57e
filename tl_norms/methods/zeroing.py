"""Value zeroing: how much a position's output turns when a source's values are taken away."""

import torch
from einops import rearrange
from torch import Tensor

from .. import composition
from ..blocks.activations import check_cache
from ..blocks.structure import Add, Attention, FeedForward, Norm
from ..complete import completed
from ..errors import DecompositionError
from ..freeze import FrozenBlock
from ..linear.carry.pairs import is_causal
from ..linear.pieces import pieces
from ..plan import Plan, chain_of, reader_of
from ..tolerances import TOLERANCE
from .results import ComposedMaps, names_of, unattended


@torch.no_grad()
def value_zeroing(
    cache,
    *,
    normalize: bool = True,
    mask: Tensor | None = None,
    source_mask: Tensor | None = None,
    stack: str | None = None,
) -> ComposedMaps:
    """Value zeroing (Mohebbi et al. 2023): 1 - cos(block output without source j's values, real block output).

        map[i, j] = ½ ‖ŷ_i - ŷ_i^(without j)‖²,   ŷ of length 1, which is 1 - cos without its cancellation

    The attention pattern is held, and with it gates of attention and cross-attention; norms and feed-forwards run again
    on what is left. Nothing adds up: maps are distances. n² token-wise passes through the rest of the block; attention
    itself is not run again.

    Args:
        cache: an ActivationCache
        normalize: bring rows to sum 1, as the authors do before they multiply
        mask, source_mask, stack: as for `block_norms`; of a decoder with cross-attention the keys are its own positions

    Returns:
        ComposedMaps of the block's output.

    Raises:
        DecompositionError: the block run again without any change is not what the model computed.
        As `block_norms`; MapError for rows of zeros, such as padding.

    Example:
        >>> tl_norms.methods.value_zeroing(cache).maps[3]                       # doctest: +SKIP
    """
    check_cache(cache)
    scope = chain_of(reader_of(cache.model, stack))[-1]
    plan, activations = Plan.of_cache(cache, scope, mask=mask, source_mask=source_mask, stack=stack)
    rows = []
    for block in plan.blocks:
        frozen = FrozenBlock(plan.reader, activations, block)
        (made,) = completed(frozen, plan.scopes)
        rows.append(_turned(frozen, made.point, made.sources.total))
    first = rows[0].device
    maps = torch.stack([row.to(first) if activations.has_batch else row[0].to(first) for row in rows])
    maps = composition.normalized(maps) if normalize else maps
    layers = tuple(block.layer for block in plan.blocks)
    facts = unattended(cache, mask, stack), *names_of(plan, activations, rows[0].shape)
    return ComposedMaps("value_zeroing", scope, layers, maps, composition.rollout(maps), *facts)


def _turned(frozen: FrozenBlock, point: int, total: Tensor) -> Tensor:
    """1 - cos of every pair, [b q k] in float64."""
    at = frozen.block.attention()[0]
    values, mixing = frozen.mixing(at)
    mixed = mixing.mixed(values)
    n_batch, n, d_model = total.shape
    whole = _output(frozen, at, point, mixed[None], slice(0, n))[0]
    _compare(frozen, whole, total)
    real = _unit(whole)
    causal, out = is_causal(mixing.pattern), real.new_zeros(n_batch, n, n)
    at_once = max(1, pieces(total.device).pair_vectors // (n_batch * n * d_model * 4 * total.element_size()))
    for begin in range(0, n, at_once):
        keys = slice(begin, min(begin + at_once, n))
        seen = slice(begin if causal else 0, n)
        weights = rearrange(mixing.pattern[..., keys], "b h q s -> s b q h 1")
        left = mixed - weights * rearrange(values[:, keys], "b s h e -> s b 1 h e")
        without = _unit(_output(frozen, at, point, left, seen))
        turned = (without - real[:, seen]).square().sum(-1) / 2
        turned = turned.masked_fill((weights[..., 0] == 0).all(-1)[:, :, seen], 0)  # not attended to: nothing to remove
        out[:, seen, keys] = rearrange(turned, "s b q -> b q s")
    return out


def _output(frozen: FrozenBlock, at: int, point: int, mixed: Tensor, queries: slice) -> Tensor:
    """The block's output for other mixed values [s b q h e], at some queries: [s b q d]."""
    points = {0: frozen.real(0)[None, :, queries]} if frozen.block.reads_stream(frozen.block.scopes) else {}
    for number in frozen.block.needed_up_to(point):
        step = frozen.block.steps[number - 1]
        if number == at:
            points[number] = frozen.written(number, mixed)[:, :, queries]
        elif isinstance(step.operation, Attention):  # over another sequence, its pattern held
            points[number] = frozen.real(number)[None, :, queries]
        elif isinstance(step.operation, Norm | FeedForward):
            x = points[step.reads]
            made = frozen.live(number, rearrange(x, "s b q d -> (s b) q d"))
            points[number] = rearrange(made, "(s b) q d -> s b q d", s=len(x))
        elif isinstance(step.operation, Add):
            held = frozen.step(number)
            made = points[step.reads] * held.scale + points[step.operation.other] * held.other_scale
            points[number] = made if held.beside is None else made + held.beside[:, queries]
    return points[point]


def _unit(vectors: Tensor) -> Tensor:
    vectors = vectors.double()
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(vectors.dtype).tiny)


def _compare(frozen: FrozenBlock, made: Tensor, real: Tensor) -> None:
    """The block run again without any change, against the sum of its sources, which is the model's own activation."""
    kept = frozen.activations.real(made)
    off = (made - real).norm(dim=-1) / real.norm(dim=-1).clamp_min(torch.finfo(real.dtype).tiny)
    error, tolerance = float(off[kept].max()) if bool(kept.any()) else 0.0, TOLERANCE[frozen.activations.coarsest]
    if not error <= tolerance:
        raise DecompositionError(
            f"layer {frozen.block.layer}: the block run again gives another output, off by {error:.1e} (tolerance "
            f"{tolerance:.0e}). Likely causes: the model's weights changed after the cache was made, or a hook edited "
            f"an activation inside the block. Run the model again."
        )
