"""Tables for a terminal, with rich, which comes with every TransformerLens."""

import math
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..results import BlockNorms
from . import report

_NARROW = 100  # columns, where the output goes to a file or a pipe


def analysis(facts: dict[str, Any], norms: BlockNorms, words: list[str], keys: list[str], *, chosen: bool) -> None:
    """Everything about one text.

    Args:
        facts: what was run, see `report.facts`
        norms: the result, with a batch of one
        words: its tokens
        keys: the same, and those of the source behind them where a decoder has cross-attention
        chosen: the layers were asked for, so that all of them are shown; else the last
    """
    console = _console()
    _heading(console, facts, norms)
    _tokens(console, words)
    if len(keys) > len(words):
        _tokens(console, keys[len(words) :], len(words))
    _mixing_ratios(console, norms)
    scope = norms.scopes[-1]
    for row in range(len(norms.layers)) if chosen else [len(norms.layers) - 1]:
        _strongest(console, norms, words, keys, scope, row)
    changes, pairs, missing = report.feed_forward(norms, keys)
    if missing is not None:
        console.print(Text(f"What the feed-forward changes: not computed. {missing}"))
    if changes:
        _changes(console, norms, changes)
    if pairs:
        _pairs(console, norms, pairs if chosen else [pair for pair in pairs if pair["layer"] == norms.layers[-1]])


def check(facts: dict[str, Any], norms: BlockNorms, tolerance: float, complete: bool) -> None:
    """Completeness errors by layer and scope, and the verdict."""
    console = _console()
    _heading(console, facts, norms)
    table = _table(
        console, "Completeness error, relative, at the worst position", ["layer", *map(_stacked, norms.scopes)]
    )
    for row, layer in enumerate(norms.layers):
        cells = [float(norms.error[scope][row]) for scope in norms.scopes]
        table.add_row(str(layer), *(_error(cell, tolerance) for cell in cells))
    console.print(table)
    if any(bool(norms.error[scope].isnan().any()) for scope in norms.scopes):
        console.print(Text("-: TransformerLens has no activation there to compare with"))
    verdict = "complete" if complete else "NOT complete"
    last = f"{facts['model']}: {verdict} at every layer and scope (tolerance {tolerance:.0e} in {facts['dtype']})"
    if not complete:
        last = f"{facts['model']}: {verdict}, marked with ! (tolerance {tolerance:.0e} in {facts['dtype']})"
    console.print(Text(last, style="bold green" if complete else "bold red"))


def printable(token: str) -> str:
    """A token as one visible line: no control characters, no line breaks, spaces around it dropped unless it is all."""
    if not token:
        return "(empty)"
    if not token.strip(" "):
        return "␣" * len(token)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in token).strip(" ")


def _console() -> Console:
    console = Console(highlight=False, markup=False, emoji=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, emoji=False, width=_NARROW)


def _heading(console: Console, facts: dict[str, Any], norms: BlockNorms) -> None:
    versions = " · ".join(f"{name} {version}" for name, version in facts["versions"].items())
    layers = f"{len(norms.layers)} layer{'s' if len(norms.layers) != 1 else ''}"
    if norms.skipped:
        layers += f" (without attention, skipped: {', '.join(map(str, norms.skipped))})"
    kind = facts["architecture"] or facts["class"]
    console.print(Text(f"{printable(facts['model'])} · {kind} · {layers} · {facts['dtype']}", style="bold"))
    console.print(Text(versions, style="dim"))
    console.print(Text(f"chain: {' → '.join(norms.chain)}", style="dim"))
    console.print(Text(f"weight processing: {', '.join(norms.processing) or 'none'}", style="dim"))


def _tokens(console: Console, words: list[str], first: int = 0) -> None:
    line = Text(f"{len(words)} tokens{' of the source' if first else ''}: ")
    for position, word in enumerate(words, start=first):
        line.append(f"{position}\u00a0", style="dim").append(printable(word) + "  ")
    console.print(line)


def _mixing_ratios(console: Console, norms: BlockNorms) -> None:
    title = "Mixing ratio, mean over tokens: how much of a position comes from other positions"
    table = _table(console, title, ["layer", *map(_stacked, norms.scopes)])
    means = {scope: norms.mixing_ratio(scope)[:, 0].mean(-1).tolist() for scope in norms.scopes}
    for row, layer in enumerate(norms.layers):
        table.add_row(str(layer), *(f"{means[scope][row]:.1%}" for scope in norms.scopes))
    table.add_section()
    worst = [max((e for e in norms.error[scope].tolist() if e == e), default=math.nan) for scope in norms.scopes]
    table.add_row("completeness\nerror, worst", *(_error(error) for error in worst))
    console.print(table)


def _strongest(console: Console, norms: BlockNorms, words: list[str], keys: list[str], scope: str, row: int) -> None:
    """The strongest other source of each position, and a mark where the position itself is stronger still."""
    maps, ratios = norms[scope][row, 0].tolist(), norms.mixing_ratio(scope)[row, 0].tolist()
    others = report.strongest_others(norms, scope)[row]
    title = f"Strongest sources in layer {norms.layers[row]}, {scope} (lengths of vectors; * is the strongest of all)"
    table = _table(
        console, title, ["", "token", "mixing\nratio", "from itself", "", "strongest other", "from it"], text=(1, 5)
    )
    for query, (word, key) in enumerate(zip(words, others, strict=True)):
        own = maps[query][query]
        cells = [str(query), printable(word), f"{ratios[query]:.1%}"]
        if key is None:
            table.add_row(*cells, f"{own:.4g} *", "", "-", "-")
            continue
        other, itself = maps[query][key], own >= maps[query][key]
        marks = ("*", " ") if itself else (" ", "*")
        table.add_row(*cells, f"{own:.4g} {marks[0]}", str(key), printable(keys[key]), f"{other:.4g} {marks[1]}")
    console.print(table)


def _changes(console: Console, norms: BlockNorms, changes: dict[str, list[float]]) -> None:
    title = "Contextualization change by component (the last step of each scope): 1 - Spearman of the maps around it"
    table = _table(console, title, ["layer", *map(_stacked, changes)])
    for row, layer in enumerate(norms.layers):
        values = [change[row] for change in changes.values()]
        table.add_row(str(layer), *("-" if math.isnan(value) else f"{value:.3f}" for value in values))
    console.print(table)


def _pairs(console: Console, norms: BlockNorms, pairs: list[dict]) -> None:
    title = "Pairs that the feed-forward amplifies most (length of the vector before and after it)"
    names = ["layer", "", "into", "", "from", "before", "after", "difference"]
    table = _table(console, title, names, text=(2, 4))
    for pair in pairs:
        table.add_row(
            str(pair["layer"]),
            str(pair["query"]),
            printable(pair["query_token"]),
            str(pair["key"]),
            printable(pair["key_token"]),
            *(f"{pair[name]:.4g}" for name in ("before", "after")),
            f"{pair['difference']:+.4g}",
        )
    console.print(table)


def _table(console: Console, title: str, columns: list[str], text: tuple[int, ...] = ()) -> Table:
    """An empty table under its title, which may be wider; columns of text are on the left, numbers on the right."""
    console.print(Text(f"\n{title}", style="bold"))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, column in enumerate(columns):
        if number in text:
            table.add_column(Text(column), justify="left", no_wrap=True, max_width=24, overflow="ellipsis")
        else:
            table.add_column(Text(column), justify="right", no_wrap=True)
    return table


def _stacked(scope: str) -> str:
    """A scope's name, one step to a line, so that columns stay narrow."""
    return scope.replace("_", "\n_")


def _error(error: float, tolerance: float = math.inf) -> str:
    if math.isnan(error):
        return "-"
    return f"{error:.1e}" if error <= tolerance else f"{error:.1e} !"
