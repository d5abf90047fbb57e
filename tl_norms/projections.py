"""What heads and sources put into directions of their choice: probes, unembedding rows, features of autoencoders."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Unpack

from .errors import DecompositionError, UnknownOptionError
from .freeze import FrozenBlock
from .linear.carry.direction import edge_credits
from .linear.layers import HeldAttention
from .linear.measure.projections import projected_heads
from .linear.operators import Chain, applied
from .options import AnalysisOptions, one_layer
from .plan import Plan


@torch.no_grad()
def project_heads(
    cache: Any,
    layer: int,
    directions: Float[Tensor, "*direction d_model"],
    **options: Unpack[AnalysisOptions],
) -> Float[Tensor, "..."]:
    """a^h_ij <f^h(x_j), u>: what each head moves from key to query along every direction, signed.

    Args:
        cache: an ActivationCache
        layer: its number, negative from the end
        directions: [d_model] or [direction d_model]; for one direction the last axis is gone
        **options: mask, source_mask, stack and check, as for `block_norms`

    Returns:
        [*batch head query key direction]. O(n^2 H) per direction; with a gate or a norm between mixing and output
        projection O(n^2 d_model). Over heads and keys they add up to <attention's output - b_O, u>, which is compared.

    Raises:
        UnknownOptionError: the directions have another width.
        DecompositionError: they do not add up. Otherwise as `block_norms`.

    Example:
        >>> tl_norms.project_heads(cache, 3, model.W_U.T[[464, 262]]).shape     # doctest: +SKIP
        torch.Size([1, 12, 9, 9, 2])
    """
    plan, activations = Plan.of_cache(cache, None, **{**options, "layers": one_layer(layer)})
    frozen = FrozenBlock(plan.reader, activations, plan.blocks[0])
    values, mixing = frozen.attention()
    rows = as_directions(directions, values)
    if rows.shape[1] != mixing.weight.shape[2]:
        raise UnknownOptionError(f"the directions have {rows.shape[1]} numbers; expected {mixing.weight.shape[2]}.")
    if mixing.gate is None and mixing.inner is None:
        out = projected_heads(mixing.pattern, values, mixing.weight @ rows.T)
    else:
        n_batch, n_queries = mixing.pattern.shape[0], mixing.pattern.shape[2]
        g = rows[:, None, None].expand(-1, n_batch, n_queries, -1)
        out = edge_credits(g, HeldAttention(0, 0, 0, values, Chain(()), mixing)).movedim(0, -1)
    if plan.options.check:
        _check(frozen, out, rows)
    out = out if activations.has_batch else out[0]
    return out[..., 0] if directions.ndim == 1 else out


def _check(frozen: FrozenBlock, out: Tensor, rows: Tensor) -> None:
    """The sum over heads and keys is that of what attention really wrote."""
    number, operation = frozen.block.attention()
    truth = frozen.block.steps[number - 1].truth
    values, mixing = frozen.attention()
    wrote = applied(mixing, values)
    if truth is not None and truth.is_plain and frozen.activations.has(truth):
        wrote = frozen.activations.truth(truth)
    wrote = wrote if mixing.offset is None else wrote - mixing.offset
    real = frozen.activations.real(wrote)
    off = (out.sum((1, 3)) - wrote @ rows.T).abs()[real]
    size = (wrote.norm(dim=-1)[..., None] * rows.norm(dim=-1) + out.abs().sum((1, 3)))[real]
    error = float((off / size.clamp_min(torch.finfo(size.dtype).tiny)).amax()) if off.numel() else 0.0
    tolerance = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-2}.get(frozen.activations.coarsest, 1e-1)
    if not error <= tolerance:
        raise DecompositionError(
            f"{operation.module}: projections of its heads miss that of what it wrote by {error:.1e} (tolerance "
            f"{tolerance:.0e}). Likely causes: the model's weights changed after the cache was made, or a hook edited "
            f"attention during the run."
        )


def as_directions(directions: Any, like: Tensor) -> Float[Tensor, "direction d_model"]:
    """[direction d_model] in the dtype and on the device of the activations.

    Raises:
        UnknownOptionError: another shape, or numbers that are not finite.
    """
    try:
        directions = torch.as_tensor(directions)
    except (TypeError, ValueError, RuntimeError):
        raise UnknownOptionError(
            f"the directions are a {type(directions).__name__}; expected a tensor [d_model] or [direction, d_model]."
        ) from None
    rows = directions[None] if directions.ndim == 1 else directions
    wanted = like.shape[-1] if like.ndim == 3 else rows.shape[-1]
    if rows.ndim != 2 or rows.shape[1] != wanted or not len(rows) or not bool(torch.isfinite(rows).all()):
        raise UnknownOptionError(
            f"the directions have shape {list(directions.shape)}; expected finite numbers [{wanted}] or "
            f"[direction, {wanted}]."
        )
    return rows.detach().to(like)
