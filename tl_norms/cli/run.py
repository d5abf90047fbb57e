"""From arguments to output: load, run, analyse, print. Every foreseeable problem is one line and an exit status."""

import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import parse

if TYPE_CHECKING:
    import argparse

    from torch import Tensor

    from ..results import BlockNorms

CHECK_TEXT = "The keys to the old cabinet are on the kitchen table, next to the blue cup."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments, None for those of the process

    Returns:
        Exit status: 0; 1 if `--check` finds something; 2 for bad input. (Bad arguments exit with 2 themselves.)

    Example:
        >>> from tl_norms.__main__ import main                                  # doctest: +SKIP
        >>> main(["--scope", "all", "The keys to the cabinet are on the table."])   # doctest: +SKIP
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["study"]:
        from . import study

        options, command = study.parse(arguments[1:]), study.run
    elif arguments[:1] == ["judge"]:
        from . import judge

        options, command = judge.parse(arguments[1:]), judge.run
    elif arguments[:1] == ["demo"]:
        from . import demo

        options, command = demo.parse(arguments[1:]), demo.run
    else:
        options = parse(arguments)
        command = check if options.check is not None else explain if options.why else analyse
    from ..errors import TLNormsError  # from here on torch is loaded

    try:
        status = command(options)
        sys.stdout.flush()
        return status
    except TLNormsError as error:
        print(f"tl-norms: error: {one_line(error)}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `tl-norms ... | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("tl-norms: interrupted", file=sys.stderr)
        return 130


def analyse(options: "argparse.Namespace") -> int:
    """Norms of one text."""
    from . import load, report

    model, name = _model(options.model, options)
    with load.silence() as caught:
        scopes = report.with_predecessors(model, options.scope, load.stack_of(model, options.target))
        layers = report.unique_layers(model, options.layer)
        given = _given(model, options.text, options.target)
        norms = _norms(model, given, options, scopes=scopes, layers=layers)
    _notices(caught, options)
    words, keys = given.words, given.keys
    facts = report.facts(model, name, options.text, given.tokens, words, options.dtype, options.bias)
    if options.target is not None:
        facts |= {"target": options.target, "source_tokens": keys[len(words) :]}
    if options.html is not None:
        from ..page import page_of_norms, write

        wide = norms if options.scope is not None else _norms(model, given, options, scopes="all", layers=layers)
        page = page_of_norms(
            wide,
            words,
            keys=keys,
            model_name=name,
            text=options.text if options.target is None else options.target,
            layer=norms.layers[-1 if options.layer is None else 0],
            scope=norms.scopes[-1],
            software=facts["versions"],
        )
        write(options.html, page)
        _wrote(options)
    if options.json:
        print(report.as_json(facts | report.numbers(norms, keys)))
    elif not options.quiet:
        from . import tables

        tables.analysis(facts, norms, words, keys, chosen=options.layer is not None)
    return 0


def explain(options: "argparse.Namespace") -> int:
    """Where the prediction on one text comes from."""
    from . import load, report, why

    model, name = _model(options.model, options)
    with load.silence() as caught:
        found = why.explained(
            model,
            options.text,
            name=name,
            token=options.logit,
            against=options.against,
            at=options.at,
            like=options.like,
            attention=options.attention or "held",
            baseline=options.baseline,
        )
    _notices(caught, options)
    if options.html is not None:
        from ..page import page_of_attribution, write

        write(options.html, page_of_attribution(found.attribution, found.words, text=options.text))
        _wrote(options)
    if options.json:
        print(report.as_json(why.numbers(found)))
    elif not options.quiet:
        why.show(found)
    return 0


def _wrote(options: "argparse.Namespace") -> None:
    if not options.quiet:
        print(f"tl-norms: wrote {options.html}: open it in a browser", file=sys.stderr)


def check(options: "argparse.Namespace") -> int:
    """Completeness of every layer and scope of one model (both stacks of an encoder-decoder) and of one attribution."""
    from ..errors import TLNormsError
    from . import load, report, whole

    model, name = _model(options.check, options)
    text = options.text or CHECK_TEXT
    found = []
    try:
        with load.silence() as caught:
            given = _given(model, text, None)
            for stack in ("encoder", "decoder") if load.translates(model) else (None,):
                found.append((stack, _norms(model, replace(given, stack=stack), options, scopes="all", raises=False)))
            inputs = dict(given.inputs)
            attributed = whole.checked(model, options.dtype, inputs.pop("input"), **inputs)
    except load.TextError:
        raise
    except TLNormsError as error:
        if options.json:
            print(report.as_json({"model": name, "complete": False, "refused": one_line(error)}))
        print(f"tl-norms: {name} is refused: {one_line(error)}", file=sys.stderr)
        return 1
    _notices(caught, options)
    tolerance = report.tolerance(options.dtype)
    complete = attributed.complete and all(report.is_complete(norms, tolerance) for _, norms in found)
    facts = report.facts(model, name, text, given.tokens, given.words, options.dtype, options.bias)
    if options.json:
        errors = {stack: report.errors(norms) for stack, norms in found}
        shown = errors[None] if None in errors else errors
        facts |= shown | {"attribution": attributed.numbers()}
        print(report.as_json(facts | {"tolerance": tolerance, "complete": complete}))
    elif not options.quiet:
        from . import tables

        for stack, norms in found:
            called = name if stack is None else f"{name}, {stack}"
            tables.check(facts | {"model": called}, norms, tolerance, report.is_complete(norms, tolerance))
        whole.show_checked(attributed)
    return 0 if complete else 1


def one_line(error: BaseException) -> str:
    """A message without line breaks."""
    return " ".join(str(error).split())


def _model(given: str | None, options: "argparse.Namespace") -> tuple[Any, str]:
    """The loaded model, and the name to call it by."""
    import torch

    from . import load

    name = load.model_name(given)
    embedded = load.is_embedded(given) and name != given
    shown = "all-MiniLM-L6-v2 (embedded)" if embedded or given is None else given
    shown = Path(shown).name if shown.endswith(".gguf") else shown  # the folders of a file say little and take lines
    if sys.stderr.isatty() and not options.quiet:
        print(f"tl-norms: loading {shown} ...", file=sys.stderr)
    with load.silence():
        return load.load(name, getattr(torch, options.dtype)), shown


@dataclass(frozen=True)
class _Given:
    """What a model is run on: its inputs, the stack to analyse, the tokens of the queries and of the keys."""

    inputs: "dict[str, Tensor]"
    stack: str | None
    words: list[str]
    keys: list[str]

    @property
    def tokens(self) -> "Tensor":
        """The numbers of `words`."""
        return self.inputs["decoder_input" if self.stack == "decoder" else "input"]


def _given(model: Any, text: str, target: str | None) -> _Given:
    from . import load

    stack = load.stack_of(model, target)
    if target is not None:
        inputs, sources, words = load.tokenize_pair(model, text, target)
        return _Given(inputs, stack, words, words + sources)
    tokens, words = load.tokenize(model, text)
    decoder = {} if stack is None else {"decoder_input": tokens[:, : (tokens.shape[1] + 1) // 2]}
    return _Given({"input": tokens} | decoder, stack, words, words)


def _norms(
    model: Any, given: _Given, options: "argparse.Namespace", *, scopes, layers=None, raises: bool = True
) -> "BlockNorms":
    """All norms of one text."""
    import torch

    from .. import norms
    from ..errors import TLNormsError
    from .load import TextError, brief

    hooks = norms.required_hooks(model, scopes, layers, stack=given.stack)
    inputs = dict(given.inputs)
    try:
        with torch.no_grad():
            _, cache = model.run_with_cache(inputs.pop("input"), names_filter=hooks, **inputs)
    except TLNormsError:
        raise
    except Exception as error:  # the model's own code: out of memory, an input that is no text, ...
        raise TextError(f"the model could not be run on this text: {type(error).__name__}: {brief(error)}") from error
    with torch.no_grad():
        return norms.block_norms(cache, scopes, layers=layers, stack=given.stack, bias=options.bias, check=raises)


def _notices(caught: list[warnings.WarningMessage], options: "argparse.Namespace") -> None:
    """The package's own warnings as messages; those of other libraries are dropped."""
    from ..errors import WeightProcessingWarning
    from .load import SentenceEndWarning

    if options.quiet:
        return
    for warning in caught:
        if issubclass(warning.category, WeightProcessingWarning | SentenceEndWarning):
            print(f"tl-norms: warning: {' '.join(str(warning.message).split())}", file=sys.stderr)
