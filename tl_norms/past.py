"""Runs that went on from a key-value cache: the values of all keys put beside those of the new positions."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .blocks.activations import Activations, check_cache
from .blocks.structure import Attention, Reader
from .errors import CacheShapeError, DecompositionError, UnknownOptionError
from .plan import reader_of


@torch.no_grad()
def with_past_values(cache: Any, past_kv_cache: Any) -> Any:
    """A new cache that holds the values of all keys, for a run of a few new positions on a key-value cache.

    With it, the analyses of single blocks (`block_norms`, `ffn_maps`, `decompose`, `value_norms`, ...) give maps
    [query key] of m queries and n keys: the last m rows of those of a run of the whole text. What is traced through
    several layers (`attribute`, `propagate`, `norm_rollout`) needs the streams of all positions: run the whole text.

    Args:
        cache: an ActivationCache of a run with `past_kv_cache` (HookedTransformer) or `past_key_values` (bridge)
        past_kv_cache: that key-value cache, as the run left it (it may have grown since, but not have been changed)

    Returns:
        ActivationCache: the other entries are shared, not copied; neither cache is changed.

    Raises:
        UnknownOptionError: that is no key-value cache.
        CacheShapeError: it is of other texts, or too short.
        DecompositionError: it holds other values than the run for the new positions.
        UnsupportedArchitectureError: an encoder-decoder.

    Example:
        >>> model(text[:, :-1], past_kv_cache=past)                             # doctest: +SKIP
        >>> _, cache = model.run_with_cache(text[:, -1:], past_kv_cache=past)   # doctest: +SKIP
        >>> tl_norms.block_norms(tl_norms.with_past_values(cache, past))        # doctest: +SKIP
    """
    check_cache(cache)
    reader = reader_of(cache.model)
    activations = Activations(cache.cache_dict, cache.has_batch_dim, reader)
    entries = dict(cache.cache_dict)
    kept = _values(past_kv_cache)
    for block in reader.blocks():
        if block is None:
            continue
        _, attention = block.attention()
        names = [name for name in (attention.values, *reader.equivalents(attention.values)) if name in entries]
        if not names:
            continue
        if block.layer >= len(kept):
            raise CacheShapeError(
                f"past_kv_cache has {len(kept)} layers, but layer {block.layer} of the model has attention: expected "
                f"the key-value cache that the run was given."
            )
        whole = _joined(reader, activations, attention, kept[block.layer])
        for name in names:
            entries[name] = whole if cache.has_batch_dim else whole[0]
    return type(cache)(entries, cache.model, has_batch_dim=cache.has_batch_dim)


def _values(past: Any) -> Sequence[Float[Tensor, "b k h e"]]:
    """The values that a key-value cache holds, layer by layer: TransformerLens' own kind, or transformers'."""
    found: list[Any]
    if isinstance(entries := getattr(past, "entries", None), list):  # [b k h e]
        found = [getattr(entry, "past_values", None) for entry in entries]
    elif (layers := getattr(past, "layers", None)) is not None:  # [b h k e]
        found = [_turned(getattr(layer, "values", None)) for layer in layers]
    elif isinstance(past, list | tuple):
        found = [_turned(pair[1]) if isinstance(pair, list | tuple) and len(pair) > 1 else None for pair in past]
    else:
        found = []
    if not found or not all(isinstance(values, Tensor) and values.ndim == 4 for values in found):
        raise UnknownOptionError(
            f"past_kv_cache is a {type(past).__name__} without values of every layer; expected the "
            f"TransformerLensKeyValueCache that was given as past_kv_cache=, or what transformers was given as "
            f"past_key_values=, after the run. (Where it is empty then, this model's bridge takes no key-value cache: "
            f"run the whole text.)"
        )
    return found


def _turned(values: Any) -> Any:
    return values.transpose(1, 2) if isinstance(values, Tensor) and values.ndim == 4 else values


def _joined(reader: Reader, activations: Activations, attention: Attention, kept: Tensor) -> Tensor:
    """The values of all keys of one layer, as the run's hook lays them out."""
    new, pattern = activations.tensor(attention.values), activations.tensor(attention.pattern)
    if pattern.ndim != 4:
        raise CacheShapeError(f"{attention.pattern} has shape {list(pattern.shape)}; expected [batch head query key].")
    n_queries, n_keys = pattern.shape[-2:]
    plain = new.transpose(1, 2) if attention.heads_first and new.ndim == 4 else new  # [b k h e] or [b k (h e)]
    if plain.shape[1] == n_keys != n_queries:
        return new  # they are there already
    kept = kept.to(new)
    if kept.shape[1] == n_keys - n_queries and kept.shape[0] == len(new):  # frozen while the run went on
        kept = torch.cat([kept, plain.reshape(*plain.shape[:2], *kept.shape[2:])], dim=1)
    own = kept[:, n_keys - n_queries : n_keys].reshape(*kept.shape[:1], -1, kept[0, 0].numel())
    if kept.shape[1] < n_keys or own.shape != plain.flatten(2).shape:
        raise CacheShapeError(
            f"{attention.module}: past_kv_cache holds values {list(kept.shape)} [batch key head d_head], but the run "
            f"has {len(new)} texts, {n_keys} keys and values {list(plain.shape[2:])}: expected the key-value cache "
            f"that the run was given, as it was left."
        )
    used = plain.flatten(2) if attention.clip is None else plain.flatten(2).clamp(-attention.clip, attention.clip)
    off = (own - used).abs().amax() / used.abs().amax().clamp_min(torch.finfo(used.dtype).tiny)
    if not float(off) <= 1e-3:
        raise DecompositionError(
            f"{attention.module}: past_kv_cache holds other values than the run for its {n_queries} new positions (off "
            f"by {float(off):.1e}): it is of another run, or was changed since. Run the model again and pass the cache "
            f"that this run was given."
        )
    whole = kept[:, :n_keys].reshape(*kept.shape[:1], n_keys, *plain.shape[2:])
    return whole.transpose(1, 2) if attention.heads_first and new.ndim == 4 else whole
