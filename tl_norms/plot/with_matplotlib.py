"""Figures by matplotlib, to print: cells are vectors, text stays text."""

from typing import Any

import numpy as np

from .errors import needed
from .spec import Axis, Lines, Maps, Panel, Table

SEQUENTIAL, DIVERGING = "viridis", "RdBu_r"
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C6BB1", "#808080")  # Okabe and Ito
FONTS = {"pdf.fonttype": 42, "ps.fonttype": 42}  # TrueType: text that can be searched, and that publishers accept
LARGEST = 128  # tokens; longer maps are pictures inside the PDF, not a vector per cell
LINE = 0.125  # inches that a label needs
LINK = "#ff2d6f"


def _new(width: float, height: float) -> Any:
    """A figure that pyplot does not keep: a notebook shows it once, and many of them cost nothing."""
    figures, matplotlib = needed("matplotlib.figure"), needed("matplotlib")
    pyplot = needed("matplotlib.pyplot")

    class PaperFigure(figures.Figure):
        def savefig(self, *args, **options):
            with matplotlib.rc_context(FONTS):
                return super().savefig(*args, **options)

    figure = pyplot.figure(FigureClass=PaperFigure, figsize=(width, height), layout="constrained")
    pyplot.close(figure)
    return figure


def draw_maps(maps: Maps) -> Any:
    """A Figure: one Axes with one mesh per panel, one colour bar per scale."""
    wide = [max(len(panel.columns) for panel in maps.panels[c :: maps.n_columns]) for c in range(maps.n_columns)]
    rows = [maps.panels[r * maps.n_columns : (r + 1) * maps.n_columns] for r in range(maps.n_rows)]
    high = [max(len(panel.rows) for panel in row) for row in rows]
    cell = min(0.21, 11 / sum(wide), max(2.6 / max(*wide, *high), 0.02))
    labels = max(len(label) for panel in maps.panels for label in (*panel.rows.labels, *panel.columns.labels))
    bars = maps.n_columns if len(maps.scales) > 1 else 1
    width = sum(wide) * cell + 0.3 + 0.07 * labels + 0.75 * bars
    height = sum(high) * cell + 0.45 + 0.07 * labels + 0.3 * maps.n_rows
    if maps.n_rows > 1 and len(maps.panels) % maps.n_columns:  # labels in the middle of the figure too
        height += 0.45 + 0.07 * labels
    height += 0.3 * any(panel.links for panel in maps.panels)
    figure = _new(max(2.6, width), max(1.8, height))
    axes = figure.subplots(maps.n_rows, maps.n_columns, squeeze=False, width_ratios=wide, height_ratios=high)
    meshes = []
    for number, panel in enumerate(maps.panels):
        row, column = maps.at(number)
        meshes.append(_draw_panel(axes[row, column], maps, number, panel, cell))
    for number in range(len(maps.panels), axes.size):
        figure.delaxes(axes.flat[number])
    for number, scale in enumerate(maps.scales):
        members = maps.members(number)
        beside = [axes.flat[member] for member in members]
        if len(beside) == 1:  # exactly as high as its map
            bar = figure.colorbar(meshes[members[0]], cax=beside[0].inset_axes((1.03, 0, 0.05, 1)))
        else:
            bar = figure.colorbar(meshes[members[0]], ax=beside, shrink=0.7, pad=0.02)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=7)
        bar.set_label(scale.name, fontsize=7)
    return figure


def draw_lines(lines: Lines) -> Any:
    """A Figure: one Axes per panel."""
    across = min(3, len(lines.panels)) if len(lines.panels) != 4 else 2
    down = -(-len(lines.panels) // across)
    figure = _new(1.2 + 2.1 * across if across > 1 else 4.2, 0.4 + 2.1 * down)
    axes = figure.subplots(down, across, squeeze=False, sharey=True)
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(lines.names)}
    handles: dict[str, Any] = {}
    for number, (title, curves) in enumerate(lines.panels):
        axis = axes.flat[number]
        for curve in curves:
            if curve.low is not None:
                axis.fill_between(curve.x, curve.low, curve.high, color=colours[curve.name], alpha=0.18, linewidth=0)
            (drawn,) = axis.plot(curve.x, curve.y, marker="o", markersize=2.5, linewidth=1.2, color=colours[curve.name])
            drawn.set_label(_plain(curve.name))
            handles.setdefault(curve.name, drawn)
        axis.set_title(title, fontsize=8, parse_math=False)
        axis.set_ylim(*lines.limits)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
        if number + across >= len(lines.panels):
            axis.set_xlabel(lines.x_name, fontsize=8)
    for number in range(len(lines.panels), axes.size):
        figure.delaxes(axes.flat[number])
    for row in axes:
        row[0].set_ylabel(lines.y_name, fontsize=8)
    figure.legend(handles=list(handles.values()), loc="outside right upper", fontsize=7, frameon=False)
    return figure


def draw_table(table: Table) -> Any:
    """A Figure with one table."""
    longest = [max(map(len, (name, *column))) for name, column in zip(table.names, table.columns, strict=True)]
    widths = np.array([max(6, n) for n in longest], float)
    rows = list(zip(*table.columns, strict=True))
    figure = _new(0.3 + 0.085 * float(widths.sum()), 0.2 + 0.2 * (len(rows) + 1))
    axis = figure.subplots()
    axis.axis("off")
    box = (0, 0, 1, 1)
    made = axis.table(
        rows or [[""] * len(table.names)], colLabels=table.names, colWidths=widths / widths.sum(), bbox=box
    )
    made.auto_set_font_size(False)
    made.set_fontsize(8)
    for (row, column), cell in made.get_celld().items():
        cell.get_text().set_parse_math(False)
        cell.get_text().set_horizontalalignment("right" if table.right[column] else "left")
        cell.visible_edges = "B"
        cell.set_linewidth(0.8 if row == 0 else 0.2)
        if row == 0:
            cell.get_text().set_weight("bold")
    return figure


def _draw_panel(axis: Any, maps: Maps, number: int, panel: Panel, cell: float) -> Any:
    scale = maps.scales[panel.scale]
    n_rows, n_columns = panel.values.shape
    mesh = axis.pcolormesh(
        np.arange(n_columns + 1) - 0.5,
        np.arange(n_rows + 1) - 0.5,
        np.ma.masked_invalid(panel.values),
        cmap=DIVERGING if scale.diverging else SEQUENTIAL,
        vmin=scale.lowest,
        vmax=scale.limit,
        edgecolors="face",  # without it, viewers draw thin lines between the cells
        linewidth=0.1,
        rasterized=max(panel.values.shape) > LARGEST,
    )
    axis.set_aspect("equal")
    axis.set_xlim(-0.5, n_columns - 0.5)
    axis.set_ylim(n_rows - 0.5, -0.5)
    axis.set_title(panel.title, fontsize=8, parse_math=False)
    below, first = maps.has_labels_below(number), number % maps.n_columns == 0
    _label(axis.xaxis, panel.columns, cell, below, rotation=90)
    _label(axis.yaxis, panel.rows, cell, first)
    axis.spines[:].set_visible(False)
    if panel.columns.boundary is not None:
        axis.axvline(panel.columns.boundary - 0.5, color=LINK, linewidth=1)
    for kind, cells in panel.links:
        for place, (query, key) in enumerate(cells):
            axis.add_patch(_link(kind, query, key, label=kind if place == 0 else None))
    if panel.links and number == 0:
        handles = [_handle(kind) for kind, _ in panel.links]
        axis.figure.legend(handles=handles, loc="outside upper left", ncols=3, fontsize=7, frameon=False)
    return mesh


def _link(kind: str, query: int, key: int, label: str | None) -> Any:
    patches = needed("matplotlib.patches")
    if kind == "predicted":
        return patches.Circle((key, query), 0.28, fill=False, edgecolor=LINK, linewidth=1.2, label=label)
    style = "solid" if kind == "sure" else (0, (2, 1.2))
    corner = (key - 0.44, query - 0.44)
    return patches.Rectangle(
        corner, 0.88, 0.88, fill=False, edgecolor=LINK, linewidth=1.3, linestyle=style, label=label
    )


def _handle(kind: str) -> Any:
    """What stands for a kind of link in the legend, which would draw any patch as a rectangle."""
    if kind != "predicted":
        return _link(kind, 0, 0, label=kind)
    circle = {"marker": "o", "fillstyle": "none", "linestyle": "none", "markersize": 6, "color": LINK}
    return needed("matplotlib.lines").Line2D([], [], label=kind, **circle)


def _label(axis: Any, tokens: Axis, cell: float, labelled: bool, **options: Any) -> None:
    shown = tokens.ticks(cell, LINE) if labelled and (cell >= LINE or cell * len(tokens) > 0.6) else []
    axis.set_ticks(shown, [tokens.labels[n] for n in shown], fontsize=7, parse_math=False, **options)
    axis.set_tick_params(length=0)
    if labelled:
        axis.set_label_text(tokens.name, fontsize=8)


def _plain(text: str) -> str:
    """A name for a legend, which would hide it behind an underscore and read formulas between dollars."""
    return text.replace("$", r"\$")
