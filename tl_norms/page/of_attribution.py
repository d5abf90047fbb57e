"""The page of an attribution: tokens, cuts, heads and the strongest edges of one target."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .assemble import assembled, finite
from .errors import PageInputError
from .packing import numbers_16, packed
from .text import Tokens, chosen_text, kept_tokens, of_text, short_name, versions

EDGE_NUMBERS = 3_000_000  # edges up to here are all kept (8 MB of page); beyond, the strongest of each layer


def page_of_attribution(
    attribution: Any,
    tokens: Tokens | None = None,
    *,
    keys: Tokens | None = None,
    batch: int | None = None,
    model_name: str | None = None,
    target: str | None = None,
    text: str | None = None,
    software: Mapping[str, str] | None = None,
) -> str:
    """One self-contained HTML page: where the target's value comes from, by token, layer, head and edge.

    Numbers are kept to a relative 2⁻¹¹. Where the edges are more than three million, the strongest of each layer are
    kept, and the page says how many.

    Args:
        attribution: an `Attribution` of one target
        tokens: the tokens of the text, or one list per text; those kept with the attribution, if left out
        keys: of an encoder-decoder, the tokens of the source sentence; those kept with the attribution, if left out
        batch: which text, where the attribution has several
        model_name: what to call the model; the attribution's own name for it, if left out
        target: what to call the target; the attribution's own name for it, if left out
        text: the text itself; the tokens joined, if it is left out
        software: name -> version, for the foot of the page

    Returns:
        The page. It makes no request and needs no other file.

    Raises:
        PageInputError: several texts and no `batch`, no tokens, or tokens that do not fit.

    Example:
        >>> page = page_of_attribution(attribute(cache, logit(" are") - logit(" is")))  # doctest: +SKIP
    """
    value = attribution.value
    if value.ndim > 1 or getattr(attribution, "has_targets", False):
        raise PageInputError(
            f"a page shows one target, this attribution has a list of {value.shape[0]}: attribute one target."
        )
    chosen = chosen_text(len(value) if value.ndim else None, batch)
    words = of_text(kept_tokens(attribution) if tokens is None else tokens, chosen)

    def one(numbers: Tensor) -> Tensor:
        """[layer *batch ...] of the chosen text."""
        numbers = numbers.detach().cpu()
        return numbers if chosen is None else numbers[:, chosen]

    stream = one(attribution.stream)
    if stream.shape[-1] != len(words):
        raise PageInputError(
            f"this attribution has {stream.shape[-1]} positions, but {len(words)} tokens were given: pass those of "
            f"the text."
        )
    mask = getattr(attribution, "mask", None)
    named = model_name or getattr(attribution, "model_name", None) or "model"
    wanted = target or getattr(attribution, "target_name", None) or "target"
    errors = attribution.error.detach().cpu()
    source = getattr(attribution, "source_tokens", None)  # of an encoder-decoder
    source_words: list[str] = []
    if source is not None:
        source = (source if chosen is None else source[chosen]).detach().cpu()
        source_words = _source_words(attribution, keys, chosen, len(source))
    data = {
        "kind": "attribution",
        "title": f"{short_name(named)}: where {wanted} comes from",
        "model": short_name(named),
        "target": str(wanted),
        "text": "".join(words) if text is None else text,
        "tokens": words,
        "positions": list(range(len(words))),
        "padding": [] if mask is None else (~_mask_row(mask, chosen)).nonzero().flatten().tolist(),
        "source": source_words,
        "source_values": None if source is None else packed(source[None]),
        "source_total": None if source is None else finite(float(source.sum())),
        "layers": list(attribution.layers),
        "value": finite(float(value if chosen is None else value[chosen])),
        "stream": packed(stream),
        "offset": [finite(number) for number in one(attribution.offset).tolist()],
        "error": finite(float(errors.max())) if errors.numel() else None,
        "heads": packed(one(attribution.heads)),
        "ffn": packed(one(attribution.ffn)),
        "bypass": packed(one(attribution.bypass)),
        "edges": _edges(attribution, chosen),
        "software": versions(software),
    }
    return assembled(data)


def _source_words(attribution: Any, keys: Tokens | None, chosen: int | None, n: int) -> list[str]:
    """The tokens of the source sentence; their places where nobody knows them."""
    kept = getattr(attribution, "source_strings", None) if keys is None else keys
    words = [f"[{place}]" for place in range(n)] if kept is None else of_text(kept, chosen)
    if len(words) != n:
        raise PageInputError(f"the source sentence has {n} positions, but keys= has {len(words)} tokens.")
    return words


def _mask_row(mask: Tensor, chosen: int | None) -> Tensor:
    mask = mask.detach().cpu().bool()
    return mask[0 if chosen is None else chosen] if mask.ndim == 2 else mask


def _edges(attribution: Any, chosen: int | None) -> dict[str, Any]:
    """All edges, [layer head pair], with key <= query alone where no other is used; or the strongest of each layer."""
    layers = list(attribution.layers)
    limit = EDGE_NUMBERS // max(len(layers), 1)
    everything, strongest, causal, shape = [], [], True, (0, 0, 0)
    for layer in layers:
        edges = _edges_of(attribution, layer, chosen)
        shape = tuple(edges.shape)  # head query key
        causal = causal and not bool(edges.triu(1).any())
        if edges.numel() // 2 > limit:
            strongest.append(_strongest(edges, limit))
        else:
            everything.append(edges)
    found: dict[str, Any] = {"shape": shape, "causal": causal, "all": None, "strongest": None, "limit": limit}
    if strongest:
        return found | {"strongest": strongest}
    if everything:
        stacked = torch.stack(everything)
        there = torch.ones(shape[1:], dtype=torch.bool)
        found["all"] = packed(stacked[..., there.tril() if causal else there])
    return found


def _edges_of(attribution: Any, layer: int, chosen: int | None) -> Tensor:
    """[head query key]; zeros where a layer has no attention."""
    if layer in getattr(attribution, "unattended", ()):
        return torch.zeros(attribution.heads.shape[-1], *[attribution.stream.shape[-1]] * 2)
    edges = attribution.edges(layer).detach().cpu().float()
    return edges if chosen is None else edges[chosen]


def _strongest(edges: Tensor, limit: int) -> dict[str, Any]:
    """Where the strongest edges of a layer are, and their values."""
    flat = edges.flatten()
    there = flat.abs().topk(limit).indices.sort().values
    head, query, key = torch.unravel_index(there, edges.shape)
    value = packed(flat[there][None])
    return {"head": numbers_16(head), "query": numbers_16(query), "key": numbers_16(key), "value": value}
