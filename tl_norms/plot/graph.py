"""The edges of an attribution that matter, as a graph over layers and positions."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from typing_extensions import Unpack

from ..labels import digits
from .colours import NEGATIVE, POSITIVE
from .contributions import is_attribution, on_cpu, one_attribution
from .draw import Figure, drawn
from .errors import PlotInputError
from .picture import Dot, Drawing, Label, Look, LookOptions, Picture, Stroke
from .select import Numbers, Tokens, about, chosen_layers, chosen_text
from .subjects import contribution, edges_of
from .words import characters, visible

NAMED = 8  # strongest edges that are labelled with their heads
WIDEST, THINNEST = 7.0, 0.8
NAME = 5.4  # pixels of a character of a name
Point = tuple[float, float]


@dataclass(frozen=True)
class Edge:
    """What one head brings from a key (a source) to a query; `layer` counts along the layers shown."""

    layer: int
    head: int
    query: int
    key: int
    value: float


def contribution_graph(
    result: Any,
    tokens: Tokens | None = None,
    *,
    threshold: float = 0.1,
    absolute: float | None = None,
    layers: Numbers = None,
    batch: int | None = None,
    **look: Unpack[LookOptions],
) -> Figure:
    """The edges through which the target's value comes, from the input tokens at the bottom up through the layers.

    An edge (layer, head, query, key) is kept if |a_ij <g_i, f(x_j)>| reaches the threshold. Numbers of one layer add
    up; those of different layers do not: what a head wrote holds what the layers before it wrote.

    Args:
        result: an attribution
        tokens, batch, **look: as for `token_strip`
        threshold: a share of the largest edge of the layers shown, 0 to 1; of dots and skip connections, a share of
            the largest contribution of a position
        absolute: a value instead of a share, for all of them
        layers: one layer, several, or None for all

    Returns:
        A Figure. Lines: blue adds, red takes away, width by size; grey lines are the skip connection. Dots: what sits
        at a position between layers. The strongest edges are labelled with their heads; hover tells all numbers.

    Raises:
        PlotInputError: other results, a threshold outside 0 to 1, several texts and no `batch`. UnknownLayerError

    Example:
        >>> plot.contribution_graph(tl_norms.attribute(cache, target), threshold=0.2)   # doctest: +SKIP
    """
    if not is_attribution(result) or not callable(getattr(result, "edges", None)):
        raise PlotInputError(f"expected an attribution, as of tl_norms.attribute, got {type(result).__name__}.")
    if absolute is None and not 0 < threshold <= 1:
        raise PlotInputError(f"threshold is {threshold}: expected a share of the largest edge, above 0 and at most 1.")
    if absolute is not None and not absolute > 0:
        raise PlotInputError(f"absolute is {absolute}: expected a value above 0.")
    found, style = one_attribution(result, tokens, batch), Look(**look)
    places = chosen_layers(result, layers)
    numbers = [result.layers[place] for place in places]
    every = [_edges(result, layer, batch) for layer in numbers]
    largest = max((float(np.abs(edges).max()) for edges in every), default=0.0)
    least = absolute if absolute is not None else threshold * largest
    kept = _kept(every, least) if largest else []
    n = sum(int((edges != 0).sum()) for edges in every)
    bypass = _bypass(result, places, batch)
    stream = found.stream[[*places, places[-1] + 1]]
    sits = absolute if absolute is not None else threshold * float(np.abs(stream).max())
    drawing = _graph(found.words, stream, numbers, kept, bypass, sits, largest, style.width)
    share = "" if absolute is not None else f" ({threshold:.0%} of the largest)"
    notes = (
        about(result, found.words),
        f"{len(kept):,} of {n:,} edges: at least {digits(least, 3)}{share}; grey: skip connection",
        "the decoder's own attention; cross-attention and the encoder: attribution.show(), or head_maps with stack="
        if found.source
        else "",
    )
    title = f"{contribution(result)}: edges of attention"
    return drawn(Picture((drawing,), 1, (), title, tuple(filter(None, notes)), style))


def _edges(result: Any, layer: int, batch: int | None) -> np.ndarray:
    """[head query key]"""
    value = on_cpu(edges_of(result, layer)).double()
    text = chosen_text(value.shape[0] if value.ndim == 4 else None, batch)
    return (value if text is None else value[text]).numpy()


def _bypass(result: Any, places: list[int], batch: int | None) -> np.ndarray | None:
    """[layer pos], None if the attribution has none."""
    value = getattr(result, "bypass", None)
    if value is None:
        return None
    value = on_cpu(value)
    text = chosen_text(value.shape[1] if value.ndim == 3 else None, batch)
    return (value if text is None else value[:, text]).double().numpy()[places]


def _kept(every: list[np.ndarray], least: float) -> list[Edge]:
    """The edges that reach the threshold, the strongest last: it is drawn on top."""
    kept = [
        Edge(layer, head, query, key, float(edges[head, query, key]))
        for layer, edges in enumerate(every)
        for head, query, key in np.argwhere(np.abs(edges) >= least).tolist()
    ]
    return sorted(kept, key=lambda edge: abs(edge.value))


def _graph(
    texts: tuple[str, ...],
    stream: np.ndarray,
    numbers: list[int],
    kept: list[Edge],
    bypass: np.ndarray | None,
    sits: float,
    largest: float,
    width: int,
) -> Drawing:
    """Edges, and what sits at positions and passes layers where it reaches `sits`; `stream` [cut pos] of the layers."""
    words = [visible(word) for word in texts]
    longest = max(map(characters, words))
    left, n = 64.0, len(words)
    across = max(14.0, min(96.0, (width - left - 60) / n))
    up = max(15.0, min(64.0, 640 / len(numbers)))
    turned = across < 6.6 * longest + 6
    bottom = 8 + up * len(numbers)
    x = [left + across * (place + 0.5) for place in range(n)]
    y = [bottom - up * row for row in range(len(numbers) + 1)]
    strokes = _skips(x, y, words, numbers, bypass, sits)
    together: dict[tuple[int, int, int], list[Edge]] = {}
    for edge in kept:
        together.setdefault((edge.layer, edge.query, edge.key), []).append(edge)
    for (layer, query, key), edges in together.items():
        total = sum(edge.value for edge in edges)
        thick = max(THINNEST, WIDEST * min(1.0, abs(total) / (largest or 1)))
        told = [f"L{numbers[layer]}H{edge.head}: {edge.value:+.3g}" for edge in reversed(edges)]
        hover = "\n".join([f"{key} {words[key]} → {query} {words[query]}", *told])
        ends = ((x[key], x[query]), (y[layer], y[layer + 1]))
        strokes.append(Stroke(*ends, thick, POSITIVE if total > 0 else NEGATIVE, hover))
    dots, limit = [], float(np.abs(stream).max()) or 1.0
    for row, column in np.argwhere((np.abs(stream) >= sits) & (stream != 0)).tolist():
        value = float(stream[row, column])
        at = f"enters layer {numbers[row]}" if row < len(numbers) else f"leaves layer {numbers[-1]}"
        hover = f"{column} {words[column]}, {at}\n{value:+.3g}"
        size = 4 + 9 * (abs(value) / limit) ** 0.5
        dots.append(Dot(x[column], y[row], size, POSITIVE if value > 0 else NEGATIVE, hover))
    labels = [Label(x[place], bottom + 10 + 7 * (not turned), word, turned=turned) for place, word in enumerate(words)]
    step = max(1, int(np.ceil(13 / up)))
    labels += [Label(left - 10, y[row], str(numbers[row]), "right") for row in range(0, len(numbers), step)]
    labels.append(Label(10, (y[0] + y[-1]) / 2, "layer", faint=True))
    labels.append(Label(left - 10, y[-1], "out", "right"))
    labels += _names(x, y, numbers, kept, strokes)
    height = bottom + 14 + (6.6 * min(longest, 18) if turned else 14)
    return Drawing("", left + across * n + 20, height, (), tuple(strokes), tuple(dots), tuple(labels))


def _names(x: list[float], y: list[float], numbers: list[int], kept: list[Edge], strokes: list[Stroke]) -> list[Label]:
    """The heads of the strongest edges, beside their lines, as far as their names do not cover each other."""
    found: list[Label] = []
    for edge in reversed(kept):
        if len(found) == NAMED:
            break
        name = f"L{numbers[edge.layer]}H{edge.head}"
        wide, high = NAME * len(name), 10.0
        start, end = (x[edge.key], y[edge.layer]), (x[edge.query], y[edge.layer + 1])
        free = [
            place
            for place in _beside(start, end, wide, high)
            if not any(abs(label.x - place[0]) < wide + 4 and abs(label.y - place[1]) < 12 for label in found)
        ]
        if free:
            across, up = min(free, key=lambda place: sum(_meets(stroke, *place, wide, high) for stroke in strokes))
            found.append(Label(across, up, name, size=9))
    return found


def _beside(start: Point, end: Point, wide: float, high: float) -> list[Point]:
    """Middles of a text of this size on either side of a line, the best first."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    long = float(np.hypot(dx, dy))
    across, up = dy / long, -dx / long
    away = (abs(across) * wide + abs(up) * high + WIDEST) / 2
    return [
        (start[0] + share * dx + side * away * across, start[1] + share * dy + side * away * up)
        for share in (0.6, 0.5, 0.7, 0.4, 0.8)
        for side in ((1, -1) if (up or -across) < 0 else (-1, 1))  # above the line, right of an upright one
    ]


def _meets(stroke: Stroke, across: float, up: float, wide: float, high: float) -> bool:
    """Whether a line crosses a text of this size around a point."""
    shares = np.linspace(0, 1, 41)
    x = stroke.x[0] + shares * (stroke.x[1] - stroke.x[0])
    y = stroke.y[0] + shares * (stroke.y[1] - stroke.y[0])
    reach = stroke.width / 2
    return bool(((abs(x - across) < wide / 2 + reach) & (abs(y - up) < high / 2 + reach)).any())


def _skips(
    x: list[float], y: list[float], words: list[str], numbers: list[int], bypass: np.ndarray | None, least: float
) -> list[Stroke]:
    """What passes a layer along the skip connection."""
    if bypass is None:
        return []
    limit = float(np.abs(bypass).max()) or 1.0
    strokes = []
    for row, place in np.argwhere((np.abs(bypass) >= least) & (bypass != 0)).tolist():
        value = float(bypass[row, place])
        hover = f"{place} {words[place]}, past layer {numbers[row]}\n{value:+.3g}"
        thick = max(THINNEST, WIDEST * 0.7 * abs(value) / limit)
        strokes.append(Stroke((x[place], x[place]), (y[row], y[row + 1]), thick, None, hover))
    return strokes
