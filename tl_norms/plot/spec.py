"""What is in a figure, before a library draws it: panels of maps, panels of lines, a table."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

LONGEST = 16  # characters of a token on an axis; hover shows all of it
_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_NAMED = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}

Link = tuple[int, int]
"""(row, column) of a cell."""


def visible(token: str) -> str:
    """A token as it can be read on an axis: without the spaces around it, control characters spelled out."""
    if not token:
        return "(empty)"
    if not token.strip(" "):
        return "\u2423" * len(token)
    return _UNSEEN.sub(lambda found: _NAMED.get(found[0], f"\\u{ord(found[0]):04x}"), token.strip(" "))


def clipped(token: str) -> str:
    """A visible token, short enough for an axis."""
    return token if len(token) <= LONGEST else token[: LONGEST - 1] + "…"


@dataclass(frozen=True)
class Axis:
    """The tokens along one side of a map.

    Attributes:
        name: what the side is, "query" or "key"
        tokens: visible tokens
        positions: where each stands, as hover shows it; no two are the same
        boundary: a line is drawn in front of this row or column (where the source's tokens begin), or None
    """

    name: str
    tokens: tuple[str, ...]
    positions: tuple[str, ...]
    boundary: int | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def places(self) -> list[str]:
        """One name per row or column. The position makes equal tokens different."""
        return [f"{position} {token}" for position, token in zip(self.positions, self.tokens, strict=True)]

    @property
    def labels(self) -> list[str]:
        return [clipped(token) for token in self.tokens]

    def ticks(self, cell: float, text: float) -> list[int]:
        """The rows or columns that get a label, where a cell is `cell` and a line of text `text` wide."""
        return list(range(0, len(self), max(1, int(np.ceil(text / cell)))))


@dataclass(frozen=True)
class Scale:
    """Colours of one or more panels: from 0 to `limit`, or from -limit to limit."""

    limit: float
    name: str
    diverging: bool = False

    @classmethod
    def of(cls, values: Sequence[np.ndarray], name: str, diverging: bool = False) -> "Scale":
        """The scale on which the largest of these values is the last colour."""
        finite = [np.abs(value[np.isfinite(value)]) for value in values]
        limit = max((float(value.max()) for value in finite if value.size), default=0.0)
        return cls(limit or 1.0, name, diverging)

    @property
    def lowest(self) -> float:
        return -self.limit if self.diverging else 0.0


@dataclass(frozen=True)
class Panel:
    """One map.

    Attributes:
        title: above it
        values: [row column]; nan where there is no pair
        rows, columns: their tokens
        scale: which of the figure's scales
        links: kind of link -> cells that are outlined
    """

    title: str
    values: np.ndarray
    rows: Axis
    columns: Axis
    scale: int
    links: tuple[tuple[str, tuple[Link, ...]], ...] = ()


@dataclass(frozen=True)
class Maps:
    """Panels row by row, `n_columns` in a row."""

    panels: tuple[Panel, ...]
    n_columns: int
    scales: tuple[Scale, ...]

    @property
    def n_rows(self) -> int:
        return -(-len(self.panels) // self.n_columns)

    def at(self, number: int) -> tuple[int, int]:
        return divmod(number, self.n_columns)

    def members(self, scale: int) -> list[int]:
        """The numbers of the panels drawn on this scale."""
        return [number for number, panel in enumerate(self.panels) if panel.scale == scale]

    def has_labels_below(self, number: int) -> bool:
        """Whether this panel labels its columns: the last of its column does, and all that differ from it do."""
        below = number + self.n_columns
        return below >= len(self.panels) or self.panels[below].columns != self.panels[number].columns


@dataclass(frozen=True)
class Line:
    """One curve, with a band around it where there are several texts."""

    name: str
    x: tuple[int, ...]
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


@dataclass(frozen=True)
class Lines:
    """Panels of curves on common axes."""

    panels: tuple[tuple[str, tuple[Line, ...]], ...]
    x_name: str
    y_name: str
    limits: tuple[float, float]

    @property
    def names(self) -> list[str]:
        """The names of all curves, in the order of their first appearance: one colour each."""
        return list(dict.fromkeys(line.name for _, lines in self.panels for line in lines))


@dataclass(frozen=True)
class Table:
    """Columns of text and numbers."""

    names: tuple[str, ...]
    columns: tuple[tuple[str, ...], ...]
    right: tuple[bool, ...]


Backend = Literal["plotly", "matplotlib"]
