"""The page of `BlockNorms`: weights beside norms, heads, and the feed-forward, layer by layer."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import UnknownLayerError, UnknownScopeError
from ..results import BlockNorms, check_whole
from .assemble import assembled, finite
from .errors import PageInputError
from .packing import packed
from .text import Tokens, chosen_text, fitted, kept_tokens, of_text, row_of, short_name, versions

HEAD_NUMBERS = 6_000_000  # attention weights of single heads up to here (16 MB of page); beyond, their mean alone


def page_of_norms(
    norms: BlockNorms,
    tokens: Tokens | None = None,
    *,
    keys: Tokens | None = None,
    batch: int | None = None,
    model_name: str | None = None,
    text: str | None = None,
    layer: int | None = None,
    scope: str | None = None,
    software: Mapping[str, str] | None = None,
) -> str:
    """One self-contained HTML page: every map of one text, attention weights beside norms, with mixing ratios.

    Numbers are kept to a relative 2⁻¹¹. Padding is left out.

    Args:
        norms: the result
        tokens: the tokens of the text, or one list per text; those kept with the result, if left out
        keys: of an encoder-decoder, the tokens of the source sentence, or the target's and then the source's; those
            kept with the result, if left out
        batch: which text, where the result has several
        model_name: what to call the model; the result's own name for it, if it has one
        text: the text itself; the tokens joined, if it is left out
        layer: the number of the layer to open on; the last, if it is left out
        scope: the scope to open on; the last, if it is left out
        software: name -> version, for the foot of the page

    Returns:
        The page. It makes no request and needs no other file.

    Raises:
        PageInputError: several texts and no `batch`, no tokens or tokens that do not fit, or a result without maps.
        UnknownLayerError, UnknownScopeError: `layer` or `scope` is not in the result.

    Example:
        >>> page = page_of_norms(norms, model.to_str_tokens(text), model_name="gpt2")   # doctest: +SKIP
    """
    check_whole(norms, "the page")
    scopes = [name for name in norms.scopes if name in norms.maps]
    if not scopes:
        raise PageInputError("this result keeps no maps; record it with NormRecorder(model, keep='maps').")
    named = short_name(model_name or getattr(norms, "model_name", None) or "model")
    layer, scope = _opened(norms, scopes, layer, scope)
    first = norms[scopes[0]]
    chosen = chosen_text(first.shape[1] if first.ndim == 4 else None, batch)
    n = first.shape[-2]
    kept = row_of(norms.mask, chosen, n)
    words = fitted(of_text(kept_tokens(norms) if tokens is None else tokens, chosen), kept)
    widest = max(norms[name].shape[-1] for name in scopes)
    source_kept = row_of(norms.source_mask, chosen, widest - n)
    keys = norms.source_strings if keys is None else keys
    source = _source_tokens(words, None if keys is None else of_text(keys, chosen), source_kept, n)

    def one(value: Tensor) -> Tensor:
        value = value.detach().cpu()
        return value if chosen is None else value[:, chosen]

    def square(value: Tensor) -> Tensor:
        """[layer ... query key] without padding and, on causal models, without later keys: [layer ... pair]."""
        columns = torch.cat([kept, source_kept[: value.shape[-1] - n]])
        return _pairs(value[..., kept, :][..., columns], norms.causal, len(words))

    data = {
        "kind": "norms",
        "title": f"{named}: norms and attention weights",
        "model": named,
        "text": "".join(words) if text is None else text,
        "tokens": words,
        "positions": kept.nonzero().flatten().tolist(),
        "source": source,
        "layers": list(norms.layers),
        "scopes": scopes,
        "chain": list(norms.chain),
        "causal": norms.causal,
        "widths": {name: len(words) + (len(source) if norms[name].shape[-1] > n else 0) for name in scopes},
        "open": {"layer": layer, "scope": scope},
        "maps": {name: packed(square(one(norms[name]))) for name in scopes},
        "ratios": {name: packed(one(norms.mixing_ratio(name))[:, kept]) for name in scopes},
        "errors": {name: [finite(error) for error in norms.error[name].tolist()] for name in scopes},
        "processing": list(norms.processing),
        "measure": norms.measure.name,
        "sketch": norms.sketch,
        "software": versions(software),
    }
    return assembled(data | _weights(norms, one, square, kept))


def _opened(norms: BlockNorms, scopes: list[str], layer: int | None, scope: str | None) -> tuple[int, str]:
    """The layer and the scope that the page opens on."""
    if layer is not None and layer not in norms.layers:
        raise UnknownLayerError(f"layer {layer} is not in this result; it has {', '.join(map(str, norms.layers))}.")
    if scope is not None and scope not in scopes:
        raise UnknownScopeError(f"scope {scope!r} is not in this result; it has {', '.join(scopes)}.")
    return norms.layers[-1] if layer is None else layer, scopes[-1] if scope is None else scope


def _weights(norms: BlockNorms, one: Any, square: Any, kept: Tensor) -> dict[str, Any]:
    """Attention weights: of every head with the lengths of its values, or their mean where that would be too long."""
    n = int(kept.sum())
    pairs = n * (n + 1) // 2 if norms.causal else n * n
    try:
        attention = norms.attention
    except UnknownScopeError:  # not kept
        return {"heads": None, "attention": None, "weight_ratios": None}
    found: dict[str, Any] = {
        "heads": None,
        "attention": packed(square(one(attention))),
        "weight_ratios": packed(one(norms.attention_mixing_ratio())[:, kept]),
    }
    if norms.patterns is not None and len(norms.layers) * norms.value_norms.shape[-2] * pairs <= HEAD_NUMBERS:
        weights = torch.stack([one(pattern[None])[0].float() for pattern in norms.patterns])
        found["heads"] = {
            "n": norms.value_norms.shape[-2],
            "weights": packed(square(weights)),
            "values": packed(one(norms.value_norms)[..., kept]),
        }
    return found


def _pairs(value: Tensor, causal: bool, n: int) -> Tensor:
    """[... query key] as [... pair], row by row; only key <= query, and the source's keys, if the model is causal."""
    there = torch.ones(value.shape[-2:], dtype=torch.bool)
    if causal:
        there[:, :n] = there[:, :n].tril()
    return value[..., there]


def _source_tokens(words: list[str], keys: list[str] | None, kept: Tensor, n_own: int) -> list[str]:
    """The tokens of the source sentence, whose keys follow the queries' own."""
    n = len(kept)
    if n == 0:
        return []
    given = [] if keys is None else keys
    for own in (n_own, len(words)):  # both sentences were given, with padding or without
        if len(given) in (own + n, own + int(kept.sum())):
            given = given[own:]
            break
    if len(given) not in (n, int(kept.sum())):
        raise PageInputError(
            f"after cross-attention the maps have {n} keys of the encoder, but {len(given)} were given: pass keys=, "
            f"its tokens."
        )
    return fitted(given, kept)
