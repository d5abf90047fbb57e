"""The judge's table: how faithful each method is, by each metric."""

from collections.abc import Sequence
from typing import Any

from typing_extensions import Unpack

from .draw import Figure, drawn
from .errors import PlotInputError
from .picture import Look, LookOptions, Picture, Table

COLUMNS = ("method", "task", "removal", "metric", "better", "value", "low", "high")


def judge_table(
    report: Any,
    *,
    tasks: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    **look: Unpack[LookOptions],
) -> Figure:
    """Faithfulness of methods, a table per task and kind of removal: a row per method, a column per metric.

    Args:
        report: a judge's report, or its table: anything with `to_dataframe()`, or a DataFrame, with the columns method,
            task, removal, metric, better ("higher" or "lower"), value, low, high
        tasks, metrics: which ones, in this order; None for all. "SRG" is that of every removal
        **look: `backend`, `title`, `width`: see `tl_norms.plot.Look`

    Returns:
        A Figure: values with their intervals; ↑ higher is better, ↓ lower is. Bold: the best of a column, and all whose
        interval meets that of the best.

    Raises:
        PlotInputError: columns are missing, or a task or metric that the report does not have.

    Example:
        >>> plot.judge_table(report, metrics=["comprehensiveness", "sufficiency"])      # doctest: +SKIP
    """
    frame = report.to_dataframe() if hasattr(report, "to_dataframe") else report
    absent = [name for name in COLUMNS if name not in getattr(frame, "columns", ())]
    if absent:
        raise PlotInputError(
            f"expected a judge's report, with the columns {', '.join(COLUMNS)}; missing: {', '.join(absent)}."
        )
    chosen = {"task": _chosen(frame, "task", tasks), "metric": _chosen(frame, "metric", metrics)}
    panels = []
    for task in chosen["task"]:
        for removal in dict.fromkeys(frame.loc[frame["task"] == task, "removal"]):
            rows = frame[
                (frame["task"] == task) & (frame["removal"] == removal) & frame["metric"].isin(chosen["metric"])
            ]
            known = [metric for metric in chosen["metric"] if (rows["metric"] == metric).any()]
            if known:
                panels.append(_table(rows, known, f"{task}, removed tokens: {removal}" if removal else task))
    if not panels:
        raise PlotInputError("this report has no row for these tasks and metrics.")
    note = "value [interval]; ↑ higher is better, ↓ lower is; bold: the best, and all whose interval meets it"
    return drawn(Picture(tuple(panels), 1, (), "Faithfulness of methods", (note,), Look(**look)))


def _chosen(frame: Any, name: str, wanted: Sequence[str] | None) -> list[str]:
    there = list(dict.fromkeys(frame[name]))
    if wanted is None:
        return there
    found = []
    for one in wanted:
        these = [known for known in there if one in (known, _plain(known))]
        if not these:
            raise PlotInputError(f"{name} {one!r} is not in this report; it has {', '.join(map(str, there))}.")
        found += these
    return list(dict.fromkeys(found))


def _plain(name: Any) -> str:
    """The name of a metric without its removal and its arrow: "SRG (cut) ↑" is SRG, once per removal."""
    return str(name).rstrip("↑↓ ").partition(" (")[0]


def _table(rows: Any, metrics: list[str], title: str) -> Table:
    methods = list(dict.fromkeys(rows["method"]))
    names, columns, strong = ["method"], [tuple(map(str, methods))], set()
    for column, metric in enumerate(metrics, start=1):
        cells = rows[rows["metric"] == metric].set_index("method")
        higher = str(cells["better"].iloc[0]) == "higher"
        values = {method: cells.loc[method] for method in methods if method in cells.index}
        finite = {method: cell for method, cell in values.items() if cell["value"] == cell["value"]}
        names.append(f"{_plain(metric)} {'↑' if higher else '↓'}")  # the title of the table says the removal
        columns.append(tuple(_cell(values.get(method)) for method in methods))
        if finite:
            best = (max if higher else min)(finite.values(), key=lambda cell: cell["value"])
            strong |= {(methods.index(method), column) for method, cell in finite.items() if _meets(cell, best)}
    return Table(tuple(names), tuple(columns), (False, *(True for _ in metrics)), frozenset(strong), title)


def _cell(cell: Any) -> str:
    if cell is None or cell["value"] != cell["value"]:
        return "–"
    interval = "" if cell["low"] != cell["low"] else f" [{cell['low']:.2f}, {cell['high']:.2f}]"
    return f"{cell['value']:.3f}{interval}"


def _meets(cell: Any, best: Any) -> bool:
    """Whether two intervals have a point in common; the best meets itself."""
    if cell is best:
        return True
    return bool(cell["low"] <= best["high"] and best["low"] <= cell["high"])
