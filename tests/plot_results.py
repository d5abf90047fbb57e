"""Results with numbers of our own, and what a plotly or matplotlib figure shows, in one form."""

import html
from types import SimpleNamespace

import numpy as np
import torch

import tl_norms
from tl_norms import cross
from tl_norms.results import HeadNorms, RunFacts, ScopeNorms

CHAIN = ("attn", "attn_res", "attn_res_ln", "attn_res_ln_ff", "attn_res_ln_ff_res")
TOKENS = ["<s>", " the", "$a$", "the", "the\n", "&amp;"]


def block_norms(
    n_texts: int | None = None,
    n: int = 6,
    *,
    causal: bool = False,
    mask=None,
    scopes=CHAIN,
    layers=(0, 2, 5),
    n_source=0,
) -> tl_norms.BlockNorms:
    """Random maps; without a batch axis unless `n_texts` is given. `n_source` keys behind the last three scopes."""
    torch.manual_seed(1)
    batch = () if n_texts is None else (n_texts,)
    maps = {}
    for number, scope in enumerate(scopes):
        wide = n + (n_source if number >= len(scopes) - 3 else 0)
        value = torch.rand(len(layers), *batch, n, wide)
        if causal:
            value[..., :n] = value[..., :n].tril()
        maps[scope] = value
    by_scope = {
        scope: ScopeNorms(value, torch.rand(len(layers), *batch, n), torch.zeros(len(layers)))
        for scope, value in maps.items()
    }
    heads = HeadNorms(
        value_norms=torch.rand(len(layers), *batch, 4, n),
        patterns=tuple(torch.rand(*batch, 4, n, n).softmax(-1) for _ in layers),
    )
    facts = RunFacts(layers, chain=scopes, causal=causal, mask=mask, boundary=n if n_source else None)
    return tl_norms.BlockNorms(by_scope, heads, facts)


def cross_norms(n_texts: int | None = None, mask=None, source_mask=None) -> cross.CrossNorms:
    """Three target positions, five source positions."""
    torch.manual_seed(2)
    batch = () if n_texts is None else (n_texts,)
    return cross.CrossNorms(
        layers=(1, 3),
        attention=torch.rand(2, *batch, 4, 3, 5).softmax(-1),
        norms=torch.rand(2, *batch, 3, 5),
        value_norms=torch.rand(2, *batch, 4, 5),
        error=torch.zeros(2),
        mask=mask,
        source_mask=source_mask,
    )


def panels(figure) -> list[SimpleNamespace]:
    """The maps of a figure as drawn: title, z [row column], rows and columns (labels, by place), scale."""
    return _of_plotly(figure) if hasattr(figure, "data") else _of_matplotlib(figure)


def _of_plotly(figure) -> list[SimpleNamespace]:
    titles = [note for note in figure.layout.annotations if note.xanchor == "center" and note.xref == "paper"]
    found = []
    for trace in figure.data:
        x, y = (figure.layout[name.replace("x", "xaxis").replace("y", "yaxis")] for name in (trace.xaxis, trace.yaxis))
        assert y.autorange == "reversed" and x.autorange is None  # the first query is at the top
        assert (x.type, y.type) == ("category", "category")
        assert list(x.categoryarray) == list(trace.x) and list(y.categoryarray) == list(trace.y)
        axis = figure.layout[trace.coloraxis]
        above = [note for note in titles if abs(note.x - sum(x.domain) / 2) < 1e-6 and 0 < note.y - y.domain[1] < 0.1]
        found.append(
            SimpleNamespace(
                title=above[0].text if above else "",
                z=np.asarray(trace.z, float),
                rows=list(trace.y),
                columns=list(trace.x),
                row_labels=list(map(html.unescape, y.ticktext)),
                column_labels=list(map(html.unescape, x.ticktext)),
                limits=(axis.cmin, axis.cmax),
                scale=trace.coloraxis,
                hover=trace.hovertemplate,
                names=(y.title.text, x.title.text),
            )
        )
    return found


def _of_matplotlib(figure) -> list[SimpleNamespace]:
    found = []
    for axis in figure.axes:
        if not axis.collections or axis.get_label() == "<colorbar>":
            continue
        (mesh,) = axis.collections
        assert axis.get_ylim()[0] > axis.get_ylim()[1] and axis.get_xlim()[0] < axis.get_xlim()[1]
        found.append(
            SimpleNamespace(
                title=axis.get_title(),
                z=np.ma.filled(mesh.get_array().astype(float), np.nan),
                row_labels=[label.get_text() for label in axis.get_yticklabels()],
                column_labels=[label.get_text() for label in axis.get_xticklabels()],
                limits=mesh.get_clim(),
                scale=mesh.get_clim(),
                names=(axis.get_ylabel(), axis.get_xlabel()),
            )
        )
    return found
