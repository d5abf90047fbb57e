"""Tables of the judge from stored csv files: `python judge_tables.py FILE.csv ...`.

Prints markdown: all tasks together, what wins and what the default loses to, every task, examples that the model gets
wrong, rankings by removal, costs. `--short` prints the first table alone, with few columns. `--write PAGE.md` puts what
it prints between the lines `<!-- judge: NAME -->` and `<!-- end of judge: NAME -->` of a page.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from tl_norms.faithfulness import Report, combined

DEFAULT = "attribute"
SHORT = ("MRR ↑", "SRG (cut) ↑", "SRG (replace) ↑")


def tables(report: Report, relative: bool, apart: list[str] | None = None) -> str:
    """Everything that can be said of the numbers in a report."""
    right = int(report.right.sum())
    parts = [heading(report)]
    if right:
        for label, part in groups(report, apart):
            parts += [f"{label}, {int(part.right.sum())} examples:\n"] if label else []
            parts += [part.markdown(relative=relative, intervals=True), compared(part)]
        parts.append(tasks(report, relative))
        parts += ["Rankings of methods (without random), Spearman between the two removals:\n", rankings(report)]
    if right < len(report.full):
        parts += [f"{len(report.full) - right} examples that the model gets wrong:\n"]
        parts += [report.markdown(examples="wrong", relative=relative)]
    parts += ["Costs per example:\n", _table(report.costs_to_dataframe())]
    return "\n".join(parts)


def groups(report: Report, apart: list[str] | None) -> list[tuple[str, Report]]:
    """All tasks together; or the others and these, each with a label: means of all would be those of large targets."""
    if not apart:
        return [("", report)]
    rest = [name for name in report.tasks if name not in apart]
    return [("others", of_tasks(report, rest)), (apart[0], of_tasks(report, apart))]


def heading(report: Report) -> str:
    """What was measured, in a paragraph."""
    each = [int((report.right & (report.task == number)).sum()) for number in range(len(report.tasks))]
    measured = set(report.task.tolist())
    counts = ", ".join(f"{report.tasks[number]} {n}" for number, n in enumerate(each) if number in measured)
    wrong = int((~report.right).sum())
    about = "; ".join(f"{name}: {value}" for name, value in dict(report.about).items())
    refused = f" Refused: {', '.join(dict(report.refused))}." if report.refused else ""
    return (
        f"{sum(each)} examples that the model gets right ({counts}); {wrong} that it gets wrong are apart. Means over "
        f"examples, 95 % bootstrap intervals in brackets, of random scores the range of draws. {about}.{refused}\n"
    )


def short(
    report: Report,
    relative: bool,
    only: list[str] | None = None,
    apart: list[str] | None = None,
    plain: bool = False,
) -> str:
    """One table with few columns, best first by the mean of their ranks.

    Args:
        report, relative: as for `tables`
        only: these methods; None for all
        plain: no intervals, and no paragraph in front
        apart: see `groups`
    """
    columns, shown = [], {}
    for label, part in groups(report, apart):
        frame = part.to_dataframe(relative=relative)
        frame = frame[frame["task"] == ("all tasks" if len(part.tasks) > 1 else part.tasks[0])]
        for metric in SHORT:
            cells = frame[frame["metric"] == metric].set_index("method")
            columns.append((f"{label}: {metric}" if label else metric, cells["value"].drop(index="random")))
            best = columns[-1][1].max()
            for method, cell in cells.iterrows():
                value = f"**{cell['value']:.2f}**" if cell["value"] == best else f"{cell['value']:.2f}"
                between = "" if plain else f" [{cell['low']:.2f}, {cell['high']:.2f}]"
                shown[method, columns[-1][0]] = f"{value}{between}"
    ranks = sum(values.rank(ascending=False) for _, values in columns)
    names = [name for name, _ in columns]
    costs = report.costs_to_dataframe().set_index("method")
    lines = ["| method | " + " | ".join(names) + " | passes |", "|---|" + "---:|" * (len(names) + 1)]
    for method in [name for name in (*ranks.sort_values().index, "random") if only is None or name in only]:
        passes = costs.loc[method]
        cells = " | ".join(shown[method, name] for name in names)
        lines.append(f"| {method} | {cells} | {passes['forward']:.3g} + {passes['backward']:.3g} |")
    table = "\n".join(lines) + "\n"
    return table.replace(" | ", "|").replace("| ", "|").replace(" |", "|") if plain else f"{heading(report)}\n{table}"


def of_tasks(report: Report, names: list[str]) -> Report:
    """The same of some tasks alone."""
    numbers = [report.tasks.index(name) for name in names]
    found = _masked(report, np.isin(report.task, numbers))
    return replace(found, tasks=tuple(names), task=np.array([numbers.index(n) for n in found.task], np.int64))


def common(reports: list[Report]) -> list[Report]:
    """The examples that all of them have."""
    keys = [[(r.tasks[t], e) for t, e in zip(r.task, r.example.tolist(), strict=True)] for r in reports]
    shared = set.intersection(*map(set, keys))
    return [
        _masked(report, np.array([key in shared for key in own])) for report, own in zip(reports, keys, strict=True)
    ]


def _masked(report: Report, mask: np.ndarray) -> Report:
    names = ("values", "task", "example", "full", "right", "removable", "costs")
    return replace(report, **{name: getattr(report, name)[mask] for name in names})


def compared(report: Report) -> str:
    """For every column the best method, all that cannot be told from it, and what beats the default."""
    frame = report.to_dataframe()
    name = "all tasks" if len(report.tasks) > 1 else report.tasks[0]
    frame = frame[(frame["task"] == name) & (frame["method"] != "random")]
    lines = ["| column | best | not told from it (paired interval holds 0) | beat `attribute` | `attribute` beats |"]
    lines += ["|---|---|---|---|---|"]
    against = report.differences(DEFAULT) if DEFAULT in report.methods else None
    for label in report.labels:
        cells = frame[frame["metric"] == label].set_index("method")["value"].dropna()
        if not len(cells):
            continue
        sign = 1 if label.endswith("↑") else -1
        best = str((sign * cells).idxmax())
        near = _between(report.differences(best), label)
        level = [row["method"] for row in near if row["low"] <= 0 <= row["high"] and row["method"] != "random"]
        better, worse = [], []
        for row in [] if against is None else _between(against, label):
            if row["method"] != "random":
                better += [row["method"]] * (min(sign * row["low"], sign * row["high"]) > 0)
                worse += [row["method"]] * (max(sign * row["low"], sign * row["high"]) < 0)
        lines.append(f"| {label} | {best} | {_named(level)} | {_named(better)} | {len(worse)} methods |")
    return "\n".join(lines) + "\n"


def _between(frame, label: str) -> list[dict]:
    rows = frame[frame["metric"] == label].dropna(subset=["difference"])
    return rows.to_dict("records")


def _named(methods: list[str]) -> str:
    return ", ".join(methods) if methods else "–"


def tasks(report: Report, relative: bool) -> str:
    """A table for every task, if there are several."""
    parts = []
    for number, task in enumerate(report.tasks if len(report.tasks) > 1 else ()):
        n = int((report.right & (report.task == number)).sum())
        if n:
            parts += [f"{task}, {n} examples:\n", report.markdown(task, relative=relative)]
    return "\n".join(parts)


def rankings(report: Report) -> str:
    """A row per metric, a column per task."""
    frame = report.rankings()
    names = list(dict.fromkeys(frame["task"]))
    wide = frame.pivot_table(index="metric", columns="task", values="spearman", sort=False)[names]
    lines = ["| metric | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    lines += [f"| {metric} | " + " | ".join(f"{value:.2f}" for value in row) + " |" for metric, row in wide.iterrows()]
    return "\n".join(lines) + "\n"


def _table(frame) -> str:
    """A data frame as markdown."""
    rows = [list(frame.columns), ["---"] * len(frame.columns)]
    rows += [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in frame.values.tolist()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def write(page: Path, name: str, text: str) -> None:
    """Put text between the marks of that name."""
    first, last = f"<!-- judge: {name} -->", f"<!-- end of judge: {name} -->"
    found = page.read_text(encoding="utf-8")
    if found.count(first) != 1 or found.count(last) != 1:
        raise SystemExit(f"{page} needs the lines {first} and {last}, once each.")
    before, rest = found.split(first)
    page.write_text(f"{before}{first}\n{text.strip()}\n{last}{rest.split(last)[1]}", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "csv", nargs="+", help="files of the same metrics: other examples, or other methods on the same"
    )
    parser.add_argument("--common", action="store_true", help="only the examples that all files have")
    parser.add_argument("--relative", action="store_true", help="differences of targets as shares of the target")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--only", nargs="*", help="methods of the short table")
    parser.add_argument("--plain", action="store_true", help="a short table without intervals")
    parser.add_argument("--apart", nargs="*", help="tasks in columns or a table of their own")
    parser.add_argument("--write", nargs=2, metavar=("PAGE", "NAME"))
    given = parser.parse_args()
    read = [Report.from_csv(path) for path in given.csv]
    made = combined(common(read) if given.common else read)
    text = (
        short(made, given.relative, given.only, given.apart, given.plain)
        if given.short
        else tables(made, given.relative, given.apart)
    )
    if given.write:
        write(Path(given.write[0]), given.write[1], text)
    else:
        print(text)
