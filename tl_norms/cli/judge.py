"""`tl-norms judge --model NAME --task agreement`: which attribution is faithful. Arguments need no torch."""

import argparse
import functools
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from .arguments import add_dtype, unreadable, unwritable
from .help_layout import HelpLayout
from .study import _positive, _processes, _share

if TYPE_CHECKING:
    from ..faithfulness import Report, Task

_EPILOG = """\
tasks of templates, for any tokenizer:
  language models: agreement anaphor-gender anaphor-number determiner-noun ioi copying colours polarity
  models without a head: subjects (a linear probe trained on the spot)
or a table of your own, --rows FILE.csv with columns prefix, good, bad, evidence.

examples:
  tl-norms judge --task subjects --limit 50
  tl-norms judge --model gpt2 --task agreement --task ioi --limit 200 --csv all.csv --html report.html
  tl-norms judge --model gpt2 --rows mine.csv --method attribute --method erasure --metric SRG
"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments after `judge`; exits with status 2 and a message if they are bad."""
    parser = argparse.ArgumentParser(
        prog="tl-norms judge",
        description="Judge attribution methods by removing positions and by annotated evidence.",
        epilog=_EPILOG,
        formatter_class=HelpLayout,
    )
    add = parser.add_argument
    add("--model", metavar="NAME_OR_FOLDER", help="Hugging Face name, folder or .gguf file; default: embedded MiniLM")
    add_dtype(add)
    add("--task", action="append", default=[], metavar="NAME", help="task of templates; may be repeated")
    add("--rows", action="append", default=[], metavar="FILE", help="csv or jsonl with columns prefix, good, bad, ...")
    add("--evidence", default="evidence", metavar="COLUMN", help="of --rows; 'none' if there is no such column")
    add("--limit", type=_positive, default=200, metavar="N", help="examples per task, 200")
    add("--method", action="append", metavar="NAME", help="may be repeated; default: all there are")
    add("--metric", action="append", metavar="NAME", help="may be repeated; default: those that cost little")
    add("--removal", action="append", choices=("cut", "replace", "swap"), help="may be repeated; default: cut, replace")
    add("--replacement", default="mean", metavar="WHAT", help="what 'replace' puts in: mean, zero or a token id")
    shares = "shares of positions removed; default: 0.25, 0.5, 0.75; 'all': 1, 2, ... positions"
    add("--fraction", action="append", type=_fraction, metavar="F", help=shares)
    add("--draws", type=_positive, default=10, metavar="N", help="of random scores, 10")
    add("--seed", type=int, default=0)
    add("--relative", action="store_true", help="differences of targets as shares of the target")
    add("--csv", metavar="FILE", help="write every number of every example there")
    add("--html", metavar="FILE", help="write a page with figure and tables there")
    add("--resume", metavar="FILE", help="keep the state there, and go on from it if it exists")
    add("--share", type=_share, default=(0, 1), metavar="K/N", help="only the K-th of N shares of the examples, from 0")
    add("--parts", nargs="+", default=(), metavar="FILE", help="--resume files of other shares: not measured again")
    add("--workers", type=_positive, metavar="N", help="processes; default: this one alone")
    add("--quiet", action="store_true", help="no table, no progress bar and no notices")
    found = parser.parse_args(argv)
    if not found.task and not found.rows:
        parser.error("a task is needed: --task agreement, --task subjects or --rows FILE (tl-norms judge --help)")
    for name in ("csv", "html", "resume"):
        if problem := unwritable(getattr(found, name)):
            parser.error(f"--{name}: {problem}")
    for name, files in (("rows", found.rows), ("parts", found.parts)):
        for problem in filter(None, map(unreadable, files)):
            parser.error(f"--{name}: {problem}")
    if found.replacement not in ("mean", "zero"):
        if not found.replacement.isdigit():
            parser.error(f"--replacement: expected mean, zero or a token id, not {found.replacement!r}")
        found.replacement = int(found.replacement)
    return found


def run(options: argparse.Namespace) -> int:
    """Judge, print a table, write files."""
    try:
        return _judged(options)
    except KeyboardInterrupt:
        if options.resume is not None:
            print(f"tl-norms: the same command goes on from --resume {options.resume}", file=sys.stderr)
        else:
            print("tl-norms: nothing is kept: with --resume FILE a run can be stopped and goes on", file=sys.stderr)
        raise


def _judged(options: argparse.Namespace) -> int:
    from .. import faithfulness
    from ..faithfulness.engine import ExcludedTextWarning
    from . import load, study

    name = load.model_name(options.model)
    loader = functools.partial(study.model, name, options.dtype)
    with warnings.catch_warnings(record=True) as caught, ExitStack() as stack:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", ExcludedTextWarning)
        own = loader()
        report = faithfulness.evaluate(
            own if options.workers is None else loader,
            [*options.task, *_tables(options, own)],
            options.method,
            options.metric,
            tuple(dict.fromkeys(options.removal or ("cut", "replace"))),
            replacement=options.replacement,
            fractions=_fractions(options.fraction),
            limit=options.limit,
            draws=options.draws,
            seed=options.seed,
            executor=None if options.workers is None else stack.enter_context(_processes(options.workers)),
            resume=options.resume,
            share=options.share,
            parts=options.parts,
            progress=False if options.quiet else None,
        )
    for warning in caught:
        print(f"tl-norms: warning: {' '.join(str(warning.message).split())}", file=sys.stderr)
    if options.csv is not None:
        report.to_csv(options.csv)
    if options.html is not None:
        report.to_html(options.html)
    if not options.quiet:
        _print(report, options)
    return 0


def _tables(options: argparse.Namespace, model: Any) -> "list[Task]":
    from ..faithfulness import tasks

    evidence = None if options.evidence == "none" else options.evidence
    return [tasks.from_rows(path, model, evidence=evidence, limit=options.limit) for path in options.rows]


def _print(report: "Report", options: argparse.Namespace) -> None:
    """Tables of all examples together, right and wrong apart, and what is missing from them.

    In a terminal one table per removal; markdown where the output goes to a file or a pipe.
    """
    from rich.console import Console

    from ..faithfulness.report_page import shown_about
    from . import judge_table

    console = Console(highlight=False)
    print("; ".join(f"{name}: {value}" for name, value in shown_about(report)))
    for examples in ("right", "wrong"):
        n = int((report.right == (examples == "right")).sum())
        if n:
            print(f"\n{n} examples that the model gets {examples}:\n")
            if console.is_terminal:
                judge_table.printed(report, examples, options.relative, console)
            else:
                print(report.markdown(examples=examples, relative=options.relative), end="")
    for called, entries in (("method refused", report.refused), ("example excluded", report.excluded)):
        for name, reason in entries[:5]:
            print(f"{called}: {name}: {reason}")
        if len(entries) > 5:
            print(f"... {len(entries)} in all")


def _fraction(value: str) -> float | str:
    if value == "all":
        return value
    try:
        found = float(value)
    except ValueError:
        found = 0.0
    if not 0 < found <= 1:
        raise argparse.ArgumentTypeError(f"expected a share in (0, 1] or 'all', not {value!r}")
    return found


def _fractions(given: list[float | str] | None) -> tuple[float, ...] | None:
    """What `evaluate` takes: None is every number of positions, which costs minutes per long example."""
    if given is None:
        return (0.25, 0.5, 0.75)
    return None if "all" in given else tuple(share for share in given if isinstance(share, float))
