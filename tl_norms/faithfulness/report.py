"""The result of `evaluate`: every number of every example, and what can be said of methods over examples."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .bootstrap import interval
from .engine import frame, spearman
from .errors import FaithfulnessInputError
from .metrics import METRICS

if TYPE_CHECKING:
    import pandas

Which = Literal["right", "wrong", "all"]

POOLED = "all tasks"
_FIXED = ("task", "example", "right", "full", "removable", "method", "draw", "forward", "backward", "seconds")


@dataclass(frozen=True, eq=False)
class Report:
    """What was measured.

    Attributes:
        tasks, methods: names
        columns: (method, draw) of every column of values, [column 2]; one draw unless a method is random
        cells: (metric, removal) of every number, removal "" where none is needed
        values: [example column cell]; nan where a metric is not defined or a method failed
        task: number of the task, [example]
        example: number within the task, [example]
        full: the target with nothing removed, [example]
        right: whether the model prefers the good continuation, [example]
        removable: positions that can be removed, [example]
        costs: rows through the model forward, backward, and seconds, [example method 3]
        refused: methods that do not work on this model, and why
        excluded: examples that are not in the result, and why
        about: model, options
    """

    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    columns: np.ndarray
    cells: tuple[tuple[str, str], ...]
    values: np.ndarray
    task: np.ndarray
    example: np.ndarray
    full: np.ndarray
    right: np.ndarray
    removable: np.ndarray
    costs: np.ndarray
    refused: tuple[tuple[str, str], ...] = ()
    excluded: tuple[tuple[str, str], ...] = ()
    about: tuple[tuple[str, str], ...] = ()

    def __repr__(self) -> str:
        wrong = int((~self.right).sum())
        return (
            f"Report({len(self.full)} examples of {', '.join(self.tasks)}, {wrong} of them wrong; "
            f"{len(self.methods)} methods, {len(self.cells)} metrics; {len(self.excluded)} examples excluded, "
            f"{len(self.refused)} methods refused)"
        )

    @property
    def labels(self) -> tuple[str, ...]:
        """The head of every column of a table: metric, removal, and which direction is better."""
        return tuple(METRICS[name].label(removal) for name, removal in self.cells)

    def to_dataframe(self, examples: Which = "right", *, relative: bool = False, seed: int = 0) -> "pandas.DataFrame":
        """One row per task, method and metric, and of all tasks together.

        Args:
            examples: those that the model gets "right", "wrong", or "all"
            relative: sums over examples divided by the sum of f(N), for metrics in units of the target
            seed: of the bootstrap

        Returns:
            Columns: task, method, metric (with its direction), removal, better ("higher" or "lower"), value (the mean
            over examples), low and high (95 % bootstrap interval), spread_low and spread_high (95 % of the means of
            single draws, of random scores), n, and failed (examples for which there is no number).

        Raises:
            MissingExtraError: pandas is not installed.
        """
        chosen = self._chosen(examples)
        groups = [(name, chosen & (self.task == number)) for number, name in enumerate(self.tasks)]
        groups += [(POOLED, chosen)] if len(self.tasks) > 1 else []
        rows: list[dict[str, Any]] = []
        for name, mask in groups:
            if mask.any():
                rows += self._summary(name, mask, relative, seed)
        columns = (
            "task",
            "method",
            "metric",
            "removal",
            "better",
            "value",
            "low",
            "high",
            "spread_low",
            "spread_high",
            "n",
            "failed",
        )
        return frame({column: [row[column] for row in rows] for column in columns})

    def examples_to_dataframe(self) -> "pandas.DataFrame":
        """One row per example, method and draw, a column per metric: all that was measured. `from_csv` reads it."""
        n, width = self.values.shape[:2]
        method = self.columns[:, 0]
        table: dict[str, Any] = {
            "task": np.repeat(np.array(self.tasks)[self.task], width),
            "example": np.repeat(self.example, width),
            "right": np.repeat(self.right, width),
            "full": np.repeat(self.full, width),
            "removable": np.repeat(self.removable, width),
            "method": np.tile(np.array(self.methods)[method], n),
            "draw": np.tile(self.columns[:, 1], n),
        }
        for number, name in enumerate(("forward", "backward", "seconds")):
            table[name] = self.costs[:, method, number].reshape(-1)
        flat = self.values.reshape(n * width, -1)
        return frame(table | {self._head(cell): flat[:, number] for number, cell in enumerate(self.cells)})

    @classmethod
    def from_csv(cls, path: str | os.PathLike) -> "Report":
        """What `examples_to_dataframe().to_csv(path, index=False)` has stored, or several such files put together.

        Raises:
            FaithfulnessInputError: the file is another table.
        """
        import pandas

        table = pandas.read_csv(path, keep_default_na=True)
        if missing := [name for name in _FIXED if name not in table]:
            raise FaithfulnessInputError(f"{str(path)!r} has no column {missing[0]!r}: it was not written by a Report.")
        heads = [name for name in table if name not in _FIXED]
        cells = tuple(_cell(str(head)) for head in heads)
        tasks, methods = tuple(table["task"].unique()), tuple(table["method"].unique())
        pairs = table[["method", "draw"]].drop_duplicates()
        columns = np.array([[methods.index(m), d] for m, d in pairs.itertuples(index=False)])
        order = np.lexsort((columns[:, 1], columns[:, 0]))
        columns = columns[order]
        keys = table[["task", "example"]].drop_duplicates()
        number = {(t, e): n for n, (t, e) in enumerate(keys.itertuples(index=False))}
        column = {(methods[m], d): n for n, (m, d) in enumerate(columns.tolist())}
        values = np.full((len(number), len(columns), len(cells)), np.nan)
        costs = np.full((len(number), len(methods), 3), np.nan)
        rows = np.array([number[key] for key in zip(table["task"], table["example"], strict=True)])
        where = np.array([column[key] for key in zip(table["method"], table["draw"], strict=True)])
        values[rows, where] = table[heads].to_numpy(float)
        costs[rows, columns[where, 0]] = table[["forward", "backward", "seconds"]].to_numpy(float)
        first = table.drop_duplicates(["task", "example"])
        return cls(
            tasks=tasks,
            methods=methods,
            columns=columns,
            cells=cells,
            values=values,
            task=np.array([tasks.index(name) for name in first["task"]]),
            example=first["example"].to_numpy(),
            full=first["full"].to_numpy(float),
            right=first["right"].to_numpy(bool),
            removable=first["removable"].to_numpy(),
            costs=costs,
        )

    def costs_to_dataframe(self) -> "pandas.DataFrame":
        """One row per method: mean rows through the model per example, forward and backward, and seconds."""
        mean = np.nanmean(self.costs, axis=0)
        names = ("forward", "backward", "seconds")
        return frame({"method": list(self.methods)} | {name: mean[:, n] for n, name in enumerate(names)})

    def rankings(self, examples: Which = "right") -> "pandas.DataFrame":
        """How far rankings of methods change with the removal: Spearman of the methods' means, per metric and task."""
        table: Any = self.to_dataframe(examples)
        table = table[table["method"] != "random"]
        rows: list[tuple[Any, ...]] = []
        for (task, metric), part in (
            table[table["removal"] != ""]
            .assign(metric=lambda t: [_bare(name) for name in t["metric"]])
            .groupby(["task", "metric"], sort=False)
        ):
            wide = part.pivot(index="method", columns="removal", values="value").dropna(axis=1, how="all").dropna()
            names = list(wide.columns)
            for a, left in enumerate(names):
                for right in names[a + 1 :]:
                    rho = spearman(wide[left].to_numpy(), wide[right].to_numpy()).rho
                    rows.append((task, metric, left, right, rho, len(wide)))
        heads = ("task", "metric", "removal", "other_removal", "spearman", "n_methods")
        return frame({head: [row[number] for row in rows] for number, head in enumerate(heads)})

    def differences(self, against: str, examples: Which = "right", *, seed: int = 0) -> "pandas.DataFrame":
        """Each method less another one, on the same examples, with bootstrap intervals: pooled over tasks.

        Args:
            against: the name of the other method
            examples: as for `to_dataframe`

        Returns:
            Columns: method, metric, removal, difference, low, high, n.
        """
        if against not in self.methods:
            raise FaithfulnessInputError(f"there is no method {against!r}; there are {', '.join(self.methods)}.")
        mask, means = self._chosen(examples), self._by_method()
        other = means[:, self.methods.index(against)]
        rows: list[tuple[Any, ...]] = []
        for number, name in enumerate(self.methods):
            if name == against:
                continue
            gap = (means[:, number] - other)[mask]
            mean, low, high = interval(gap, seed=seed)
            for cell, (_, removal) in enumerate(self.cells):
                n = int(np.isfinite(gap[:, cell]).sum())
                rows.append((name, self.labels[cell], removal, mean[cell], low[cell], high[cell], n))
        heads = ("method", "metric", "removal", "difference", "low", "high", "n")
        return frame({head: [row[number] for row in rows] for number, head in enumerate(heads)})

    def markdown(
        self, task: str | None = None, examples: Which = "right", *, relative: bool = False, intervals: bool = False
    ) -> str:
        """A table of methods by metrics; the best of every column is bold, random scores come last.

        Args:
            task: one task; None for all together
            examples, relative: as for `to_dataframe`
            intervals: the 95 % interval in every cell
        """
        table: Any = self.to_dataframe(examples, relative=relative)
        name = task or (POOLED if len(self.tasks) != 1 else self.tasks[0])
        table = table[table["task"] == name]
        if not len(table):
            raise FaithfulnessInputError(f"there is no example of {name!r} that is {examples}; tasks: {self.tasks}.")
        costs = dict(zip(self.methods, np.nanmean(self.costs[..., :2], axis=0), strict=True))
        lines = [
            "| method | " + " | ".join(self.labels) + " | forward + backward passes |",
            "|---|" + "---:|" * (len(self.labels) + 1),
        ]
        by_cell = {label: table[(table["metric"] == label)].set_index("method") for label in self.labels}
        best = {label: self._best(label, by_cell[label]["value"]) for label in self.labels}
        for method in sorted(self.methods, key=lambda name: name == "random"):
            shown = [_shown(by_cell[label].loc[method], method == best[label], intervals) for label in self.labels]
            forward, backward = costs[method]
            lines.append(f"| {method} | {' | '.join(shown)} | {forward:.4g} + {backward:.4g} |")
        return "\n".join(lines) + "\n"

    def figure(self, examples: Which = "right", *, task: str | None = None, backend: str = "plotly") -> Any:
        """Methods by metrics with their intervals, one panel per metric and removal.

        Args:
            examples: as for `to_dataframe`
            task: one task; None for all together
            backend: "plotly" or "matplotlib"
        """
        from .figure import draw

        return draw(self, examples, task, backend)

    def to_html(self, path: str | os.PathLike) -> None:
        """One self-contained page: the figure, the table, what was left out."""
        from .figure import write_page

        write_page(self, path)

    def _chosen(self, examples: Which) -> np.ndarray:
        if examples not in ("right", "wrong", "all"):
            raise FaithfulnessInputError(f"examples is {examples!r}; expected 'right', 'wrong' or 'all'.")
        return np.ones_like(self.right) if examples == "all" else self.right == (examples == "right")

    def _by_method(self) -> np.ndarray:
        """[example method cell], the mean over draws."""
        groups = [self.values[:, self.columns[:, 0] == number] for number in range(len(self.methods))]
        return np.stack([group.mean(1) for group in groups], 1)

    def _summary(self, task: str, mask: np.ndarray, relative: bool, seed: int) -> list[dict[str, Any]]:
        means = self._by_method()[mask]
        in_units = np.array([_in_units(name) for name, _ in self.cells])
        scale = np.where(in_units & relative, self.full[mask].mean(), 1.0)
        rows: list[dict[str, Any]] = []
        for number, method in enumerate(self.methods):
            mean, low, high = interval(means[:, number], self.full[mask] if relative else None, in_units, seed=seed)
            of_draws = _nanmean(self.values[mask][:, self.columns[:, 0] == number]) / scale
            for cell, (_, removal) in enumerate(self.cells):
                spread = (np.nan, np.nan) if len(of_draws) == 1 else np.percentile(of_draws[:, cell], [2.5, 97.5])
                n = int(np.isfinite(means[:, number, cell]).sum())
                rows.append(
                    {"task": task, "method": method, "metric": self.labels[cell], "removal": removal}
                    | {"better": "higher" if METRICS[self.cells[cell][0]].better == "↑" else "lower"}
                    | {"value": mean[cell], "low": low[cell], "high": high[cell]}
                    | {"spread_low": spread[0], "spread_high": spread[1], "n": n, "failed": len(means) - n}
                )
        return rows

    def _best(self, label: str, means: Any) -> str | None:
        means = means.drop(index="random", errors="ignore").dropna()
        if not len(means):
            return None
        return str(means.idxmin() if label.endswith("↓") else means.idxmax())

    def _head(self, cell: tuple[str, str]) -> str:
        name, removal = cell
        return f"{name} {METRICS[name].better}" + (f" {removal}" if removal else "")


def _cell(head: str) -> tuple[str, str]:
    """The inverse of `Report._head`."""
    for name, metric in METRICS.items():
        start = f"{name} {metric.better}"
        if head == start or head.startswith(start + " "):
            return name, head.removeprefix(start).strip()
    raise FaithfulnessInputError(f"{head!r} is no metric of this version; expected one of {', '.join(METRICS)}.")


def _bare(label: str) -> str:
    """A metric's label without its removal."""
    return next((name for name in METRICS if label.removeprefix("counterfactual ").startswith(name)), label)


def _in_units(name: str) -> bool:
    """Whether a metric is a difference of targets."""
    return name in ("SRG", "comprehensiveness", "sufficiency", "soft comprehensiveness", "soft sufficiency")


def _nanmean(values: np.ndarray) -> np.ndarray:
    """[example draw cell] -> [draw cell], nan where nothing is known."""
    known = np.isfinite(values)
    sums, counts = np.where(known, values, 0).sum(0), known.sum(0)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _shown(row: Any, best: bool, intervals: bool) -> str:
    if not np.isfinite(row["value"]):
        return "–"
    text = f"{row['value']:.2f}"
    text = f"**{text}**" if best else text
    if np.isfinite(row["spread_low"]):
        return f"{text} ({row['spread_low']:.2f} to {row['spread_high']:.2f})"
    return f"{text} [{row['low']:.2f}, {row['high']:.2f}]" if intervals else text


def combined(reports: Sequence[Report]) -> Report:
    """Reports of the same methods and metrics on other tasks, as one.

    Raises:
        FaithfulnessInputError: other methods, draws or metrics, or a task that two of them have.
    """
    first = reports[0]
    for other in reports[1:]:
        same = other.methods == first.methods and other.cells == first.cells
        if not same or not np.array_equal(other.columns, first.columns):
            raise FaithfulnessInputError("reports of other methods, draws or metrics cannot be put together.")
    tasks = tuple(task for report in reports for task in report.tasks)
    if len(set(tasks)) < len(tasks):
        raise FaithfulnessInputError(f"two reports have a task {max(tasks, key=tasks.count)!r}.")
    starts = np.cumsum([0, *(len(report.tasks) for report in reports[:-1])])

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(report, name) for report in reports])

    return Report(
        tasks,
        first.methods,
        first.columns,
        first.cells,
        joined("values"),
        np.concatenate([report.task + start for report, start in zip(reports, starts, strict=True)]),
        joined("example"),
        joined("full"),
        joined("right"),
        joined("removable"),
        joined("costs"),
        tuple(dict.fromkeys(entry for report in reports for entry in report.refused)),
        tuple(entry for report in reports for entry in report.excluded),
        tuple(dict.fromkeys(entry for report in reports for entry in report.about)),
    )
