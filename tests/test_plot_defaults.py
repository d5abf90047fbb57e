"""Defaults of figures: what is left out, which colours, which results, which words."""

import socket
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from plot_results import CHAIN, TOKENS, block_norms, panels

from tl_norms import TokenNorms, metrics, plot
from tl_norms.plot import layout, picture, words

both = pytest.mark.parametrize("backend", ["plotly", "matplotlib"])


def heading(figure) -> str:
    if hasattr(figure, "data"):
        return "\n".join(note.text for note in figure.layout.annotations if note.xanchor == "left")
    return "\n".join(text.get_text() for text in figure.texts)


def with_diagonal(size: float, **options):
    """Norms whose diagonal is so many times as large as the rest is at most."""
    norms = block_norms(scopes=("attn", "attn_res"), **options)
    norms["attn_res"].diagonal(dim1=-2, dim2=-1).fill_(size)
    return norms


@both
@pytest.mark.parametrize("causal", [True, False])
def test_a_diagonal_that_drowns_the_rest_is_left_out_and_the_title_says_so(backend, causal):
    norms = with_diagonal(250.0, causal=causal)
    figure = plot.layer_maps(norms, TOKENS, "attn_res", backend=backend)
    for panel, value in zip(panels(figure), norms["attn_res"], strict=True):
        off = value.clone().fill_diagonal_(0)
        assert np.isnan(np.diag(panel.z)).all() and panel.limits[1] <= 1
        kept = np.isfinite(panel.z)
        np.testing.assert_array_equal(panel.z[kept], off.double().numpy()[kept])
    assert "without the diagonal" in heading(figure) and "up to 250" in heading(figure)
    kept = plot.layer_maps(norms, TOKENS, "attn_res", diagonal=True, backend=backend)
    assert panels(kept)[0].limits[1] == 250 and "diagonal" not in heading(kept)
    small = plot.layer_maps(with_diagonal(1.5, causal=causal), TOKENS, "attn_res", backend=backend)
    assert np.isfinite(np.diag(panels(small)[0].z)).all() and "diagonal" not in heading(small)


@both
def test_one_vector_of_position_0_is_enough_to_drown_a_causal_map(backend):
    norms = block_norms(scopes=("attn_res",), causal=True)
    norms["attn_res"][:, 0, 0] = 25_000  # its row holds nothing else
    drawn = panels(plot.layer_maps(norms, TOKENS, backend=backend))
    assert all(panel.limits[1] <= 1 for panel in drawn)


@both
def test_panels_far_apart_get_scales_of_their_own_and_close_ones_share(backend):
    norms = block_norms(scopes=("attn",), layers=tuple(range(6)))
    assert len({panel.limits for panel in panels(plot.layer_maps(norms, TOKENS, backend=backend))}) == 1
    norms["attn"].mul_(torch.tensor([1.0, 2, 4, 8, 16, 32]).reshape(-1, 1, 1))
    figure = plot.layer_maps(norms, TOKENS, backend=backend)
    for panel, value in zip(panels(figure), norms["attn"], strict=True):
        assert panel.limits == (0, pytest.approx(float(value.max())))
        assert f"(to {float(value.max()):.3g})" in panel.title  # more panels than colour bars can be read
    assert "the number in its title" in heading(figure)


@both
def test_rows_by_themselves(backend):
    norms = block_norms(causal=True)
    (panel,) = panels(plot.layer_maps(norms, TOKENS, "attn", layers=2, scale="row", backend=backend))
    value = norms["attn"][1]
    expected = (value / value.max(-1, keepdim=True).values).double().numpy()
    kept = np.isfinite(panel.z)
    np.testing.assert_allclose(panel.z[kept], expected[kept], rtol=1e-6)
    assert panel.limits == (0, 1)
    if backend == "plotly":
        trace = plot.layer_maps(norms, TOKENS, "attn", layers=2, scale="row").data[0]
        told = np.asarray(trace.customdata)[kept]  # hover shows the numbers themselves
        np.testing.assert_allclose(told, value.double().numpy()[kept], rtol=1e-6)
        assert "%{customdata" in trace.hovertemplate


@both
def test_numbers_with_a_sign_have_zero_in_the_middle(backend):
    value = torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(0))
    for panel in panels(plot.layer_maps(value, TOKENS, diagonal=True, scale="shared", backend=backend)):
        limit = float(value.abs().max())
        assert panel.limits == (pytest.approx(-limit), pytest.approx(limit))


@both
def test_every_function_takes_what_has_what_it_needs(backend):
    norms = block_norms(2)
    moved = norms.head_norms  # what weighted_value_norms returns
    for panel, expected in zip(
        panels(plot.head_maps(moved, TOKENS, layers=1, batch=1, backend=backend)), moved[1, 1], strict=True
    ):
        np.testing.assert_array_equal(panel.z, expected.double().numpy())
    (one,) = panels(plot.layer_maps(norms["attn"][0, 1], TOKENS, backend=backend))
    np.testing.assert_array_equal(one.z, norms["attn"][0, 1].double().numpy())
    changes = metrics.component_changes(norms)
    figure = plot.changes(changes, layers=norms.layers, batch=1, backend=backend)
    same = plot.changes(norms, batch=1, backend=backend)
    curves = [
        [np.asarray(line.y if backend == "plotly" else line.get_ydata()) for line in drawn]
        for drawn in ((f.data if backend == "plotly" else f.axes[0].lines) for f in (figure, same))
    ]
    np.testing.assert_array_equal(*curves)
    difference = panels(plot.layer_maps(metrics.ff_amplification(norms), TOKENS, layers=2, batch=0, backend=backend))
    np.testing.assert_array_equal(difference[0].z, (norms[CHAIN[3]] - norms[CHAIN[2]])[1, 0].double().numpy())
    held = TokenNorms(norms["attn"], norms["attn"][..., 0], torch.zeros(3), norms.layers, 0, "l2", "some/model")
    (one,) = panels(plot.layer_maps(held, TOKENS, layers=2, batch=1, backend=backend))
    np.testing.assert_array_equal(one.z, norms["attn"][1, 1].double().numpy())
    with pytest.raises(plot.PlotInputError, match="layers has 2 numbers for changes in 3 layers"):
        plot.changes(changes, layers=[0, 1], batch=0)
    with pytest.raises(plot.PlotInputError, match=r"a tensor \[layer \*batch head query key\] such as"):
        plot.head_maps(norms["attn"][0], TOKENS)
    with pytest.raises(plot.PlotInputError, match="expected a BlockNorms or CrossNorms, which hold both"):
        plot.weight_and_norm(moved, TOKENS)


@both
def test_tokens_and_the_models_name_are_taken_from_a_result_that_keeps_them(backend):
    norms = block_norms()
    words_ = ["<s>", "The", " keys", " are", " here", "."]
    kept = SimpleNamespace(
        layers=norms.layers, scopes=norms.scopes, mask=None, causal=False, token_strings=words_,
        model_name="a/b/some-model", __getitem__=None,
    )  # fmt: skip

    class Kept(SimpleNamespace):
        def __getitem__(self, scope):
            return norms[scope]

    figure = plot.layer_maps(Kept(**vars(kept)), scope="attn", backend=backend)
    assert "some-model · “The keys are here.”" in heading(figure) and "attn: norm" in heading(figure)
    assert panels(figure)[0].row_labels[1:3] == ["The", "·keys"]


@both
def test_titles_and_colours_are_arguments(backend):
    norms = block_norms()
    figure = plot.layer_maps(norms, TOKENS, "attn", title="Mine", cmap=["#000000", "#ffffff"], backend=backend)
    assert "Mine" in heading(figure)
    assert heading(plot.layer_maps(norms, TOKENS, "attn", title="", backend=backend)) == ""
    for cmap, last in (("Cividis", (253, 231, 55)), (["#000000", "#0a141e"], (10, 20, 30)), (None, (8, 48, 107))):
        drawn = plot.layer_maps(norms, TOKENS, "attn", cmap=cmap, backend=backend)
        if backend == "plotly":
            colour = drawn.layout.coloraxis.colorscale[-1][1]
            found = tuple(int(colour[n : n + 2], 16) for n in (1, 3, 5))
        else:
            found = tuple(round(255 * part) for part in drawn.axes[0].collections[0].get_cmap()(1.0)[:3])
        assert np.abs(np.subtract(found, last)).max() <= 12


def test_colours_fit_a_dark_default(monkeypatch):
    import matplotlib
    import plotly.io

    light = plot.layer_maps(block_norms(), TOKENS, "attn").layout.coloraxis.colorscale[0][1]
    monkeypatch.setattr(plotly.io.templates, "default", "plotly_dark")
    dark = plot.layer_maps(block_norms(), TOKENS, "attn").layout.coloraxis.colorscale[0][1]
    assert light == "#f7fbff" and int(dark[1:3], 16) < 64  # nothing is dark on a dark page
    (table,) = plot.top_pairs(block_norms(), TOKENS, k=1).data
    for part in (table.header, table.cells):
        assert int(part.fill.color[1:3], 16) < 64 < int(part.font.color[1:3], 16)
    with matplotlib.rc_context({"figure.facecolor": "black"}):
        printed = plot.layer_maps(block_norms(), TOKENS, "attn", backend="matplotlib")
    assert max(printed.axes[0].collections[0].get_cmap()(0.0)[:3]) < 0.25


@pytest.mark.parametrize(
    "token, shown",
    [(" is", "·is"), ("  is ", "··is·"), ("is", "is"), (" ", "␣"), ("", "(empty)"), ("\n", "\\n"), ("a b", "a b")],
)
def test_blanks_of_tokens_are_seen(token, shown):
    assert words.visible(token) == shown


@pytest.mark.parametrize(
    "tokens, text",
    [
        (["<|im_start|>", "The", " keys", " are", "."], "The keys are."),
        (["[CLS]", "the", "key", "##s", "are", ".", "[SEP]"], "the keys are."),
        (["▁das", "▁Ha", "us", "▁", ".", "</s>"], "das Haus ."),
        (["word"] * 40, "word " * 14 + "w…"),
    ],
)
def test_the_text_of_a_title(tokens, text):
    assert words.sentence(tokens) == text


@pytest.mark.parametrize("width", [300, 460, 960])
@pytest.mark.parametrize("n_panels", [1, 3, 30])
def test_nothing_stands_on_anything_else(width, n_panels):
    axis = picture.Axis("query", ("a long token",) * 11, tuple(map(str, range(11))))
    cells = [picture.Cells(f"layer {n}", np.ones((11, 11)), axis, axis, n) for n in range(n_panels)]
    scales = [picture.Scale(1.0, "norm")] * n_panels
    across = layout.fitting_columns(n_panels, 11, width)
    found = layout.laid_out(
        picture.Picture(tuple(cells), across, tuple(scales), "A title", ("a note",), picture.Look(width=width))
    )
    boxes = [box for box in (*found.panels, *found.bars) if box is not None]
    for box in boxes:
        assert box.x >= 0 and box.x + box.width <= found.width and box.y >= found.heading
        assert box.y + box.height <= found.height and box.width > 0 and box.height > 0
    for number, one in enumerate(boxes):
        for other in boxes[:number]:
            apart = one.x >= other.x + other.width or other.x >= one.x + one.width
            assert apart or one.y >= other.y + other.height or other.y >= one.y + one.height


def test_packages_are_attributes_that_load_when_used():
    code = (
        "import sys, tl_norms; assert 'plot' in dir(tl_norms) and 'tl_norms.plot' not in sys.modules; "
        "print(tl_norms.plot.layer_maps.__name__, tl_norms.metrics.component_changes.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["layer_maps", "component_changes"], done.stderr


def test_circuitsvis_is_shown_without_a_network(monkeypatch):
    def refused(*_, **__):
        raise AssertionError("a picture asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    norms = block_norms(causal=True)
    view = plot.to_circuitsvis(norms, TOKENS, layer=2)
    assert view._repr_html_() == str(view) == view.local_src and "unpkg" not in str(view)[-5000:]
    moved = plot.to_circuitsvis(norms.head_norms, TOKENS, layer=1)
    assert str(moved).count("L1H3") == 1
    with pytest.raises(plot.PlotInputError, match="CircuitsVis has one colour per head and no signs"):
        plot.to_circuitsvis(norms.head_norms - 0.5, TOKENS, layer=1)


def test_many_panels_take_no_longer_each_than_few(monkeypatch):
    """Parts are handed to plotly at once: added one by one, each is checked again with every other."""
    go = pytest.importorskip("plotly.graph_objects")
    for name in ("add_trace", "add_shape", "add_annotation", "update_layout"):
        monkeypatch.setattr(go.Figure, name, None)
    figure = plot.head_maps(block_norms(), TOKENS, scale="row")
    assert len(figure.data) == 12 and figure.layout.xaxis12.domain
