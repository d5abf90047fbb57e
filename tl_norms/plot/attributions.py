"""Where a number of the model's output comes from: cuts by positions, heads by layers, one head.

The results are those of `tl_norms.attribute`: contributions with a sign that add up to the target's value at every cut
through the model (a cut is what enters a layer; the last is what leaves the last layer).
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from ..attribution_result import DirectAttribution
from ..errors import UnknownLayerError
from ..labels import digits
from .contributions import is_attribution, on_cpu, one_attribution
from .draw import Figure, drawn
from .errors import PlotInputError
from .layout import fitting_columns
from .maps import head_maps
from .panels import ScaleOf, coloured
from .picture import Axis, Cells, Look, LookOptions, Picture, Scale
from .select import Numbers, Tokens, about, chosen_text, of_text, tokens_of
from .stacks import SHORT, STACKS, Stack, has_stacks, head_totals, one_stack
from .subjects import NORM, contribution, refuse_targets
from .words import visible


def position_map(
    result: Any,
    tokens: Tokens | None = None,
    *,
    batch: int | None = None,
    scale: ScaleOf = "shared",
    **look: Unpack[LookOptions],
) -> Figure:
    """Where the answer sits, layer by layer: the contribution of every position at every cut.

    cell[l, j] = <g^l_j, x^l_j>; a row and its rest add up to the target's value.

    Args:
        result: an attribution
        tokens, batch, **look: as for `token_strip`
        scale: "shared" for one scale, "row" for each cut by itself

    Returns:
        A Figure: rows are cuts from the embeddings down to what leaves the last layer, columns positions and, after
        the line, what belongs to no position (biases). Of an encoder-decoder, the cuts of the decoder; the columns of
        the source sentence hold what is still to be read of the encoder's output.

    Raises:
        As `token_strip`.

    Example:
        >>> plot.position_map(tl_norms.attribute(cache, target))                        # doctest: +SKIP
    """
    if not is_attribution(result):
        raise PlotInputError(f"expected an attribution, as of tl_norms.attribute, got {type(result).__name__}.")
    found, style = one_attribution(result, tokens, batch), Look(**look)
    beside = np.zeros((len(found.stream), 0)) if found.beside is None else found.beside
    values = np.concatenate([found.stream, beside, found.offset[:, None]], axis=1)
    words = (*map(visible, (*found.words, *found.source)), "(rest)")
    places = (*found.positions, *(f"source {place}" for place in range(len(found.source))), "")
    n = values.shape[1] - 1
    columns = Axis("token", words, places, len(found.words))
    names = (*map(str, result.layers), "end")
    rows = Axis("what enters layer", names, ("cut",) * len(names))
    made = coloured([("", values)], rows, columns, "contribution", True, scale)
    (panel,) = made.panels
    wide = max(18.0, min(52.0, (style.width - 190) / (n + 1)))
    panel = Cells("", panel.values, rows, columns, told=panel.told, size=(wide, _row_height(len(rows))))
    title = f"{contribution(result)} by layer and position"
    notes = (about(result, found.words), f"every row adds up to {digits(found.value, 3, '+')}")
    return drawn(Picture((panel,), 1, tuple(made.scales), title, tuple(filter(None, notes)), style))


def head_grid(
    result: Any,
    *,
    layers: Numbers = None,
    batch: int | None = None,
    stack: Stack | None = None,
    **look: Unpack[LookOptions],
) -> Figure:
    """Every head by layer: its contribution, or the mean norm of what it moves.

    Args:
        result: an attribution (`heads`, with a sign), a DirectAttribution (sums over source tokens), a BlockNorms or
            CrossNorms (‖αf(x)‖, mean over the pairs that exist), or a tensor [layer *batch head], whose layers are
            counted from 0
        layers: one layer, several, or None for all
        batch: which text, where there are several
        stack: of the attribution of an encoder-decoder: "decoder", "cross" or "encoder"; None for a panel each
        **look: as for `token_strip`

    Returns:
        A Figure: rows are layers, columns heads. Panels of several stacks share their colours.

    Raises:
        PlotInputError: other results, or several texts and no `batch`. UnknownLayerError

    Example:
        >>> plot.head_grid(tl_norms.attribute(cache, target))                           # doctest: +SKIP
    """
    text: int | None = None
    made: list[tuple[str, tuple[int, ...], np.ndarray]] = []
    title, unit, notes, grids = _grids(result, stack)
    for name, numbers, value in grids:
        text = chosen_text(value.shape[1] if value.ndim == 3 else None, batch)
        wanted = _layers(numbers, layers)
        grid = (value if text is None else value[:, text]).double().numpy()
        made.append((name, wanted, grid[[numbers.index(layer) for layer in wanted]]))
    scale = Scale.of([grid for *_, grid in made], unit, any(bool(np.nanmin(grid) < 0) for *_, grid in made))
    panels = []
    for name, wanted, grid in made:
        rows = Axis("layer", tuple(map(str, wanted)), ("layer",) * len(wanted))
        columns = Axis("head", tuple(map(str, range(grid.shape[1]))), ("head",) * grid.shape[1])
        panels.append(Cells(name, grid, rows, columns, size=(30.0, _row_height(len(rows)))))
    words = _known_words(result, text)
    notes = tuple(filter(None, [about(result, words), *notes]))
    style = Look(**look)
    across = fitting_columns(len(panels), max(len(panel.columns) for panel in panels), style.width)
    return drawn(Picture(tuple(panels), across, (scale,), title, notes, style))


def _grids(result: Any, stack: Stack | None) -> tuple[str, str, list[str], list[tuple[str, tuple[int, ...], Tensor]]]:
    """Title, unit, notes, and by stack: name, layers and numbers of heads, [layer *batch head]."""
    one_stack(result, stack)  # refuses a stack that there is not
    refuse_targets(result)
    if has_stacks(result):
        wanted: list[Stack] = ["decoder", "cross", "encoder"] if stack is None else [stack]
        found = [(SHORT[name], *head_totals(result, name)) for name in wanted]
        notes = ["heads of one layer and kind add up; those of different layers do not"]
        of = "" if stack is None else f", {STACKS[stack]}"
        several = [(name if stack is None else "", layers, on_cpu(value)) for name, layers, value in found if layers]
        return f"{contribution(result)} by head{of}", "contribution", notes, several
    if is_attribution(result):
        notes = ["heads of one layer add up; those of different layers do not"]
        heads = on_cpu(result.heads)
        return f"{contribution(result)} by head", "contribution", notes, [("", tuple(result.layers), heads)]
    if isinstance(result, DirectAttribution):
        heads = [("decoder", result.heads), ("cross-attention", result.source_heads)]
        found = [(name, on_cpu(value).sum(-1)) for name, value in heads if value is not None]
        notes = ["direct: what each head wrote into the last stream; all layers add up"]
        several = [(name if len(found) > 1 else "", tuple(range(len(value))), value) for name, value in found]
        return f"Direct contribution to {result.target_name} by head", "contribution", notes, several
    if hasattr(result, "head_norms"):
        value = _mean_over_pairs(result, on_cpu(result.head_norms))
        return "Norms by head, ‖αf(x)‖, mean over pairs", NORM, [], [("", tuple(result.layers), value)]
    if isinstance(result, Tensor | np.ndarray) and np.ndim(result) in (2, 3):
        value = on_cpu(result)
        return "Value by head", "value", [], [("", tuple(range(len(value))), value)]
    raise PlotInputError(
        f"expected an attribution, a BlockNorms or CrossNorms, or a tensor [layer *batch head], got "
        f"{type(result).__name__}."
    )


def head_edges(
    result: Any,
    tokens: Tokens | None = None,
    *,
    layer: int,
    head: int,
    batch: int | None = None,
    keys: Tokens | None = None,
    scale: ScaleOf = "shared",
    stack: Stack | None = None,
    **look: Unpack[LookOptions],
) -> Figure:
    """One head: what it brings from each source token to each position.

    Args:
        result: an attribution, whose edges have a sign, or anything that `head_maps` takes
        tokens, batch, **look: as for `token_strip`
        layer, head: which one
        keys: the encoder's tokens, of cross-attention
        scale: "shared", or "row" for each query by itself
        stack: as for `layer_maps`

    Returns:
        A Figure with one map, rows queries and columns keys.

    Raises:
        As `head_maps`.

    Example:
        >>> plot.head_edges(tl_norms.attribute(cache, target), layer=17, head=3)        # doctest: +SKIP
    """
    if is_attribution(result):
        of = f" of {STACKS[stack or 'decoder']}" if has_stacks(result) else ""
        look["title"] = look.get("title", f"{contribution(result)} through L{layer}H{head}{of}")
    options = {"batch": batch, "keys": keys, "scale": scale, "stack": stack}
    return head_maps(result, tokens, layers=layer, heads=head, diagonal=True, **options, **look)


def _row_height(n: int) -> float:
    """Pixels of each of n rows: few are higher, so that what is written beside them has room."""
    return max(15.0, min(45.0, 90 / n))


def _mean_over_pairs(result: Any, norms: Tensor) -> Tensor:
    """[layer *batch head query key] over the pairs that exist, [layer *batch head]."""
    pairs = torch.ones(norms.shape[-2:], dtype=torch.bool)
    n = norms.shape[-1]
    if bool(getattr(result, "causal", False)) and norms.shape[-2] == n:
        pairs = pairs.tril()
    shape = (*norms.shape[1:-3], 1, *norms.shape[-2:])
    pairs = pairs.expand(shape)
    cross = not hasattr(result, "scopes")
    mask, source = getattr(result, "mask", None), getattr(result, "source_mask", None)
    for real, axis in ((source if cross else mask, -1), (mask, -2)):
        if real is not None:
            real = torch.as_tensor(real).bool().cpu().reshape(*norms.shape[1:-3], 1, -1)
            pairs = pairs & real.unsqueeze(-2 if axis == -1 else -1)
    return (norms * pairs).sum((-2, -1)) / pairs.sum((-2, -1)).clamp_min(1)


def _layers(numbers: tuple[int, ...], layers: Numbers) -> tuple[int, ...]:
    wanted = numbers if layers is None else [layers] if isinstance(layers, int) else list(layers)
    for layer in wanted:
        if layer not in numbers:
            raise UnknownLayerError(f"layer {layer} is not in this result; it has {', '.join(map(str, numbers))}.")
    return tuple(wanted)


def _known_words(result: Any, batch: int | None) -> list[str]:
    try:
        return of_text(tokens_of(result), batch)
    except PlotInputError:
        return []
