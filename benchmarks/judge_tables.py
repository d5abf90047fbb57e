"""Tables of the judge from the csv files that `tl-norms judge --csv` has stored: `python judge_tables.py FILE.csv ...`.

Prints markdown: all tasks together, every task, examples that the model gets wrong, rankings by removal, costs.
"""

import argparse

from tl_norms.faithfulness import Report, combined


def tables(report: Report, relative: bool) -> str:
    """Everything that can be said of the numbers in a report."""
    parts = [f"{report!r}\n"]
    for examples in ("right", "wrong"):
        n = int((report.right == (examples == "right")).sum())
        if n == 0:
            continue
        parts += [f"## {n} examples that the model gets {examples}\n"]
        parts += [report.markdown(examples=examples, relative=relative, intervals=True)]
        if examples == "right" and len(report.tasks) > 1:
            for number, task in enumerate(report.tasks):
                n = int((report.right & (report.task == number)).sum())
                if n:
                    parts += [f"### {task}, {n} examples\n", report.markdown(task, relative=relative)]
    parts += ["## Rankings of methods, Spearman between removals\n", _table(report.rankings())]
    parts += ["## Costs per example\n", _table(report.costs_to_dataframe())]
    return "\n".join(parts)


def _table(frame) -> str:
    """A data frame as markdown."""
    rows = [list(frame.columns), ["---"] * len(frame.columns)]
    rows += [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in frame.values.tolist()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("csv", nargs="+", help="files of the same methods and metrics on other tasks")
    parser.add_argument("--relative", action="store_true", help="differences of targets as shares of the target")
    given = parser.parse_args()
    print(tables(combined([Report.from_csv(path) for path in given.csv]), given.relative))
