"""What can be said of methods over examples: means with intervals, comparisons, rankings, tables to read."""

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from .bootstrap import interval
from .engine import frame, spearman
from .errors import FaithfulnessInputError
from .metrics import METRICS

if TYPE_CHECKING:
    import pandas

    from .report import Report

Which = Literal["right", "wrong", "all"]

POOLED = "all tasks"
_COLUMNS = ("task", "method", "metric", "removal", "better", "value", "low", "high", "spread_low", "spread_high")
_IN_UNITS = ("SRG", "comprehensiveness", "sufficiency", "soft comprehensiveness", "soft sufficiency")
"""Metrics that are differences of targets."""


def summary(
    report: "Report", examples: Which, relative: bool, seed: int, only: str | None = None
) -> "pandas.DataFrame":
    """See `Report.to_dataframe`; only one task if there is no need of others."""
    chosen = chosen_examples(report, examples)
    groups = [(name, chosen & (report.task == number)) for number, name in enumerate(report.tasks)]
    groups += [(POOLED, chosen)] if len(report.tasks) > 1 else []
    rows: list[dict[str, Any]] = []
    for name, mask in groups:
        if mask.any() and only in (None, name):
            rows += _of_examples(report, name, mask, relative, seed)
    return frame({column: [row[column] for row in rows] for column in (*_COLUMNS, "n", "failed")})


def chosen_examples(report: "Report", examples: Which) -> Bool[np.ndarray, " example"]:
    """Which examples are meant.

    Raises:
        FaithfulnessInputError: neither "right", "wrong" nor "all".
    """
    if examples not in ("right", "wrong", "all"):
        raise FaithfulnessInputError(f"examples is {examples!r}; expected 'right', 'wrong' or 'all'.")
    return np.ones_like(report.right) if examples == "all" else report.right == (examples == "right")


def by_method(report: "Report") -> Float[np.ndarray, "example method cell"]:
    """Means over draws."""
    groups = [report.values[:, report.columns[:, 0] == number] for number in range(len(report.methods))]
    return np.stack([group.mean(1) for group in groups], 1)


def _of_examples(report: "Report", task: str, mask: np.ndarray, relative: bool, seed: int) -> list[dict[str, Any]]:
    """Rows of one group of examples."""
    means = by_method(report)[mask]
    in_units = np.array([name in _IN_UNITS for name, _ in report.cells])
    scale = np.where(in_units & relative, report.full[mask].mean(), 1.0)
    scales = report.full[mask] if relative else None
    intervals = interval(means.reshape(len(means), -1), scales, np.tile(in_units, len(report.methods)), seed=seed)
    values, lows, highs = (one.reshape(means.shape[1:]) for one in intervals)  # all resampled together
    rows: list[dict[str, Any]] = []
    for number, method in enumerate(report.methods):
        of_draws = _nanmean(report.values[mask][:, report.columns[:, 0] == number]) / scale
        for cell, (name, removal) in enumerate(report.cells):
            spread = (np.nan, np.nan) if len(of_draws) == 1 else np.percentile(of_draws[:, cell], [2.5, 97.5])
            n = int(np.isfinite(means[:, number, cell]).sum())
            rows.append(
                {"task": task, "method": method, "metric": report.labels[cell], "removal": removal}
                | {"better": "higher" if METRICS[name].better == "↑" else "lower"}
                | {"value": values[number, cell], "low": lows[number, cell], "high": highs[number, cell]}
                | {"spread_low": spread[0], "spread_high": spread[1], "n": n, "failed": len(means) - n}
            )
    return rows


def _nanmean(values: Float[np.ndarray, "example draw cell"]) -> Float[np.ndarray, "draw cell"]:
    """nan where nothing is known."""
    known = np.isfinite(values)
    sums, counts = np.where(known, values, 0).sum(0), known.sum(0)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def rankings(report: "Report", examples: Which) -> "pandas.DataFrame":
    """See `Report.rankings`."""
    table: Any = summary(report, examples, False, 0)
    table = table[(table["method"] != "random") & (table["removal"] != "")]
    rows: list[tuple[Any, ...]] = []
    names = [_bare(name) for name in table["metric"]]
    for (task, metric), part in table.assign(metric=names).groupby(["task", "metric"], sort=False):
        wide = part.pivot(index="method", columns="removal", values="value").dropna(axis=1, how="all").dropna()
        removals = list(wide.columns)
        for a, left in enumerate(removals):
            for right in removals[a + 1 :]:
                rho = spearman(wide[left].to_numpy(), wide[right].to_numpy()).rho
                rows.append((task, metric, left, right, rho, len(wide)))
    heads = ("task", "metric", "removal", "other_removal", "spearman", "n_methods")
    return frame({head: [row[number] for row in rows] for number, head in enumerate(heads)})


def differences(report: "Report", against: str, examples: Which, seed: int) -> "pandas.DataFrame":
    """See `Report.differences`."""
    if against not in report.methods:
        raise FaithfulnessInputError(f"there is no method {against!r}; there are {', '.join(report.methods)}.")
    mask, means = chosen_examples(report, examples), by_method(report)
    gaps = (means - means[:, [report.methods.index(against)]])[mask]
    mean, low, high = (one.reshape(gaps.shape[1:]) for one in interval(gaps.reshape(len(gaps), -1), seed=seed))
    rows: list[tuple[Any, ...]] = []
    for number, name in enumerate(report.methods):
        if name == against:
            continue
        for cell, (_, removal) in enumerate(report.cells):
            found = (mean[number, cell], low[number, cell], high[number, cell])
            rows.append((name, report.labels[cell], removal, *found, int(np.isfinite(gaps[:, number, cell]).sum())))
    heads = ("method", "metric", "removal", "difference", "low", "high", "n")
    return frame({head: [row[number] for row in rows] for number, head in enumerate(heads)})


def markdown(report: "Report", task: str | None, examples: Which, relative: bool, intervals: bool) -> str:
    """See `Report.markdown`."""
    name = task or (POOLED if len(report.tasks) != 1 else report.tasks[0])
    table: Any = summary(report, examples, relative, 0, only=name)
    if not len(table):
        raise FaithfulnessInputError(f"there is no example of {name!r} that is {examples}; tasks: {report.tasks}.")
    costs = dict(zip(report.methods, np.nanmean(report.costs[..., :2], axis=0), strict=True))
    lines = [
        "| method | " + " | ".join(report.labels) + " | forward + backward passes |",
        "|---|" + "---:|" * (len(report.labels) + 1),
    ]
    by_label = {label: table[(table["metric"] == label)].set_index("method") for label in report.labels}
    best = {label: best_methods(label, by_label[label]["value"]) for label in report.labels}
    for method in sorted(report.methods, key=lambda name: name == "random"):
        shown = [_shown(by_label[label].loc[method], method in best[label], intervals) for label in report.labels]
        forward, backward = costs[method]
        lines.append(f"| {method} | {' | '.join(shown)} | {forward:.4g} + {backward:.4g} |")
    return "\n".join(lines) + "\n"


def best_methods(label: str, means: Any) -> frozenset[str]:
    """The methods with the best mean of a metric, by its label; random scores do not compete."""
    means = means.drop(index="random", errors="ignore").dropna()
    if not len(means):
        return frozenset()
    gaps = (means - (means.min() if label.endswith("↓") else means.max())).abs()
    return frozenset(map(str, means.index[gaps <= 1e-9]))


def _shown(row: Any, best: bool, intervals: bool) -> str:
    if not np.isfinite(row["value"]):
        return "–"
    text = f"{row['value']:.2f}"
    text = f"**{text}**" if best else text
    if np.isfinite(row["spread_low"]):
        return f"{text} ({row['spread_low']:.2f} to {row['spread_high']:.2f})"
    return f"{text} [{row['low']:.2f}, {row['high']:.2f}]" if intervals else text


def _bare(label: str) -> str:
    """A metric's label without its removal."""
    return next((name for name in METRICS if label.removeprefix("counterfactual ").startswith(name)), label)
