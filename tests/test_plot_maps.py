"""Pictures of maps: the numbers, places, labels and scales that a figure really holds, in both libraries."""

import html
import re
import sys
from dataclasses import replace

import numpy as np
import plot_results
import pytest
import torch
from plot_results import TOKENS, block_norms, cross_norms, panels

import tl_norms
from tl_norms import metrics, plot

BACKENDS = ["plotly", "matplotlib"]
both = pytest.mark.parametrize("backend", BACKENDS)
LABELS = ["<s>", "·the", "$a$", "the", "the\\n", "&amp;"]


def same(found: np.ndarray, expected: torch.Tensor) -> None:
    np.testing.assert_array_equal(found, expected.double().numpy())


@both
def test_a_panel_per_layer_with_the_numbers_of_the_map(backend):
    norms = block_norms()
    drawn = panels(plot.layer_maps(norms, TOKENS, "attn_res", backend=backend))
    assert [panel.title for panel in drawn] == ["layer 0", "layer 2", "layer 5"]
    for number, panel in enumerate(drawn):
        same(panel.z, norms["attn_res"][number])
        assert panel.limits == (0, pytest.approx(float(norms["attn_res"].max())))
    assert len({panel.scale for panel in drawn}) == 1
    assert drawn[0].names == ("position (query)", "source token (key)")
    assert drawn[0].row_labels == drawn[0].column_labels == LABELS
    assert drawn[1].row_labels == []  # the panel beside it has them


def test_plotly_says_tokens_positions_and_value():
    figure = plot.layer_maps(block_norms(), TOKENS, "attn_res", layers=2)
    (panel,) = panels(figure)
    names = [html.unescape(name) for name in panel.rows]
    assert names == ["0 <s>", "1 ·the", "2 $a$", "3 the", "4 the\\n", "5 &amp;"] and panel.columns == panel.rows
    ticks = figure.layout.yaxis.ticktext
    assert not any("<" in text or "$" in text for text in (*panel.rows, *ticks))  # nothing that plotly would interpret
    assert panel.hover == "query %{y}<br>key %{x}<br>%{z:.4g}<extra>layer 2</extra>"


@both
def test_a_scale_of_its_own_for_each_panel(backend):
    norms = block_norms()
    drawn = panels(plot.layer_maps(norms, TOKENS, scale="panel", backend=backend))
    for panel, value in zip(drawn, norms[plot_results.CHAIN[-1]], strict=True):  # the last scope if none is named
        same(panel.z, value)
        assert panel.limits == (0, pytest.approx(float(value.max())))
    assert len({panel.scale for panel in drawn}) == 3


@both
def test_later_keys_of_a_causal_model_are_blank_and_so_is_the_diagonal_if_asked_for(backend):
    norms = block_norms(causal=True)
    (panel,) = panels(plot.layer_maps(norms, TOKENS, "attn", layers=0, backend=backend))
    upper = np.triu(np.ones((6, 6), bool), 1)
    assert (np.isnan(panel.z) == upper).all()
    np.testing.assert_array_equal(panel.z[~upper], norms["attn"][0].double().numpy()[~upper])
    (panel,) = panels(plot.layer_maps(norms, TOKENS, "attn", layers=0, diagonal=False, backend=backend))
    assert (np.isnan(panel.z) == (upper | np.eye(6, dtype=bool))).all()
    assert panel.limits[1] == pytest.approx(float(norms["attn"][0].tril(-1).max()))


@both
def test_padding_is_not_drawn_and_tokens_may_come_without_it(backend):
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]]).bool()
    norms = block_norms(2, mask=mask)
    padded = ["[PAD]", "[PAD]", *TOKENS[2:]]
    for tokens in (padded, padded[2:], [padded, TOKENS]):
        figure = plot.layer_maps(norms, tokens, "attn", layers=5, batch=0, backend=backend)
        (panel,) = panels(figure)
        same(panel.z, norms["attn"][2, 0, 2:, 2:])
        assert panel.row_labels == LABELS[2:]
        if backend == "plotly":
            assert html.unescape(panel.rows[0]) == "2 $a$"  # positions are those of the cache
    (panel,) = panels(plot.layer_maps(norms, [padded, TOKENS], "attn", layers=5, batch=-1, backend=backend))
    same(panel.z, norms["attn"][2, 1])


@both
def test_weights_stand_beside_norms(backend):
    norms = block_norms(1)
    drawn = panels(plot.weight_and_norm(norms, TOKENS, ["attn", "attn_res_ln"], layers=[2, 5], backend=backend))
    titles = [panel.title.replace("<br>", "\n").split("\n")[:2] for panel in drawn]
    assert titles[:3] == [["layer 2", name] for name in ("Attn-W", "attn", "attn_res_ln")]  # three: names alone
    two = panels(plot.weight_and_norm(norms, TOKENS, "attn_res_ln", layers=[2, 5], backend=backend))
    titles = [panel.title.replace("<br>", "\n").split("\n")[0] for panel in two]
    assert titles[:2] == ["layer 2 · Attention weights (Attn-W)", "layer 2 · norms, attn_res_ln"]
    for row, layer in enumerate((1, 2)):
        for panel, name in zip(drawn[3 * row :], ("Attn-W", "attn", "attn_res_ln"), strict=False):
            same(panel.z, norms[name][layer, 0])
            assert panel.limits == (0, pytest.approx(float(norms[name][layer, 0].max())))
    common = panels(plot.weight_and_norm(norms, TOKENS, layers=[2, 5], scale="shared", backend=backend))
    assert common[0].limits == common[2].limits == (0, pytest.approx(float(norms["Attn-W"][1:].max())))
    assert common[1].limits == common[3].limits == (0, pytest.approx(float(norms["attn"][1:].max())))


@both
def test_one_head_by_weight_and_by_norm(backend):
    norms = block_norms()
    weight, norm = panels(plot.weight_and_norm(norms, TOKENS, layers=2, head=3, backend=backend))
    same(weight.z, norms.patterns[1][3])
    same(norm.z, norms.head_norms[1, 3])
    assert "H3" in weight.title and "H3" in norm.title


@both
def test_heads_are_labelled_by_layer_and_head(backend):
    norms = block_norms(2)
    drawn = panels(plot.head_maps(norms, TOKENS, layers=[0, 5], heads=[1, 3], batch=1, backend=backend))
    assert [panel.title for panel in drawn] == ["L0H1", "L0H3", "L5H1", "L5H3"]
    for panel, (layer, head) in zip(drawn, [(0, 1), (0, 3), (2, 1), (2, 3)], strict=True):
        same(panel.z, norms.head_norms[layer, 1, head])
    weights = panels(plot.head_maps(norms, TOKENS, layers=5, weights=True, batch=1, backend=backend))
    assert [panel.title for panel in weights] == ["L5H0", "L5H1", "L5H2", "L5H3"]
    same(weights[2].z, norms.patterns[2][1, 2])


@both
@pytest.mark.parametrize("normalize", [None, "row", "map"])
def test_before_after_and_difference_of_the_feed_forward(backend, normalize):
    norms = block_norms(2, causal=True)
    expected = metrics.ff_amplification(norms, normalize=normalize)
    for result in (norms, expected):
        options = {"normalize": normalize} if result is norms else {}
        drawn = panels(plot.feed_forward(result, TOKENS, layers=[0, 5], batch=1, backend=backend, **options))
        assert len(drawn) == 6
        kept = np.tril(np.ones((6, 6), bool))
        for row, layer in enumerate((0, 2)):
            before, after, change = drawn[3 * row : 3 * row + 3]
            maps = (expected.before, expected.after, expected.difference)
            for panel, value in zip((before, after, change), maps, strict=True):
                np.testing.assert_array_equal(panel.z[kept], value[layer, 1].double().numpy()[kept])
                assert np.isnan(panel.z[~kept]).all()
            largest = max(float(expected.before[layer, 1].max()), float(expected.after[layer, 1].max()))
            assert before.limits == after.limits == (0, pytest.approx(largest))
            limit = pytest.approx(float(expected.difference[layer, 1].abs().max()))
            assert (-change.limits[0], change.limits[1]) == (limit, limit)
    common = panels(plot.feed_forward(norms, TOKENS, batch=1, scale="shared", backend=backend))
    assert len({panel.limits for panel in common}) == 2


@both
def test_keys_of_the_source_follow_those_of_the_target(backend):
    norms = block_norms(n_source=3, causal=True)
    source = ["das", "the", "</s>"]
    for keys in (source, TOKENS + source):
        figure = plot.layer_maps(norms, TOKENS, "attn_res_ln_ff", layers=0, keys=keys, backend=backend)
        (panel,) = panels(figure)
        kept = np.concatenate([np.tril(np.ones((6, 6), bool)), np.ones((6, 3), bool)], 1)
        assert (np.isfinite(panel.z) == kept).all()
        np.testing.assert_array_equal(panel.z[:, 6:], norms["attn_res_ln_ff"][0, :, 6:].double().numpy())
        assert panel.column_labels == [*LABELS, *source]
        assert panel.row_labels == LABELS
    if backend == "plotly":
        assert html.unescape(panel.columns[7]) == "7 (source 1) the"
        (line,) = [shape for shape in figure.layout.shapes if shape.type == "line"]
        assert (line.x0, line.x1) == (5.5, 5.5)
    drawn = panels(plot.feed_forward(norms, TOKENS, layers=0, keys=source, backend=backend))
    np.testing.assert_array_equal(drawn[1].z[:, 6:], norms["attn_res_ln_ff"][0, :, 6:].double().numpy())
    square = panels(plot.layer_maps(norms, TOKENS, "attn", layers=0, backend=backend))[0]  # before it: no source
    assert square.z.shape == (6, 6)
    kept = replace(norms, facts=replace(norms.facts, token_strings=(tuple(TOKENS),), source_strings=(tuple(source),)))
    for figure in (
        plot.layer_maps(kept, scope="attn_res_ln_ff", layers=0, backend=backend),
        plot.feed_forward(kept, layers=0, backend=backend),
    ):
        assert panels(figure)[0].column_labels == [*LABELS, *source]  # a result that keeps its tokens needs none


@both
def test_cross_attention_has_the_source_below_and_the_target_at_the_side(backend):
    source_mask, mask = torch.tensor([[1, 1, 1, 1, 0]] * 2), torch.tensor([[1, 1, 0], [1, 1, 1]])
    found = cross_norms(2, mask, source_mask)
    (panel,) = panels(plot.layer_maps(found, ["x", "y"], layers=3, batch=0, keys=list("abcd"), backend=backend))
    same(panel.z, found.norms[1, 0, :2, :4])
    assert panel.row_labels == ["x", "y"] and panel.column_labels == list("abcd")
    weight, norm = panels(plot.weight_and_norm(found, list("xyz"), layers=3, batch=1, keys=list("abcd"),
                                               backend=backend))  # fmt: skip
    same(weight.z, found.attention.mean(-3)[1, 1, :, :4])
    same(norm.z, found.norms[1, 1, :, :4])
    heads = panels(plot.head_maps(found, list("xyz"), layers=1, heads=2, batch=1, keys=list("abcd"), backend=backend))
    same(heads[0].z, found.head_norms[0, 1, 2, :, :4])


@both
def test_long_texts_get_fewer_labels_and_all_cells(backend):
    n = 150
    norms = block_norms(n=n, scopes=("attn",))
    (panel,) = panels(plot.layer_maps(norms, ["same"] * n, layers=0, backend=backend))
    same(panel.z, norms["attn"][0])
    assert 5 <= len(panel.row_labels) < n / 2 and len(panel.column_labels) < n / 2
    if backend == "plotly":
        assert len(set(panel.columns)) == n


def test_panels_zoom_together():
    figure = plot.layer_maps(block_norms(), TOKENS, "attn")
    assert (figure.layout.xaxis.matches, figure.layout.xaxis2.matches, figure.layout.xaxis3.matches) == (None, "x", "x")
    assert (figure.layout.yaxis.matches, figure.layout.yaxis3.matches) == (None, "y")


@both
def test_a_map_of_nothing_has_a_scale(backend):
    norms = block_norms(scopes=("attn",))
    norms["attn"].zero_()
    assert {panel.limits for panel in panels(plot.layer_maps(norms, TOKENS, backend=backend))} == {(0, 1)}


def test_half_precision():
    norms = block_norms(scopes=("attn",))
    norms.maps["attn"] = norms.maps["attn"].bfloat16()
    same(panels(plot.layer_maps(norms, TOKENS, layers=0))[0].z, norms["attn"][0])


def test_a_figure_can_be_restyled():
    figure = plot.layer_maps(block_norms(), TOKENS).update_layout(template="plotly_dark", width=321)
    figure.update_coloraxes(colorscale="Cividis")
    assert figure.layout.width == 321 and figure.layout.coloraxis.colorscale[0][1] == "#00224e"
    printed = plot.layer_maps(block_norms(), TOKENS, backend="matplotlib")
    printed.axes[0].set_title("mine")
    assert printed.axes[0].get_title() == "mine"


def test_pdf_has_text_as_text_and_cells_as_vectors(tmp_path):
    figure = plot.layer_maps(block_norms(), TOKENS, "attn", backend="matplotlib")
    figure.savefig(tmp_path / "maps.pdf", metadata={"CreationDate": None})
    data = (tmp_path / "maps.pdf").read_bytes()
    assert b"/Type /Font" in data and b"/Subtype /Type3" not in data and b"/FontFile2" in data  # TrueType, embedded
    assert b"/Subtype /Image" not in data or len(re.findall(rb"/Subtype /Image", data)) <= 1  # the colour bar's ramp
    import matplotlib

    assert matplotlib.rcParams["pdf.fonttype"] == matplotlib.rcParamsDefault["pdf.fonttype"]  # nobody else's setting
    long = plot.layer_maps(block_norms(n=150, scopes=("attn",)), ["x"] * 150, layers=0, backend="matplotlib")
    assert all(mesh.get_rasterized() for mesh in long.axes[0].collections)
    assert not any(mesh.get_rasterized() for mesh in figure.axes[0].collections)


def test_pyplot_keeps_no_figure():
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    plot.layer_maps(block_norms(), TOKENS, backend="matplotlib")
    assert pyplot.get_fignums() == before


BAD = {
    "this result has 2 texts: say which one, batch=0 to batch=1": dict(result=block_norms(2)),
    "there is no text 2: this result has 2": dict(result=block_norms(2), batch=2),
    "this result has no batch axis": dict(batch=1),
    "6 positions, tokens has 4: pass model.to_str_tokens": dict(tokens=TOKENS[:4]),
    "6 positions, 4 of them real, tokens has 5": dict(
        result=block_norms(1, mask=torch.tensor([[1, 1, 1, 1, 0, 0]])), tokens=TOKENS[:5]
    ),
    "tokens are strings, found int": dict(tokens=[1, 2, 3, 4, 5, 6]),
    "tokens holds 2 texts, and text 2 is not among them": dict(result=block_norms(3), tokens=[TOKENS] * 2, batch=2),
    "layer 1 is not in this result; it has 0, 2, 5": dict(layers=1),
    "layers is empty": dict(layers=[]),
    "unknown scope 'attn_ff'": dict(scope="attn_ff"),
    "scale is 'rows': expected 'shared' (one for all panels)": dict(scale="rows"),
    "width is 100 pixels: expected at least": dict(width=100),
    "cmap is 'nothing': expected the name of a colour map": dict(cmap="nothing"),
    "cmap is ['red', 'blue']: expected two or more colours as '#rrggbb'": dict(cmap=["red", "blue"]),
    "expected tokens, those of the text": dict(tokens=None),
    "columns is 0": dict(columns=0),
    "backend is 'bokeh': expected 'plotly'": dict(backend="bokeh"),
    "expected a BlockNorms or CrossNorms, another result with maps, or a tensor": dict(result={}),
    "this map has 9 keys for 6 queries: pass keys=": dict(result=block_norms(n_source=3)),
    "3 positions, keys has 2": dict(result=block_norms(n_source=3), keys=["a", "b"]),
}


@pytest.mark.parametrize("message", BAD)
def test_what_does_not_fit_is_said(message):
    options = dict(BAD[message])
    result, tokens = options.pop("result", block_norms()), options.pop("tokens", TOKENS)
    with pytest.raises(tl_norms.TLNormsError, match=re.escape(message)):
        plot.layer_maps(result, tokens, **options)


def test_heads_and_options_that_do_not_fit():
    norms = block_norms()
    with pytest.raises(plot.PlotInputError, match="heads is 4: expected numbers from 0 to 3"):
        plot.head_maps(norms, TOKENS, heads=4)
    with pytest.raises(plot.PlotInputError, match="pass scopes= or head=, not both"):
        plot.weight_and_norm(norms, TOKENS, ["attn"], head=1)
    with pytest.raises(plot.PlotInputError, match="expected a BlockNorms of ffn_maps"):
        plot.feed_forward({}, TOKENS)
    with pytest.raises(plot.PlotInputError, match="made with normalize=None"):
        plot.feed_forward(metrics.ff_amplification(norms), TOKENS, normalize="row")
    with pytest.raises(tl_norms.UnknownScopeError, match="'cross' and 'Attn-W'"):
        plot.layer_maps(cross_norms(), list("xyz"), "attn", keys=list("abcde"))


@pytest.mark.parametrize("library", BACKENDS)
def test_a_missing_library_is_named_with_its_extra(monkeypatch, library):
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(tl_norms.MissingExtraError, match=rf"needs {library}: pip install 'tl_norms\[plot\]'"):
        plot.layer_maps(block_norms(), TOKENS, backend=library)
