"""A picture by matplotlib, for papers: cells are vectors, text stays text."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import colours
from .errors import needed
from .layout import LETTER, LINE, Box, Layout, column_widths, has_labels, laid_out, titled, turned
from .picture import Axis, Cells, Curves, Drawing, Picture, Table

FONTS = {"pdf.fonttype": 42, "ps.fonttype": 42}  # TrueType: text that can be searched, and that publishers accept
LARGEST = 128  # tokens; longer maps are pictures inside the PDF, not a vector per cell
INCH, POINT = 96, 0.75  # pixels to an inch, points to a pixel
GREY = (0.5, 0.5, 0.5)


def draw(picture: Picture) -> Any:
    """A Figure: one Axes per panel and per colour bar, at the places of the layout."""
    layout = laid_out(picture)
    figure = _new(layout.width / INCH, layout.height / INCH)
    dark = _is_dark()
    meshes: dict[int, Any] = {}
    for number, panel in enumerate(picture.panels):
        axis = figure.add_axes(_place(layout, layout.panels[number]))
        if isinstance(panel, Cells):
            mesh = _draw_cells(axis, picture, layout, number, panel, dark)
            meshes.setdefault(panel.scale, mesh)
        elif isinstance(panel, Curves):
            _draw_curves(axis, picture, number, panel)
        elif isinstance(panel, Table):
            _draw_table(axis, panel, layout.panels[number].width)
        else:
            _draw_shapes(axis, picture, panel, dark)
        if panel.title:
            side = "left" if isinstance(panel, Table) else "center"
            axis.set_title(panel.title, fontsize=9, parse_math=False, pad=4, loc=side)
    for number, scale in enumerate(picture.scales):
        box = layout.bars[number]
        if box is None or number not in meshes:
            continue
        axis = figure.add_axes(_place(layout, box), label="<colorbar>")
        bar = figure.colorbar(meshes[number], cax=axis)
        bar.outline.set_visible(False)
        axis.tick_params(labelsize=7.5, length=2)
        if scale.bar == "common":
            ends = [scale.lowest, 0, scale.limit] if scale.diverging else [0, scale.limit]
            bar.set_ticks(ends, labels=["−max", "0", "max"] if scale.diverging else ["0", "max"])
        bar.set_label(_plain(scale.name), fontsize=8)
    y = 7.0
    for lines, size, step, weight in ((layout.title, 10.5, 22, "bold"), (layout.notes, 8, 16, "normal")):
        for line in lines:
            figure.text(
                10 / layout.width, 1 - y / layout.height, line, fontsize=size, weight=weight, va="top",
                alpha=1 if weight == "bold" else 0.72, parse_math=False,
            )  # fmt: skip
            y += step
    return figure


def _new(width: float, height: float) -> Any:
    """A figure that pyplot does not keep: a notebook shows it once, and many of them cost nothing."""
    figures, matplotlib = needed("matplotlib.figure"), needed("matplotlib")
    pyplot = needed("matplotlib.pyplot")

    class PaperFigure(figures.Figure):
        def savefig(self, *args, **options):
            with matplotlib.rc_context(FONTS):
                return super().savefig(*args, **options)

    figure = pyplot.figure(FigureClass=PaperFigure, figsize=(width, height))
    pyplot.close(figure)
    return figure


def _is_dark() -> bool:
    matplotlib = needed("matplotlib")
    red, green, blue = needed("matplotlib.colors").to_rgb(matplotlib.rcParams["figure.facecolor"])
    return 0.299 * red + 0.587 * green + 0.114 * blue < 0.5


def _place(layout: Layout, box: Box) -> tuple[float, float, float, float]:
    """A box in parts of the figure, from its lower left corner."""
    return (
        box.x / layout.width,
        1 - (box.y + box.height) / layout.height,
        box.width / layout.width,
        box.height / layout.height,
    )


def _palette(picture: Picture, diverging: bool, dark: bool) -> Sequence[str]:
    """The colours of a map, from lowest to highest."""

    def named(name: str) -> Sequence[str]:
        maps, to_hex = needed("matplotlib").colormaps, needed("matplotlib.colors").to_hex
        found = {one.lower(): one for one in maps}[name.lower()]
        return [to_hex(colour) for colour in maps[found](np.linspace(0, 1, 33))]

    return colours.chosen(picture.look.cmap, diverging, dark, named)


def _draw_cells(axis: Any, picture: Picture, layout: Layout, number: int, panel: Cells, dark: bool) -> Any:
    scale, (wide, high) = picture.scales[panel.scale], layout.cells[number]
    n_rows, n_columns = panel.values.shape
    mapped = needed("matplotlib.colors").LinearSegmentedColormap
    gap = min(wide, high) >= 7
    axis.set_facecolor("none" if np.isfinite(panel.values).all() else colours.MISSING)
    mesh = axis.pcolormesh(
        np.arange(n_columns + 1) - 0.5,
        np.arange(n_rows + 1) - 0.5,
        np.ma.masked_invalid(panel.values),
        cmap=mapped.from_list("tl_norms", list(_palette(picture, scale.diverging, dark)), N=512),
        vmin=scale.lowest,
        vmax=scale.limit,
        edgecolors=needed("matplotlib").rcParams["figure.facecolor"] if gap else "face",  # no hairlines between cells
        linewidth=0.6 if gap else 0.1,
        rasterized=max(panel.values.shape) > LARGEST,
    )
    axis.set_xlim(-0.5, n_columns - 0.5)
    axis.set_ylim(n_rows - 0.5, -0.5)
    upwards = turned(panel, wide)
    _label(
        axis.xaxis,
        panel.columns,
        wide,
        picture.labels_below(number),
        titled(picture, number, "columns"),
        rotation=90 if upwards else 0,
    )
    _label(axis.yaxis, panel.rows, high, picture.labels_left(number), titled(picture, number, "rows"))
    axis.spines[:].set_visible(False)
    if panel.columns.boundary is not None:
        axis.axvline(panel.columns.boundary - 0.5, color=GREY, linewidth=1)
    for kind, cells in panel.links:
        for place, (query, key) in enumerate(cells):
            axis.add_patch(_link(kind, query, key, label=kind if place == 0 else None))
    if panel.links and number == 0:
        handles = [_handle(kind) for kind, _ in panel.links]
        where = (6 / layout.width, 1 - layout.heading / layout.height)
        axis.figure.legend(
            handles=handles, loc="upper left", bbox_to_anchor=where, ncols=3, fontsize=8, frameon=False, borderaxespad=0
        )
    return mesh


def _link(kind: str, query: int, key: int, label: str | None) -> Any:
    patches = needed("matplotlib.patches")
    if kind == "predicted":
        return patches.Circle((key, query), 0.28, fill=False, edgecolor=colours.LINK, linewidth=1.2, label=label)
    style = "solid" if kind == "sure" else (0, (2, 1.2))
    corner = (key - 0.44, query - 0.44)
    return patches.Rectangle(
        corner, 0.88, 0.88, fill=False, edgecolor=colours.LINK, linewidth=1.3, linestyle=style, label=label
    )


def _handle(kind: str) -> Any:
    """What stands for a kind of link in the legend, which would draw any patch as a rectangle."""
    if kind != "predicted":
        return _link(kind, 0, 0, label=kind)
    circle = {"marker": "o", "fillstyle": "none", "linestyle": "none", "markersize": 6, "color": colours.LINK}
    return needed("matplotlib.lines").Line2D([], [], label=kind, **circle)


def _label(axis: Any, tokens: Axis, cell: float, labelled: bool, named: bool, **options: Any) -> None:
    shown = tokens.ticks(cell, LINE) if labelled and has_labels(cell, len(tokens)) else []
    axis.set_ticks(shown, [tokens.labels[n] for n in shown], fontsize=8, parse_math=False, **options)
    axis.set_tick_params(length=0, pad=2)
    if named:
        axis.set_label_text(tokens.label, fontsize=8)
        axis.labelpad = 2


def _draw_curves(axis: Any, picture: Picture, number: int, panel: Curves) -> None:
    panels = [one for one in picture.panels if isinstance(one, Curves)]
    names = list(dict.fromkeys(line.name for one in panels for line in one.lines))
    for curve in panel.lines:
        colour = colours.CURVES[names.index(curve.name) % len(colours.CURVES)]
        if curve.low is not None and curve.high is not None:
            axis.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)
        axis.plot(curve.x, curve.y, marker="o", markersize=2.5, linewidth=1.2, color=colour, label=_plain(curve.name))
    axis.set_ylim(*panel.limits)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.tick_params(labelsize=7.5)
    axis.grid(color=(*GREY, 0.2), linewidth=0.5)
    axis.spines[:].set_visible(False)
    axis.set_axisbelow(True)
    if number + picture.n_columns >= len(picture.panels):
        axis.set_xlabel(panel.x_name, fontsize=8.5)
    if number % picture.n_columns == 0:
        axis.set_ylabel(panel.y_name, fontsize=8.5)
    else:
        axis.tick_params(labelleft=False)
    if number == min(picture.n_columns, len(picture.panels)) - 1:  # beside the last panel of the first row
        unique = {handle.get_label(): handle for one in axis.figure.axes for handle in one.lines}
        axis.legend(
            handles=list(unique.values()), loc="upper left", bbox_to_anchor=(1.03, 1), fontsize=8, frameon=False,
            borderaxespad=0,
        )  # fmt: skip


def _draw_table(axis: Any, table: Table, width: float) -> None:
    widths = np.array(column_widths(table), float)
    rows = list(zip(*table.columns, strict=True))
    axis.axis("off")
    made = axis.table(
        rows or [[""] * len(table.names)], colLabels=table.names, colWidths=widths / widths.sum(), bbox=(0, 0, 1, 1)
    )
    made.auto_set_font_size(False)
    made.set_fontsize(8.5)
    for (row, column), cell in made.get_celld().items():
        text = cell.get_text()
        text.set_parse_math(False)
        text.set_horizontalalignment("right" if table.right[column] else "left")
        text.set_color(needed("matplotlib").rcParams["text.color"])
        cell.PAD = LETTER / (width * widths[column] / widths.sum())  # one letter, in a wide column too
        cell.set_facecolor("none")
        cell.set_edgecolor((*GREY, 0.5))
        cell.visible_edges = "B"
        cell.set_linewidth(1 if row == 0 else 0.5)
        if row == 0 or (row - 1, column) in table.strong:
            text.set_weight("bold")


def _draw_shapes(axis: Any, picture: Picture, panel: Drawing, dark: bool) -> None:
    patches = needed("matplotlib.patches")
    axis.set_xlim(0, panel.width)
    axis.set_ylim(panel.height, 0)
    axis.axis("off")
    palette = _palette(picture, True, dark)
    for stroke in panel.strokes:
        colour = (*GREY, 0.35) if stroke.colour is None else stroke.colour
        axis.plot(stroke.x, stroke.y, color=colour, linewidth=stroke.width * POINT, solid_capstyle="round", zorder=1)
    if panel.dots:
        axis.scatter(
            [dot.x for dot in panel.dots],
            [dot.y for dot in panel.dots],
            s=[(dot.size * POINT) ** 2 for dot in panel.dots],
            c=[(0.6, 0.6, 0.6) if dot.colour is None else dot.colour for dot in panel.dots],
            linewidths=0,
            zorder=2,
        )
    for box in panel.boxes:
        text: dict[str, Any] = {}
        if box.share is not None:
            fill = colours.mixed(palette, (box.share + 1) / 2)
            axis.add_patch(patches.Rectangle((box.x, box.y), box.width, box.height, facecolor=fill, linewidth=0))
            text = {"color": colours.ink(fill)}
        middle = (box.x + box.width / 2, box.y + box.height / 2)
        axis.text(*middle, box.text, ha="center", va="center_baseline", fontsize=9.5, parse_math=False, **text)
    for label in panel.labels:
        axis.text(
            label.x, label.y, label.text, ha=label.align, va="top" if label.turned else "center",
            rotation=90 if label.turned else 0, fontsize=label.size * POINT, alpha=0.72 if label.faint else 1,
            parse_math=False,
        )  # fmt: skip


def _plain(text: str) -> str:
    """A text that matplotlib takes for text: not as a formula between dollars."""
    return text.replace("$", r"\$")
