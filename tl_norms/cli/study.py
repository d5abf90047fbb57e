"""`tl-norms study NAME --texts FILE`: the papers' measurements over a corpus. Arguments need no torch."""

import argparse
import functools
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import add_dtype, unreadable, unwritable
from .help_layout import HelpLayout

if TYPE_CHECKING:
    from torch import nn

_SHOWN = 40  # rows of a table in a terminal; a file gets all
_STUDIES = {  # name -> what it tells, its tables (names of methods), the first by default
    "value-norm-dispersion": ("spread of |f(x)| per head (EMNLP 2020)", {"heads": "to_dataframe"}),
    "weight-against-norm": (
        "attention weights against norms per category of token (EMNLP 2020)",
        {"correlations": "correlations", "heads": "to_dataframe"},
    ),
    "frequency": ("frequency rank against norms and weights (EMNLP 2020)", {"summary": "to_dataframe"}),
    "mixing-ratio": (
        "how much comes from other tokens, by five methods (EMNLP 2021)",
        {"summary": "to_dataframe", "layers": "layers_to_dataframe"},
    ),
    "expansion-rate": (
        "the norm of f(x) relative to x; needs no texts (EMNLP 2021)",
        {"layers": "to_dataframe"},
    ),
    "contextualization-change": (
        "how much each component changes the maps (ICLR 2024)",
        {"mean": "to_dataframe", "texts": "texts_to_dataframe"},
    ),
    "amplified-pairs": ("pairs of tokens the feed-forward amplifies (ICLR 2024)", {"pairs": "to_dataframe"}),
    "cancellation": (
        "what later steps take back of the feed-forward (ICLR 2024)",
        {"mean": "to_dataframe", "texts": "texts_to_dataframe"},
    ),
    "alignment": (
        "word alignment error rates of a translation model, by weights and by norms (EMNLP 2020)",
        {
            "layers": "to_dataframe",
            "heads": "heads_to_dataframe",
            "summary": "summary_to_dataframe",
            "correlations": "correlations",
        },
    ),
}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments after `study`; exits with status 2 and a message if they are bad."""
    parser = argparse.ArgumentParser(
        prog="tl-norms study",
        description="The papers' measurements over a corpus.",
        epilog="example:\n  tl-norms study mixing-ratio --texts corpus.txt --csv ratios.csv --resume ratios.npz",
        formatter_class=HelpLayout,
    )
    names = parser.add_subparsers(dest="study", metavar="STUDY", required=True)
    for name, (told, tables) in _STUDIES.items():
        one = names.add_parser(name, help=told, description=told)
        add = one.add_argument
        if name == "alignment":  # the embedded model does not translate
            add("--model", required=True, metavar="NAME_OR_FOLDER", help="Hugging Face name or folder of a translator")
        else:
            add("--model", metavar="NAME_OR_FOLDER", help="Hugging Face name, folder or .gguf file; default: MiniLM")
        add_dtype(add)
        add("--layer", type=_number, action="append", metavar="N", help="layer, may be repeated; default: all")
        add("--table", choices=tuple(tables), default=next(iter(tables)), help="which table of the result")
        add("--csv", metavar="FILE", help="write the whole table there")
        add("--quiet", action="store_true", help="no table, no progress bar and no notices")
        if name == "alignment":
            _pairs(add)
        elif name != "expansion-rate":
            _texts(add)
        if name != "expansion-rate":
            _corpus(add)
        if name in ("mixing-ratio", "frequency"):
            add(
                "--ranks",
                default="corpus",
                metavar="FILE",
                help="lines 'rank count token_id'; default: count the texts",
            )
        if name == "mixing-ratio":
            add("--mask-tokens", type=float, metavar="SHARE", help="share of masked tokens; 0.12 in the paper")
            add("--seed", type=_number, default=0, help="of the choice of masked tokens")
        if name == "amplified-pairs":
            add("--k", type=_positive, default=50, help="pairs per text and layer")
        if name in ("amplified-pairs", "contextualization-change"):
            add("--sketch", type=_positive, metavar="N", help="estimate norms by N random directions: faster")
    found = parser.parse_args(argv)
    for option in ("csv", "resume"):
        if problem := unwritable(getattr(found, option, None)):
            parser.error(f"--{option}: {problem}")
    return found


def _check_files(options: argparse.Namespace) -> None:
    """Files that are to be read, looked at before a model is loaded.

    Raises:
        StudyInputError: one is missing, a folder, or cannot be read.
    """
    from ..studies import StudyInputError

    for option in ("texts", "pairs", "gold", "parts"):
        given = getattr(options, option, None) or ()
        for file in [given] if isinstance(given, str) else given:
            if problem := unreadable(file):
                raise StudyInputError(f"{problem} (--{option})")


def run(options: argparse.Namespace) -> int:
    """Measure, print a table, write a file."""
    from .. import studies
    from . import load

    _check_files(options)
    name = load.model_name(options.model)
    study = getattr(studies, options.study.replace("-", "_"))
    with warnings.catch_warnings(record=True) as caught, ExitStack() as stack:
        warnings.simplefilter("ignore")
        for kind in (studies.ExcludedTextWarning, studies.TruncatedTextWarning):
            warnings.simplefilter("always", kind)
        if options.study == "expansion-rate":
            result = study(model(name, options.dtype), layers=options.layer)
        else:
            texts = _read(options)
            loader = functools.partial(model, name, options.dtype)
            given = loader() if options.workers is None else loader
            executor = None if options.workers is None else stack.enter_context(_processes(options.workers))
            result = study(given, *texts, executor=executor, **_options(options))
    for warning in caught:
        print(f"tl-norms: warning: {' '.join(str(warning.message).split())}", file=sys.stderr)
    table = getattr(result, _STUDIES[options.study][1][options.table])()
    if options.csv is not None:
        try:
            table.to_csv(Path(options.csv).expanduser(), index=False)
        except (OSError, ValueError, RuntimeError) as error:
            raise studies.StudyInputError(f"--csv: {options.csv[:200]!r} cannot be written: {error}.") from error
    if not options.quiet:
        print(table.head(_SHOWN).to_string(index=False))
        if len(table) > _SHOWN:
            print(f"... {len(table) - _SHOWN} more rows{'' if options.csv else ': --csv FILE writes all'}")
        if hasattr(result, "corpus"):
            kind = "sentence pairs" if options.study == "alignment" else "texts"
            print(f"\n{result.corpus.n_texts} {kind}, {result.corpus.n_tokens} tokens")
    return 0


def model(name: str, dtype: str) -> "nn.Module":
    """Load a model; in worker processes too."""
    import torch

    from . import load

    with load.silence():
        return load.load(name, getattr(torch, dtype))


def _processes(workers: int):
    """Worker processes, which share the machine's threads."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    import torch

    threads = max(1, torch.get_num_threads() // workers)
    return ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(threads,)
    )


def _texts(add) -> None:
    add("--texts", required=True, metavar="FILE", help="one text a line, or .jsonl with one object a line")
    add("--field", type=_text, default="text", help="key of the text in a .jsonl file")
    add("--max-length", type=_positive, metavar="N", help="tokens per text, at most the model's context")
    add("--stride", type=_positive, metavar="N", help="cut long texts into windows this far apart, not off")


def _pairs(add) -> None:
    add("--pairs", required=True, metavar="FILE", help="'source ||| target' or source, tab, target; words by blanks")
    add("--gold", required=True, metavar="FILE", help="gold links, Pharaoh ('0-0 1p2') or NAACL ('1 3 2 S') format")
    add("--gold-format", choices=("pharaoh", "naacl"), help="default: detected from the content")
    add("--one-based", action="store_true", help="words of a Pharaoh file are numbered from 1 (NAACL's always are)")
    add("--reverse", action="store_true", help="the gold file has the target word before the source word")
    add("--setting", action="append", choices=("AWO", "AWI"), help="may be repeated; default: both")
    add("--words-only", action="store_true", help="the end of sentence does not compete for links, unlike in the paper")
    add("--source-prefix", type=_text, default="", metavar="TEXT", help="put before every source: a task, a language")


def _corpus(add) -> None:
    add("--limit", type=_positive, metavar="N", help="read the first N texts only")
    add("--resume", metavar="FILE", help="keep the state there, and go on from it if it exists")
    add("--share", type=_share, default=(0, 1), metavar="K/N", help="only the K-th of N shares of the texts, K from 0")
    add("--parts", nargs="+", default=(), metavar="FILE", help="--resume files of other shares: not measured again")
    add("--workers", type=_positive, metavar="N", help="processes; default: this one alone")


def _read(options: argparse.Namespace) -> tuple[Any, ...]:
    """What the study is about, from files."""
    from .. import studies

    if options.study != "alignment":
        return (studies.TextFile(options.texts, options.field),)
    from .. import alignment

    pairs = alignment.read_pairs(options.pairs)
    lengths = [(len(pair.source), len(pair.target)) for pair in pairs]
    gold = alignment.read_gold(
        options.gold,
        format=options.gold_format,
        one_based=options.one_based,
        reverse=options.reverse,
        lengths=lengths,
    )
    return pairs, gold


def _options(options: argparse.Namespace) -> dict[str, Any]:
    """What is passed on to the study under its own name."""
    names = ("limit", "max_length", "stride", "resume", "share", "parts", "ranks", "mask_tokens", "seed", "k", "sketch")
    found = {name: getattr(options, name) for name in names if hasattr(options, name)}
    if options.study == "alignment":
        found |= {"source_prefix": options.source_prefix, "end_of_sentence": not options.words_only}
        found |= {} if options.setting is None else {"settings": tuple(options.setting)}
    return found | {"layers": options.layer, "progress": False if options.quiet else None}


def _share(value: str) -> tuple[int, int]:
    k, _, n = value.partition("/")
    if not (_is_number(k) and _is_number(n) and int(k) < int(n)):
        raise argparse.ArgumentTypeError(f"expected K/N with K from 0 to N - 1, not {value[:40]!r}")
    return int(k), int(n)


def _positive(value: str) -> int:
    if not _is_number(value) or int(value) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, not {value[:40]!r}")
    return int(value)


def _number(value: str) -> int:
    if not _is_number(value.removeprefix("-")):
        raise argparse.ArgumentTypeError(f"expected a whole number, not {value[:40]!r}")
    return int(value)


def _is_number(value: str) -> bool:
    """Digits, and few enough for a number of texts or tokens."""
    return value.isascii() and value.isdecimal() and len(value) < 16


def _text(value: str) -> str:
    """What the shell gave as an argument, if it is text."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"expected text in UTF-8, not {value[:40]!r}") from None
    return value
