"""Colours of maps: which scale each panel is on, and when the diagonal is left out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ..labels import digits
from .errors import PlotInputError
from .picture import Axis, Cells, Scale
from .select import Text

ScaleOf = Literal["shared", "panel", "row"]
DROWNS = 2.0  # times the largest entry off the diagonal
APART = 4.0  # panels whose largest entries differ more get scales of their own
OWN_BARS = 4  # panels that each get a colour bar with numbers; more of them get numbers in their titles


@dataclass(frozen=True)
class Coloured:
    """Panels, their scales, and what to say about their colours."""

    panels: list[Cells]
    scales: list[Scale]
    notes: list[str]


def coloured(
    values: Sequence[tuple[str, np.ndarray]],
    rows: Axis,
    columns: Axis,
    unit: str,
    signed: bool,
    scale: ScaleOf | None,
    *,
    bars: Literal["own"] | None = None,
) -> Coloured:
    """Panels from titles and maps.

    Raises:
        PlotInputError: another scale.
    """
    if scale not in (None, "shared", "panel", "row"):
        raise PlotInputError(
            f"scale is {scale!r}: expected 'shared' (one for all panels), 'panel' (one each) or 'row' (each row by "
            f"itself)."
        )
    maps = [value for _, value in values]
    panels = [Cells(title, value, rows, columns) for title, value in values]
    if scale == "row":
        shares = [_by_row(value) for value in maps]
        panels = [replace(p, values=share, told=v) for p, share, v in zip(panels, shares, maps, strict=True)]
        return Coloured(panels, [Scale(1.0, "share of the row's largest", signed)], [])
    if scale is None:
        largest = [Scale.of([value], unit).limit for value in maps if np.nan_to_num(value).any()]
        scale = "panel" if largest and max(largest) > APART * min(largest) else "shared"
    if scale == "shared":
        return Coloured(panels, [Scale.of(maps, unit, signed)], [])
    scales = [Scale.of([value], unit, signed) for value in maps]
    panels = [replace(panel, scale=n) for n, panel in enumerate(panels)]
    if bars == "own" or len(panels) <= OWN_BARS:
        return Coloured(panels, scales, [])
    panels = [replace(p, title=f"{p.title} (to {digits(s.limit, 3)})") for p, s in zip(panels, scales, strict=True)]
    scales = [replace(s, bar=None if n else "common") for n, s in enumerate(scales)]
    low = "−max through 0 to max, the number" if signed else "0 to max, the number"
    return Coloured(panels, scales, [f"colours of each panel run from {low} in its title"])


def without_diagonal(
    text: Text, values: Sequence[np.ndarray], wanted: bool | None
) -> tuple[list[np.ndarray], float | None]:
    """The maps, and the largest number left out if the diagonal was; None where it stays.

    Args:
        wanted: True to keep it, False to leave it out, None to leave it out where it drowns the rest
    """
    found = list(values)
    if wanted or not text.own or not found:
        return found, None
    own = [np.abs(text.diagonal(value)) for value in found]
    others = [_off(value) for value in found]
    if wanted is None:
        drowned = [np.nanmax(one) > DROWNS * np.nanmax(other) for one, other in zip(own, others, strict=True)
                   if np.isfinite(one).any() and np.isfinite(other).any() and np.nanmax(other) > 0]  # fmt: skip
        if not drowned or sum(drowned) * 2 < len(drowned):
            return found, None
    largest = max((float(np.nanmax(one)) for one in own if np.isfinite(one).any()), default=0.0)
    return [_emptied(value) for value in found], largest


def _off(value: np.ndarray) -> np.ndarray:
    return np.abs(_emptied(value))


def _emptied(value: np.ndarray) -> np.ndarray:
    found = value.astype(np.result_type(value, np.float32), copy=True)
    n = min(found.shape[-2:])
    found[..., range(n), range(n)] = np.nan
    return found


def _by_row(value: np.ndarray) -> np.ndarray:
    """Each row divided by its largest absolute entry."""
    finite = np.where(np.isfinite(value), np.abs(value), 0)
    largest = finite.max(-1, keepdims=True)
    return np.divide(value, largest, out=np.where(np.isfinite(value), 0.0, np.nan), where=largest > 0)
