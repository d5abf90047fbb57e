"""A report as a csv: a row per example, method and draw, under one line with what is no number."""

import gzip
import io
import json
import os
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np

from .engine import frame
from .errors import FaithfulnessInputError
from .metrics import METRICS

if TYPE_CHECKING:
    import pandas

    from .report import Report

_FIXED = ("task", "example", "right", "full", "removable", "method", "draw", "forward", "backward", "seconds")
_TOLD = ("about", "refused", "excluded")


def rows_of(report: "Report") -> "pandas.DataFrame":
    """See `Report.examples_to_dataframe`."""
    n, width = report.values.shape[:2]
    method = report.columns[:, 0]
    table: dict[str, Any] = {
        "task": np.repeat(np.array(report.tasks)[report.task], width),
        "example": np.repeat(report.example, width),
        "right": np.repeat(report.right, width),
        "full": np.repeat(report.full, width),
        "removable": np.repeat(report.removable, width),
        "method": np.tile(np.array(report.methods)[method], n),
        "draw": np.tile(report.columns[:, 1], n),
    }
    for number, name in enumerate(("forward", "backward", "seconds")):
        table[name] = report.costs[:, method, number].reshape(-1)
    flat = report.values.reshape(n * width, -1)
    return frame(table | {_head(cell): flat[:, number] for number, cell in enumerate(report.cells)})


def write(report: "Report", path: str | os.PathLike, digits: int | None) -> None:
    """See `Report.to_csv`."""
    told = {name: getattr(report, name) for name in _TOLD}
    table: Any = rows_of(report)
    with _opened(path, "wt") as file:
        file.write(f"# {json.dumps(told, ensure_ascii=False)}\n")
        table.to_csv(file, index=False, float_format=None if digits is None else f"%.{digits}g")


def read(path: str | os.PathLike) -> dict[str, Any]:
    """The fields of a Report; see `Report.from_csv`."""
    import pandas

    with _opened(path, "rt") as file:
        first = file.readline()
        told = _told(first)
        if not told:
            file.seek(0)
        table = pandas.read_csv(file, keep_default_na=True)
    if missing := [name for name in _FIXED if name not in table]:
        raise FaithfulnessInputError(f"{str(path)!r} has no column {missing[0]!r}: it was not written by a Report.")
    heads = [name for name in table if name not in _FIXED]
    cells = tuple(_cell(str(head)) for head in heads)
    tasks, methods = tuple(table["task"].unique()), tuple(table["method"].unique())
    pairs = table[["method", "draw"]].drop_duplicates()
    columns = np.array([[methods.index(m), d] for m, d in pairs.itertuples(index=False)])
    columns = columns[np.lexsort((columns[:, 1], columns[:, 0]))]
    keys = table[["task", "example"]].drop_duplicates()
    number = {(t, e): n for n, (t, e) in enumerate(keys.itertuples(index=False))}
    column = {(methods[m], d): n for n, (m, d) in enumerate(columns.tolist())}
    values = np.full((len(number), len(columns), len(cells)), np.nan)
    costs = np.full((len(number), len(methods), 3), np.nan)
    rows = np.array([number[key] for key in zip(table["task"], table["example"], strict=True)])
    where = np.array([column[key] for key in zip(table["method"], table["draw"], strict=True)])
    values[rows, where] = table[heads].to_numpy(float)
    costs[rows, columns[where, 0]] = table[["forward", "backward", "seconds"]].to_numpy(float)
    one = table.drop_duplicates(["task", "example"])
    return dict(
        tasks=tasks,
        methods=methods,
        columns=columns,
        cells=cells,
        values=values,
        task=np.array([tasks.index(name) for name in one["task"]]),
        example=one["example"].to_numpy(),
        full=one["full"].to_numpy(float),
        right=one["right"].to_numpy(bool),
        removable=one["removable"].to_numpy(),
        costs=costs,
        **told,
    )


def _opened(path: str | os.PathLike, mode: Literal["rt", "wt"]) -> IO[str]:
    """A text file, packed if its name ends in .gz: always to the same bytes."""
    where = Path(path).expanduser()
    if where.suffix != ".gz":
        return where.open(mode, encoding="utf-8", newline="")
    packed: Any = gzip.GzipFile(where, mode[0], mtime=0)
    return io.TextIOWrapper(packed, encoding="utf-8", newline="")


def _told(line: str) -> dict[str, tuple[tuple[str, str], ...]]:
    """What stands in front of the table; nothing in a plain table."""
    if not line.startswith("# "):
        return {}
    try:
        found = json.loads(line[2:])
        return {name: tuple((str(a), str(b)) for a, b in found.get(name, ())) for name in _TOLD}
    except (ValueError, AttributeError, TypeError) as error:
        raise FaithfulnessInputError(f"the first line is no line of a Report: {line[:60]!r}.") from error


def _head(cell: tuple[str, str]) -> str:
    name, removal = cell
    return f"{name} {METRICS[name].better}" + (f" {removal}" if removal else "")


def _cell(head: str) -> tuple[str, str]:
    """The inverse of `_head`."""
    for name, metric in METRICS.items():
        start = f"{name} {metric.better}"
        if head == start or head.startswith(start + " "):
            return name, head.removeprefix(start).strip()
    raise FaithfulnessInputError(f"{head!r} is no metric of this version; expected one of {', '.join(METRICS)}.")
