"""Maps: a panel per layer, per head, or per kind of map. Rows are queries, columns are keys."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import UnknownScopeError
from .draw import Figure, drawn
from .errors import PlotInputError
from .select import Numbers, Text, Tokens, chosen_heads, chosen_layers, is_cross, one_text
from .spec import Backend, Maps, Panel, Scale

ScaleOf = Literal["figure", "panel"]
WEIGHT_NAMES = {"Attn-W": "attention weight", "AttnRes-W": "½ (attention weight + identity)"}
LENGTH = "length"


def layer_maps(
    norms: Any,
    tokens: Tokens,
    scope: str | None = None,
    *,
    layers: Numbers = None,
    batch: int | None = None,
    keys: Tokens | None = None,
    diagonal: bool = True,
    scale: ScaleOf = "figure",
    columns: int | None = None,
    backend: Backend = "plotly",
) -> Figure:
    """The map of every layer, one panel each, as in the figures of Kobayashi et al. (2020, 2021, 2024).

    panel[i, j] = |v_ij|, what source j has put into position i after the steps of the scope; colours start at 0,
    or go both ways from it where the measure of the result is signed.

    Args:
        norms: a BlockNorms, or a CrossNorms (rows decoder, columns encoder)
        tokens: those of the text, [pos]; with or without its padding, which is not drawn; or one list per text
        scope: a scope that was computed, a paper's name for it, or "Attn-W" for the weights; None for the last one. Of
            a CrossNorms: None or "cross" for |sum_h alpha f(x)|, "Attn-W" for the weights
        layers: one layer, several, or None for all
        batch: which text, where there are several
        keys: the encoder's tokens, where it has any
        diagonal: False leaves out what a position gives to itself, which often drowns the rest
        scale: "figure" for one scale of colours, so that panels can be compared; "panel" for one each
        columns: panels in a row
        backend: "plotly" (hover shows tokens, positions and value) or "matplotlib" (to print)

    Returns:
        A plotly or matplotlib Figure, to be restyled at will. Pairs of a causal model that do not exist are blank.

    Raises:
        PlotInputError: several texts and no `batch`, or tokens that do not fit.
        UnknownScopeError, UnknownLayerError: not in this result.
        MissingExtraError: plotly or matplotlib is not installed.

    Example:
        >>> plot.layer_maps(norms, model.to_str_tokens(text), "attn_res_ln")            # doctest: +SKIP
    """
    name, value = named_map(norms, scope)
    text = one_text(norms, value, 3, tokens, batch=batch, keys=keys)
    found = text.map(value, diagonal)
    panels = [(f"layer {norms.layers[n]}", found[n]) for n in chosen_layers(norms, layers)]
    what, signed = _measured(norms, name)
    return drawn(_grid(panels, text, value.shape[-1], what, scale, columns, signed), backend)


def weight_and_norm(
    norms: Any,
    tokens: Tokens,
    scopes: str | Sequence[str] | None = None,
    *,
    layers: Numbers = None,
    head: int | None = None,
    batch: int | None = None,
    keys: Tokens | None = None,
    diagonal: bool = True,
    scale: ScaleOf = "panel",
    backend: Backend = "plotly",
) -> Figure:
    """What is attended to beside what is moved: attention weights, then norms, one row per layer.

    Without `head`, the mean weight over heads beside |sum_h alpha f(x)| and any further scopes; with it, alpha beside
    |alpha f(x)| of that head (Kobayashi et al. 2020, Figures 1 and 4).

    Args:
        norms, tokens, layers, batch, keys, diagonal, backend: as for `layer_maps`
        scopes: the maps beside the weights, in this order; None for attention alone
        head: one head instead of all
        scale: "panel" for one scale each, "figure" for one scale per column

    Returns:
        A Figure, a row per layer: weights, then maps.

    Raises:
        As `layer_maps`; PlotInputError for scopes together with a head.

    Example:
        >>> plot.weight_and_norm(norms, tokens, ["attn", "attn_res_ln"], layers=3)      # doctest: +SKIP
    """
    shown = []  # (title, name of the scale, signed, [layer *batch query key])
    if head is None:
        wanted = [None if is_cross(norms) else "attn"] if scopes is None else scopes
        for scope in ["Attn-W", *([wanted] if isinstance(wanted, str) else wanted)]:
            name, value = named_map(norms, scope)
            title = "weight, mean of heads" if name == "Attn-W" else name
            shown.append((title, *_measured(norms, name), value))
    else:
        if scopes is not None:
            raise PlotInputError("a single head has no scopes behind attention: pass scopes= or head=, not both.")
        moved = norms.head_norms
        (head,) = chosen_heads(moved.shape[-3], head)
        shown.append((f"H{head} weight α", WEIGHT_NAMES["Attn-W"], False, _weights(norms)[..., head, :, :]))
        shown.append((f"H{head} norm ‖αf(x)‖", LENGTH, False, moved[..., head, :, :]))
    texts = [one_text(norms, value, 3, tokens, batch=batch, keys=keys) for *_, value in shown]
    found = [text.map(value, diagonal) for text, (*_, value) in zip(texts, shown, strict=True)]
    places = chosen_layers(norms, layers)
    panels, scales = [], []
    for column, (_, name, signed, _) in enumerate(shown):
        if scale == "figure":
            scales.append(Scale.of([found[column][place] for place in places], name, signed))
    for place in places:
        for column, (title, name, signed, value) in enumerate(shown):
            one = found[column][place]
            if scale == "panel":
                scales.append(Scale.of([one], name, signed))
            number = column if scale == "figure" else len(scales) - 1
            keys_ = texts[column].key_axis(value.shape[-1])
            panels.append(Panel(f"layer {norms.layers[place]}: {title}", one, texts[column].queries, keys_, number))
    return drawn(Maps(tuple(panels), len(shown), tuple(scales)), backend)


def head_maps(
    norms: Any,
    tokens: Tokens,
    *,
    layers: Numbers = None,
    heads: Numbers = None,
    weights: bool = False,
    batch: int | None = None,
    keys: Tokens | None = None,
    diagonal: bool = True,
    scale: ScaleOf = "figure",
    columns: int | None = None,
    backend: Backend = "plotly",
) -> Figure:
    """A map per head, labelled L0H3: |alpha f(x)|, what the head moves (Kobayashi et al. 2020, Eq. 4), or alpha.

    Args:
        norms, tokens, layers, batch, keys, diagonal, scale, backend: as for `layer_maps`
        heads: one head, several, or None for all
        weights: True for the attention weights themselves
        columns: panels in a row; None for a row per layer if there are several, else four

    Returns:
        A Figure, a panel per layer and head.

    Raises:
        UnknownScopeError: the result was recorded without attention patterns. Otherwise as `layer_maps`.

    Example:
        >>> plot.head_maps(norms, tokens, layers=[0, 1], heads=[0, 3])                  # doctest: +SKIP
    """
    value = _weights(norms) if weights else norms.head_norms
    text = one_text(norms, value, 4, tokens, batch=batch, keys=keys)
    found, places = text.map(value, diagonal), chosen_layers(norms, layers)
    wanted = chosen_heads(value.shape[-3], heads)
    panels = [(f"L{norms.layers[place]}H{head}", found[place, head]) for place in places for head in wanted]
    name = WEIGHT_NAMES["Attn-W"] if weights else LENGTH
    across = columns or (len(wanted) if len(places) > 1 else None)
    return drawn(_grid(panels, text, value.shape[-1], name, scale, across), backend)


def named_map(norms: Any, scope: str | None) -> tuple[str, Tensor]:
    """A map and its name, [layer *batch query key]."""
    if is_cross(norms):
        if scope not in (None, "cross", "Attn-W"):
            raise UnknownScopeError(f"unknown scope {scope!r} of cross-attention: it has 'cross' and 'Attn-W'.")
        return ("Attn-W", norms.attention.mean(-3)) if scope == "Attn-W" else ("cross", norms.norms)
    if not hasattr(norms, "scopes"):
        raise PlotInputError(f"expected a BlockNorms or CrossNorms, got {type(norms).__name__}.")
    name = norms.scopes[-1] if scope is None else scope
    if name not in WEIGHT_NAMES and norms.measure.name == "onto":
        raise PlotInputError("maps of Onto have a number for every direction: plot one with another measure.")
    return name, norms[name]


def _measured(norms: Any, name: str) -> tuple[str, bool]:
    """The name of the scale of a map, and whether its numbers are signed."""
    if name in WEIGHT_NAMES or is_cross(norms) or norms.measure.name == "l2":
        return WEIGHT_NAMES.get(name, LENGTH), False
    return norms.measure.name, norms.measure.signed


def _weights(norms: Any) -> Tensor:
    """[layer *batch head query key]"""
    if is_cross(norms):
        return norms.attention
    moved = norms.head_norms  # says what to do if the patterns were not kept
    return torch.stack([pattern.detach().to(moved.device, moved.dtype) for pattern in norms.patterns])


def _grid(
    panels: list[tuple[str, np.ndarray]],
    text: Text,
    n_keys: int,
    name: str,
    scale: ScaleOf,
    columns: int | None,
    signed: bool = False,
) -> Maps:
    """Panels that share their axes, on one scale or on one each."""
    if scale not in ("figure", "panel"):
        raise PlotInputError(f"scale is {scale!r}: expected 'figure' (one for all panels) or 'panel' (one each).")
    if columns is not None and columns < 1:
        raise PlotInputError(f"columns is {columns}: expected at least 1.")
    one = scale == "figure"
    shared = [[values for _, values in panels]] if one else [[v] for _, v in panels]
    scales = [Scale.of(values, name, signed) for values in shared]
    keys = text.key_axis(n_keys)
    made = [Panel(title, v, text.queries, keys, 0 if one else n) for n, (title, v) in enumerate(panels)]
    return Maps(tuple(made), min(columns or (3 if len(made) in (3, 5, 6, 9) else 4), len(made)), tuple(scales))
