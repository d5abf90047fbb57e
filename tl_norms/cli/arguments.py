"""What the command line accepts. Standard library only: `--help` and bad arguments need no torch."""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from ..files import is_file, no_file
from . import why_arguments
from .help_layout import HelpLayout

DTYPES = ("float32", "float64", "bfloat16", "float16")

EMBEDDED = ("all-minilm-l6-v2", "minilm", "embedded")  # names of the embedded model, in small letters

_EPILOG = """\
scopes:
  A scope is how far into the block the sources are followed, spelled as the steps taken: attn (attention), \
attn_res (+ residual connection), attn_res_ln (+ layer norm), attn_res_ln_ff (+ feed-forward), ... The papers' names \
(Attn-N, AttnRes-N, AttnResLn-N, ATB, ATBFF, ...) work too. Which ones a model has is printed with every error \
about them. With a scope that goes through the feed-forward, the scope before it is shown too, for comparison.

examples:
  tl-norms demo   (why a model says "are", with an interactive page)
  tl-norms "The keys to the cabinet are on the table."
  tl-norms --scope all --html maps.html "The keys to the cabinet are on the table."
  tl-norms --model gpt2 --layer 5 --layer 11 --json "The keys to the cabinet are on the table." > maps.json
  tl-norms --model gpt2 --why --html why.html --logit " are" --against " is" "The keys to the cabinet"
  tl-norms --why --like "A set of keys" "The keys to the cabinet"
  tl-norms --check gpt2
  tl-norms --check MiniLM   (the embedded model)
  tl-norms --model Helsinki-NLP/opus-mt-de-en --target "the house is small" "das Haus ist klein"
  tl-norms study mixing-ratio --texts corpus.txt   (tl-norms study --help: all studies over a corpus)
  tl-norms judge --model gpt2 --task agreement   (tl-norms judge --help: which attribution is faithful)

exit status: 0, or 1 if --check finds a scope that is not complete or a model that is refused, or 2 for bad input.
"""


def add_dtype(add: Callable[..., object]) -> None:
    """The option --dtype of every command."""
    told = "the model's numbers: float32 (default), float64, bfloat16 or float16"
    add("--dtype", choices=DTYPES, default="float32", metavar="DTYPE", help=told)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments, checked as far as they can be without a model; exits with status 2 and a message if they are bad.

    Returns:
        text, model, target, check, scope (list or None), layer (list or None), json, html, bias, dtype, quiet.
    """
    parser = argparse.ArgumentParser(
        prog="tl-norms",
        description="Norm-based analysis of transformer blocks: what each source token contributed to each position.",
        epilog=_EPILOG,
        formatter_class=HelpLayout,
    )
    add = parser.add_argument
    add(
        "text", metavar="TEXT", nargs="?", help="the text to analyse (with --check: instead of the short built-in text)"
    )
    add("--model", metavar="NAME_OR_FOLDER", help="Hugging Face name, folder or .gguf file; default: embedded MiniLM")
    add("--target", metavar="TEXT", help="of an encoder-decoder: what the decoder reads; analyses the decoder")
    add("--scope", action="append", type=_names, metavar="SCOPE", help="scope, comma list or 'all'; may be repeated")
    add("--layer", action="append", type=_numbers, metavar="N", help="layer, from the end if negative; may be repeated")
    add("--json", action="store_true", help="print everything as JSON instead of tables")
    add("--html", metavar="FILE", help="also write one self-contained, interactive page")
    add(
        "--check",
        metavar="MODEL",
        help="check that this model adds up, at all layers and scopes",
    )
    add(
        "--bias",
        choices=("player", "fixed"),
        default="player",
        help="biases in the feed-forward, see tl_norms.ffn_maps",
    )
    add_dtype(add)
    why_arguments.add(parser)
    add("--quiet", action="store_true", help="no tables and no notices; errors, --json and --html remain")
    found = parser.parse_args(argv)
    why_arguments.refuse(parser, found)
    for name in ("scope", "layer"):
        if getattr(found, name) is not None:
            setattr(found, name, list(dict.fromkeys(item for group in getattr(found, name) for item in group)))
    if found.check is not None:
        _refuse_with_check(parser, found)
    elif found.text is None:
        parser.error('a text is needed: tl-norms "The keys to the cabinet are on the table."')
    if found.text is not None and not found.text.strip():
        parser.error("the text is empty")
    for name in ("model", "target", "check", "html"):
        if getattr(found, name) is not None and not getattr(found, name).strip():
            parser.error(f"--{name} is empty")
    if problem := unwritable(found.html):
        parser.error(f"--html: {problem}")
    return found


def unwritable(file: str | None) -> str:
    """Why a file cannot be written, or "" if it can or is not wanted."""
    if file is None:
        return ""
    path = Path(file).expanduser()
    try:
        if path.is_dir():
            return f"{file!r} is a folder; give it a file name"
        if not path.parent.is_dir():
            there = path.parent.exists()
            return f"{str(path.parent)!r} is a file" if there else f"there is no folder {str(path.parent)!r}"
        return "" if os.access(path if path.exists() else path.parent, os.W_OK) else f"{file!r} cannot be written"
    except (OSError, ValueError):  # no path at all: too long a name, a null byte
        return f"{file[:200]!r} cannot be written"


def unreadable(file: str | None) -> str:
    """Why a file cannot be read, or "" if it can or is not wanted."""
    if file is None:
        return ""
    if not is_file(file):
        return no_file(file)
    return "" if os.access(Path(file).expanduser(), os.R_OK) else f"{file!r} cannot be read"


def _refuse_with_check(parser: argparse.ArgumentParser, found: argparse.Namespace) -> None:
    """`--check` names its own model and looks at everything."""
    for name in ("model", "target", "scope", "layer", "html"):
        if getattr(found, name) is not None:
            parser.error(f"--check MODEL takes all layers and scopes and makes no page: leave --{name} out")


def _names(value: str) -> list[str]:
    names = [name.strip() for name in value.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError("a scope is needed, or 'all'")
    return names


def _numbers(value: str) -> list[int]:
    try:
        numbers = [int(number) for number in value.split(",") if number.strip()]
    except ValueError:
        numbers = []
    if not numbers:
        raise argparse.ArgumentTypeError(f"layers are numbers such as 3 or 0,5 or -1, not {value!r}")
    return numbers
