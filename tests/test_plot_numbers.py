"""Curves, alignments, tables and CircuitsVis: what the figure holds is what the result holds."""

import json
import re
import socket
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from plot_results import CHAIN, TOKENS, block_norms, cross_norms, panels

import tl_norms
from tl_norms import metrics, plot, studies
from tl_norms.studies.amplified import AmplifiedPairs
from tl_norms.studies.change import Changes
from tl_norms.studies.mixing import MixingRatios

both = pytest.mark.parametrize("backend", ["plotly", "matplotlib"])
FACTS = studies.CorpusFacts(5, 5, 50, 0)


def curves(figure) -> dict[str, dict[str, tuple[list, np.ndarray]]]:
    """title of the panel -> name of the curve -> (x, y)"""
    if not hasattr(figure, "data"):
        return {
            axis.get_title(): {
                line.get_label(): (list(line.get_xdata()), np.asarray(line.get_ydata())) for line in axis.lines
            }
            for axis in figure.axes
        }
    titles = [note.text for note in figure.layout.annotations if note.xanchor == "center"] or [""]
    found = {title: {} for title in titles}
    axes = sorted({trace.xaxis or "x" for trace in figure.data}, key=lambda name: int(name[1:] or 1))
    for trace in figure.data:
        if trace.name is not None:
            title = titles[axes.index(trace.xaxis or "x")]
            found[title][trace.name] = (list(trace.x), np.asarray(trace.y))
    return found


@both
def test_mixing_ratios_of_each_kind_of_token(backend):
    norms, mask = block_norms(2), torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6]).bool()
    norms = replace(norms, facts=replace(norms.facts, mask=mask))
    tokens = ["[CLS]", "a", "b", "[SEP]"]
    found = curves(plot.mixing_ratios(norms, tokens, batch=0, backend=backend))
    methods = ["Attn-W", "attn", "AttnRes-W", *CHAIN[1:]]  # one name for a scope everywhere: its own
    assert list(found) == methods
    for title in methods:
        ratio = norms.mixing_ratio(title)[:, 0]
        kinds = {
            "overall": ratio[:, :4].mean(1),
            "[CLS]": ratio[:, 0],
            "[SEP]": ratio[:, 3],
            "other": ratio[:, 1:3].mean(1),
        }
        assert list(found[title]) == list(kinds)
        for kind, expected in kinds.items():
            x, y = found[title][kind]
            assert x == [0, 2, 5]
            np.testing.assert_allclose(y, expected.numpy(), rtol=1e-6)
    types = ["noun", "verb", "noun", "verb"]
    turned = curves(plot.mixing_ratios(norms, tokens, types=types, batch=0, panels="type", backend=backend))
    assert list(turned) == ["overall", "noun", "verb"]
    expected = norms.mixing_ratio("attn")[:, 0, [0, 2]].mean(1)
    np.testing.assert_allclose(turned["noun"]["attn"][1], expected.numpy(), rtol=1e-6)


@both
def test_mixing_ratios_of_a_study(backend):
    by_layer = np.random.default_rng(0).random((2, 3, 4))
    methods = ("Attn-W", "Attn-N", "AttnRes-N")
    nothing = dict.fromkeys(methods, 0.5)
    kinds = ("overall", "<s>")
    study = MixingRatios(methods, nothing, nothing, nothing, (0, 1, 2, 3), kinds, by_layer, nothing, {}, {}, FACTS)
    found = curves(plot.mixing_ratios(study, backend=backend))
    for m, method in enumerate(("Attn-W", "attn", "attn_res")):  # scopes have their own names here too
        for t, kind in enumerate(("overall", "<s>")):
            name = kind.replace("<", "&lt;").replace(">", "&gt;") if backend == "plotly" else kind
            np.testing.assert_array_equal(found[method][name][1], by_layer[t, m])
    with pytest.raises(plot.PlotInputError, match="a study knows its texts"):
        plot.mixing_ratios(study, TOKENS)


@both
def test_changes_by_component(backend):
    norms = block_norms(2)
    found = curves(plot.changes(norms, batch=1, backend=backend))[""]
    expected = metrics.component_changes(norms)
    assert list(found) == list(expected) == list(CHAIN[1:])
    for name, value in expected.items():
        np.testing.assert_allclose(found[name][1], value[:, 1].numpy(), rtol=1e-6)
    with pytest.raises(plot.PlotInputError, match="2 texts: say which one"):
        plot.changes(norms, backend=backend)
    with pytest.raises(plot.PlotInputError, match="no scope of this result stands beside another"):
        plot.changes(block_norms(scopes=("attn",)), backend=backend)


@both
def test_changes_of_a_study_are_means_with_a_band_for_the_middle_half(backend):
    values = np.random.default_rng(1).random((2, 3, 8))
    values[0, 1, 2] = np.nan
    values[1, 2] = np.nan  # no text of this layer has an order
    study = Changes(("attn_res", "attn_res_ln"), (0, 1, 2), np.zeros((8, 2), int), values, {}, FACTS)
    figure = plot.changes(study, backend=backend)
    found = curves(figure)[""]
    np.testing.assert_allclose(found["attn_res"][1], study.mean[0])
    assert np.isnan(found["attn_res_ln"][1][2])
    low, high = np.nanpercentile(values[0], [25, 75], axis=-1)
    if backend == "plotly":
        np.testing.assert_allclose(figure.data[0].y, high)
        np.testing.assert_allclose(figure.data[1].y, low)
    else:
        (band, *_) = figure.axes[0].collections
        box = band.get_paths()[0].get_extents()
        assert (box.y0, box.y1) == (pytest.approx(low.min()), pytest.approx(high.max()))
    few = plot.changes(replace(study, values=values[:, :, :3]), backend=backend)  # no band for three texts
    assert len(few.data if backend == "plotly" else few.axes[0].collections) == (2 if backend == "plotly" else 0)


@both
def test_cancellation_has_a_panel_per_variant(backend):
    value = torch.rand(2, 3)
    found = metrics.Cancellation(
        "attn_res_ln", ("ff", "ff_res"), (0, 4), {"all": {"ff": value, "ff_res": value / 2},
        "without_small_gains": {"ff": value / 3, "ff_res": value / 4}}, {}, value, value)  # fmt: skip
    drawn = curves(plot.changes(found, batch=2, backend=backend))
    assert list(drawn) == ["all", "without small gains"]
    np.testing.assert_allclose(drawn["without small gains"]["ff"][1], (value / 3)[:, 2].numpy())


def outlined(figure) -> set[tuple[str, float, float]]:
    """(kind, column, row) of everything drawn around a cell of the first panel."""
    if hasattr(figure, "data"):
        marks = [shape for shape in figure.layout.shapes if shape.xref == "x" and shape.name]
        return {(mark.name, (mark.x0 + mark.x1) / 2, (mark.y0 + mark.y1) / 2) for mark in marks}
    found = set()
    for mark in figure.axes[0].patches:
        box = mark.get_path().transformed(mark.get_patch_transform()).get_extents()
        round_ = type(mark).__name__ == "Circle"
        kind = "predicted" if round_ else "sure" if mark.get_linestyle() in ("solid", "-") else "possible"
        found.add((kind, round((box.x0 + box.x1) / 2, 6), round((box.y0 + box.y1) / 2, 6)))
    return found


@both
def test_gold_links_are_outlined_where_they_belong(backend):
    cross = cross_norms()
    source, target = ["das", "Haus", "ist", "alt", "</s>"], ["the", "house", "old"]
    figure = plot.alignment_maps(cross, source, target, sure={(0, 0), (1, 1)}, possible={(3, 2), (1, 1)},
                                 predicted={(3, 2)}, backend=backend)  # fmt: skip
    drawn = panels(figure)
    assert [panel.title for panel in drawn] == ["layer 1", "layer 3"]
    for panel, expected in zip(drawn, cross.norms, strict=True):
        np.testing.assert_array_equal(panel.z, expected.double().numpy())
        assert panel.limits[0] == 0
    assert drawn[0].row_labels == target and drawn[0].column_labels == source
    assert drawn[0].names == ("target", "source")
    assert outlined(figure) == {("sure", 0, 0), ("sure", 1, 1), ("possible", 3, 2), ("predicted", 3, 2)}
    heads = panels(plot.alignment_maps(cross, source, target, layers=3, heads="all", weights=True, backend=backend))
    assert [panel.title for panel in heads] == ["L3H0", "L3H1", "L3H2", "L3H3"]
    np.testing.assert_array_equal(heads[2].z, cross.attention[1, 2].double().numpy())


@both
def test_a_matrix_of_words_and_its_links(backend):
    words = np.arange(6.0).reshape(2, 3)
    figure = plot.alignment_maps(words, ["a", "b", "a"], ["x", "x"], sure=[(2, 1)], backend=backend)
    (panel,) = panels(figure)
    np.testing.assert_array_equal(panel.z, words)
    assert outlined(figure) == {("sure", 2, 1)}
    with pytest.raises(
        plot.PlotInputError, match=r"sure link \(1, 2\) is outside .* source from 0 to 2, target from 0"
    ):
        plot.alignment_maps(words, ["a", "b", "c"], ["x", "y"], sure=[(1, 2)], backend=backend)
    with pytest.raises(plot.PlotInputError, match=r"a matrix \[target source\] of 3 by 2 words, found \[2, 3\]"):
        plot.alignment_maps(words, ["a", "b"], ["x", "y", "z"], backend=backend)
    with pytest.raises(plot.PlotInputError, match="one matrix is shown as it is"):
        plot.alignment_maps(words, ["a", "b", "c"], ["x", "y"], layers=1, backend=backend)


def cells(figure) -> list[list[str]]:
    """The rows of a table, its names first."""
    if hasattr(figure, "data"):
        (table,) = figure.data
        names = [re.sub("</?b>", "", name) for name in table.header.values]
        assert all(re.fullmatch("<(b|span)>[^<]*</\\1>", text) for column in table.cells.values for text in column)
        return [names, *([re.sub("<.*?>", "", text) for text in row] for row in zip(*table.cells.values, strict=True))]
    (table,) = figure.axes[0].tables
    found = table.get_celld()
    rows, columns = max(row for row, _ in found), max(column for _, column in found)
    return [[found[row, column].get_text().get_text() for column in range(columns + 1)] for row in range(rows + 1)]


@both
def test_top_pairs_of_a_text(backend):
    mask = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]]).bool()
    whole = block_norms(2, causal=True)
    norms = replace(whole, facts=replace(whole.facts, mask=mask))
    names, *rows = cells(plot.top_pairs(norms, ["to", "be", "or", "be"], k=2, layers=[2, 5], batch=1, backend=backend))
    assert names == ["layer", "query", "key", "before", "after", "difference"]
    assert [row[0] for row in rows] == ["2", "2", "5", "5"]
    found = metrics.ff_amplification(norms)
    for number, layer in ((0, 1), (2, 2)):
        difference = found.difference[layer, 1, 2:, 2:].tril(-1)
        difference[difference == 0] = -torch.inf
        query, key = divmod(int(difference.argmax()), 4)
        words = ["2 to", "3 be", "4 or", "5 be"]
        value = float(difference.max())
        assert rows[number][1:3] == [words[query], words[key]]
        decimals = len(rows[number][5].partition(".")[2])
        assert decimals >= 2 and rows[number][5] == f"{value:+.{decimals}f}"
    assert len({len(row[5].partition(".")[2]) for row in rows}) == 1  # points stand below each other
    with pytest.raises(plot.PlotInputError, match="expected tokens"):
        plot.top_pairs(norms, batch=1, backend=backend)
    with pytest.raises(plot.PlotInputError, match="k is 0"):
        plot.top_pairs(norms, TOKENS, k=0, backend=backend)


@both
def test_top_pairs_of_a_study(backend):
    study = AmplifiedPairs(
        3, (0, 1), np.array([0, 0, 1]), np.array([7, 8, 9]), np.array([1, 2, 3]), ("new", "", "x"), ("york", "a", "y"),
        np.array([4, 2, 1]), np.array([0.5, 0.25, 1.0]), np.array([0.75, 0.5, 1.0]), FACTS)  # fmt: skip
    assert cells(plot.top_pairs(study, k=1, backend=backend))[1:] == [
        ["0", "new", "york", "4", "+0.50", "+0.75"],
        ["1", "x", "y", "1", "+1.00", "+1.00"],
    ]
    assert cells(plot.top_pairs(study, layers=0, backend=backend))[2][1] == "8"  # no token is known: its id
    weakened = replace(study, mean=-study.mean, max=-study.max)
    for pairs, title in ((study, "amplifies"), (weakened, "weakens")):
        figure = plot.top_pairs(pairs, backend=backend)
        shown = (
            [text.text for text in figure.layout.annotations] + [figure.layout.title.text or ""]
            if backend == "plotly"
            else [text.get_text() for text in figure.texts]
        )
        assert title in " ".join(shown) and "5 texts, 50 tokens" in " ".join(shown)
    with pytest.raises(plot.PlotInputError, match="leave tokens out"):
        plot.top_pairs(study, TOKENS, backend=backend)


@pytest.mark.parametrize(
    "means, shown",
    [
        ([0.111, 0.0996, 0.0155], ["+0.111", "+0.100", "+0.015"]),
        ([0.239, 0.00388], ["+0.2390", "+0.0039"]),
        ([25134.2, 318.4], ["+25,134", "+318"]),
        ([12.3, -0.4], ["+12.30", "-0.40"]),
        ([25134.2, 0.4], ["+25,100", "+0.4"]),  # too far apart for one number of decimals
        ([2.5e-7, 1e-7], ["+2.5e-07", "+1e-07"]),
        ([0.0, 0.5], ["+0.000", "+0.500"]),
        ([0.0, 0.0], ["+0", "+0"]),
    ],
)
def test_numbers_of_a_column_are_of_one_form(means, shown):
    n = len(means)
    study = AmplifiedPairs(
        3, (0,), np.zeros(n, int), np.arange(n), np.arange(n), ("a",) * n, ("b",) * n, np.ones(n, int),
        np.array(means), np.array(means), FACTS)  # fmt: skip
    _, *rows = cells(plot.top_pairs(study, k=n, backend="matplotlib"))
    assert [row[4] for row in rows] == shown


@pytest.fixture
def no_network(monkeypatch):
    def refused(*_, **__):
        raise AssertionError("a picture asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


def properties(view) -> dict:
    """What CircuitsVis is given to draw."""
    page = view.local_src[-1_000_000:] if len(view.local_src) > 1_000_000 else view.local_src
    text = page[page.rindex("CircuitsVis.AttentionHeads,") + len("CircuitsVis.AttentionHeads,") :]
    return json.JSONDecoder().raw_decode(text.strip())[0]


@pytest.mark.parametrize("causal", [True, False])
def test_circuitsvis_gets_axes_scale_and_triangle(no_network, causal):
    norms = block_norms(2, causal=causal)
    tokens = ["<s>", "</script>", "b", "b", "<!-- ", "d"]
    given = properties(plot.to_circuitsvis(norms, tokens, layer=5, heads=[1, 3], batch=1))
    expected = norms.head_norms[2, 1, [1, 3]]
    expected = expected.tril() if causal else expected
    np.testing.assert_allclose(given["attention"], expected.numpy(), rtol=1e-6)
    assert given["attentionHeadNames"] == ["L5H1", "L5H3"]
    assert given["maxValue"] == pytest.approx(float(expected.max())) and given["minValue"] == 0
    assert given["maskUpperTri"] is causal
    assert [token.replace("\u2060", "") for token in given["tokens"]] == ["<s>", "</script>", "b", "b", "<!--·", "d"]
    assert not any("</script" in token or "<!--" in token for token in given["tokens"])
    scope = properties(plot.to_circuitsvis(norms, tokens, scope="attn_res", layer=0, batch=0))
    np.testing.assert_allclose(scope["attention"], norms["attn_res"][0, :1].numpy(), rtol=1e-6)
    assert scope["attentionHeadNames"] == ["attn_res"]
    norms["attn_res"][0, 0].diagonal(dim1=-2, dim2=-1).fill_(50)
    off = norms["attn_res"][0, :1].clone()
    off.diagonal(dim1=-2, dim2=-1).zero_()
    scope = properties(plot.to_circuitsvis(norms, tokens, scope="attn_res", layer=0, batch=0))
    np.testing.assert_allclose(scope["attention"], off.numpy(), rtol=1e-6)
    assert scope["attentionHeadNames"] == ["attn_res, without the diagonal"] and scope["maxValue"] <= 1
    whole = properties(plot.to_circuitsvis(norms, tokens, scope="attn_res", layer=0, batch=0, diagonal=True))
    assert whole["maxValue"] == 50


def test_circuitsvis_is_asked_for_what_it_cannot_show(monkeypatch):
    norms = block_norms(n_source=3)
    with pytest.raises(plot.PlotInputError, match="square maps, this one is 6 by 9"):
        plot.to_circuitsvis(norms, TOKENS, scope="attn_res_ln_ff", layer=0)
    with pytest.raises(plot.PlotInputError, match="use layer_maps or alignment_maps"):
        plot.to_circuitsvis(cross_norms(), list("xyz"), layer=1)
    with pytest.raises(plot.PlotInputError, match="pass scope= or heads="):
        plot.to_circuitsvis(norms, TOKENS, scope="attn", layer=0, heads=1)
    for name in [name for name in sys.modules if name.startswith("circuitsvis")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "circuitsvis", None)
    with pytest.raises(tl_norms.MissingExtraError, match=r"pip install 'tl_norms\[circuitsvis\]'"):
        plot.to_circuitsvis(norms, TOKENS, layer=0)


@both
def test_no_figure_asks_for_the_network(no_network, backend):
    norms = block_norms()
    plot.layer_maps(norms, TOKENS, backend=backend)
    plot.feed_forward(norms, TOKENS, backend=backend)
    plot.mixing_ratios(norms, TOKENS, backend=backend)
    plot.top_pairs(norms, TOKENS, backend=backend)


def test_the_package_loads_no_library_before_a_picture_is_drawn():
    import subprocess

    code = (
        "import sys; from tl_norms import plot; "
        "print([m for m in ('plotly.graph_objects', 'matplotlib.pyplot', 'circuitsvis') if m in sys.modules])"
    )
    # TransformerLens itself may load some of them; what counts is that importing plot adds none
    before = code.replace("from tl_norms import plot", "import transformer_lens, tl_norms.metrics, tl_norms.results")
    with_plot, without = (
        subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True).stdout.splitlines()[-1]
        for text in (code, before)
    )
    assert with_plot == without
