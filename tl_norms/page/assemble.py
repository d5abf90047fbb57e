"""One file out of page.html, page.css, the scripts and the data."""

import html
import json
import math
from functools import cache
from importlib.resources import files
from typing import Any

_SHARED = ("data.js", "colour.js", "pen.js", "map.js", "controls.js", "sentence.js", "download.js", "shell.js")
_OWN = {
    "norms": ("norms_numbers.js", "norms_stage.js", "norms.js"),
    "attribution": ("edges.js", "graph.js", "edge_list.js", "attribution_stage.js", "attribution.js"),
}


def assembled(data: dict[str, Any]) -> str:
    """The page that shows `data` with the scripts of its kind.

    The page makes no request and runs no code but its own: a content security policy says so to the browser.
    """
    parts = {
        "TITLE": html.escape(data["title"]),
        "STYLE": _source("page.css"),
        "DATA": embedded(data),
        "SCRIPT": "\n".join(_source(name) for name in (*_SHARED, *_OWN[data["kind"]])),
    }
    page = _source("page.html")
    before, *rest = page.split("{{")
    for piece in rest:  # one pass: what is put in is never searched for a place itself
        name, after = piece.split("}}", 1)
        before += parts[name] + after
    return before


def embedded(data: dict[str, Any]) -> str:
    """JSON that may stand inside a script element: it holds nothing that HTML could read as its end or as markup."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))  # ASCII only: emoji and U+2028 are escaped
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def finite(value: float) -> float | None:
    """A number as JSON can hold it, to six digits."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


@cache
def _source(name: str) -> str:
    return files("tl_norms.page").joinpath(name).read_text(encoding="utf-8")
