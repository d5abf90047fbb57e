"""How much a component changes a map: 1 - Spearman (Kobayashi et al. 2024)."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import MaskError, MissingExtraError, TLNormsError
from ..existing import existing_pairs
from ..results import BlockNorms, check_whole


class MetricsInputError(TLNormsError, ValueError):
    """The maps, tokens or options given do not fit together."""


def contextualization_change(
    before: Float[Tensor, "*axes query key"],
    after: Float[Tensor, "*axes query key"],
    *,
    causal: bool,
    mask: Tensor | None = None,
    source_mask: Tensor | None = None,
) -> Float[Tensor, "*axes"]:
    """How differently two maps rank the same pairs: 1 - Spearman(flatten(before), flatten(after)), per map.

    Ranks do not see a common factor: a component that doubles every vector changes nothing here.

    Args:
        before, after: maps, [layer batch query key] or with any other leading axes. Keys beyond the queries are those
            of the encoder, after cross-attention.
        causal: use pairs with key <= query only. A causal model has zeros above the diagonal in both maps; those
            ties agree perfectly and would inflate the correlation, the more the longer the text is.
        mask: True or 1 at real tokens, [batch pos] (or [pos]), where batch is the axis before query; pairs
            that touch padding are left out, for the same reason
        source_mask: the same for the encoder's positions

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
    rankdata = _rankdata()
    if before.shape != after.shape or before.ndim < 2 or before.shape[-1] < before.shape[-2]:
        raise MetricsInputError(
            f"expected two maps of one shape [... query key], no fewer keys than queries, got {list(before.shape)} and "
            f"{list(after.shape)}. Take both from one result: norms[scope]."
        )
    keeps = _existing(before.shape, causal, mask, source_mask)
    return _changes(_ranks(rankdata, before, keeps), _ranks(rankdata, after, keeps), before)


def component_changes(norms: BlockNorms) -> dict[str, Float[Tensor, "layer *batch"]]:
    """The change that each step of the chain makes: `contextualization_change` from the scope before to this one.

    Args:
        norms: a result with neighbouring scopes, for instance of `ffn_maps`

    Returns:
        scope -> [layer batch] for every scope whose predecessor in the chain was computed too. The last word of the
        scope is the component: "attn_res_ln_ff" holds what the feed-forward changes. Cross-attention itself is left
        out: its sources are other tokens.

    Raises:
        MissingExtraError: scipy is not installed.

    Example:
        >>> component_changes(tl_norms.ffn_maps(cache))["attn_res_ln_ff"].mean(-1)      # doctest: +SKIP
    """
    only_lengths(norms, "component_changes")
    rankdata, changes = _rankdata(), {}
    ranks: dict[str, list[tuple[list[int], np.ndarray]]] = {}
    for previous, scope in zip(norms.chain, norms.chain[1:], strict=False):
        both = previous in norms.maps and scope in norms.maps
        if not both or norms[previous].shape != norms[scope].shape:
            continue
        for one in (previous, scope):  # the map after one step is the map before the next
            if one not in ranks:
                across = norms[one].shape[-1] > norms[one].shape[-2]
                source_mask = norms.source_mask if across else None
                keeps = _existing(norms[one].shape, norms.causal, norms.mask, source_mask)
                ranks[one] = _ranks(rankdata, norms[one], keeps)
        changes[scope] = _changes(ranks[previous], ranks[scope], norms[previous])
    return changes


def only_lengths(norms: BlockNorms, name: str) -> None:
    """Raise a MetricsInputError for a result of another measure, a CacheShapeError for one of a few new positions."""
    check_whole(norms, name)
    if norms.measure.name != "l2":
        raise MetricsInputError(
            f"{name} is about lengths, but these maps hold the measure {norms.measure.name!r}. "
            f"Pass a result of measure='l2'."
        )


def _existing(shape: torch.Size, causal: bool, mask: Tensor | None, source_mask: Tensor | None) -> Tensor:
    """The pairs that exist, [text query key]; one text if all have the same."""
    n_queries, n_keys = shape[-2:]
    masks = _fitting(mask, shape, n_queries), _fitting(source_mask, shape, n_keys - n_queries)
    keeps = existing_pairs(n_queries, n_keys, causal=causal, mask=masks[0], source_mask=masks[1])
    return keeps[:1] if (keeps == keeps[:1]).all() else keeps


def _ranks(rankdata, map: Tensor, keeps: Tensor) -> list[tuple[list[int], np.ndarray]]:
    """(numbers of maps, their ranks [map pair] with mean 0 and norm 1) for each text; nan where there is no order."""
    flat = map.detach().double().cpu().reshape(-1, *map.shape[-2:])
    found = []
    for text, pairs in enumerate(keeps):
        rows = list(range(text, len(flat), len(keeps)))
        values = flat[text :: len(keeps)][:, pairs].numpy()
        if values.shape[1] < 2:
            found.append((rows, np.full((len(rows), 1), np.nan)))
            continue
        ranks = rankdata(values, axis=-1)  # ties get their mean rank
        ranks = ranks - ranks.mean(-1, keepdims=True)
        scale = np.sqrt((ranks**2).sum(-1, keepdims=True))
        scale[(scale == 0) | np.isnan(values).any(-1, keepdims=True)] = np.nan
        found.append((rows, ranks / scale))
    return found


def _changes(
    before: list[tuple[list[int], np.ndarray]], after: list[tuple[list[int], np.ndarray]], of: Tensor
) -> Tensor:
    """1 - Spearman of each map, in the shape of the maps `of` without their last two axes."""
    changes = np.empty(of.shape[:-2]).reshape(-1)
    for (rows, left), (_, right) in zip(before, after, strict=True):
        changes[rows] = 1 - np.clip((left * right).sum(-1), -1, 1)
    dtype = torch.float64 if of.dtype == torch.float64 else torch.float32
    return torch.from_numpy(changes).to(of.device, dtype).reshape(of.shape[:-2])


def _fitting(mask: Tensor | None, shape: torch.Size, n: int) -> Tensor | None:
    """[text pos], one text if they do not differ."""
    if mask is None:
        return None
    mask = torch.as_tensor(mask).bool().cpu()
    fits = mask.ndim == 1 or (mask.ndim == 2 and len(shape) > 2 and len(mask) == shape[-3])
    if not fits or mask.shape[-1] != n:
        raise MaskError(
            f"the mask has shape {list(mask.shape)}, the maps {list(shape)}: expected [pos] or [batch pos] with the "
            f"batch axis before query. Pass norms.mask."
        )
    return mask.reshape(-1, n)


def _rankdata():
    try:
        from scipy.stats import rankdata
    except ImportError as error:
        raise MissingExtraError("Spearman correlations need scipy: pip install 'tl_norms[metrics]'") from error
    return rankdata
