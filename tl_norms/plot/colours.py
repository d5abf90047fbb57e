"""Colours of maps, for a light and a dark page, and of curves. All can be told apart by colour-blind eyes."""

import re
from collections.abc import Callable, Sequence
from typing import TypeAlias

from .errors import PlotInputError

Colours: TypeAlias = str | Sequence[str] | None
"""A colour map by its name in the library that draws, or its colours from lowest to highest; None for the default."""

# ColorBrewer's Blues and RdBu. On a dark page zero is dark and large values are light.
BLUES = ("#f7fbff", "#deebf7", "#c6dbef", "#9ecae1", "#6baed6", "#4292c6", "#2171b5", "#08519c", "#08306b")
RED_BLUE = (
    "#67001f", "#b2182b", "#d6604d", "#f4a582", "#fddbc7", "#f7f7f7",
    "#d1e5f0", "#92c5de", "#4393c3", "#2166ac", "#053061",
)  # fmt: skip
DARK_BLUES = ("#161d27", "#17304a", "#1a4a75", "#2468a2", "#3a8ac8", "#64ace0", "#96caf0", "#c6e3fa", "#f0f8ff")
DARK_RED_BLUE = (
    "#ffd9cc", "#fba68c", "#e8735a", "#bb4636", "#6b2c28", "#1b2028",
    "#1d3f5e", "#2a6ea8", "#4d9cdb", "#8cc5f2", "#d3ebff",
)  # fmt: skip
CURVES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C6BB1", "#808080")  # Okabe and Ito
LINK = "#d81b60"
NEGATIVE, POSITIVE = "#d6604d", "#2f7fc1"  # of lines, on light and dark pages
MISSING = (0.5, 0.5, 0.5, 0.11)  # where there is no pair, on light and dark pages


def stops(diverging: bool, dark: bool) -> tuple[str, ...]:
    """The default colours of a map, from lowest to highest."""
    if diverging:
        return DARK_RED_BLUE if dark else RED_BLUE
    return DARK_BLUES if dark else BLUES


def mixed(colours: Sequence[str], share: float) -> str:
    """The colour at a share (0 to 1) of the way through a list of them, as #rrggbb."""
    place = min(max(share, 0.0), 1.0) * (len(colours) - 1)
    first = min(int(place), len(colours) - 2)
    low, high = (channels(colours[first + n]) for n in (0, 1))
    return "#" + "".join(f"{round(a + (b - a) * (place - first)):02x}" for a, b in zip(low, high, strict=True))


def channels(colour: str) -> tuple[int, int, int]:
    """Red, green and blue of #rrggbb, 0 to 255."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def ink(colour: str) -> str:
    """Black or white, whichever is read on this colour."""
    red, green, blue = (channel / 255 for channel in channels(colour))
    return "#111418" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.55 else "#ffffff"


def chosen(wanted: Colours, diverging: bool, dark: bool, named: Callable[[str], Sequence[str]]) -> Sequence[str]:
    """The colours of a map from lowest to highest, as #rrggbb; `named` looks up a name in the library that draws.

    Raises:
        PlotInputError: a name that it does not know, or colours that are not #rrggbb.
    """
    if wanted is None:
        return stops(diverging, dark)
    if isinstance(wanted, str):
        try:
            return named(wanted)
        except Exception as error:  # each library has its own
            raise PlotInputError(
                f"cmap is {wanted!r}: expected the name of a colour map, or a list of colours."
            ) from error
    if len(wanted) < 2 or not all(re.fullmatch("#[0-9a-fA-F]{6}", colour) for colour in wanted):
        raise PlotInputError(f"cmap is {list(wanted)!r}: expected two or more colours as '#rrggbb', lowest first.")
    return wanted
