"""Maps: a panel per layer, per head, or per kind of map. Rows are queries, columns are keys."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from typing_extensions import Unpack

from ..labels import digits
from .draw import Figure, drawn
from .errors import PlotInputError
from .layout import fitting_columns, side_by_side
from .panels import ScaleOf, coloured, without_diagonal
from .picture import Look, LookOptions, Picture
from .select import Numbers, Text, Tokens, about, chosen_heads, chosen_layers, one_text
from .stacks import Stack, one_stack
from .subjects import ABOUT, NORM, WEIGHTS, Subject, head_weights, heads_of, is_cross, maps_of


def layer_maps(
    result: Any,
    tokens: Tokens | None = None,
    scope: str | None = None,
    *,
    layers: Numbers = None,
    batch: int | None = None,
    keys: Tokens | None = None,
    diagonal: bool | None = None,
    scale: ScaleOf | None = None,
    columns: int | None = None,
    stack: Stack | None = None,
    **look: Unpack[LookOptions],
) -> Figure:
    """The map of every layer, one panel each, as in the figures of Kobayashi et al. (2020, 2021, 2024).

    panel[i, j] = ‖v_ij‖, what source j has put into position i after the steps of the scope.

    Args:
        result: a BlockNorms, a CrossNorms (rows decoder, columns encoder), a Decomposition, an FFAmplification, an
            attribution (all heads together), or a tensor [layer *batch query key], for instance a rollout, whose
            layers are counted from 0
        tokens: those of the text, [pos]; with or without its padding, which is not drawn; or one list per text. None
            if the result keeps them
        scope: a scope that was computed, a paper's name for it, or "Attn-W" for the weights; None for the last one. Of
            a CrossNorms: None or "cross" for ‖Σ_h αf(x)‖, "Attn-W" for the weights
        layers: one layer, several, or None for all
        batch: which text, where there are several
        keys: the encoder's tokens, where it has any
        diagonal: False leaves out what a position gets from itself; None does so where that drowns the rest: where in
            half of the panels or more its largest entry is over twice the largest off it. The title says so
        scale: "shared" for one scale of colours, so that panels can be compared; "panel" for one each; "row" for each
            query's row as a share of its largest entry (hover still shows the number itself). None for "shared", or
            for "panel" where panels differ more than fourfold
        columns: panels in a row; None for as many as can be read
        stack: of the attribution of an encoder-decoder: "decoder" (also for None), "cross" or "encoder"
        **look: `backend`, `title`, `cmap`, `width`: see `tl_norms.plot.Look`

    Returns:
        A plotly or matplotlib Figure. Pairs that do not exist are grey. Colours start at 0; of
        numbers with a sign, 0 is in the middle.

    Raises:
        PlotInputError: a result without maps, several texts and no `batch`, or tokens that do not fit.
        UnknownScopeError, UnknownLayerError: not in this result.
        MissingExtraError: plotly or matplotlib is not installed.

    Example:
        >>> plot.layer_maps(norms, model.to_str_tokens(text), "attn_res_ln")            # doctest: +SKIP
    """
    subject = maps_of(one_stack(result, stack), scope)
    text = _text(subject, tokens, batch, keys)
    places = chosen_layers(subject, layers)
    names = [f"layer {subject.layers[place]}" for place in places]
    named = names if len(names) > 1 or subject.name else [""]
    picture = _grid(subject, text, places, named, diagonal, scale, columns, Look(**look))
    return drawn(picture)


def weight_and_norm(
    result: Any,
    tokens: Tokens | None = None,
    scopes: str | Sequence[str] | None = None,
    *,
    layers: Numbers = None,
    head: int | None = None,
    batch: int | None = None,
    keys: Tokens | None = None,
    diagonal: bool | None = None,
    scale: ScaleOf = "panel",
    **look: Unpack[LookOptions],
) -> Figure:
    """What is attended to beside what is moved: attention weights, then norms, one row per layer.

    Without `head`, the mean weight over heads beside ‖Σ_h αf(x)‖ and any further scopes; with it, α beside ‖αf(x)‖ of
    that head (Kobayashi et al. 2020, Figures 1 and 4).

    Args:
        result: a BlockNorms or CrossNorms
        tokens, layers, batch, keys, **look: as for `layer_maps`
        scopes: the maps beside the weights, in this order; None for attention alone
        head: one head instead of all
        diagonal: as for `layer_maps`; decided for each kind of map by itself
        scale: "panel" for one scale each, "shared" for one scale per column, "row" for each query's row by itself

    Returns:
        A Figure, a row per layer: weights, then maps.

    Raises:
        As `layer_maps`; PlotInputError for scopes together with a head.

    Example:
        >>> plot.weight_and_norm(norms, tokens, ["attn", "attn_res_ln"], layers=3)      # doctest: +SKIP
    """
    if not is_cross(result) and not hasattr(result, "scopes"):
        raise PlotInputError(f"expected a BlockNorms or CrossNorms, which hold both, got {type(result).__name__}.")
    shown: list[tuple[str, Subject]] = []
    if head is None:
        wanted = [None if is_cross(result) else "attn"] if scopes is None else scopes
        for scope in ["Attn-W", *([wanted] if isinstance(wanted, str) else wanted)]:
            subject = maps_of(result, scope)
            shown.append((ABOUT.get(subject.name, f"norms, {subject.name}").replace(", mean", "\nmean"), subject))
        if len(shown) > 2:  # narrow panels: their names alone
            shown = [(subject.name, subject) for _, subject in shown]
    else:
        if scopes is not None:
            raise PlotInputError("a single head has no scopes after attention: pass scopes= or head=, not both.")
        moved = result.head_norms
        (head,) = chosen_heads(moved.shape[-3], head)
        layers_ = tuple(result.layers)
        weights = head_weights(result)[..., head, :, :]
        shown.append((f"H{head}: weight α", Subject(result, "α", WEIGHTS["Attn-W"], weights, layers_, 3)))
        shown.append((f"H{head}: norm ‖αf(x)‖", Subject(result, "αf(x)", NORM, moved[..., head, :, :], layers_, 3)))
    places, style = chosen_layers(result, layers), Look(**look)
    made = []
    text = None
    for title, subject in shown:
        text = _text(subject, tokens, batch, keys)
        values, left_out = without_diagonal(text, list(text.map(subject.value)[places]), diagonal)
        title += "\nwithout the diagonal" if left_out is not None else ""
        several, then = len(places) > 1, "\n" if len(shown) > 2 else " · "
        titles = [f"layer {subject.layers[place]}{then}{title}" if several else title for place in places]
        across = text.key_axis(subject.value.shape[-1])
        made.append(coloured(list(zip(titles, values, strict=True)), text.queries, across, subject.unit,
                             subject.signed, scale, bars="own"))  # fmt: skip
    panels, scales = [], []
    for column in made:  # numbers of scales go on from one column to the next
        panels.append([replace(panel, scale=panel.scale + len(scales)) for panel in column.panels])
        scales += column.scales
    ordered = [panel for row in zip(*panels, strict=True) for panel in row]
    heading = "Attention weights and norms"
    if len(shown) > 2:
        heading = "Attention weights (Attn-W, mean over heads) and norms"
    if len(places) == 1:
        heading = f"Layer {result.layers[places[0]]}: {heading[0].lower()}{heading[1:]}"
    notes = [about(result, text.words if text is not None else ()), *dict.fromkeys(made[0].notes)]
    return drawn(
        Picture(
            tuple(ordered),
            side_by_side(len(shown), style.width),
            tuple(scales),
            heading,
            tuple(filter(None, notes)),
            style,
        )
    )


def head_maps(
    result: Any,
    tokens: Tokens | None = None,
    *,
    layers: Numbers = None,
    heads: Numbers = None,
    weights: bool = False,
    batch: int | None = None,
    keys: Tokens | None = None,
    diagonal: bool | None = None,
    scale: ScaleOf | None = None,
    columns: int | None = None,
    stack: Stack | None = None,
    **look: Unpack[LookOptions],
) -> Figure:
    """A map per head, labelled L0H3: ‖αf(x)‖, what the head moves (Kobayashi et al. 2020, Eq. 4), or α.

    Args:
        result: a BlockNorms, a CrossNorms, a tensor [layer *batch head query key] as from `weighted_value_norms` (whose
            layers are counted from 0), or an attribution, whose edges have a sign
        tokens, layers, batch, keys, diagonal, scale, **look: as for `layer_maps`
        heads: one head, several, or None for all
        weights: True for the attention weights themselves
        columns: panels in a row; None for all heads of a layer, or for a part of them if so many cannot be read
        stack: as for `layer_maps`

    Returns:
        A Figure, a panel per layer and head.

    Raises:
        UnknownScopeError: the result was recorded without attention patterns. Otherwise as `layer_maps`.

    Example:
        >>> plot.head_maps(norms, tokens, layers=[0, 1], heads=[0, 3])                  # doctest: +SKIP
        >>> plot.head_maps(tl_norms.weighted_value_norms(cache), tokens, layers=5)      # doctest: +SKIP
    """
    subject = heads_of(one_stack(result, stack), weights, layers)
    places = chosen_layers(subject, layers)
    wanted = chosen_heads(subject.value.shape[-3], heads)
    text = _text(subject, tokens, batch, keys)
    at = [(place, head) for place in places for head in wanted]
    names = [f"L{subject.layers[place]}H{head}" for place, head in at]
    group = len(wanted) if len(places) > 1 else None
    return drawn(_grid(subject, text, at, names, diagonal, scale, columns, Look(**look), group))


def _text(subject: Subject, tokens: Tokens | None, batch: int | None, keys: Tokens | None) -> Text:
    return one_text(subject.result, subject.value, subject.ndim, tokens, batch=batch, keys=keys, causal=subject.causal)


def _grid(
    subject: Subject,
    text: Text,
    places: Sequence[Any],
    titles: list[str],
    diagonal: bool | None,
    scale: ScaleOf | None,
    columns: int | None,
    look: Look,
    group: int | None = None,
) -> Picture:
    """Panels that share their axes; `places` are the layers, or layers and heads (`group` of a layer), to show."""
    if columns is not None and columns < 1:
        raise PlotInputError(f"columns is {columns}: expected at least 1.")
    whole = text.map(subject.value)
    values, left_out = without_diagonal(text, [whole[place] for place in places], diagonal)
    across = text.key_axis(subject.value.shape[-1])
    made = coloured(list(zip(titles, values, strict=True)), text.queries, across, subject.unit, subject.signed, scale)
    name = subject.title
    notes = [about(subject.result, text.words), *made.notes]
    if left_out is not None:
        name += ", without the diagonal"
        notes.append(f"left out: what each position gets from itself, up to {digits(left_out, 3)}")
    row = columns or fitting_columns(len(made.panels), len(across), look.width, group=group)
    panels, scales = tuple(made.panels), tuple(made.scales)
    return Picture(panels, min(row, len(panels)), scales, name, tuple(filter(None, notes)), look)
