"""Where everything stands in a figure, in pixels from the upper left corner (96 to an inch), for both libraries."""

import textwrap
from dataclasses import dataclass

from .errors import PlotInputError
from .picture import Cells, Curves, Drawing, Panel, Picture, Table
from .words import characters

LETTER, BOLD, SMALL = 6.6, 8.9, 6.5  # pixels that a character of a label, a title and a note takes
LINE = 12.5  # pixels between the lines of labels
TITLE, NOTE, PANEL_TITLE = 22, 16, 17  # heights of lines of text
EDGE = 10  # around everything
GAP, DOWN = 14, 10  # between panels
BAR, BAR_ROOM = 10, 72  # a colour bar, and with its numbers and name
SMALLEST = 50  # pixels of a panel below which it gets no labels
LARGEST_CELL, SMALLEST_CELL, LONGEST_SIDE = 26.0, 1.5, 720
NARROWEST = 260
ROW = 28  # of a table: what plotly needs for a line of text


@dataclass(frozen=True)
class Box:
    """A rectangle."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Layout:
    """Places of the parts of a figure.

    Attributes:
        width, height: of the whole
        title, notes: the lines of the heading, broken to fit
        panels: one box each, without labels and titles
        bars: the box of each scale's colour bar, None where it has none
        cells: width and height of a cell in pixels, of each panel (0 for panels of other kinds)
    """

    width: float
    height: float
    title: tuple[str, ...]
    notes: tuple[str, ...]
    panels: tuple[Box, ...]
    bars: tuple[Box | None, ...]
    cells: tuple[tuple[float, float], ...]

    @property
    def heading(self) -> float:
        """Pixels that the title and the notes take."""
        return heading_height(self.title, self.notes)


def heading_height(title: tuple[str, ...], notes: tuple[str, ...]) -> float:
    """Pixels above the panels, 0 without any heading."""
    return (TITLE * len(title) + NOTE * len(notes) + 8) if title or notes else 0


def has_labels(cell: float, n: int) -> bool:
    """Whether a side of `n` cells is long enough for labels."""
    return cell >= LINE or cell * n >= SMALLEST


def titled(picture: Picture, number: int, side: str) -> bool:
    """Whether the name of a side is written at this panel: where it fits, and once in any case."""
    panel, column = picture.panels[number], picture.at(number)[1]
    if not isinstance(panel, Cells):
        return False
    if side == "columns":
        return picture.labels_below(number) and (column == 0 or not _narrow(picture))
    return picture.labels_left(number)


def _narrow(picture: Picture) -> bool:
    """Whether the names below the columns would run into each other."""
    grids = [panel for panel in picture.panels if isinstance(panel, Cells)]
    cell = min(LARGEST_CELL, picture.look.width / max(1, picture.n_columns) / max(len(grid.columns) for grid in grids))
    return any(cell * len(grid.columns) < LETTER * characters(grid.columns.label) + 24 for grid in grids)


def turned(panel: Cells, cell: float) -> bool:
    """Whether the labels of columns as wide as `cell` read upwards."""
    return cell < LETTER * max(map(characters, panel.columns.labels), default=0) + 4


def laid_out(picture: Picture) -> Layout:
    """The places of everything in a figure.

    Raises:
        PlotInputError: the width is too small for anything.
    """
    width = picture.look.width
    if width < NARROWEST:
        raise PlotInputError(f"width is {width} pixels: expected at least {NARROWEST}.")
    columns, rows = range(picture.n_columns), range(picture.n_rows)
    numbers = range(len(picture.panels))
    left = [max((_left(picture, n) for n in numbers if picture.at(n)[1] == c), default=0) for c in columns]
    beside = [_bar_column(picture, scale) for scale in range(len(picture.scales))]
    right = [BAR_ROOM if c in beside else 0 for c in columns]
    fixed = sum(left) + sum(right) + GAP * (picture.n_columns - 1) + 2 * EDGE
    sizes = _sizes(picture, width - fixed)
    wide = [max((sizes[n][0] for n in numbers if picture.at(n)[1] == c), default=0) for c in columns]
    high = [max((sizes[n][1] for n in numbers if picture.at(n)[0] == r), default=0) for r in rows]
    over_right = _overhang(picture, wide)
    least = 380 if _legend(picture, 1e9) else NARROWEST
    whole = max(sum(wide) + fixed + over_right, least)
    title, notes = _heading(picture, max(whole, min(width, 560)))
    longest = max((BOLD * characters(line) for line in title), default=0)
    whole = max(whole, longest + 2 * EDGE, max((SMALL * characters(line) for line in notes), default=0))
    xs, x = [], EDGE
    for c in columns:
        xs.append(x + left[c])
        x += left[c] + wide[c] + right[c] + GAP
    above = [max((_above(picture.panels[n]) for n in numbers if picture.at(n)[0] == r), default=0) for r in rows]
    below = [max((_below(picture, n, sizes[n]) for n in numbers if picture.at(n)[0] == r), default=0) for r in rows]
    ys, y = [], EDGE / 2 + heading_height(title, notes) + _legend(picture, sum(wide))
    for r in rows:
        ys.append(y + above[r])
        y += above[r] + high[r] + below[r] + DOWN
    boxes = []
    for n in numbers:
        r, c = picture.at(n)
        boxes.append(Box(xs[c], ys[r], *sizes[n]))
    bars = tuple(_bar(picture, scale, boxes) for scale in range(len(picture.scales)))
    cells = tuple(
        (box.width / max(1, len(panel.columns)), box.height / max(1, len(panel.rows)))
        if isinstance(panel, Cells)
        else (0.0, 0.0)
        for panel, box in zip(picture.panels, boxes, strict=True)
    )
    return Layout(whole, y - DOWN + EDGE, title, notes, tuple(boxes), bars, cells)


def fitting_columns(n_panels: int, n_cells: int, width: int, most: int | None = None, group: int | None = None) -> int:
    """Panels in a row, so that the labels of square panels can be read if that is possible at all.

    Args:
        n_panels, n_cells: how many panels, of how many cells at a side
        most: no more than these
        group: so many panels belong together: rows hold all of them, or a part that leaves none over
    """
    wanted = min(max(n_cells * LINE, 118), 330) + GAP
    fit = max(1, int((width - 120) // wanted))
    fit = min(fit, n_panels, most or n_panels)
    if group is not None:
        parts = [n for n in range(1, group + 1) if group % n == 0 and n <= fit]
        if parts[-1] * 2 > fit or parts[-1] == group:
            return parts[-1]
    return -(-n_panels // -(-n_panels // fit))  # as many in every row


def side_by_side(n: int, width: int) -> int:
    """`n` if so many panels with colour bars of their own can be read side by side, else 1."""
    return n if 110 + n * (100 + BAR_ROOM) <= width else 1


def _sizes(picture: Picture, room: float) -> list[tuple[float, float]]:
    """Width and height of each panel without labels; `room` is what they have side by side."""
    grids = [panel for panel in picture.panels if isinstance(panel, Cells)]
    n = picture.n_columns
    across = [max((len(p.columns) for p in picture.panels[c::n] if isinstance(p, Cells)), default=0) for c in range(n)]
    cell = LARGEST_CELL
    if grids:
        longest = max(max(len(panel.rows), len(panel.columns)) for panel in grids)
        cell = max(SMALLEST_CELL, min(LARGEST_CELL, room / max(1, sum(across)), LONGEST_SIDE / longest))
    curves = max(180.0, min(320.0, room / max(1, n)))
    found = []
    for panel in picture.panels:
        if isinstance(panel, Cells):
            w, h = (cell, cell) if panel.size is None else (min(panel.size[0], room / sum(across)), panel.size[1])
            found.append((w * len(panel.columns), h * len(panel.rows)))
        elif isinstance(panel, Curves):
            found.append((max(curves, 420.0) if n == 1 and room > 420 else curves, 190.0))
        elif isinstance(panel, Table):
            found.append((28 + 7.4 * sum(column_widths(panel)), 34.0 + ROW * len(panel.columns[0])))
        else:
            found.append((panel.width, panel.height))
    tables = [size[0] for size, panel in zip(found, picture.panels, strict=True) if isinstance(panel, Table)]
    return [(max(tables), size[1]) if isinstance(panel, Table) else size
            for size, panel in zip(found, picture.panels, strict=True)]  # fmt: skip


def column_widths(table: Table) -> list[float]:
    """Characters that each column needs."""
    columns = zip(table.names, table.columns, strict=True)
    return [max(6, 2 + max(map(characters, (name, *column)))) for name, column in columns]


def _left(picture: Picture, number: int) -> float:
    panel = picture.panels[number]
    if isinstance(panel, Cells) and picture.labels_left(number):
        return 6 + LETTER * max(map(characters, panel.rows.labels), default=0) + (22 if panel.rows.name else 0)
    return 58 if isinstance(panel, Curves) and number % picture.n_columns == 0 else 0


def _above(panel: Panel) -> float:
    if isinstance(panel, Table | Drawing) and not panel.title:
        return 0
    return 8 + PANEL_TITLE * len(panel.title.split("\n")) if panel.title else 6


def _below(picture: Picture, number: int, size: tuple[float, float]) -> float:
    panel = picture.panels[number]
    if isinstance(panel, Curves):
        return 42 if number + picture.n_columns >= len(picture.panels) else 22
    if not isinstance(panel, Cells) or not picture.labels_below(number):
        return 0
    cell, n = size[0] / max(1, len(panel.columns)), len(panel.columns)
    longest = max(map(characters, panel.columns.labels), default=0) if has_labels(cell, n) else 0
    return 6 + (LETTER * longest if turned(panel, cell) else LINE) + (18 if panel.columns.name else 0)


def _bar_column(picture: Picture, scale: int) -> int | None:
    """The column of panels that a scale's colour bar stands beside."""
    if picture.scales[scale].bar is None:
        return None
    if picture.scales[scale].bar == "common" or not picture.members(scale):
        return picture.n_columns - 1
    return max(picture.at(number)[1] for number in picture.members(scale))


def _bar(picture: Picture, scale: int, boxes: list[Box]) -> Box | None:
    """Right of its panels and as high as they are, within reason."""
    column = _bar_column(picture, scale)
    if column is None:
        return None
    common = picture.scales[scale].bar == "common"
    members = [boxes[n] for n in (range(len(boxes)) if common else picture.members(scale))] or boxes
    last = [boxes[n] for n in range(len(boxes)) if picture.at(n)[1] == column]
    top = min(box.y for box in members)
    height = min(max(box.y + box.height for box in members) - top, max(220.0, members[0].height))
    return Box(max(box.x + box.width for box in last) + 10, top, BAR, height)


def _overhang(picture: Picture, wide: list[float]) -> float:
    """What titles of narrow panels need beyond the last column."""
    if any(isinstance(panel, Curves) for panel in picture.panels):
        names = {line.name for panel in picture.panels if isinstance(panel, Curves) for line in panel.lines}
        return 70 + LETTER * max(map(characters, names), default=0)  # the legend: a gap, a line, a name
    longest = 0.0
    for number, panel in enumerate(picture.panels):
        over = LETTER * max(map(characters, panel.title.split("\n"))) - wide[picture.at(number)[1]]
        longest = max(longest, over / 2)
    return max(0.0, longest - 20)


def _legend(picture: Picture, room: float) -> float:
    """The height of the legend of links; plotly breaks it into lines as wide as the panels (`room`)."""
    kinds = {kind for panel in picture.panels if isinstance(panel, Cells) for kind, _ in panel.links}
    return 24.0 * -(-len(kinds) // max(1, int(room // 80)))


def _heading(picture: Picture, width: float) -> tuple[tuple[str, ...], tuple[str, ...]]:
    title, notes = picture.heading
    room = max(30, int((width - 2 * EDGE) / BOLD))
    lines = (
        textwrap.wrap(title, room, break_on_hyphens=False)
        if title and "\n" not in title
        else title.split("\n")
        if title
        else []
    )
    small = max(36, int((width - 2 * EDGE) / SMALL))
    return tuple(lines), tuple(line for note in notes for line in textwrap.wrap(note, small, break_on_hyphens=False))
