"""Tables for a terminal, with rich, which comes with every TransformerLens."""

import math
import os
import textwrap
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..labels import digits
from ..results import BlockNorms
from . import report

_WIDTH = 100  # columns, where the output goes to a file or a pipe and COLUMNS does not say otherwise
_BARS = "▁▂▃▄▅▆▇█"
_ITSELF, _NONE = "·", " "  # in rows of bars: the position itself, and sources that it does not see


def analysis(facts: dict[str, Any], norms: BlockNorms, words: list[str], keys: list[str], *, chosen: bool) -> None:
    """Everything about one text.

    Args:
        facts: what was run, see `report.facts`
        norms: the result, with a batch of one
        words: its tokens
        keys: the same, followed by those of the source where a decoder has cross-attention
        chosen: the layers were asked for, so all of them are shown; else the last
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
        say(console, f"What the feed-forward changes: not computed. {missing}")
    if changes:
        _changes(console, norms, changes)
    if pairs:
        _pairs(console, norms, pairs if chosen else [pair for pair in pairs if pair["layer"] == norms.layers[-1]])


def check(facts: dict[str, Any], norms: BlockNorms, tolerance: float, complete: bool) -> None:
    """Completeness errors by layer and scope, and the verdict."""
    console = _console()
    _heading(console, facts, norms)
    table = _table(console, "Completeness error, relative, at the worst position", ["layer", *_short(norms.scopes)])
    for row, layer in enumerate(norms.layers):
        cells = [float(norms.error[scope][row]) for scope in norms.scopes]
        table.add_row(str(layer), *(_error(cell, tolerance) for cell in cells))
    _print(console, table)
    if any(bool(norms.error[scope].isnan().any()) for scope in norms.scopes):
        say(console, "-: TransformerLens has no activation there to compare with")
    verdict = "complete" if complete else "NOT complete"
    last = f"{facts['model']}: {verdict} at every layer and scope (tolerance {tolerance:.0e} in {facts['dtype']})"
    if not complete:
        last = f"{facts['model']}: {verdict}, marked with ! (tolerance {tolerance:.0e} in {facts['dtype']})"
    say(console, last, "bold green" if complete else "bold red")


def printable(token: str) -> str:
    """A token on one line: control characters spelled out, spaces around it dropped, or shown if there is no more."""
    if not token:
        return "(empty)"
    if not token.strip(" "):
        return "␣" * len(token)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in token).strip(" ")


def bars(values: list[float | None], itself: int | None = None, width: int | None = None) -> str:
    """A row of a map as bars, each as high as its share of the row's largest.

    Args:
        values: one number per source; None where the position does not see it
        itself: the position's own number, which is left out
        width: characters at most; of more sources, neighbours share a bar as high as the largest of them
    """
    others = [value for place, value in enumerate(values) if place != itself and value is not None]
    largest = max(others, default=0.0) or 1.0
    step = 1 if width is None else max(1, math.ceil(len(values) / max(1, width)))
    shown = []
    for first in range(0, len(values), step):
        places = range(first, min(first + step, len(values)))
        seen = [values[place] for place in places if place != itself and values[place] is not None]
        if seen:
            share = max(value for value in seen if value is not None) / largest
            shown.append(_BARS[min(len(_BARS) - 1, int(share * len(_BARS)))])
        else:
            shown.append(_ITSELF if itself in places else _NONE)
    return "".join(shown)


def _console() -> Console:
    """One that is as wide as the terminal, or as COLUMNS says."""
    console = Console(highlight=False, markup=False, emoji=False)
    if console.is_terminal:
        return console
    given = os.environ.get("COLUMNS", "")
    width = int(given) if given.isdigit() and int(given) > 0 else _WIDTH
    return Console(highlight=False, markup=False, emoji=False, width=width)


def _print(console: Console, table: Table) -> None:
    """A table; one that is wider than the terminal is printed whole: no digit is cut off."""
    needed = console.measure(table, options=console.options.update(max_width=10_000)).maximum
    if needed <= console.width:
        console.print(table)
        return
    wide = Console(highlight=False, markup=False, emoji=False, width=needed, force_terminal=console.is_terminal)
    wide.print(table, crop=False)


def _heading(console: Console, facts: dict[str, Any], norms: BlockNorms) -> None:
    versions = " · ".join(f"{name}\u00a0{version}" for name, version in facts["versions"].items())
    n = facts["n_layers"]
    layers = f"{n} layer{'s' if n != 1 else ''}"
    if norms.skipped:
        layers += f" (without attention, skipped: {', '.join(map(str, norms.skipped))})"
    kind = facts["architecture"] or facts["class"]
    say(console, f"{printable(facts['model'])} · {kind} · {layers} · {facts['dtype']}", "bold")
    say(console, versions, "dim")
    say(console, f"chain: {' → '.join(norms.chain)}", "dim")
    say(console, f"weight processing: {', '.join(norms.processing) or 'none'}", "dim")


def _tokens(console: Console, words: list[str], first: int = 0) -> None:
    """The tokens with their positions, broken into lines between tokens only."""
    line = Text(f"{len(words)} tokens{' of the source' if first else ''}: ")
    for position, word in enumerate(words, start=first):
        item = Text.assemble((f"{position}\u00a0", "dim"), printable(word))
        if line.cell_len + item.cell_len > console.width:
            _line(console, line)
            line = Text("  ")
        line.append(item).append("  ")
    _line(console, line)


def _placed(position: int, token: str, n: int) -> str:
    """A token with its position in front, as wide as the last of `n` positions."""
    return f"{position:>{len(str(n - 1))}} {printable(token)}"


def say(console: Console, text: str, style: str = "") -> None:
    """A text, broken at ordinary spaces but not at hard ones."""
    for line in textwrap.wrap(text, console.width, break_long_words=False, break_on_hyphens=False):
        _line(console, Text(line.replace("\u00a0", " "), style=style))


def trimmed(console: Console, table: Table) -> None:
    """A table without blanks at the ends of its lines, where it goes to a file or a pipe."""
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        _line(console, Text(line))


def _line(console: Console, line: Text) -> None:
    line.rstrip()
    console.print(line, no_wrap=True, crop=False, overflow="ignore")


def _mixing_ratios(console: Console, norms: BlockNorms) -> None:
    title = "Mixing ratio, mean over tokens: the part that comes from other positions"
    table = _table(console, title, ["layer", *_short(norms.scopes)])
    means = {scope: norms.mixing_ratio(scope)[:, 0].mean(-1).tolist() for scope in norms.scopes}
    for row, layer in enumerate(norms.layers):
        table.add_row(str(layer), *(f"{means[scope][row]:.1%}" for scope in norms.scopes))
    table.add_section()
    worst = [max((e for e in norms.error[scope].tolist() if e == e), default=math.nan) for scope in norms.scopes]
    table.add_row("error", *(_error(error) for error in worst))
    _print(console, table)
    say(console, "error: completeness, relative, at the worst layer and position", "dim")


def _strongest(console: Console, norms: BlockNorms, words: list[str], keys: list[str], scope: str, row: int) -> None:
    """The strongest other source of each position, all sources as bars, and a mark where the position is stronger."""
    maps, ratios = norms[scope][row, 0].tolist(), norms.mixing_ratio(scope)[row, 0].tolist()
    possible = norms.pairs(scope)[0].tolist()
    others = report.strongest_others(norms, scope)[row]
    n = len(maps[0])
    room = console.width - 60 - min(16, max(len(printable(word)) for word in words))
    n_bars = min(n, max(0, room))
    title = f"Strongest sources in layer {norms.layers[row]}, {scope} (norms)"
    names = ["token", "mixing", "itself", "strongest other", "norm"] + [f"sources 0–{n - 1}"] * (n_bars >= 8)
    table = _table(console, title, names, text=(0, 3, 5))
    for query, (word, key) in enumerate(zip(words, others, strict=True)):
        own = maps[query][query]
        seen = [value if there else None for value, there in zip(maps[query], possible[query], strict=True)]
        drawn = [bars(seen, query, n_bars)] * (n_bars >= 8)
        cells = [_placed(query, word, n), f"{ratios[query]:.1%}"]
        if key is None:
            table.add_row(*cells, f"{digits(own, 4)} *", "-", "-", *drawn)
            continue
        other, itself = maps[query][key], own >= maps[query][key]
        marks = ("*", " ") if itself else (" ", "*")
        found = [f"{digits(own, 4)} {marks[0]}", _placed(key, keys[key], n), f"{digits(other, 4)} {marks[1]}"]
        table.add_row(*cells, *found, *drawn)
    _print(console, table)
    told = "*: the strongest of all"
    if n_bars >= 8:
        together = math.ceil(n / n_bars)
        several = f", {together} sources to a bar" if together > 1 else ""
        told += f"; bars: share of the row's largest{several}; {_ITSELF}: the position itself"
    say(console, told, "dim")


def _changes(console: Console, norms: BlockNorms, changes: dict[str, list[float]]) -> None:
    title = "Contextualization change (1 - Spearman of the maps before and after each step)"
    table = _table(console, title, ["layer", *_short(tuple(changes))])
    for row, layer in enumerate(norms.layers):
        values = [change[row] for change in changes.values()]
        table.add_row(str(layer), *("-" if math.isnan(value) else f"{value:.3f}" for value in values))
    _print(console, table)


def _pairs(console: Console, norms: BlockNorms, pairs: list[dict]) -> None:
    title = "Pairs that the feed-forward amplifies most (norms, without the diagonal)"
    names = ["layer", "into", "from", "before", "after", "difference"]
    table = _table(console, title, names, text=(1, 2))
    n = max((max(pair["query"], pair["key"]) for pair in pairs), default=0) + 1
    for pair in pairs:
        table.add_row(
            str(pair["layer"]),
            _placed(pair["query"], pair["query_token"], n),
            _placed(pair["key"], pair["key_token"], n),
            *(digits(pair[name], 4) for name in ("before", "after")),
            digits(pair["difference"], 4, "+"),
        )
    _print(console, table)


def _table(console: Console, title: str, columns: list[str], text: tuple[int, ...] = ()) -> Table:
    """An empty table under its title, which may be wider; columns of text are on the left, numbers on the right."""
    console.print()
    say(console, title, "bold")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, column in enumerate(columns):
        if number in text:
            table.add_column(Text(column), justify="left", no_wrap=True, max_width=24, overflow="ellipsis")
        else:
            table.add_column(Text(column), justify="right", no_wrap=True)
    return table


def _short(scopes: tuple[str, ...]) -> list[str]:
    """Headers for columns of scopes: the first in full, then what each adds to the one before ("+ff")."""
    shown = []
    for number, scope in enumerate(scopes):
        before = scopes[number - 1] if number else ""
        shown.append(f"+{scope[len(before) + 1 :]}" if before and scope.startswith(before + "_") else scope)
    return shown


def _error(error: float, tolerance: float = math.inf) -> str:
    if math.isnan(error):
        return "-"
    return f"{error:.1e}" if error <= tolerance else f"{error:.1e} !"
