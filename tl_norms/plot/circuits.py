"""Norms in CircuitsVis, with what it does not know about them said."""

import re
from typing import Any

import numpy as np

from .errors import PlotInputError, needed
from .maps import named_map
from .select import Numbers, Tokens, chosen_heads, chosen_layers, is_cross, one_text
from .spec import visible

_MARKUP = re.compile(r"<(?=/?script|!--)", re.IGNORECASE)


def to_circuitsvis(
    norms: Any,
    tokens: Tokens,
    *,
    scope: str | None = None,
    layer: int,
    heads: Numbers = None,
    batch: int | None = None,
    max_value: float | None = None,
) -> Any:
    """One layer as a CircuitsVis view: rows are queries (destinations), columns keys (sources).

    CircuitsVis takes values for weights: everything above 1 gets one colour, and it hides the upper triangle. Here the
    scale ends at the largest value, and the triangle is hidden only if the model is causal.

    Args:
        norms: a BlockNorms
        tokens: those of the text, [pos]
        scope: None for the heads, |alpha f(x)|; a scope that was computed for its map, of all heads together
        layer: its number
        heads: one head, several, or None for all; not with a scope
        batch: which text, where there are several
        max_value: the end of the scale; None for the largest value shown

    Returns:
        A `circuitsvis` RenderedHTML, shown by a notebook. Made without the network; but showing it, circuitsvis itself
        looks whether there is one, and `.local_src` is the page that needs none.

    Raises:
        PlotInputError: heads with a scope, or the result of cross-attention (CircuitsVis has one list of tokens).
        MissingExtraError: circuitsvis is not installed. Otherwise as `layer_maps`.

    Example:
        >>> plot.to_circuitsvis(norms, model.to_str_tokens(text), layer=3, heads=[0, 1])  # doctest: +SKIP
    """
    if scope is not None and heads is not None:
        raise PlotInputError("a scope is one map of all heads: pass scope= or heads=, not both.")
    if is_cross(norms):
        raise PlotInputError("CircuitsVis shows maps of one text against itself: use layer_maps or alignment_maps.")
    value = norms.head_norms if scope is None else named_map(norms, scope)[1][..., None, :, :]
    if value.shape[-1] != value.shape[-2]:
        raise PlotInputError(
            f"CircuitsVis shows square maps, this one is {value.shape[-2]} by {value.shape[-1]}: use layer_maps."
        )
    (place,) = chosen_layers(norms, layer)
    text = one_text(norms, value, 4, tokens, batch=batch)
    shown = text.map(value)[place][chosen_heads(value.shape[-3], heads)]
    names = [scope] if scope else [f"L{norms.layers[place]}H{head}" for head in chosen_heads(value.shape[-3], heads)]
    shown = np.nan_to_num(shown)
    top = float(shown.max()) if max_value is None else max_value
    if not top > 0:
        top = 1.0
    words = [_MARKUP.sub("<\u2060", visible(token)) for token in text.queries.tokens]  # they end up inside a script
    attention = needed("circuitsvis.attention", "circuitsvis")
    return attention.attention_heads(
        shown,
        words,
        attention_head_names=names,
        max_value=top,
        min_value=0.0,
        mask_upper_tri=bool(norms.causal),
    )
