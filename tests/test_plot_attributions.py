"""Figures of attributions and of the judge: every number drawn is a number of the result, in both libraries."""

import re
from dataclasses import dataclass

import numpy as np
import pandas
import pytest
import tiny
import torch
from page_results import made_both_stacks
from plot_results import block_norms, panels

import tl_norms
from tl_norms import plot

both = pytest.mark.parametrize("backend", ["plotly", "matplotlib"])
WORDS = ["The", " keys", " to", "<b>"]
N_LAYERS, N_HEADS, N = 3, 2, 4


@dataclass
class Attribution:
    """What `tl_norms.attribute` returns, by its fields alone."""

    value: torch.Tensor
    stream: torch.Tensor
    offset: torch.Tensor
    heads: torch.Tensor
    bypass: torch.Tensor
    layers: tuple[int, ...]
    token_strings: list | None
    every: torch.Tensor
    target_name: str = "logit of “ are”"
    model_name: str = "some/model"

    def edges(self, layer):
        return self.every[layer]


def attribution(n_texts: int | None = None, tokens=WORDS) -> Attribution:
    """Random numbers that add up at every cut."""
    made = torch.Generator().manual_seed(3)
    batch = () if n_texts is None else (n_texts,)

    def numbers(*shape):
        return torch.randn(shape, generator=made)

    stream, value = numbers(N_LAYERS + 1, *batch, N), numbers(*batch)
    every = numbers(N_LAYERS, *batch, N_HEADS, N, N).tril()
    return Attribution(value, stream, value - stream.sum(-1), every.sum((-1, -2)), numbers(N_LAYERS, *batch, N),
                       tuple(range(N_LAYERS)), tokens, every)  # fmt: skip


def words_of(figure) -> str:
    """All text of a figure."""
    if hasattr(figure, "data"):
        return "\n".join(note.text for note in figure.layout.annotations)
    return "\n".join(text.get_text() for text in [*figure.texts, *(t for axis in figure.axes for t in axis.texts)])


@both
def test_a_strip_has_the_tokens_and_their_numbers(backend):
    found = attribution()
    text = words_of(plot.token_strip(found, backend=backend))
    for word, value in zip(("The", "·keys", "·to"), found.stream[0].tolist(), strict=False):
        assert word in text and f"{value:+.2f}" in text
    assert ("&lt;b&gt;" if backend == "plotly" else "<b>") in text
    assert "logit of “ are”" in text and "model" in text and f"value {float(found.value):+.3g}" in text
    later = words_of(plot.token_strip(found, cut=2, backend=backend))
    assert f"{float(found.stream[2, 1]):+.2f}" in later and "cut 2" in later
    plain = words_of(plot.token_strip(torch.tensor([1.2, 0.004, 9.0]), ["a", "b", "c"], backend=backend))
    assert "1.20" in plain and "0.00" not in plain and "9.00" in plain  # decimals of the largest; what rounds to 0 is 0
    assert "+" not in plain  # no sign where none is negative
    assert (
        "250" in (large := words_of(plot.token_strip([1.2, 250.0], ["a", "b"], backend=backend))) and "1.2" not in large
    )


def test_colours_of_a_strip_tell_the_sign():
    figure = plot.token_strip(np.array([1.0, -1.0, 0.0]), ["a", "b", "c"])
    high, low, middle = (shape.fillcolor for shape in figure.layout.shapes)
    assert (low, middle, high) == ("#67001f", "#f7f7f7", "#053061")  # red takes away, blue adds


@both
def test_long_texts_are_broken_into_lines(backend):
    figure = plot.token_strip(np.ones(60), ["token"] * 60, width=400, backend=backend)
    width = figure.layout.width if backend == "plotly" else figure.get_size_inches()[0] * 96
    assert width <= 400


@both
def test_every_row_of_a_position_map_and_its_rest_add_up(backend):
    found = attribution(2, tokens=[WORDS, WORDS])
    (panel,) = panels(plot.position_map(found, batch=1, backend=backend))
    np.testing.assert_allclose(panel.z[:, :N], found.stream[:, 1].numpy(), rtol=1e-6)
    np.testing.assert_allclose(panel.z.sum(1), float(found.value[1]), rtol=1e-5)
    assert panel.row_labels == ["0", "1", "2", "end"] and panel.column_labels[-1] == "(rest)"
    assert panel.limits[0] == -panel.limits[1]
    (rows,) = panels(plot.position_map(found, batch=1, scale="row", backend=backend))
    np.testing.assert_allclose(np.abs(rows.z).max(1), 1)
    with pytest.raises(plot.PlotInputError, match="2 texts: say which one"):
        plot.position_map(found, backend=backend)


@both
def test_heads_by_layer(backend):
    found = attribution()
    (panel,) = panels(plot.head_grid(found, backend=backend))
    np.testing.assert_allclose(panel.z, found.heads.numpy(), rtol=1e-6)
    assert panel.names == ("layer", "head") and panel.limits[0] == -panel.limits[1]
    norms = block_norms(2, causal=True, mask=torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]]).bool())
    (panel,) = panels(plot.head_grid(norms, layers=[2, 5], batch=1, backend=backend))
    moved = norms.head_norms[1:, 1][..., 2:, 2:].tril()
    np.testing.assert_allclose(panel.z, (moved.sum((-1, -2)) / 10).numpy(), rtol=1e-5)  # 10 pairs of 4 real tokens
    assert panel.limits[0] == 0 and panel.row_labels == ["2", "5"]
    with pytest.raises(tl_norms.UnknownLayerError, match="layer 7 is not in this result"):
        plot.head_grid(found, layers=7)


@both
def test_edges_of_one_head_and_of_all(backend):
    found = attribution()
    (panel,) = panels(plot.head_edges(found, layer=1, head=1, backend=backend))
    lower = np.tril(np.ones((N, N), bool))
    np.testing.assert_allclose(panel.z[lower], found.every[1, 1].numpy()[lower], rtol=1e-6)
    assert np.isnan(panel.z[~lower]).all() and panel.title == "L1H1"  # causal, told from the zeros
    drawn = panels(plot.layer_maps(found, diagonal=True, scale="shared", backend=backend))
    np.testing.assert_allclose(drawn[2].z[lower], found.every[2].sum(0).numpy()[lower], rtol=1e-6)
    (one,) = panels(plot.head_edges(block_norms(), list("abcdef"), layer=2, head=3, backend=backend))
    np.testing.assert_allclose(one.z, block_norms().head_norms[1, 3].numpy(), rtol=1e-6)


def lines(figure, n: int) -> list[tuple[float, ...]]:
    """Coloured lines of a graph: position and layer of both ends."""
    drawn = [trace for trace in figure.data if trace.mode == "lines" and str(trace.line.color).startswith("#")]
    at = [float(note.x) for note in figure.layout.annotations if note.text in ("The", "·keys", "·to", "&lt;b&gt;")]
    assert len(at) == n
    heights = sorted({y for trace in drawn for y in trace.y}, reverse=True)
    return [(at.index(t.x[0]), at.index(t.x[1]), heights.index(t.y[0]), heights.index(t.y[1])) for t in drawn]


@pytest.mark.parametrize("threshold", [0.3, 0.6])
def test_the_graph_has_the_edges_above_the_threshold_and_no_other(threshold):
    found = attribution()
    figure = plot.contribution_graph(found, threshold=threshold)
    least = threshold * float(found.every.abs().max())
    kept = (found.every.abs() >= least).nonzero().tolist()
    expected = {(key, query, layer, layer + 1) for layer, _, query, key in kept}
    heights = sorted({layer for _, _, *ends in expected for layer in ends})
    expected = {(key, query, heights.index(low), heights.index(up)) for key, query, low, up in expected}
    assert sorted(lines(figure, N)) == sorted(expected)
    assert f"{len(kept)} of" in words_of(figure)
    same = plot.contribution_graph(found, absolute=least)
    assert sorted(lines(same, N)) == sorted(expected)
    told = "\n".join(text for trace in figure.data for text in (trace.hovertext or ()))
    for layer, head, query, key in kept:
        assert f"L{layer}H{head}: {float(found.every[layer, head, query, key]):+.3g}" in told


def test_the_graph_of_some_layers_and_of_a_batch():
    found = attribution(2, tokens=[WORDS, WORDS])
    figure = plot.contribution_graph(found, layers=[2], batch=0, threshold=1.0)
    (line,) = lines(figure, N)
    place = int(found.every[2, 0].abs().argmax())
    head, query, key = np.unravel_index(place, (N_HEADS, N, N))
    assert line[:2] == (key, query) and f"L2H{head}" in words_of(figure)
    drawn = plot.contribution_graph(found, batch=1, backend="matplotlib")
    assert len(drawn.axes) == 1 and drawn.axes[0].lines


def report() -> pandas.DataFrame:
    rows = [
        ("ours", "agreement", "higher", "comprehensiveness", 0.5, 0.4, 0.6),
        ("rollout", "agreement", "higher", "comprehensiveness", 0.35, 0.3, 0.45),
        ("random", "agreement", "higher", "comprehensiveness", 0.1, 0.0, 0.2),
        ("ours", "agreement", "lower", "sufficiency", 0.2, 0.1, 0.3),
        ("random", "agreement", "lower", "sufficiency", 0.9, 0.8, 1.0),
        ("ours", "names", "higher", "comprehensiveness", 0.2, 0.1, 0.3),
    ]
    names = ["method", "task", "better", "metric", "value", "low", "high"]
    return pandas.DataFrame(rows, columns=names).assign(removal="mask")


@dataclass
class Report:
    """A judge's report, by its one method."""

    frame: pandas.DataFrame

    def to_dataframe(self):
        return self.frame


def tables(figure) -> list[list[list[str]]]:
    """The tables of a figure, rows of cells; bold cells between stars."""
    if hasattr(figure, "data"):
        star = [
            [[re.sub("</?b>", "*", re.sub("</?span>", "", cell)) for cell in column] for column in t.cells.values]
            for t in figure.data
        ]
        return [[list(row) for row in zip(*columns, strict=True)] for columns in star]
    found = []
    for axis in figure.axes:
        (table,) = axis.tables
        cells = table.get_celld()
        rows, columns = max(r for r, _ in cells), max(c for _, c in cells)
        text = [[cells[r, c].get_text() for c in range(columns + 1)] for r in range(1, rows + 1)]
        found.append([[f"*{t.get_text()}*" if t.get_weight() == "bold" else t.get_text() for t in row] for row in text])
    return found


@both
def test_the_judges_table(backend):
    first, second = tables(plot.judge_table(Report(report()), backend=backend))
    assert first == [
        ["ours", "*0.500 [0.40, 0.60]*", "*0.200 [0.10, 0.30]*"],
        ["rollout", "*0.350 [0.30, 0.45]*", "–"],  # its interval meets that of the best
        ["random", "0.100 [0.00, 0.20]", "0.900 [0.80, 1.00]"],
    ]
    assert second == [["ours", "*0.200 [0.10, 0.30]*"]]
    (one,) = tables(plot.judge_table(report(), tasks=["agreement"], metrics=["sufficiency"], backend=backend))
    assert [row[0] for row in one] == ["ours", "random"]
    with pytest.raises(plot.PlotInputError, match="task 'x' is not in this report; it has agreement, names"):
        plot.judge_table(report(), tasks=["x"])
    with pytest.raises(plot.PlotInputError, match="missing: low, high"):
        plot.judge_table(report().drop(columns=["low", "high"]))


def test_what_is_no_attribution_is_said():
    norms = block_norms()
    for draw in (plot.position_map, plot.contribution_graph):
        with pytest.raises(
            plot.PlotInputError, match="expected an attribution, as of tl_norms.attribute, got BlockNorms"
        ):
            draw(norms)
    with pytest.raises(plot.PlotInputError, match="expected an attribution or numbers"):
        plot.token_strip(norms)
    with pytest.raises(plot.PlotInputError, match="there is no cut 4"):
        plot.token_strip(attribution(), cut=4)
    with pytest.raises(plot.PlotInputError, match="4 positions, tokens has 2"):
        plot.position_map(attribution(), ["a", "b"])
    with pytest.raises(plot.PlotInputError, match="expected tokens"):
        plot.position_map(attribution(tokens=None))
    with pytest.raises(plot.PlotInputError, match="threshold is 2"):
        plot.contribution_graph(attribution(), threshold=2)
    with pytest.raises(plot.PlotInputError, match="absolute is 0"):
        plot.contribution_graph(attribution(), absolute=0)
    with pytest.raises(plot.PlotInputError, match="an attribution has contributions, no weights"):
        plot.head_maps(attribution(), weights=True)


@both
def test_of_an_encoder_decoder_all_that_adds_up_is_shown(backend):
    source = ["das", "Haus"]
    found = made_both_stacks(WORDS, source, n_layers=N_LAYERS)
    value = float(found.value)
    (cells,) = panels(plot.position_map(found, backend=backend))
    assert cells.column_labels[-3:] == [*source, "(rest)"]
    np.testing.assert_allclose(cells.z.sum(1), value, rtol=1e-5)
    for cut, parts in ((0, [*found.tokens, *found.source_tokens]), (1, [*found.stream[1], *found.beside[1]])):
        told = words_of(plot.token_strip(found, cut=cut, backend=backend))
        assert "das" in told and f"source sentence {float(sum(parts[N:])):+.3g}" in told
        rest, whole = (float(re.search(rf"{name} ([+-][\d.e-]+)", told)[1]) for name in (r"rest \(biases\)", "value"))
        assert float(sum(parts)) + rest == pytest.approx(whole, abs=0.02) and whole == pytest.approx(value, abs=0.01)
    assert "the decoder's own attention" in words_of(plot.contribution_graph(found, backend=backend))


@both
def test_heads_of_an_encoder_decoder_are_those_of_every_stack(backend):
    source = ["das", "Haus"]
    found = made_both_stacks(WORDS, source, n_layers=N_LAYERS)
    found.cross_heads = torch.stack([found.cross_edges(layer).sum((-1, -2)) for layer in range(N_LAYERS)])
    below = torch.stack([found.edges(layer, "encoder").sum((-1, -2)) for layer in range(2)])
    wanted = {
        "the decoder's self-attention": found.heads,
        "cross-attention (source tokens)": found.cross_heads,
        "the encoder's self-attention": below,
    }
    drawn = panels(plot.head_grid(found, backend=backend))
    assert [panel.title for panel in drawn] == ["decoder", "cross-attention", "encoder"]
    assert len({panel.limits for panel in drawn}) == 1
    for panel, values in zip(drawn, wanted.values(), strict=True):
        np.testing.assert_allclose(panel.z, values.numpy(), rtol=1e-5)
    for name, title in zip(("decoder", "cross", "encoder"), wanted, strict=True):
        figure = plot.head_grid(found, stack=name, backend=backend)
        (panel,) = panels(figure)
        np.testing.assert_allclose(panel.z, wanted[title].numpy(), rtol=1e-5)
        assert title in headings(figure)
    with pytest.raises(plot.PlotInputError, match="stack is 'both'"):
        plot.head_grid(found, stack="both")
    for make in (plot.head_grid, plot.head_maps, plot.layer_maps):
        with pytest.raises(plot.PlotInputError, match="leave it out"):
            make(attribution(), stack="cross")


@both
def test_maps_of_an_attribution_are_of_any_stack(backend):
    source = ["das", "Haus"]
    found = made_both_stacks(WORDS, source, n_layers=N_LAYERS)
    words = ["The", "·keys", "·to", "<b>"]
    for stack, edges, rows, columns in (
        ("decoder", found.edges, words, words),
        ("cross", found.cross_edges, words, source),
        ("encoder", lambda layer: found.edges(layer, "encoder"), source, source),
    ):
        figure = plot.head_maps(found, layers=1, heads=2, stack=stack, diagonal=True, scale="shared", backend=backend)
        (panel,) = panels(figure)
        there = ~np.isnan(panel.z)
        np.testing.assert_allclose(panel.z[there], edges(1)[2].numpy()[there], rtol=1e-5)
        assert there.all() or stack == "decoder"
        assert (panel.row_labels, panel.column_labels) == (rows, columns)
        told = {"decoder": "the decoder's self", "cross": "cross-attention", "encoder": "the encoder's self"}[stack]
        assert told in headings(figure)
        (one,) = panels(plot.layer_maps(found, layers=1, stack=stack, diagonal=True, backend=backend))
        np.testing.assert_allclose(one.z[there], edges(1).sum(0).numpy()[there], rtol=1e-5)
        assert told in headings(plot.head_edges(found, layer=1, head=2, stack=stack, backend=backend))


def headings(figure) -> str:
    """The text of a figure, its lines joined."""
    return " ".join(re.sub(r"</?b>", "", words_of(figure)).split())


def test_of_several_targets_no_figure_is_drawn():
    made = tiny.make("gpt2", tiny.KINDS[0])
    cache = made.cache(made.tokens()[:1])
    several = tl_norms.attribute(cache, [tl_norms.logit(5), tl_norms.logit(7)], tokens=list("abcdefg"))
    for make in (plot.token_strip, plot.position_map, plot.head_grid, plot.contribution_graph, plot.layer_maps,
                 plot.head_maps):  # fmt: skip
        with pytest.raises(plot.PlotInputError, match="one target, this attribution has 2"):
            make(several)
    direct = tl_norms.direct_attribution(cache, [tl_norms.logit(5), tl_norms.logit(7)])
    with pytest.raises(plot.PlotInputError, match="one target"):
        plot.head_grid(direct)


@both
def test_heads_of_a_direct_attribution(backend):
    made = tiny.make("gpt2", tiny.KINDS[0])
    direct = tl_norms.direct_attribution(made.cache(), tl_norms.logit(5))
    figure = plot.head_grid(direct, batch=1, backend=backend)
    (panel,) = panels(figure)
    np.testing.assert_allclose(panel.z, direct.heads[:, 1].sum(-1).numpy(), rtol=1e-6)
    assert "Direct contribution" in headings(figure)


def test_names_of_heads_stand_beside_their_lines():
    found = attribution()
    found.every.zero_()
    found.every[2, 1, 3, 0], found.every[2, 0, 3, 3], found.every[0, 1, 2, 1] = 2.0, 1.0, -1.5
    figure = plot.contribution_graph(found)
    names = [note for note in figure.layout.annotations if re.fullmatch(r"L\dH\d", note.text)]
    assert sorted(note.text for note in names) == ["L0H1", "L2H0", "L2H1"]
    strokes = [trace for trace in figure.data if trace.mode == "lines"]
    assert len(strokes) > 3
    for note in names:
        for stroke in strokes:
            share = np.linspace(0, 1, 200)
            x, y = (np.array(ends)[0] + share * np.diff(ends) for ends in (stroke.x, stroke.y))
            assert not ((abs(x - note.x) < 10) & (abs(y - note.y) < 4)).any(), note.text


def test_alignment_maps_say_what_they_need():
    for other in (attribution(), block_norms(), {"a": 1}, None):
        with pytest.raises(plot.PlotInputError, match="expected a CrossNorms, or one matrix"):
            plot.alignment_maps(other, ["a"], ["b"])
    with pytest.raises(plot.PlotInputError, match="pass source= and target="):
        plot.alignment_maps(torch.ones(1, 1))
