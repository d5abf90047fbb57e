"""Where a number of the model's output comes from: the sentence in colours, cuts by positions, heads by layers.

The results are those of `tl_norms.attribute`: contributions with a sign, that add up to the target's value at every cut
through the model (a cut is what enters a layer; the last is what leaves the last layer).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from ..errors import UnknownLayerError
from .draw import Figure, drawn
from .errors import PlotInputError
from .maps import head_maps
from .panels import ScaleOf, coloured
from .picture import Axis, Box, Cells, Drawing, Label, Look, LookOptions, Picture, Scale
from .select import Numbers, Tokens, about, chosen_text, of_text, tokens_of
from .subjects import NORM, contribution
from .words import characters, visible

FONT, SMALL = 7.9, 6.2  # pixels of a character in a box, and of a number below it


@dataclass(frozen=True)
class Signed:
    """The numbers of one text of an attribution.

    Attributes:
        words: its tokens, as they are
        stream: contribution of each position at each cut, [cut pos]
        offset: what belongs to no position, [cut]
        value: what every cut adds up to
    """

    words: tuple[str, ...]
    stream: np.ndarray
    offset: np.ndarray
    value: float

    @property
    def positions(self) -> tuple[str, ...]:
        return tuple(map(str, range(len(self.words))))


def token_strip(
    result: Any,
    tokens: Tokens | None = None,
    *,
    cut: int = 0,
    batch: int | None = None,
    **look: Unpack[LookOptions],
) -> Figure:
    """The text, each token coloured by its contribution and with the number below it.

    Args:
        result: an attribution, or numbers [pos] of any kind, for instance one row of a map
        tokens: those of the text; None if the result keeps them
        cut: of an attribution: 0 for the input tokens, l for what enters layer l, -1 for what leaves the last layer
        batch: which text, where there are several
        **look: `backend`, `title`, `cmap`, `width`: see `tl_norms.plot.Look`

    Returns:
        A Figure. Colours are relative to the largest contribution; blue adds, red takes away.

    Raises:
        PlotInputError: other results, a cut that there is not, several texts and no `batch`, or tokens that do not fit.

    Example:
        >>> plot.token_strip(tl_norms.attribute(cache, target))                         # doctest: +SKIP
        >>> plot.token_strip(norms["attn_res_ln"][3, 0, 5], tokens)                     # doctest: +SKIP
    """
    style = Look(**look)
    if is_attribution(result):
        found = one_attribution(result, tokens, batch)
        if not -len(found.stream) <= cut < len(found.stream):
            raise PlotInputError(f"there is no cut {cut}: this result has {len(found.stream)}, from 0.")
        values, words = found.stream[cut], found.words
        rest = float(found.offset[cut])
        at = "input tokens" if cut == 0 else f"positions at cut {cut % len(found.stream)}"
        title = f"{contribution(result)}: {at}"
        notes = (
            about(result, words),
            f"sum {values.sum():+.3g}, no position's own {rest:+.3g}, value {found.value:+.3g}",
        )
    else:
        values = _vector(result)
        if tokens is None:
            raise PlotInputError("expected tokens, those of the text: model.to_str_tokens(text).")
        words = tuple(of_text(tokens, batch))
        title, notes = "Value of each token", ()
    if len(words) != len(values):
        raise PlotInputError(f"there are {len(values)} numbers for {len(words)} tokens: one for each.")
    strip = _strip(words, values, style.width - 40)
    return drawn(Picture((strip,), 1, (), title, tuple(filter(None, notes)), style))


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
        A Figure: rows are cuts from the embeddings down to what leaves the last layer, columns positions and, behind
        the line, what belongs to no position (biases).

    Raises:
        As `token_strip`.

    Example:
        >>> plot.position_map(tl_norms.attribute(cache, target))                        # doctest: +SKIP
    """
    if not is_attribution(result):
        raise PlotInputError(f"expected an attribution, as of tl_norms.attribute, got {type(result).__name__}.")
    found, style = one_attribution(result, tokens, batch), Look(**look)
    values = np.concatenate([found.stream, found.offset[:, None]], axis=1)
    n = len(found.words)
    columns = Axis("token", (*map(visible, found.words), "(rest)"), (*found.positions, ""), n)
    names = (*map(str, result.layers), "end")
    rows = Axis("what enters layer", names, ("cut",) * len(names))
    made = coloured([("", values)], rows, columns, "contribution", True, scale)
    (panel,) = made.panels
    wide = max(18.0, min(52.0, (style.width - 190) / (n + 1)))
    panel = Cells("", panel.values, rows, columns, told=panel.told, size=(wide, 15.0))
    title = f"{contribution(result)} by layer and position"
    notes = (about(result, found.words), f"every row adds up to {found.value:+.3g}")
    return drawn(Picture((panel,), 1, tuple(made.scales), title, tuple(filter(None, notes)), style))


def head_grid(result: Any, *, layers: Numbers = None, batch: int | None = None, **look: Unpack[LookOptions]) -> Figure:
    """Every head by layer: its contribution, or the mean norm of what it moves.

    Args:
        result: an attribution (`heads`, with a sign), a BlockNorms or CrossNorms (‖αf(x)‖, mean over the pairs that
            exist), or a tensor [layer *batch head], whose layers are counted from 0
        layers: one layer, several, or None for all
        batch: which text, where there are several
        **look: as for `token_strip`

    Returns:
        A Figure: rows are layers, columns heads.

    Raises:
        PlotInputError: other results, or several texts and no `batch`. UnknownLayerError

    Example:
        >>> plot.head_grid(tl_norms.attribute(cache, target))                           # doctest: +SKIP
    """
    if is_attribution(result):
        value, numbers = _tensor(result.heads), tuple(result.layers)
        title, unit = f"{contribution(result)} by head", "contribution"
        notes = ["heads of one layer add up; those of different layers do not"]
    elif hasattr(result, "head_norms"):
        norms = _tensor(result.head_norms)
        value, numbers = _mean_over_pairs(result, norms), tuple(result.layers)
        title, unit, notes = "αf(x) by head: norm, mean over pairs", NORM, []
    elif isinstance(result, Tensor | np.ndarray) and np.ndim(result) in (2, 3):
        value = _tensor(result)
        numbers, title, unit, notes = tuple(range(len(value))), "Value by head", "value", []
    else:
        raise PlotInputError(
            f"expected an attribution, a BlockNorms or CrossNorms, or a tensor [layer *batch head], got "
            f"{type(result).__name__}."
        )
    text = chosen_text(value.shape[1] if value.ndim == 3 else None, batch)
    grid = (value if text is None else value[:, text]).double().numpy()
    wanted = [numbers.index(layer) for layer in _layers(numbers, layers)]
    rows = Axis("layer", tuple(str(numbers[row]) for row in wanted), ("layer",) * len(wanted))
    columns = Axis("head", tuple(map(str, range(grid.shape[1]))), ("head",) * grid.shape[1])
    signed = bool(np.nanmin(grid) < 0)
    scale = Scale.of([grid[wanted]], unit, signed)
    panel = Cells("", grid[wanted], rows, columns, size=(30.0, 15.0))
    words = _known_words(result, text)
    notes = tuple(filter(None, [about(result, words), *notes]))
    return drawn(Picture((panel,), 1, (scale,), title, notes, Look(**look)))


def head_edges(
    result: Any,
    tokens: Tokens | None = None,
    *,
    layer: int,
    head: int,
    batch: int | None = None,
    scale: ScaleOf = "shared",
    **look: Unpack[LookOptions],
) -> Figure:
    """One head: what it brings from each source token to each position.

    Args:
        result: an attribution, whose edges have a sign, or anything that `head_maps` takes
        tokens, batch, **look: as for `token_strip`
        layer, head: which one
        scale: "shared", or "row" for each query by itself

    Returns:
        A Figure with one map, rows queries and columns keys.

    Raises:
        As `head_maps`.

    Example:
        >>> plot.head_edges(tl_norms.attribute(cache, target), layer=17, head=3)        # doctest: +SKIP
    """
    if is_attribution(result):
        look["title"] = look.get("title", f"{contribution(result)} through L{layer}H{head}")
    return head_maps(result, tokens, layers=layer, heads=head, batch=batch, diagonal=True, scale=scale, **look)


def is_attribution(result: Any) -> bool:
    """Whether a result tells contributions at every cut."""
    return all(hasattr(result, name) for name in ("stream", "offset", "value", "heads", "layers"))


def one_attribution(result: Any, tokens: Tokens | None, batch: int | None) -> Signed:
    """The numbers of one text.

    Raises:
        PlotInputError: several texts and no `batch`, or tokens that do not fit.
    """
    stream, offset, value = (_tensor(part).double() for part in (result.stream, result.offset, result.value))
    text = chosen_text(stream.shape[1] if stream.ndim == 3 else None, batch)
    if text is not None:
        stream, offset, value = stream[:, text], offset[:, text], value[text]
    words = of_text(tokens_of(result) if tokens is None else tokens, text)
    if len(words) != stream.shape[1]:
        raise PlotInputError(
            f"this attribution has {stream.shape[1]} positions, tokens has {len(words)}: pass "
            f"model.to_str_tokens(text) of the text that was run."
        )
    return Signed(tuple(words), stream.numpy(), offset.numpy(), float(value))


def _strip(words: tuple[str, ...], values: np.ndarray, width: float) -> Drawing:
    """Tokens as boxes, broken into lines, with their numbers below."""
    limit, signed = float(np.nanmax(np.abs(values), initial=0)) or 1.0, bool((values < 0).any())
    boxes, labels, x, y = [], [], 0.0, 0.0
    for place, (word, value) in enumerate(zip(words, values, strict=True)):
        shown, number = visible(word), short(float(value), signed)
        wide = max(FONT * characters(shown) + 10, SMALL * len(number) + 6)
        if x and x + wide > width:
            x, y = 0.0, y + 52
        hover = f"{place} {shown}\n{value:+.4g}"
        boxes.append(Box(x, y, wide, 27, shown, float(value) / limit, hover))
        labels.append(Label(x + wide / 2, y + 36, number, size=10, faint=True))
        x += wide + 4
    across = max(box.x + box.width for box in boxes)
    return Drawing("", across, y + 46, boxes=tuple(boxes), labels=tuple(labels))


def short(value: float, signed: bool = True) -> str:
    """A number in three digits, without an exponent where that is readable."""
    sign = "+" if signed else ""
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:{sign}.1e}"
    return f"{value:{sign}.{max(0, 3 - len(str(int(abs(value)))))}f}"


def _vector(values: Any) -> np.ndarray:
    found = _tensor(values).double() if isinstance(values, Tensor | np.ndarray | list | tuple) else None
    if found is None or found.ndim != 1:
        raise PlotInputError(
            f"expected an attribution or numbers [pos], got {type(values).__name__}"
            f"{'' if found is None else f' of shape {list(found.shape)}'}."
        )
    return found.numpy()


def _tensor(value: Any) -> Tensor:
    return value.detach().cpu() if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))


def _mean_over_pairs(result: Any, norms: Tensor) -> Tensor:
    """[layer *batch head query key] over the pairs that exist, [layer *batch head]."""
    pairs = torch.ones(norms.shape[-2:], dtype=torch.bool)
    n = norms.shape[-1]
    if bool(getattr(result, "causal", False)) and norms.shape[-2] == n:
        pairs = pairs.tril()
    shape = (*norms.shape[1:-3], 1, *norms.shape[-2:])
    pairs = pairs.expand(shape)
    cross = not hasattr(result, "scopes")
    mask, target = getattr(result, "mask", None), getattr(result, "target_mask", None)
    for real, axis in ((mask, -1), (target if cross else mask, -2)):
        if real is not None:
            real = torch.as_tensor(real).bool().cpu().reshape(*norms.shape[1:-3], 1, -1)
            pairs = pairs & real.unsqueeze(-2 if axis == -1 else -1)
    return (norms * pairs).sum((-2, -1)) / pairs.sum((-2, -1)).clamp_min(1)


def _layers(numbers: tuple[int, ...], layers: Numbers) -> list[int]:
    wanted = numbers if layers is None else [layers] if isinstance(layers, int) else list(layers)
    for layer in wanted:
        if layer not in numbers:
            raise UnknownLayerError(f"layer {layer} is not in this result; it has {', '.join(map(str, numbers))}.")
    return list(wanted)


def _known_words(result: Any, batch: int | None) -> list[str]:
    try:
        return of_text(tokens_of(result), batch)
    except PlotInputError:
        return []
