"""Methods that compose one map per layer into contributions of input positions."""

import torch
from torch import Tensor

from .. import composition
from ..blocks.activations import check_cache
from ..names import attention_block
from ..norms import block_norms
from ..plan import chain_of, reader_of
from ..results import BlockNorms, check_whole
from .results import ComposedMaps, unattended


def attention_rollout(cache, *, mask: Tensor | None = None, stack: str | None = None) -> ComposedMaps:
    """Attention rollout (Abnar & Zuidema 2020): products of (A + I) / 2.

    A is the attention pattern, mean over heads; I stands for the skip connection, at a weight nobody measured. What
    values, norms and feed-forwards do is left out, and nothing adds up to an activation.

    Args:
        cache: an ActivationCache
        mask, stack: as for `block_norms`

    Returns:
        ComposedMaps; rows of both maps sum to 1.

    Raises:
        As `block_norms`; MapError for rows of zeros.

    Example:
        >>> tl_norms.methods.attention_rollout(cache).rollout[-1]               # doctest: +SKIP
    """
    norms, maps = _patterns(cache, mask, stack)
    facts = unattended(cache, mask, stack), norms.token_strings, norms.model_name or ""
    return ComposedMaps("attention_rollout", None, norms.layers, maps, composition.rollout(maps), *facts)


def attention_flow(cache, *, mask: Tensor | None = None, stack: str | None = None) -> ComposedMaps:
    """Attention flow (Abnar & Zuidema 2020): maximum flows with (A + I) / 2 as capacities, rows brought to 1.

    As `attention_rollout`, but paths share capacities. One maximum flow per layer and pair of positions: seconds for
    ten positions, minutes for fifty.

    Args:
        cache, mask, stack: as for `attention_rollout`

    Returns:
        ComposedMaps; `rollout[l]` holds the flows from above layer l to the input.

    Raises:
        As `attention_rollout`; MissingExtraError without scipy.

    Example:
        >>> tl_norms.methods.attention_flow(cache).rollout[-1]                  # doctest: +SKIP
    """
    norms, maps = _patterns(cache, mask, stack)
    facts = unattended(cache, mask, stack), norms.token_strings, norms.model_name or ""
    return ComposedMaps("attention_flow", None, norms.layers, maps, composition.attention_flow(maps), *facts)


def norm_rollout(
    cache, scope: str | None = None, *, normalize: bool = True, mask: Tensor | None = None, stack: str | None = None
) -> ComposedMaps:
    """Rollout of norm-based maps: products of ‖v_ij‖ (Kobayashi et al. 2021), rows brought to sum 1.

    The skip connection is inside the scopes from `attn_res` on, so no identity is added. Lengths do not add up: vectors
    may cancel.

    Args:
        cache: an ActivationCache
        scope: a scope, or a paper's name for it; None for the whole attention block ("ATB")
        normalize: bring rows to sum 1; without it products grow by powers of ten each layer (computed in float64)
        mask, stack: as for `block_norms`

    Returns:
        ComposedMaps of the scope.

    Raises:
        As `block_norms`; MapError for rows of zeros (padding) or numbers that float64 cannot hold.

    Example:
        >>> tl_norms.methods.norm_rollout(cache).rollout[-1]                    # doctest: +SKIP
    """
    if scope is None:
        check_cache(cache)
        scope = attention_block(chain_of(reader_of(cache.model, stack)))
    norms = block_norms(cache, scope, mask=mask, stack=stack)
    (found,) = norms.scopes
    maps = composition.normalized(norms[found]) if normalize else norms[found].double()
    facts = unattended(cache, mask, stack), norms.token_strings, norms.model_name or ""
    return ComposedMaps("norm_rollout", found, norms.layers, maps, composition.rollout(maps), *facts)


@torch.no_grad()
def alti(
    cache, scope: str | None = None, *, normalize: bool = True, mask: Tensor | None = None, stack: str | None = None
) -> ComposedMaps:
    """ALTI (Ferrando et al. 2022): max(0, ‖y_i‖₁ − ‖y_i − v_ij‖₁), rows brought to 1, and products.

    y_i is the real activation, biases included; v_ij ends with the attention block: after its norm in post-LN models,
    before the next one in pre-LN models. The skip connection is inside, so no identity is added; the feed-forward is
    left out. Vectors are formed a few pairs at a time.

    Args:
        cache: an ActivationCache
        scope: another scope, or a paper's name for it; None for the authors'
        normalize: bring rows to sum 1
        mask, stack: as for `block_norms`

    Returns:
        ComposedMaps of the scope.

    Raises:
        As `block_norms`; MapError for rows of zeros, such as padding.

    Example:
        >>> tl_norms.methods.alti(cache).rollout[-1]                            # doctest: +SKIP
    """
    check_cache(cache)
    chain = chain_of(reader_of(cache.model, stack))
    scope = attention_block(chain) if scope is None else scope
    norms = block_norms(cache, scope, measure="alti", mask=mask, stack=stack)
    (found,) = norms.scopes
    maps = composition.normalized(norms[found]) if normalize else norms[found].double()
    facts = unattended(cache, mask, stack), norms.token_strings, norms.model_name or ""
    return ComposedMaps("alti", found, norms.layers, maps, composition.rollout(maps), *facts)


def globenc(
    cache,
    *,
    add_identity: bool = False,
    normalize: bool = False,
    mask: Tensor | None = None,
    source_mask: Tensor | None = None,
    stack: str | None = None,
) -> ComposedMaps:
    """GlobEnc (Modarressi et al. 2022): products of ‖v_ij‖ at the end of the block, with the feed-forward skipped.

    v_ij goes on from the attention block through the second residual connection and, in post-LN models, the second
    layer norm with its real scale; what the feed-forward writes belongs to the remainder (`ff="drop"`). Neither an
    identity nor normalised rows, so products grow by powers of ten each layer (computed in float64). Lengths do not
    add up: vectors may cancel.

    Args:
        cache: an ActivationCache
        add_identity: add 1 to the diagonal; the authors' maps have the skip connections inside
        normalize: bring rows to sum 1, after any identity
        mask, source_mask, stack: as for `block_norms`; of a decoder with cross-attention the keys are its own positions

    Returns:
        ComposedMaps of the last scope.

    Raises:
        As `block_norms`; MapError for rows of zeros or numbers that float64 cannot hold.

    Example:
        >>> tl_norms.methods.globenc(cache).rollout[-1]                         # doctest: +SKIP
    """
    check_cache(cache)
    scope = chain_of(reader_of(cache.model, stack))[-1]
    norms = block_norms(cache, scope, ff="drop", mask=mask, source_mask=source_mask, stack=stack)
    check_whole(norms, "globenc")
    maps = norms[scope][..., : norms.boundary].double()
    if add_identity:
        maps = maps + torch.eye(maps.shape[-1], dtype=maps.dtype, device=maps.device)
    maps = composition.normalized(maps) if normalize else maps
    facts = unattended(cache, mask, stack), norms.token_strings, norms.model_name or ""
    return ComposedMaps("globenc", scope, norms.layers, maps, composition.rollout(maps), *facts)


def _patterns(cache, mask: Tensor | None, stack: str | None) -> tuple[BlockNorms, Tensor]:
    """(A + I) / 2 of all layers, rows exactly 1."""
    norms = block_norms(cache, "attn", mask=mask, stack=stack)
    check_whole(norms, "attention rollout")
    patterns = norms.attention
    identity = torch.eye(patterns.shape[-1], dtype=patterns.dtype, device=patterns.device)
    return norms, composition.normalized(patterns + identity)
