"""How much a component changes a map: 1 - Spearman (Kobayashi et al. 2024)."""

import warnings

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import MaskError, MissingExtraError, TLNormsError
from ..results import BlockNorms


class MetricsInputError(TLNormsError, ValueError):
    """The maps, tokens or options given do not fit together."""


def contextualization_change(
    before: Float[Tensor, "*axes query key"],
    after: Float[Tensor, "*axes query key"],
    *,
    causal: bool,
    mask: Tensor | None = None,
) -> Float[Tensor, "*axes"]:
    """How differently two maps rank the same pairs: 1 - Spearman(flatten(before), flatten(after)), per map.

    Ranks do not see a common factor: a component that doubles every vector changes nothing here.

    Args:
        before, after: maps, [layer batch query key] or with any other leading axes
        causal: use pairs with key <= query only. A causal model has zeros above the diagonal in both maps; those
            ties agree perfectly and would inflate the correlation, the more the longer the text is.
        mask: True or 1 at real tokens, [batch pos] (or [pos]), where batch is the axis in front of query; pairs
            that touch padding are left out, for the same reason

    Returns:
        One number per map, from 0 (same order) to 2 (opposite order), in the dtype of `before` (at least float32).
        nan if one of the maps is constant, has fewer than two pairs or holds nan: then there is no order to compare.

    Raises:
        MetricsInputError: the maps differ in shape.
        MaskError: the mask does not fit them.
        MissingExtraError: scipy is not installed.

    Example:
        >>> contextualization_change(maps["ATB"], maps["ATBFF"], causal=maps.causal)   # doctest: +SKIP
    """
    spearmanr = _spearmanr()
    if before.shape != after.shape or before.ndim < 2 or before.shape[-1] != before.shape[-2]:
        raise MetricsInputError(
            f"expected two maps of one shape [... query key], query as long as key, got {list(before.shape)} and "
            f"{list(after.shape)}. Take both from one result: norms[scope]."
        )
    n = before.shape[-1]
    left, right = (value.detach().double().cpu().reshape(-1, n, n) for value in (before, after))
    keep = torch.ones(n, n, dtype=torch.bool).tril() if causal else torch.ones(n, n, dtype=torch.bool)
    keeps = _real_pairs(mask, before.shape) & keep  # [text query key]
    changes = []
    for row in range(len(left)):
        pairs = keeps[row % len(keeps)]
        changes.append(1 - _correlation(spearmanr, left[row][pairs], right[row][pairs]))
    dtype = torch.float64 if before.dtype == torch.float64 else torch.float32
    return torch.tensor(changes, dtype=dtype, device=before.device).reshape(before.shape[:-2])


def component_changes(norms: BlockNorms) -> dict[str, Float[Tensor, "layer *batch"]]:
    """The change that each step of the chain makes: `contextualization_change` from the scope before to this one.

    Args:
        norms: a result with neighbouring scopes, for instance of `ffn_maps`

    Returns:
        scope -> [layer batch] for every scope whose predecessor in the chain was computed too. The last word of the
        scope is the component: "attn_res_ln_ff" holds what the feed-forward changes.

    Raises:
        MissingExtraError: scipy is not installed.

    Example:
        >>> component_changes(tl_norms.ffn_maps(cache))["attn_res_ln_ff"].mean(-1)      # doctest: +SKIP
    """
    changes = {}
    for previous, scope in zip(norms.chain, norms.chain[1:], strict=False):
        if previous in norms.maps and scope in norms.maps:
            changes[scope] = contextualization_change(
                norms[previous], norms[scope], causal=norms.causal, mask=norms.mask
            )
    return changes


def _real_pairs(mask: Tensor | None, shape: torch.Size) -> Tensor:
    """Pairs of real tokens, [text query key], one text if they do not differ."""
    n = shape[-1]
    if mask is None:
        return torch.ones(1, n, n, dtype=torch.bool)
    mask = torch.as_tensor(mask).bool().cpu()
    fits = mask.ndim == 1 or (mask.ndim == 2 and len(shape) > 2 and len(mask) == shape[-3])
    if not fits or mask.shape[-1] != n:
        raise MaskError(
            f"the mask has shape {list(mask.shape)}, the maps {list(shape)}: expected [pos] or [batch pos] with the "
            f"batch axis in front of query. Pass norms.mask."
        )
    mask = mask.reshape(-1, n)
    return mask[:, :, None] & mask[:, None, :]


def _correlation(spearmanr, left: Tensor, right: Tensor) -> float:
    if len(left) < 2:
        return float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy warns of constant input; the nan that it returns is documented here
        return float(spearmanr(left.numpy(), right.numpy())[0])


def _spearmanr():
    try:
        from scipy.stats import spearmanr
    except ImportError as error:
        raise MissingExtraError("Spearman correlations need scipy: pip install 'tl_norms[metrics]'") from error
    return spearmanr
