"""What is in a figure before a library draws it: titles, scales of colours, and panels of four kinds.

Cells       a map, a grid of heads, a cut by position
Curves      numbers by layer
Table       text and numbers in columns
Drawing     boxes, lines and dots at places given in pixels: a sentence, a graph

`layout.py` says where each panel stands; `with_plotly.py` and `with_matplotlib.py` draw.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from typing_extensions import TypedDict

from .colours import Colours
from .words import clipped

Backend = Literal["plotly", "matplotlib"]
Link = tuple[int, int]
"""(row, column) of a cell."""


@dataclass(frozen=True)
class Axis:
    """What stands along one side of a grid of cells, mostly tokens.

    Attributes:
        name: what the side is, "query" or "key"
        tokens: what stands at each row or column, made visible
        positions: where each stands, as hover shows it; no two are the same
        boundary: a line is drawn before this row or column (where the source's tokens begin), or None
    """

    name: str
    tokens: tuple[str, ...]
    positions: tuple[str, ...]
    boundary: int | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def label(self) -> str:
        """What is written beside it."""
        return {"query": "position (query)", "key": "source token (key)"}.get(self.name, self.name)

    @property
    def places(self) -> list[str]:
        """One name per row or column. The position makes equal tokens different."""
        return [f"{position} {token}".strip() for position, token in zip(self.positions, self.tokens, strict=True)]

    @property
    def labels(self) -> list[str]:
        return [clipped(token) for token in self.tokens]

    def ticks(self, cell: float, text: float) -> list[int]:
        """The rows or columns that get a label, where a cell is `cell` and a line of text `text` wide."""
        return list(range(0, len(self), max(1, int(np.ceil(text / cell)))))


@dataclass(frozen=True)
class Scale:
    """Colours of one or more panels: from 0 to `limit`, or from -limit to limit.

    Attributes:
        limit: the value of the last colour
        name: beside the colour bar
        diverging: values have a sign, and 0 is in the middle
        bar: "own" for a colour bar with numbers beside its panels; "common" for one bar from 0 to "max" that stands for
            all panels with scales of their own; None for no bar
    """

    limit: float
    name: str
    diverging: bool = False
    bar: Literal["own", "common"] | None = "own"

    @classmethod
    def of(cls, values: Sequence[np.ndarray], name: str, diverging: bool = False) -> "Scale":
        """The scale on which the largest of these values has the last colour."""
        finite = [np.abs(value[np.isfinite(value)]) for value in values]
        limit = max((float(value.max()) for value in finite if value.size), default=0.0)
        return cls(limit or 1.0, name, diverging)

    @property
    def lowest(self) -> float:
        return -self.limit if self.diverging else 0.0


@dataclass(frozen=True)
class Cells:
    """A grid of coloured cells.

    Attributes:
        title: above it
        values: [row column]; nan where there is no pair
        rows, columns: what stands at the sides
        scale: which of the figure's scales
        links: kind of link -> cells that are outlined
        told: the numbers that hover shows, where they are not those that are coloured, [row column]
        size: width and height of a cell in pixels at most, None for square ones
    """

    title: str
    values: np.ndarray
    rows: Axis
    columns: Axis
    scale: int = 0
    links: tuple[tuple[str, tuple[Link, ...]], ...] = ()
    told: np.ndarray | None = None
    size: tuple[float, float] | None = None


@dataclass(frozen=True)
class Line:
    """One curve, with a band around it where there are several texts."""

    name: str
    x: tuple[int, ...]
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


@dataclass(frozen=True)
class Curves:
    """Curves on axes that all panels of a figure have in common."""

    title: str
    lines: tuple[Line, ...]
    x_name: str
    y_name: str
    limits: tuple[float, float]


@dataclass(frozen=True)
class Table:
    """Columns of text and numbers; `strong` are the cells (row, column) to be set in bold."""

    names: tuple[str, ...]
    columns: tuple[tuple[str, ...], ...]
    right: tuple[bool, ...]
    strong: frozenset[tuple[int, int]] = frozenset()
    title: str = ""


@dataclass(frozen=True)
class Box:
    """A rectangle with a text in it. `share` is its place on the figure's first scale, -1 to 1, None for no fill."""

    x: float
    y: float
    width: float
    height: float
    text: str
    share: float | None
    hover: str


@dataclass(frozen=True)
class Stroke:
    """A straight line from one point to another."""

    x: tuple[float, float]
    y: tuple[float, float]
    width: float
    colour: str | None  # None for a faint grey
    hover: str = ""


@dataclass(frozen=True)
class Dot:
    """A filled circle."""

    x: float
    y: float
    size: float
    colour: str | None
    hover: str


@dataclass(frozen=True)
class Label:
    """A text at a point; `turned` reads upwards."""

    x: float
    y: float
    text: str
    align: Literal["left", "center", "right"] = "center"
    turned: bool = False
    size: float = 11
    faint: bool = False


@dataclass(frozen=True)
class Drawing:
    """Shapes at places in pixels, from the upper left corner down."""

    title: str
    width: float
    height: float
    boxes: tuple[Box, ...] = ()
    strokes: tuple[Stroke, ...] = ()
    dots: tuple[Dot, ...] = ()
    labels: tuple[Label, ...] = ()


Panel: TypeAlias = Cells | Curves | Table | Drawing


class LookOptions(TypedDict, total=False):
    """What every figure function takes: see `Look`."""

    backend: Backend
    title: str | None
    cmap: Colours
    width: int


@dataclass(frozen=True)
class Look:
    """What every figure function lets its caller choose.

    Attributes:
        backend: "plotly" (interactive) or "matplotlib" (for papers)
        title: instead of the title that says what is shown; "" for none, and no line below it either
        cmap: colours of maps: a name that the library knows, or a list of colours (#rrggbb) from lowest to highest
        width: pixels that the figure may take at most (96 to an inch)
    """

    backend: Backend = "plotly"
    title: str | None = None
    cmap: Colours = None
    width: int = 960


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        panels: row by row, `n_columns` in a row
        scales: those that panels refer to by number
        title: what is shown
        notes: lines below it: which model and text, what is left out, what colours mean
    """

    panels: tuple[Panel, ...]
    n_columns: int = 1
    scales: tuple[Scale, ...] = ()
    title: str = ""
    notes: tuple[str, ...] = ()
    look: Look = field(default_factory=Look)

    @property
    def n_rows(self) -> int:
        return -(-len(self.panels) // self.n_columns)

    @property
    def heading(self) -> tuple[str, tuple[str, ...]]:
        """The title and the lines below it, as the caller wants them."""
        if self.look.title is None:
            return self.title, self.notes
        return self.look.title, self.notes if self.look.title else ()

    def at(self, number: int) -> tuple[int, int]:
        return divmod(number, self.n_columns)

    def members(self, scale: int) -> list[int]:
        """The numbers of the panels drawn on this scale."""
        return [n for n, panel in enumerate(self.panels) if isinstance(panel, Cells) and panel.scale == scale]

    def labels_below(self, number: int) -> bool:
        """Whether this panel labels its columns: the last of its column does, and all that differ from it do."""
        below = number + self.n_columns
        return below >= len(self.panels) or _side(self.panels[below], "columns") != _side(
            self.panels[number], "columns"
        )

    def labels_left(self, number: int) -> bool:
        """Whether this panel labels its rows: the first of a row does, and all that differ from their neighbour do."""
        if number % self.n_columns == 0:
            return True
        return _side(self.panels[number - 1], "rows") != _side(self.panels[number], "rows")


def _side(panel: Panel, side: str) -> Axis | None:
    return getattr(panel, side, None) if isinstance(panel, Cells) else None
