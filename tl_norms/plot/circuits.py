"""Norms in CircuitsVis, which is made for attention weights."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import MissingExtraError
from .errors import PlotInputError, needed
from .panels import without_diagonal
from .select import Numbers, Tokens, chosen_heads, chosen_layers, one_text
from .subjects import heads_of, is_cross, maps_of

_MARKUP = re.compile(r"<(?=/?script|!--)", re.IGNORECASE)


def to_circuitsvis(
    result: Any,
    tokens: Tokens | None = None,
    *,
    scope: str | None = None,
    layer: int,
    heads: Numbers = None,
    batch: int | None = None,
    max_value: float | None = None,
    diagonal: bool | None = None,
) -> "OfflineView":
    """One layer as a CircuitsVis view: rows are queries (destinations), columns keys (sources).

    CircuitsVis takes values for weights: everything above 1 gets one colour, and it hides the upper triangle. Here the
    scale ends at the largest value, and the triangle is hidden only if the model is causal.

    Args:
        result: a BlockNorms, or a tensor [layer *batch head query key] as from `weighted_value_norms`
        tokens: those of the text, [pos]; None if the result keeps them
        scope: None for the heads, ‖αf(x)‖; a scope that was computed for its map, of all heads together
        layer: its number
        heads: one head, several, or None for all; not with a scope
        batch: which text, where there are several
        max_value: the end of the scale; None for the largest value shown
        diagonal: False leaves out what a position gets from itself; None does so where it drowns the rest of a scope,
            as for `layer_maps`. The name of the map says so

    Returns:
        An OfflineView, shown by a notebook; `str(view)` is its HTML, with all its code inside. Neither making nor
        showing it needs the network.

    Raises:
        PlotInputError: heads with a scope, numbers with a sign, or the result of cross-attention (CircuitsVis has one
            list of tokens).
        MissingExtraError: circuitsvis is not installed, or without its code. Otherwise as `layer_maps`.

    Example:
        >>> plot.to_circuitsvis(norms, model.to_str_tokens(text), layer=3, heads=[0, 1])  # doctest: +SKIP
    """
    if scope is not None and heads is not None:
        raise PlotInputError("a scope is one map of all heads: pass scope= or heads=, not both.")
    if is_cross(result):
        raise PlotInputError("CircuitsVis shows maps of one text against itself: use layer_maps or alignment_maps.")
    subject = heads_of(result) if scope is None else maps_of(result, scope)
    value = subject.value if scope is None else subject.value[..., None, :, :]
    if value.shape[-1] != value.shape[-2]:
        raise PlotInputError(
            f"CircuitsVis shows square maps, this one is {value.shape[-2]} by {value.shape[-1]}: use layer_maps."
        )
    if subject.signed:
        raise PlotInputError("CircuitsVis has one colour per head and no signs: use head_maps.")
    (place,) = chosen_layers(subject, layer)
    text = one_text(result, value, 4, tokens, batch=batch, causal=subject.causal)
    wanted = chosen_heads(value.shape[-3], heads)
    if scope is None and diagonal is None:
        diagonal = True  # a head's own share seldom drowns the rest
    values, left_out = without_diagonal(text, list(text.map(value)[place][wanted]), diagonal)
    shown = np.nan_to_num(np.stack(values))
    names = [scope] if scope else [f"L{subject.layers[place]}H{head}" for head in wanted]
    if left_out is not None:
        names = [f"{name}, without the diagonal" for name in names]
    top = float(shown.max()) if max_value is None else max_value
    if not top > 0:
        top = 1.0
    words = [_MARKUP.sub("<\u2060", token) for token in text.queries.tokens]  # they end up inside a script
    attention = needed("circuitsvis.attention", "circuitsvis")
    try:
        view = attention.attention_heads(
            shown,
            words,
            attention_head_names=names,
            max_value=top,
            min_value=0.0,
            mask_upper_tri=subject.causal,
        )
    except FileNotFoundError as error:
        raise MissingExtraError(
            f"this installation of circuitsvis lacks the code that shows it without a network ({error.filename}): "
            f"pip install --force-reinstall circuitsvis"
        ) from error
    return OfflineView(view.local_src)


@dataclass(frozen=True, repr=False)
class OfflineView:
    """A CircuitsVis view with its code inside. CircuitsVis' own would look for a network first, to load it from there.

    Attributes:
        local_src: the HTML
    """

    local_src: str

    def _repr_html_(self) -> str:
        return self.local_src

    def __str__(self) -> str:
        return self.local_src

    def __repr__(self) -> str:
        return f"OfflineView, {len(self.local_src):,} characters of HTML; str(view) is the page"
