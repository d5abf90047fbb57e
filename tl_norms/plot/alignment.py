"""Maps of cross-attention with the links of a gold alignment drawn in."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from typing_extensions import Unpack

from .draw import Figure, drawn
from .errors import PlotInputError
from .layout import fitting_columns
from .panels import ScaleOf, coloured
from .picture import Axis, Link, Look, LookOptions, Picture
from .select import Numbers, Tokens, about, chosen_heads, chosen_layers, one_text
from .subjects import NORM, WEIGHTS, is_cross
from .words import visible

Links = Iterable[tuple[int, int]]


def alignment_maps(
    result: Any,
    source: Tokens | None = None,
    target: Tokens | None = None,
    *,
    sure: Links = (),
    possible: Links = (),
    predicted: Links = (),
    layers: Numbers = None,
    heads: Numbers | str = None,
    weights: bool = False,
    batch: int | None = None,
    scale: ScaleOf = "panel",
    columns: int | None = None,
    **look: Unpack[LookOptions],
) -> Figure:
    """Cross-attention of a pair of sentences, with gold links outlined (Kobayashi et al. 2020, §5).

    Args:
        result: a CrossNorms, or one matrix [target source] of any kind, for instance with subwords merged into words
        source, target: the words (or tokens) of the two sentences, as many as columns and rows; None if the result
            keeps its tokens
        sure, possible: gold links (source, target), counted from 0; a link that is both is drawn as sure
        predicted: links (source, target) that were extracted, drawn as circles
        layers, batch, scale, columns, **look: as for `layer_maps`
        heads: of a CrossNorms: None for all heads together, ‖Σ_h αf(x)‖; "all", one or several for a panel each
        weights: True for attention weights, their mean over heads if heads is None
        A matrix takes none of layers, heads, weights and batch.

    Returns:
        A Figure: rows are target positions, columns source positions. Solid outline: sure; dashed: possible.

    Raises:
        PlotInputError: a link outside the sentences, tokens that do not fit, or several texts and no `batch`.

    Example:
        >>> plot.alignment_maps(cross, source, target, sure={(0, 0), (2, 1)}, layers=3)  # doctest: +SKIP
    """
    if is_cross(result):
        panels, rows, across, told = _of_result(result, source, target, layers, heads, weights, batch)
    else:
        if layers is not None or heads is not None or weights or batch is not None:
            raise PlotInputError("one matrix is shown as it is: layers, heads, weights and batch are for a CrossNorms.")
        (panels, rows, across), told = _of_matrix(result, source, target), ""
    certain = set(_checked(sure, rows, across, "sure"))
    kinds = (
        ("possible", tuple(link for link in _checked(possible, rows, across, "possible") if link not in certain)),
        ("sure", tuple(sorted(certain))),
        ("predicted", _checked(predicted, rows, across, "predicted")),
    )
    links = tuple((kind, found) for kind, found in kinds if found)
    unit = (WEIGHTS["Attn-W"] if weights else NORM) if is_cross(result) else "value"
    signed = any(bool((value[np.isfinite(value)] < 0).any()) for _, value in panels)
    made = coloured(panels, rows, across, unit, signed, scale)
    title = f"Word alignment by cross-attention: {unit}" if is_cross(result) else "Word alignment"
    notes = tuple(filter(None, [told, *made.notes]))
    shown = tuple(replace(panel, links=links) for panel in made.panels)
    row = min(columns or fitting_columns(len(shown), max(len(rows), len(across)), Look(**look).width), len(shown))
    return drawn(Picture(shown, row, tuple(made.scales), title, notes, Look(**look)))


def _of_result(
    result: Any,
    source: Tokens | None,
    target: Tokens | None,
    layers: Numbers,
    heads: Any,
    weights: bool,
    batch: int | None,
) -> tuple[list[tuple[str, np.ndarray]], Axis, Axis, str]:
    places = chosen_layers(result, layers)
    if heads is None:
        value = result.attention.mean(-3) if weights else result.norms
    else:
        value = result.attention if weights else result.head_norms
    text = one_text(result, value, 3 if heads is None else 4, target, batch=batch, keys=source)
    found, across = text.map(value), text.key_axis(value.shape[-1])
    across = Axis("source", across.tokens, across.positions)
    told = about(result, text.words)
    rows = Axis("target", text.queries.tokens, text.queries.positions)
    if heads is None:
        return [(f"layer {result.layers[place]}", found[place]) for place in places], rows, across, told
    wanted = chosen_heads(value.shape[-3], None if heads == "all" else heads)
    return [(f"L{result.layers[p]}H{head}", found[p, head]) for p in places for head in wanted], rows, across, told


def _of_matrix(
    matrix: Any, source: Tokens | None, target: Tokens | None
) -> tuple[list[tuple[str, np.ndarray]], Axis, Axis]:
    try:
        value = torch.as_tensor(matrix).detach().cpu().to(torch.float64).numpy()
    except (TypeError, ValueError, RuntimeError) as error:  # whatever torch says of what holds no numbers
        raise PlotInputError(
            f"expected a CrossNorms, or one matrix [target source], got {type(matrix).__name__}."
        ) from error
    axes = []
    if source is None or target is None:
        raise PlotInputError("one matrix does not know its words: pass source= and target=, those of both sentences.")
    for name, words in (("target", target), ("source", source)):
        if any(not isinstance(word, str) for word in words):
            raise PlotInputError(f"{name} holds the words of one sentence, as strings.")
        axes.append(Axis(name, tuple(visible(str(word)) for word in words), tuple(map(str, range(len(words))))))
    if value.shape != (len(axes[0]), len(axes[1])):
        raise PlotInputError(
            f"expected a matrix [target source] of {len(axes[0])} by {len(axes[1])} words, found {list(value.shape)}."
        )
    return [("", value)], axes[0], axes[1]


def _checked(links: Links, rows: Axis, across: Axis, what: str) -> tuple[Link, ...]:
    """Links as (row, column), which is (target, source), sorted."""
    found: set[Link] = set()
    for link in links:
        pair: Sequence[int] = tuple(link)
        if len(pair) != 2 or not (0 <= pair[0] < len(across) and 0 <= pair[1] < len(rows)):
            raise PlotInputError(
                f"{what} link {pair} is outside the sentences: expected (source, target), source from 0 to "
                f"{len(across) - 1}, target from 0 to {len(rows) - 1}."
            )
        found.add((pair[1], pair[0]))
    return tuple(sorted(found))
