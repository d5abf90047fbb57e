"""From a cache to the held map of its run, and a run that keeps only what the map needs."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .blocks.activations import Activations, check_cache
from .blocks.masks import pass_masks
from .labels import Strings, checked_tokens, id_hook, strings_of_both
from .linear.edits import Edits
from .model_map import ModelMap, hold_model, map_hooks
from .plan import reader_of


def map_of(cache, mask: Tensor | None = None, source_mask: Tensor | None = None, **rules: Any) -> ModelMap:
    """The held map of a run; `rules` are those of `hold_model`.

    Raises:
        NotACacheError, and what `hold_model` raises
    """
    check_cache(cache)
    reader = reader_of(cache.model)
    activations = Activations(cache.cache_dict, cache.has_batch_dim, reader, mask, source_mask)
    return hold_model(cache.model, activations, reader, **rules)


def attribution_hooks(model: nn.Module, *, edits: bool = False) -> list[str]:
    """The activations that `attribute` needs, as a `names_filter` for `run_with_cache`.

    Args:
        model: the model that will be run
        edits: also those in which a hook's change of the run would show

    Raises:
        UnsupportedArchitectureError: the model is not understood as a whole.
    """
    names = map_hooks(model, reader_of(model), edits=edits)
    points = getattr(model, "hook_dict", {})
    return names + [name for name in dict.fromkeys((id_hook(model), id_hook(model, "encoder"))) if name in points]


@torch.no_grad()
def run_keeping(
    model: nn.Module,
    model_args: tuple[Any, ...],
    model_kwargs: dict[str, Any],
    mask: Tensor | None,
    source_mask: Tensor | None,
    edits: Edits,
) -> tuple[Any, Any]:
    """What the model returns, and a cache of what the held map needs; the masks go to the model too."""
    names = attribution_hooks(model, edits=edits != "refuse")
    decoder = any(block.cross() is not None for block in reader_of(model).blocks() if block is not None)
    pass_masks(model, model_kwargs, mask, source_mask, decoder)
    run: Any = model.run_with_cache
    return run(*model_args, names_filter=names, **model_kwargs)


def strings_of_map(
    cache: Any, model_map: ModelMap, tokens: Any = None, source_tokens: Any = None
) -> tuple[Strings | None, Strings | None]:
    """The strings of the positions of a held run and of its encoder, as given or else as decoded.

    One list of strings serves all texts.

    Raises:
        UnknownOptionError: tokens that do not fit.
    """
    n_texts, n = model_map.stack.real().shape
    n_source = 0 if model_map.encoder is None else model_map.encoder.real().shape[1]
    given = _for_all(checked_tokens(tokens), n_texts), _for_all(checked_tokens(source_tokens), n_texts)
    activations = model_map.activations
    masks = activations.mask, activations.source_mask
    return strings_of_both(cache.cache_dict, cache.model, given, masks, (n_texts, n, n_source))


def _for_all(words: tuple[Any, ...] | None, n_texts: int) -> Sequence[Any] | None:
    single = words is not None and all(isinstance(one, str) for one in words)
    return [words] * n_texts if single else words
