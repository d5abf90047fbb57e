"""A text whose tokens are coloured by what they contribute."""

import math
from typing import Any

import numpy as np
from torch import Tensor
from typing_extensions import Unpack

from ..labels import digits
from .contributions import is_attribution, on_cpu, one_attribution
from .draw import Figure, drawn
from .errors import PlotInputError
from .picture import Box, Drawing, Label, Look, LookOptions, Picture
from .select import Tokens, about, of_text
from .subjects import contribution
from .words import characters, visible

FONT, SMALL = 7.9, 6.2  # pixels of a character in a box, and of a number below it


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
        A Figure. Colours are relative to the largest contribution; blue adds, red takes away. Of an encoder-decoder the
        source sentence is below: its input tokens, at later cuts what is still to be read of the encoder's output.

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
        rest, told = float(found.offset[cut]), ""
        at = "input tokens" if cut == 0 else f"positions at cut {cut % len(found.stream)}"
        title, text = f"{contribution(result)}: {at}", about(result, words)
        together, n_own = values.sum(), len(words)
        if found.beside is not None and found.below is not None and found.below_offset is not None:
            source = found.below[0] if cut == 0 else found.beside[cut]
            rest = float(found.below_offset[0]) if cut == 0 else rest
            told = f"source sentence {digits(source.sum(), 3, '+')}, "
            values, words = np.concatenate([values, source]), (*words, *found.source)
        signed = [digits(number, 3, "+") for number in (together, rest, found.value)]
        notes = (text, f"tokens {signed[0]}, {told}rest (biases) {signed[1]}, value {signed[2]}")
    else:
        values = _vector(result)
        if tokens is None:
            raise PlotInputError("expected tokens, those of the text: model.to_str_tokens(text).")
        words = tuple(of_text(tokens, batch))
        title, notes, n_own = "Value of each token", (), len(words)
    if len(words) != len(values):
        raise PlotInputError(f"there are {len(values)} numbers for {len(words)} tokens: one for each.")
    strip = _strip(words, values, style.width - 40, n_own)
    return drawn(Picture((strip,), 1, (), title, tuple(filter(None, notes)), style))


def _strip(words: tuple[str, ...], values: np.ndarray, width: float, n_own: int) -> Drawing:
    """Tokens as boxes, broken into lines, with their numbers below; a source sentence begins a line."""
    limit, signed = float(np.nanmax(np.abs(values), initial=0)) or 1.0, bool((values < 0).any())
    boxes, labels, x, y = [], [], 0.0, 0.0
    for place, (word, value) in enumerate(zip(words, values, strict=True)):
        shown, number = visible(word), short(float(value), limit, signed)
        wide = max(FONT * characters(shown) + 10, SMALL * len(number) + 6)
        if x and (x + wide > width or place == n_own):
            x, y = 0.0, y + 52
        hover = f"{place} {shown}\n{value:+.4g}"
        boxes.append(Box(x, y, wide, 27, shown, float(value) / limit, hover))
        labels.append(Label(x + wide / 2, y + 36, number, size=10, faint=True))
        x += wide + 4
    across = max(box.x + box.width for box in boxes)
    return Drawing("", across, y + 46, boxes=tuple(boxes), labels=tuple(labels))


def short(value: float, largest: float, signed: bool = True) -> str:
    """A number beside others: as many decimals as the largest needs for two or three digits; what rounds to 0 is 0."""
    if value and not 1e-4 <= largest < 1e5:
        return f"{value:{'+' if signed else ''}.1e}"
    decimals = min(max(1 - math.floor(math.log10(largest or 1)), 2 if largest < 10 else 1 if largest < 100 else 0), 5)
    text = f"{value:{'+' if signed else ''}.{decimals}f}"
    return text if float(text) else "0"


def _vector(values: Any) -> np.ndarray:
    found = on_cpu(values).double() if isinstance(values, Tensor | np.ndarray | list | tuple) else None
    if found is None or found.ndim != 1:
        raise PlotInputError(
            f"expected an attribution or numbers [pos], got {type(values).__name__}"
            f"{'' if found is None else f' of shape {list(found.shape)}'}."
        )
    return found.numpy()
