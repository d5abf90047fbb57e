"""What the feed-forward does to a map: before, after, difference, and the pairs it changes most."""

from dataclasses import replace
from typing import Any

from ..metrics.amplification import FFAmplification, Normalize, ff_amplification
from ..results import BlockNorms
from .draw import Figure, drawn
from .errors import PlotInputError
from .maps import LENGTH, ScaleOf
from .select import Numbers, Text, Tokens, chosen_layers, one_text
from .spec import Backend, Maps, Panel, Scale, Table, visible

_UNITS = {None: LENGTH, "row": "share of row", "map": "times the mean"}


def feed_forward(
    norms: BlockNorms | FFAmplification,
    tokens: Tokens,
    *,
    layers: Numbers = None,
    normalize: Normalize = None,
    batch: int | None = None,
    keys: Tokens | None = None,
    diagonal: bool = True,
    scale: ScaleOf = "panel",
    backend: Backend = "plotly",
) -> Figure:
    """The map in front of the feed-forward, the one behind it, and the difference: a row per layer.

    difference[i, j] = |v_ij| after - |v_ij| before, on a scale with 0 in the middle (Kobayashi et al. 2024).

    Args:
        norms: a BlockNorms of `ffn_maps`, or an FFAmplification
        tokens, layers, batch, keys, diagonal, backend: as for `layer_maps`
        normalize: of a BlockNorms: None for lengths, "row" or "map", see `tl_norms.metrics.ff_amplification`
        scale: "panel" for scales of each layer's own, "figure" for common ones. Before and after always share one.

    Returns:
        A Figure, three panels per layer.

    Raises:
        UnknownScopeError: the two scopes around the feed-forward were not computed. Otherwise as `layer_maps`.

    Example:
        >>> plot.feed_forward(tl_norms.ffn_maps(cache, layers=3), tokens)               # doctest: +SKIP
    """
    found, text = _of_one_text(norms, tokens, normalize, batch, keys)
    if scale not in ("figure", "panel"):
        raise PlotInputError(f"scale is {scale!r}: expected 'figure' (one for all layers) or 'panel' (one each).")
    places, unit = chosen_layers(found, layers), _UNITS[found.normalize]
    before, after, change = (text.map(v, diagonal) for v in (found.before, found.after, found.difference))
    across, panels, scales = text.key_axis(found.before.shape[-1]), [], []
    groups = [places] if scale == "figure" else [[place] for place in places]
    for group in groups:
        scales.append(Scale.of([maps[place] for maps in (before, after) for place in group], unit))
        scales.append(Scale.of([change[place] for place in group], f"change of {unit}", diverging=True))
        for place in group:
            layer, lengths = found.layers[place], len(scales) - 2
            panels.append(Panel(f"layer {layer}: before", before[place], text.queries, across, lengths))
            panels.append(Panel("after the feed-forward", after[place], text.queries, across, lengths))
            panels.append(Panel("after − before", change[place], text.queries, across, lengths + 1))
    return drawn(Maps(tuple(panels), 3, tuple(scales)), backend)


def top_pairs(
    result: Any,
    tokens: Tokens | None = None,
    k: int = 10,
    *,
    layers: Numbers = None,
    normalize: Normalize = None,
    largest: bool = True,
    diagonal: bool = False,
    batch: int | None = None,
    keys: Tokens | None = None,
    backend: Backend = "plotly",
) -> Figure:
    """The pairs that the feed-forward changes most, as a table (Kobayashi et al. 2024, Table 1).

    Args:
        result: a BlockNorms of `ffn_maps`, an FFAmplification, or the AmplifiedPairs of a study (most frequent first)
        tokens: those of the text; not for a study, which knows its own
        k: pairs per layer
        layers, batch, keys, backend: as for `layer_maps`
        normalize: as for `feed_forward`
        largest: False for the pairs that are weakened most (a study has its own choice)
        diagonal: True to list what a position gets from itself (a study has its own choice)

    Returns:
        A Figure with one table. The numbers themselves: `FFAmplification.top_pairs`, `AmplifiedPairs.to_dataframe`.

    Raises:
        PlotInputError: no tokens, or tokens for a study. Otherwise as `feed_forward`.

    Example:
        >>> plot.top_pairs(tl_norms.ffn_maps(cache), tokens, k=5)                       # doctest: +SKIP
    """
    if k < 1:
        raise PlotInputError(f"k is {k}: expected at least 1 pair per layer.")
    if hasattr(result, "query_token"):
        if tokens is not None:
            raise PlotInputError("a study knows the tokens of its pairs: leave tokens out.")
        return drawn(_of_study(result, k, layers), backend)
    if tokens is None:
        raise PlotInputError("expected tokens, those of the text: model.to_str_tokens(text).")
    found, text = _of_one_text(result, tokens, normalize, batch, keys)
    across = text.key_axis(found.before.shape[-1])
    at = {int(name.split()[0]): name for name in across.places}  # the queries are the first of the keys
    rows = found.top_pairs(k, largest=largest, diagonal=diagonal)
    wanted = [found.layers[place] for place in chosen_layers(found, layers)]
    rows = rows[rows["layer"].isin(wanted)]
    columns = (
        tuple(map(str, rows["layer"])),
        tuple(at[place] for place in rows["query"]),
        tuple(at[place] for place in rows["key"]),
        *(tuple(f"{value:.3g}" for value in rows[name]) for name in ("before", "after")),
        tuple(f"{value:+.3g}" for value in rows["difference"]),
    )
    names = ("layer", "query", "key", "before", "after", "difference")
    return drawn(Table(names, columns, (True, False, False, True, True, True)), backend)


def _of_study(result: Any, k: int, layers: Numbers) -> Table:
    wanted = [result.layers[place] for place in chosen_layers(result, layers)]
    rows = [row for layer in wanted for row in (result.layer == layer).nonzero()[0][:k]]
    columns = (
        tuple(str(result.layer[row]) for row in rows),
        tuple(visible(result.query_token[row] or str(result.query[row])) for row in rows),
        tuple(visible(result.key_token[row] or str(result.key[row])) for row in rows),
        tuple(str(result.count[row]) for row in rows),
        tuple(f"{result.mean[row]:+.3g}" for row in rows),
        tuple(f"{result.max[row]:+.3g}" for row in rows),
    )
    return Table(
        ("layer", "query", "key", "count", "mean difference", "max"), columns, (True, False, False, True, True, True)
    )


def _of_one_text(
    norms: BlockNorms | FFAmplification, tokens: Tokens, normalize: Normalize, batch: int | None, keys: Tokens | None
) -> tuple[FFAmplification, Text]:
    """The amplification of one text, without a batch axis."""
    if isinstance(norms, FFAmplification):
        if normalize not in (None, norms.normalize):
            raise PlotInputError(f"this result was made with normalize={norms.normalize!r}: make it anew.")
        found = norms
    elif isinstance(norms, BlockNorms):
        found = ff_amplification(norms, normalize=normalize)
    else:
        raise PlotInputError(f"expected a BlockNorms of ffn_maps or an FFAmplification, got {type(norms).__name__}.")
    text = one_text(found, found.before, 3, tokens, batch=batch, keys=keys)
    if text.batch is not None:
        mask = None if found.mask is None else found.mask[text.batch]
        before, after = found.before[:, text.batch], found.after[:, text.batch]
        found = replace(found, before=before, after=after, mask=mask, pairs=found.pairs[text.batch])
    return found, replace(text, batch=None)
