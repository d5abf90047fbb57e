"""What the feed-forward does to a map: before, after, difference, and the pairs it changes most."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
from typing_extensions import Unpack

from ..labels import digits
from ..metrics.amplification import FFAmplification, Normalize, ff_amplification
from ..results import BlockNorms
from .draw import Figure, drawn
from .errors import PlotInputError
from .layout import side_by_side
from .panels import ScaleOf, coloured, without_diagonal
from .picture import Look, LookOptions, Picture, Table
from .select import Numbers, Text, Tokens, about, chosen_layers, corpus_of, one_text
from .subjects import NORM
from .words import visible

_UNITS = {None: NORM, "row": "share of row", "map": "times the mean"}


def feed_forward(
    result: BlockNorms | FFAmplification,
    tokens: Tokens | None = None,
    *,
    layers: Numbers = None,
    normalize: Normalize = None,
    batch: int | None = None,
    keys: Tokens | None = None,
    diagonal: bool | None = None,
    scale: ScaleOf = "panel",
    **look: Unpack[LookOptions],
) -> Figure:
    """The map before the feed-forward, the one after it, and the difference: a row per layer.

    difference[i, j] = ‖v_ij‖ after - ‖v_ij‖ before, on a scale with 0 in the middle (Kobayashi et al. 2024).

    Args:
        result: a BlockNorms of `ffn_maps`, or an FFAmplification
        tokens, layers, batch, keys, **look: as for `layer_maps`
        normalize: of a BlockNorms: None for norms, "row" or "map", see `tl_norms.metrics.ff_amplification`
        diagonal: as for `layer_maps`; decided for all three together
        scale: "panel" for scales of each layer's own, "shared" for common ones. Before and after always share one.

    Returns:
        A Figure, three panels per layer.

    Raises:
        UnknownScopeError: the two scopes around the feed-forward were not computed. Otherwise as `layer_maps`.

    Example:
        >>> plot.feed_forward(tl_norms.ffn_maps(cache, layers=3), tokens)               # doctest: +SKIP
    """
    found, text = _of_one_text(result, tokens, normalize, batch, keys)
    if scale not in ("shared", "panel"):
        raise PlotInputError(f"scale is {scale!r}: expected 'shared' (one for all layers) or 'panel' (one each).")
    places, unit = chosen_layers(found, layers), _UNITS[found.normalize]
    maps = [text.map(value)[places] for value in (found.before, found.after, found.difference)]
    _, left_out = without_diagonal(text, [*maps[0], *maps[1]], diagonal)
    if left_out is not None:
        maps = [np.stack(without_diagonal(text, list(value), False)[0]) for value in maps]
    across, panels, scales = text.key_axis(found.before.shape[-1]), [], []
    groups = [range(len(places))] if scale == "shared" else [[row] for row in range(len(places))]
    for group in groups:
        sides = [(title, maps[n][row]) for row in group for n, title in enumerate(("before", "after"))]
        lengths = coloured(sides, text.queries, across, unit, False, "shared", bars="own")
        changes = coloured([("after − before", maps[2][row]) for row in group], text.queries, across,
                           f"change of {unit}", True, "shared", bars="own")  # fmt: skip
        for n, row in enumerate(group):
            layer = f"layer {found.layers[places[row]]} · " if len(places) > 1 else ""
            three = (*lengths.panels[2 * n : 2 * n + 2], changes.panels[n])
            panels += [
                replace(panel, title=layer + panel.title, scale=len(scales) + int(kind == 2))
                for kind, panel in enumerate(three)
            ]
        scales += lengths.scales + changes.scales
    title, notes = f"Feed-forward, {found.scope.removesuffix('_ff')} to {found.scope}: {unit}", []
    if len(places) == 1:
        title = f"Layer {found.layers[places[0]]}: f{title[1:]}"
    if left_out is not None:
        title += ", without the diagonal"
        notes = [f"left out: what each position gets from itself, up to {digits(left_out, 3)}"]
    notes = [about(result, text.words), *notes]
    style = Look(**look)
    across = side_by_side(3, style.width)
    return drawn(Picture(tuple(panels), across, tuple(scales), title, tuple(filter(None, notes)), style))


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
    **look: Unpack[LookOptions],
) -> Figure:
    """The pairs that the feed-forward changes most, as a table (Kobayashi et al. 2024, Table 1).

    Args:
        result: a BlockNorms of `ffn_maps`, an FFAmplification, or the AmplifiedPairs of a study (most frequent first)
        tokens: those of the text; not for a study, which knows its own
        k: pairs per layer
        layers, batch, keys, **look: as for `layer_maps`
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
    change = "amplifies" if largest else "weakens"
    if hasattr(result, "query_token"):
        if tokens is not None:
            raise PlotInputError("a study knows the tokens of its pairs: leave tokens out.")
        change = "weakens" if (result.mean < 0).any() else "amplifies"  # a study has pairs of one kind
        note = f"{corpus_of(result)}; count: how often a pair was among the {result.k} of a text"
        table = _of_study(result, k, layers)
        return drawn(
            Picture((table,), title=f"Pairs that the feed-forward {change} most", notes=(note,), look=Look(**look))
        )
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
        *_columns(rows["before"], rows["after"]),
        *_columns(rows["difference"], sign="+"),
    )
    names = ("layer", "query", "key", "before", "after", "difference")
    table = Table(names, columns, (True, False, False, True, True, True))
    title = f"Pairs that the feed-forward {change} most: {_UNITS[found.normalize]} before and after"
    notes = tuple(filter(None, [about(result, text.words)]))
    return drawn(Picture((table,), title=title, notes=notes, look=Look(**look)))


def _of_study(result: Any, k: int, layers: Numbers) -> Table:
    wanted = [result.layers[place] for place in chosen_layers(result, layers)]
    rows = [row for layer in wanted for row in (result.layer == layer).nonzero()[0][:k]]
    columns = (
        tuple(str(result.layer[row]) for row in rows),
        tuple(visible(result.query_token[row] or str(result.query[row])) for row in rows),
        tuple(visible(result.key_token[row] or str(result.key[row])) for row in rows),
        tuple(str(result.count[row]) for row in rows),
        *_columns([result.mean[row] for row in rows], [result.max[row] for row in rows], sign="+"),
    )
    return Table(
        ("layer", "query", "key", "count", "mean difference", "max"), columns, (True, False, False, True, True, True)
    )


def _of_one_text(
    norms: BlockNorms | FFAmplification,
    tokens: Tokens | None,
    normalize: Normalize,
    batch: int | None,
    keys: Tokens | None,
) -> tuple[FFAmplification, Text]:
    """The amplification of one text, without a batch axis."""
    if isinstance(norms, FFAmplification):
        if normalize not in (None, norms.normalize):
            raise PlotInputError(
                f"this result was made with normalize={norms.normalize!r}: make it again, with the normalize you want."
            )
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


def _columns(*columns: Any, sign: str = "") -> list[tuple[str, ...]]:
    """Numbers to be compared: with the same decimals, or in three digits each where their sizes are too far apart."""
    numbers = [[float(value) for value in column] for column in columns]
    sizes = [abs(number) for column in numbers for number in column if number]
    if not sizes or not 1e-3 <= max(sizes) < min(1e6, 1000 * min(sizes)):
        return [tuple(digits(number, 3, sign) for number in column) for column in numbers]
    largest, smallest = (math.floor(math.log10(size)) for size in (max(sizes), min(sizes)))
    decimals = max(2 - largest, 1 - smallest, 0)  # three digits of the largest, two of the smallest
    return [tuple(f"{number:{sign},.{decimals}f}" for number in column) for column in numbers]
