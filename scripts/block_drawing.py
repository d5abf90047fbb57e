"""The drawings of a block: where each scope ends, and which hook of TransformerLens holds that activation.

    python scripts/block_drawing.py          writes docs/images/block_post_norm.svg and block_pre_norm.svg

The names are data, below; tests/test_block_drawing.py compares them with what the package reads off running models.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

IMAGES = Path(__file__).parents[1] / "docs" / "images"


@dataclass(frozen=True)
class Point:
    """A place in the block. Hooks are written without "blocks.{layer}."; "a - b" is a difference of two."""

    bridge: str
    hooked: str
    scope: str = ""
    papers: str = ""
    aliases: tuple[str, ...] = ()  # further names on the bridge
    note: str = ""


@dataclass(frozen=True)
class Box:
    """A step; `adds` is the number of the point that a residual connection adds."""

    label: str
    module: str = ""
    aside: tuple[str, ...] = ()
    adds: int | None = None
    bridge: tuple[str, ...] = ()
    hooked: tuple[str, ...] = ()


_ATTENTION = Box(
    "attention",
    "attn",
    ("f(x) = (x W_V + b_V) W_O", "weighted by α; it reads"),
    bridge=("attn.v.hook_out", "attn.hook_pattern"),
    hooked=("attn.hook_v", "attn.hook_pattern"),
)
_INPUT = Point("hook_in", "hook_resid_pre", aliases=("hook_resid_pre",), note="block input x")
_ATTN = Point("attn.o.hook_out", "hook_attn_out", "attn", "Attn-N")

POST_NORM = (
    _INPUT,
    _ATTENTION,
    _ATTN,
    Box("+", adds=0),
    Point("ln1.hook_in", "hook_resid_mid", "attn_res", "AttnRes-N"),
    Box("layer norm", "ln1"),
    Point("ln1.hook_out", "hook_resid_post - hook_mlp_out", "attn_res_ln", "AttnResLn-N, ATB"),
    Box("feed-forward", "mlp"),
    Point("mlp.out.hook_out", "hook_mlp_out", "attn_res_ln_ff", "ATBFF", ("hook_mlp_out",)),
    Box("+", adds=3),
    Point("ln2.hook_in", "hook_resid_post", "attn_res_ln_ff_res", "ATBFFRES", ("hook_resid_mid",)),
    Box("layer norm", "ln2"),
    Point("ln2.hook_out", "hook_normalized_resid_post", "attn_res_ln_ff_res_ln", "ATBFFRESLN"),
)
PRE_NORM = (
    _INPUT,
    Box("layer norm", "ln1", aside=("of each source by itself:", "part of attn")),
    _ATTENTION,
    _ATTN,
    Box("+", adds=0),
    Point("ln2.hook_in", "hook_resid_mid", "attn_res", "AttnRes-N, ATB", ("hook_resid_mid",)),
    Box("layer norm", "ln2"),
    Point("ln2.hook_out", "mlp.hook_pre", "attn_res_ln", "ATBLN", note="what W_in makes of it"),
    Box("feed-forward", "mlp"),
    Point("mlp.out.hook_out", "hook_mlp_out", "attn_res_ln_ff", "ATBLNFF"),
    Box("+", adds=2),
    Point("hook_out", "hook_resid_post", "attn_res_ln_ff_res", "ATBLNFFRES", ("hook_resid_post",)),
)

# Own colours on an own background: the same picture in a light and in a dark page, whatever switched it.
_STYLE = """
text { font: 14px system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; fill: #1f2430 }
.mono { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace }
.small { font-size: 12px } .muted { fill: #5b6474 } .head { font-weight: 600 }
.title { font-size: 17px; font-weight: 600 }
.paper { fill: #fbfbfd; stroke: #d5d9e2 } .row { fill: #eef1f8 }
.box { fill: #dfe6fb; stroke: #5a6fc0; stroke-width: 1.3 } .norm { fill: #f6e7cd; stroke: #b3832b }
.ff { fill: #dcefe0; stroke: #4b9560 } .add { fill: #fff; stroke: #1f2430; stroke-width: 1.3 }
.flow { stroke: #1f2430; stroke-width: 1.6; fill: none } .res { stroke: #b4442f; stroke-width: 1.8; fill: none }
.dot { fill: #1f2430 } .pill { fill: #313f86 } .scope { fill: #fff }
.lead { stroke: #9aa3b5; stroke-dasharray: 2 3 }
"""
_TRUNK, _LANE, _SCOPE, _BRIDGE, _HOOKED, _WIDTH = 150, 34, 262, 462, 640, 906
_POINT_HEIGHT, _BOX_HEIGHT, _TOP = 46, 46, 92


def drawing(title: str, hooked: str, chain: tuple[Point | Box, ...]) -> str:
    """One block as SVG."""
    height = _TOP + sum(_POINT_HEIGHT if isinstance(part, Point) else _BOX_HEIGHT + 14 for part in chain) + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{title}">',
        f"<style>{_STYLE}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="context-stroke"/></marker></defs>',
        f'<rect class="paper" x="1" y="1" width="{_WIDTH - 2}" height="{height - 2}" rx="8"/>',
        _text(20, 32, title, "title"),
        _text(_BRIDGE, 32, "hook names, all behind blocks.{layer}.", "small muted"),
        _text(_SCOPE, 68, "scope", "head") + _text(_SCOPE + 52, 68, "name in the papers", "small muted"),
        _text(_BRIDGE, 68, "TransformerBridge", "head"),
        _text(_HOOKED, 68, hooked, "head"),
        *_parts(chain),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _parts(chain: tuple[Point | Box, ...]) -> Iterator[str]:
    y, places, before = _TOP, [], None
    for part in chain:
        middle = y + (_POINT_HEIGHT if isinstance(part, Point) else _BOX_HEIGHT + 14) / 2
        if isinstance(part, Point):
            yield from _point(part, middle)
            places.append(middle)
            top = bottom = middle
        else:
            half = 13 if part.adds is not None else _BOX_HEIGHT / 2
            top, bottom = middle - half, middle + half
            yield from _box(part, middle)
            if part.adds is not None:
                start = places[part.adds]
                yield (
                    f'<path class="res" marker-end="url(#tip)" d="M{_TRUNK} {start} H{_LANE + 8} Q{_LANE} {start} '
                    f'{_LANE} {start + 8} V{middle - 8} Q{_LANE} {middle} {_LANE + 8} {middle} H{_TRUNK - 14}"/>'
                )
        if before is not None:
            tip = "" if isinstance(part, Point) else ' marker-end="url(#tip)"'
            yield f'<path class="flow"{tip} d="M{_TRUNK} {before} V{top}"/>'
        before = bottom
        y += _POINT_HEIGHT if isinstance(part, Point) else _BOX_HEIGHT + 14


def _point(point: Point, y: float) -> Iterator[str]:
    yield f'<rect class="row" x="{_SCOPE - 14}" y="{y - 20}" width="{_WIDTH - _SCOPE}" height="40" rx="5"/>'
    yield f'<path class="lead" d="M{_TRUNK} {y} H{_SCOPE - 14}"/>'
    yield f'<circle class="dot" cx="{_TRUNK}" cy="{y}" r="4.5"/>'
    if point.scope:
        width = 7.9 * len(point.scope) + 14
        yield f'<rect class="pill" x="{_SCOPE - 6}" y="{y - 17}" width="{width:.0f}" height="19" rx="9"/>'
        yield _text(_SCOPE + 1, y - 3, point.scope, "mono scope")
        yield _text(_SCOPE + 1, y + 15, point.papers, "small muted")
    else:
        yield _text(_SCOPE, y + 5, point.note)
    if point.aliases:
        yield _text(_BRIDGE, y - 3, point.bridge, "mono")
        yield _text(_BRIDGE, y + 14, "= " + ", ".join(point.aliases), "mono small muted")
    else:
        yield _text(_BRIDGE, y + 5, point.bridge, "mono")
    if point.scope and point.note:
        yield _text(_HOOKED, y - 3, point.hooked, "mono")
        yield _text(_HOOKED, y + 14, point.note, "small muted")
    else:
        yield _text(_HOOKED, y + 5, point.hooked.replace(" - ", " − "), "mono")


def _box(box: Box, y: float) -> Iterator[str]:
    if box.adds is not None:
        yield f'<circle class="add" cx="{_TRUNK}" cy="{y}" r="13"/>'
        yield f'<path class="flow" d="M{_TRUNK - 7} {y} h14 M{_TRUNK} {y - 7} v14"/>'
        yield _text(_TRUNK + 22, y + 5, "residual connection", "small muted")
        return
    kind = {"layer norm": "box norm", "feed-forward": "box ff"}.get(box.label, "box")
    yield f'<rect class="{kind}" x="{_TRUNK - 62}" y="{y - 23}" width="124" height="46" rx="7"/>'
    yield _text(_TRUNK, y - 2, box.label, "head", "middle")
    yield _text(_TRUNK, y + 15, box.module, "mono small muted", "middle")
    for x, names in ((_BRIDGE, box.bridge), (_HOOKED, box.hooked)):
        for number, name in enumerate(names):
            yield _text(x, y - 3 + 17 * number, name, "mono small muted")
    for number, line in enumerate(box.aside):
        yield _text(_TRUNK + 74, y - 3 + 17 * number, line, "small muted")


def _text(x: float, y: float, text: str, style: str = "", anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" class="{style}" text-anchor="{anchor}">{escape(text)}</text>'


if __name__ == "__main__":
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name, title, hooked, chain in (
        ("block_post_norm.svg", "Post-LN block (BERT, RoBERTa)", "HookedEncoder", POST_NORM),
        ("block_pre_norm.svg", "Pre-LN block (GPT-2, Llama, Mistral, Qwen)", "HookedTransformer", PRE_NORM),
    ):
        (IMAGES / name).write_text(drawing(title, hooked, chain), encoding="utf-8")
