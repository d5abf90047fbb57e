"""The page of `--html`: one file with all maps, no network, opened from disk."""

import html
import json
import math
from importlib.resources import files
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import TLNormsError
from ..results import BlockNorms

DIGITS = 4  # significant digits kept: 12 layers of 64 tokens stay below 2 MB with all scopes


class OutputError(TLNormsError, OSError):
    """A file cannot be written."""


def write(
    path: str, norms: BlockNorms, tokens: list[str], facts: dict[str, Any], keys: list[str] | None = None
) -> None:
    """Write the page of `render`.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        Path(path).expanduser().write_text(render(norms, tokens, facts, keys), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path!r}: {error.strerror or error}") from error


def render(norms: BlockNorms, tokens: list[str], facts: dict[str, Any], keys: list[str] | None = None) -> str:
    """One self-contained HTML page: the map of every layer and scope of one text, and its mixing ratios.

    Args:
        norms: a result with a batch of one, or without a batch axis
        tokens: the tokens of the text, as long as the maps
        keys: the encoder's tokens, where the maps of a decoder have them behind its own; or both, one behind the other
        facts: "model", "text", "dtype" and "versions", as from `report.facts`

    Returns:
        The page. It makes no request and runs no code but its own. Numbers are kept to four significant digits.

    Raises:
        OutputError: as many tokens as positions are needed, and one text.

    Example:
        >>> render(norms, model.to_str_tokens(text), facts)                     # doctest: +SKIP
    """
    maps = {scope: _one_text(norms[scope], 3) for scope in norms.scopes}
    n = maps[norms.scopes[0]].shape[-2]
    widths = {scope: layers.shape[-1] for scope, layers in maps.items()}
    if len(tokens) != n:
        raise OutputError(f"the maps have {n} positions, but {len(tokens)} tokens were given: pass those of the text.")
    data = {
        "source": _source(tokens, keys, max(widths.values())),
        "widths": widths,
        "model": facts["model"],
        "text": facts["text"],
        "dtype": facts["dtype"],
        "versions": facts["versions"],
        "tokens": tokens,
        "layers": list(norms.layers),
        "scopes": list(norms.scopes),
        "causal": norms.causal,
        "maps": {scope: [_flat(layer, norms.causal) for layer in layers] for scope, layers in maps.items()},
        "ratios": {
            scope: [[_short(value) for value in row.tolist()] for row in _one_text(norms.mixing_ratio(scope), 2)]
            for scope in norms.scopes
        },
        "errors": {scope: [_short(value) for value in norms.error[scope].tolist()] for scope in norms.scopes},
    }
    template = files("tl_norms.cli").joinpath("page.html").read_text(encoding="utf-8")
    title = html.escape(f"{facts['model']}: norm-based attention maps")
    return template.replace("__TITLE__", title).replace("__DATA__", _embedded(data))


def _embedded(data: dict[str, Any]) -> str:
    """JSON that may stand inside a script element: it holds nothing that HTML could read as its end or as markup."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))  # ASCII only: emoji and U+2028 are escaped
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _one_text(value: Tensor, ndim: int) -> Tensor:
    """[layer query ...] without a batch axis."""
    if value.ndim == ndim:
        return value
    if value.shape[1] != 1:
        raise OutputError(f"a page shows one text, this result has {value.shape[1]}: run one text at a time.")
    return value[:, 0]


def _source(tokens: list[str], keys: list[str] | None, widest: int) -> list[str]:
    """The tokens of the keys behind the queries' own."""
    n, given = widest - len(tokens), [] if keys is None else list(keys)
    found = given[len(tokens) :] if len(given) == widest else given
    if n == 0:
        return []
    if len(found) != n:
        raise OutputError(
            f"behind cross-attention the maps have {n} keys of the encoder, but {len(found)} were given: pass keys=, "
            f"its tokens."
        )
    return found


def _flat(layer: Tensor, causal: bool) -> list[float | None]:
    """The pairs of one map, row by row; only key <= query, and the encoder's, if the model is causal."""
    rows = layer.tolist()
    n = len(rows)
    kept = [row[: query + 1] + row[n:] if causal else row for query, row in enumerate(rows)]
    return [_short(value) for row in kept for value in row]


def _short(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    short = float(f"{value:.{DIGITS}g}")
    return int(short) if short.is_integer() and abs(short) < 1e9 else short
