"""The page of an attribution: tokens, cuts, heads and the strongest edges of one target."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import UnknownLayerError
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
    edges, encoder = _every_edge(attribution, chosen, one)
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
        "edges": edges,
        "encoder": encoder,
        "constants": finite(float(_constants(attribution, one))),
        "software": versions(software),
    }
    return assembled(data)


def _constants(attribution: Any, one: Callable[[Tensor], Tensor]) -> Tensor:
    """What belongs to no input token, neither of the text nor of the source sentence."""
    below = getattr(attribution, "source_offset", None)
    return one(attribution.offset if below is None else below)[0]


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


def _every_edge(
    attribution: Any, chosen: int | None, one: Callable[[Tensor], Tensor]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The edges of the stack that is written, and of an encoder-decoder all that is known of its encoder.

    The second holds the encoder's cuts (`stream`) and what crosses the decoder's in its output (`beside`), the heads of
    both kinds, and their edges, "cross" and "edges"; None for other models.
    """
    layers, n = list(attribution.layers), attribution.stream.shape[-1]

    def of(edges: Callable[[int], Tensor], layer: int, shape: tuple[int, int]) -> Tensor:
        try:
            found = edges(layer).detach().cpu().float()  # [*batch head query key]
        except UnknownLayerError:  # no attention of this kind in this layer
            return torch.zeros(attribution.heads.shape[-1], *shape)
        return found if chosen is None else found[chosen]

    source = getattr(attribution, "source_stream", None)  # without it, or without edges, the tokens alone are shown
    if source is None or attribution.beside is None or not callable(getattr(attribution, "cross_edges", None)):
        return _edges(
            [of(attribution.edges, layer, (n, n)) for layer in layers], EDGE_NUMBERS // max(len(layers), 1)
        ), None
    limit, n_source = EDGE_NUMBERS // (2 * len(layers) + len(source) - 1), source.shape[-1]
    own = [of(attribution.edges, layer, (n, n)) for layer in layers]
    cross = [of(attribution.cross_edges, layer, (n, n_source)) for layer in layers]
    below = [
        of(lambda layer: attribution.edges(layer, "encoder"), layer, (n_source, n_source))
        for layer in range(len(source) - 1)
    ]
    encoder = {
        "stream": packed(one(source)),
        "beside": packed(one(attribution.beside)),
        "heads": packed(torch.stack([edges.sum((-1, -2)) for edges in below])),
        "cross_heads": packed(torch.stack([edges.sum((-1, -2)) for edges in cross])),
        "cross": _edges(cross, limit, square=False),
        "edges": _edges(below, limit),
    }
    return _edges(own, limit), encoder


def _edges(by_layer: list[Tensor], limit: int, square: bool = True) -> dict[str, Any]:
    """All edges, [layer head pair], with key <= query alone where no other is used; or the strongest of each layer."""
    shape = tuple(by_layer[0].shape) if by_layer else (0, 0, 0)  # head query key
    causal = square and not any(bool(edges.triu(1).any()) for edges in by_layer)
    found: dict[str, Any] = {"shape": shape, "causal": causal, "all": None, "strongest": None, "limit": limit}
    if any(edges.numel() // 2 > limit for edges in by_layer):
        return found | {"strongest": [_strongest(edges, limit) for edges in by_layer]}
    if by_layer:
        there = torch.ones(shape[1:], dtype=torch.bool)
        found["all"] = packed(torch.stack(by_layer)[..., there.tril() if causal else there])
    return found


def _strongest(edges: Tensor, limit: int) -> dict[str, Any]:
    """Where the strongest edges of a layer are, and their values."""
    flat = edges.flatten()
    there = flat.abs().topk(limit).indices.sort().values
    head, query, key = torch.unravel_index(there, edges.shape)
    value = packed(flat[there][None])
    return {"head": numbers_16(head), "query": numbers_16(query), "key": numbers_16(key), "value": value}
