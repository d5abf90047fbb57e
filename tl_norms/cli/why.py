"""`--why`: where a logit, a difference of two, or the likeness to another sentence comes from."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from ..attribution import attribute, last_stream, top_target
from ..attribution_result import Attribution, Kind, Ranking
from ..held_run import attribution_hooks
from ..model_map import AttentionRule
from ..targets import Target, TargetError, direction, logit
from .load import TextError, brief, tokenize
from .tables import printable, say, trimmed

_BAR, _LEAST = 24, 6  # columns of the longest bar on either side
_WORD = 24  # columns of a token that bars make room for
_NO_TOKEN = "(no token: biases)"
_PARTS: tuple[tuple[str, Kind], ...] = (("heads", "heads"), ("edges", "edges"), ("feed-forwards", "ffn"))
_STRONGEST = 8


@dataclass(frozen=True)
class Why:
    """What was asked, and the answer."""

    text: str
    words: list[str]
    like: str | None
    attribution: Attribution


def explained(
    model: Any,
    text: str,
    *,
    name: str | None = None,
    token: str | None = None,
    against: str | None = None,
    at: int | None = None,
    like: str | None = None,
    attention: AttentionRule = "held",
    baseline: str | None = None,
    check: bool = True,
) -> Why:
    """The attribution of one text.

    Raises:
        TargetError: a token that the model does not have, or a model without a head and no `like`.
        TextError: the text has no tokens, or the model cannot be run on it.
    """
    at = -1 if at is None else at
    cache, words = _cache(model, text)
    if like is not None:
        target = _likeness(model, cache, like)
    elif token is None:
        target = _predicted(cache, at)
    else:
        target = logit(_read(token), at)
        target = target if against is None else target - logit(_read(against), at)
    reference = None if baseline is None else _read(baseline)
    rules: dict[str, Any] = {"attention": attention, "baseline": reference}
    found = attribute(cache, target, tokens=words, check=check, **rules)
    return Why(text, words, like, found if name is None else replace(found, model_name=name))


def _read(token: str) -> str | int:
    """A vocabulary id, where a number is given with #."""
    return int(token[1:]) if token.startswith("#") and token[1:].isdigit() else token


def _predicted(cache: Any, at: int) -> Target:
    try:
        return top_target(cache, at)
    except TargetError as error:
        if "has no head" in str(error):
            raise TargetError(
                "this model has no head, so it predicts no token. Its targets are directions of its last layer: "
                'tl-norms --why --like "another sentence" explains the cosine to that sentence\'s embedding; in '
                "Python, tl_norms.direction(vector, at=...)."
            ) from error
        raise


def _likeness(model: Any, cache: Any, like: str) -> Target:
    """<mean of this text's vectors, the other's>, both at length one: this text's own length is held."""
    other, _ = _cache(model, like)
    mine, theirs = (_pooled(one) for one in (cache, other))
    n = last_stream(cache).shape[1]
    scaled = theirs / (mine.norm() * theirs.norm())
    return direction(scaled, at=torch.full((n,), 1 / n)).named(f"cosine to {like!r}")


def _pooled(cache: Any) -> Tensor:
    return last_stream(cache)[0].mean(0)


def _cache(model: Any, text: str) -> tuple[Any, list[str]]:
    """A cache of what an attribution needs, and the tokens as strings: the tokens that `run_with_cache(text)` reads."""
    tokens, words = tokenize(model, text)
    hooks = attribution_hooks(model)
    try:
        with torch.no_grad():
            _, cache = model.run_with_cache(tokens.to(next(model.parameters()).device), names_filter=hooks)
    except Exception as error:  # the model's own code
        raise TextError(f"the model could not be run on this text: {type(error).__name__}: {brief(error)}") from error
    return cache, words


def numbers(why: Why, k: int = _STRONGEST) -> dict[str, Any]:
    """Everything as plain Python values, for `--json`."""
    found = why.attribution
    return {
        "model": found.model_name,
        "text": why.text,
        "target": found.target_name,
        "value": float(found.value[0]),
        "tokens": [
            {"position": j, "token": word, "value": float(found.tokens[0, j])} for j, word in enumerate(why.words)
        ],
        "offset": float(found.offset[0, 0]),
        "stream": found.stream[:, 0].tolist(),
        "heads": found.heads[:, 0].tolist(),
        "edges": [dict(zip(("head", "query", "key", "value"), row, strict=True)) for row in found.top(k)],
        "feed_forwards": [dict(zip(("layer", "token", "value"), row, strict=True)) for row in found.top(k, "ffn")],
        "unattended_layers": {str(layer): size for layer, size in found.unattended.items()},
        "error": [float(error) for error in found.error],
    }


def show(why: Why, console: Console | None = None, k: int = _STRONGEST) -> None:
    """The value, a signed bar per token, the strongest heads, edges and feed-forwards, and the error."""
    console = console or Console(highlight=False)
    found = why.attribution
    say(console, f"{found.target_name} = {float(found.value[0]):+.4f} ({found.model_name})")
    trimmed(console, _bars(why, console.width))
    for title, kind in _PARTS:
        console.print()
        trimmed(console, _table(f"strongest {title}", found.top(k, kind)))
    console.print()
    if found.unattended:
        layers = ", ".join(f"{layer} ({size:.0%} of the stream)" for layer, size in found.unattended.items())
        console.print(Text(f"layers without attention, whose writing is in the offset: {layers}"))
    say(
        console,
        f"completeness: every cut adds up to the value within {float(found.error.max()):.1e} of its largest part",
    )


def _bars(why: Why, width: int) -> Table:
    """A bar per token, left or right of the middle, as wide as the terminal lets them be: numbers are never cut."""
    values = [float(value) for value in why.attribution.tokens[0]]
    rows = [*zip(why.words, values, strict=True), (_NO_TOKEN, float(why.attribution.offset[0, 0]))]
    longest = max((abs(value) for _, value in rows), default=0) or 1
    words = [printable(word) for word, _ in rows]
    numbers = [f"{value:+.4f}" for _, value in rows]
    room = width - max(map(len, numbers)) - 3 * 2  # three gaps of two columns
    bar_width = min(_BAR, max(_LEAST, (room - min(_WORD, max(map(cell_len, words)))) // 2))
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(justify="right", no_wrap=True, max_width=max(4, room - 2 * bar_width))
    table.add_column(justify="right", no_wrap=True, min_width=max(map(len, numbers)))
    table.add_column(justify="right", width=bar_width)
    table.add_column(justify="left", width=bar_width)
    for word, number, (_, value) in zip(words, numbers, rows, strict=True):
        bar = "█" * round(abs(value) / longest * bar_width)
        left, right = (Text(bar, style="red"), Text("")) if value < 0 else (Text(""), Text(bar, style="green"))
        table.add_row(Text(word), number, left, right)
    return table


def _table(title: str, ranking: Ranking) -> Table:
    table = Table(title=title, box=None, title_justify="left", pad_edge=False, min_width=len(title))
    for column in ranking.columns:
        table.add_column(column, justify="right" if column == "value" else "left")
    for row in ranking:
        table.add_row(*(f"{cell:+.4f}" if isinstance(cell, float) else Text(printable(str(cell))) for cell in row))
    return table
