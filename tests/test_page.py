"""The pages of norms and attributions, as text. test_page_browser.py opens them."""

import re
import sys
import webbrowser
from dataclasses import replace
from html import unescape
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from page_results import NASTY, POST_LN, data_of, made_attribution, made_norms, numbers, unpacked

import tl_norms
from tl_norms import plot
from tl_norms.__main__ import main
from tl_norms.page import (
    OutputError,
    PageInputError,
    iframe,
    notebook_view,
    page_of_attribution,
    page_of_norms,
    show,
    write,
)
from tl_norms.page.packing import packed
from tl_norms.results import HeadNorms

CLOSE = {"rtol": 5e-4, "atol": 0}  # half precision
SOURCE = ["das", "Haus", "</script>", "ist", "</s>"]


def test_packing_loses_no_small_number_and_keeps_what_is_no_number():
    values = torch.tensor([[1e-3, 2.5, -7e5, 0.0], [1e-12, 3e-9, torch.nan, torch.inf], [0.0, 0.0, 0.0, 0.0]])
    found = unpacked(packed(values))
    torch.testing.assert_close(found, values.double(), equal_nan=True, **CLOSE)
    wide = torch.logspace(-4, 4, 1000, dtype=torch.float64)[None]
    torch.testing.assert_close(unpacked(packed(wide)), wide, **CLOSE)


def test_the_page_holds_the_norms():
    norms = made_norms()
    data = data_of(page_of_norms(norms, NASTY, model_name="some/<model>", text=" ".join(NASTY)))
    assert data["tokens"] == NASTY and data["text"] == " ".join(NASTY) and data["layers"] == [0, 1]
    rows, columns = torch.tril_indices(8, 8)
    for scope in norms.scopes:
        torch.testing.assert_close(
            unpacked(data["maps"][scope]), norms[scope][:, 0][:, rows, columns].double(), **CLOSE
        )
        torch.testing.assert_close(unpacked(data["ratios"][scope]), norms.mixing_ratio(scope)[:, 0].double(), **CLOSE)
        assert data["errors"][scope][1] is None
    weights = unpacked(data["heads"]["weights"])
    torch.testing.assert_close(weights.mean(1), norms.attention[:, 0][:, rows, columns].double(), rtol=1e-3, atol=0)
    heads = weights * unpacked(data["heads"]["values"])[..., columns]
    torch.testing.assert_close(heads, norms.head_norms[:, 0][..., rows, columns].double(), rtol=1e-3, atol=0)
    torch.testing.assert_close(unpacked(data["weight_ratios"]), norms.attention_mixing_ratio()[:, 0].double(), **CLOSE)


def test_it_opens_where_it_is_told_to():
    norms = made_norms(3)
    assert data_of(page_of_norms(norms, NASTY))["open"] == {"layer": 2, "scope": POST_LN[-1]}
    assert data_of(page_of_norms(norms, NASTY, layer=1, scope="attn"))["open"] == {"layer": 1, "scope": "attn"}
    with pytest.raises(tl_norms.errors.UnknownLayerError, match="layer 7 is not in this result; it has 0, 1, 2"):
        page_of_norms(norms, NASTY, layer=7)
    with pytest.raises(tl_norms.errors.UnknownScopeError, match="it has attn, attn_res"):
        page_of_norms(norms, NASTY, scope="attn_ff")


@pytest.mark.parametrize("kind", ["norms", "attribution"])
def test_tokens_cannot_leave_their_place_and_nothing_is_fetched(kind):
    if kind == "norms":
        page = page_of_norms(made_norms(), NASTY, model_name="some/<model>")
    else:
        page = page_of_attribution(made_attribution(NASTY))
    assert page.count("</script") == 2 and page.count("<script") == 2
    assert "<title>some/&lt;model&gt;: " in page and "\u2028" not in page
    assert data_of(page)["tokens"] == NASTY
    assert "default-src 'none'" in page
    code = page.replace("default-src", "").replace("http://www.w3.org/2000/svg", "")  # the name of SVG, no address
    assert not re.search(r"https?://|@import|<link rel=\"style|src=\"|url\(|fetch\(|XMLHttp|WebSocket|import\(", code)


def test_padding_is_left_out():
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
    norms, words = made_norms(2, 5, batch=2, mask=mask), list("abcde")
    with pytest.raises(PageInputError, match="shows one text, this result has 2"):
        page_of_norms(norms, words)
    data = data_of(page_of_norms(norms, [words, words], batch=0))
    assert data["tokens"] == ["a", "b", "c"] and data == data_of(page_of_norms(norms, words[:3], batch=0))
    rows, columns = torch.tril_indices(3, 3)
    torch.testing.assert_close(unpacked(data["maps"]["attn"]), norms["attn"][:, 0][:, rows, columns].double(), **CLOSE)
    assert len(data_of(page_of_norms(norms, words, batch=1))["tokens"]) == 5
    with pytest.raises(PageInputError, match="no text 2"):
        page_of_norms(norms, words, batch=2)


@pytest.mark.parametrize("causal", [True, False])
def test_keys_of_the_encoder_are_kept_after_the_own_ones(causal):
    norms = made_norms(3, 6, causal=causal, batch=None, n_source=5)
    for keys in (SOURCE, NASTY[:6] + SOURCE):
        data = data_of(page_of_norms(norms, NASTY[:6], keys=keys))
        assert data["source"] == SOURCE and set(data["widths"].values()) == {6, 11}
    for scope, width in data["widths"].items():
        whole = torch.ones(6, width, dtype=torch.bool)
        whole[:, :6] = whole[:, :6].tril() if causal else whole[:, :6]
        torch.testing.assert_close(unpacked(data["maps"][scope]), norms[scope][:, whole].double(), **CLOSE)
    with pytest.raises(PageInputError, match="5 keys of the encoder, but 2 were given"):
        page_of_norms(norms, NASTY[:6], keys=["a", "b"])


def test_weights_that_were_not_kept_are_not_shown():
    norms = made_norms()
    data = data_of(page_of_norms(replace(norms, heads=HeadNorms(norms.value_norms, None)), NASTY))
    assert data["attention"] is None and data["heads"] is None
    kept = HeadNorms(norms.value_norms, None, norms.attention, torch.rand(2, 1, 8))
    data = data_of(page_of_norms(replace(norms, heads=kept), NASTY))
    assert data["heads"] is None and unpacked(data["attention"]).shape == (2, 36)
    with pytest.raises(PageInputError, match="keeps no maps"):
        page_of_norms(replace(norms, by_scope={"attn": replace(norms.by_scope["attn"], map=None)}), NASTY)


def test_many_heads_are_left_out_rather_than_written(monkeypatch):
    monkeypatch.setattr("tl_norms.page.of_norms.HEAD_NUMBERS", 2 * 2 * 36 - 1)
    data = data_of(page_of_norms(made_norms(), NASTY))
    assert data["heads"] is None and data["attention"] is not None


def test_tokens_must_fit():
    with pytest.raises(PageInputError, match="8 positions, but 3 tokens"):
        page_of_norms(made_norms(), ["a", "b", "c"])
    with pytest.raises(PageInputError, match="8 positions, but 3 tokens"):
        page_of_attribution(made_attribution(NASTY), ["a", "b", "c"])


def test_tokens_kept_with_a_result_are_used():
    attribution = made_attribution(NASTY)
    assert data_of(page_of_attribution(attribution, ["x"] * 8))["tokens"] == ["x"] * 8
    attribution.token_strings = None
    with pytest.raises(PageInputError, match="keeps no token strings: pass tokens="):
        page_of_attribution(attribution)
    with pytest.raises(PageInputError, match="keeps no token strings: pass tokens="):
        page_of_norms(made_norms())


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("batch", [None, 2])
def test_the_page_holds_the_attribution(causal, batch):
    attribution = made_attribution(NASTY, causal=causal, batch=batch)
    if batch:
        with pytest.raises(PageInputError, match="shows one text, this result has 2"):
            page_of_attribution(attribution)
    at = (slice(None),) if batch is None else (slice(None), 1)
    data = data_of(page_of_attribution(attribution, batch=None if batch is None else 1))
    for name in ("stream", "heads", "ffn", "bypass"):
        torch.testing.assert_close(unpacked(data[name]), getattr(attribution, name)[at].double(), **CLOSE)
    torch.testing.assert_close(torch.tensor(data["offset"]), attribution.offset[at], rtol=1e-5, atol=1e-6)
    edges = torch.stack([attribution.edges(layer) for layer in range(3)])[at]
    assert data["edges"]["causal"] is causal and data["edges"]["shape"] == [4, 8, 8]
    pairs = torch.ones(8, 8).tril() if causal else torch.ones(8, 8)
    torch.testing.assert_close(unpacked(data["edges"]["all"]), edges[..., pairs.bool()].double(), **CLOSE)
    assert data["target"] == attribution.target_name and data["model"] == "some/<model>"


def test_of_many_edges_the_strongest_are_kept(monkeypatch):
    monkeypatch.setattr("tl_norms.page.of_attribution.EDGE_NUMBERS", 30)
    attribution = made_attribution(NASTY)
    edges = data_of(page_of_attribution(attribution))["edges"]
    assert edges["all"] is None and edges["limit"] == 10
    whole, part = attribution.edges(1), edges["strongest"][1]
    found = torch.zeros_like(whole)
    head, query, key = (numbers(part[name]) for name in ("head", "query", "key"))
    found[head, query, key] = unpacked(part["value"])[0].float()
    strong = whole.abs() >= whole.abs().flatten().topk(10).values[-1]
    torch.testing.assert_close(found, whole * strong, **CLOSE)


def test_one_target_at_a_time():
    attribution = made_attribution(NASTY, batch=2)
    attribution.has_targets = True
    with pytest.raises(PageInputError, match="a list of 2: attribute one target"):
        page_of_attribution(attribution, batch=0)
    attribution.has_targets, attribution.value = False, attribution.value[None]
    with pytest.raises(PageInputError, match="one target"):
        page_of_attribution(attribution, batch=0)


def test_layers_without_attention_have_no_edges():
    attribution = made_attribution(NASTY)
    whole = attribution.edges
    attribution.unattended = {1: 0.3}

    def edges_of(layer):
        if layer == 1:
            raise tl_norms.UnknownLayerError("layer 1 has no attention")  # as an Attribution does
        return whole(layer)

    attribution.edges = edges_of
    for figure in (plot.layer_maps(attribution), plot.head_maps(attribution, heads=0)):
        values = [np.asarray(trace.z, float) for trace in figure.data]
        assert not np.nan_to_num(values[1]).any() and np.nan_to_num(values[0]).any()
    assert "of 288 edges" in str(plot.contribution_graph(attribution).layout)  # 2 layers, 4 heads, 8 + 8·7/2 pairs
    edges = unpacked(data_of(page_of_attribution(attribution))["edges"]["all"])
    assert not edges[1].any() and edges[0].any() and edges[2].any()


def test_an_encoder_decoder_says_what_the_source_sentence_contributed():
    attribution = made_attribution(NASTY)
    attribution.source_tokens = torch.tensor([0.25, 0.5])
    found = data_of(page_of_attribution(attribution))
    assert found["source_total"] == 0.75 and found["source"] == ["[0]", "[1]"]  # nobody knows its tokens
    assert unpacked(found["source_values"])[0].tolist() == pytest.approx([0.25, 0.5], rel=1e-3)
    attribution.source_strings = (("das", "Haus"),)
    assert data_of(page_of_attribution(attribution))["source"] == ["das", "Haus"]
    assert data_of(page_of_attribution(attribution, keys=["the", "house"]))["source"] == ["the", "house"]
    with pytest.raises(PageInputError, match="2 positions, but keys= has 1"):
        page_of_attribution(attribution, keys=["the"])


def test_names_are_short():
    for name, short in (
        ("gpt2", "gpt2"),
        ("org/model", "org/model"),
        ("/long/way/to/folder/model/", "folder/model"),
        ("/long/way/model.Q4_1.gguf", "model.Q4_1.gguf"),
    ):
        assert data_of(page_of_norms(made_norms(), NASTY, model_name=name))["model"] == short


def test_the_command_line_opens_the_page_on_the_layer_that_it_reports(minilm, tmp_path, capsys):
    path = tmp_path / "page.html"
    text = "The keys to the cabinet are on the table."
    for options, opened in (
        ((), {"layer": 5, "scope": "attn_res_ln"}),
        (("--layer", "2", "--scope", "attn_res"), {"layer": 2, "scope": "attn_res"}),
    ):
        assert main(["--html", str(path), "--quiet", *options, text]) == 0
        data = data_of(path.read_text(encoding="utf-8"))
        assert data["open"] == opened and data["text"] == text and "keys" in data["tokens"]
        assert len(data["scopes"]) == (1 if options else len(data["chain"]))  # all there is, unless scopes were named
    assert capsys.readouterr() == ("", "")


def test_size_of_thirty_layers_and_forty_tokens():
    scopes = (*POST_LN, "attn_res_ln_ff_res")
    page = page_of_norms(made_norms(30, 40, scopes, n_heads=9), [" token"] * 40)
    assert len(page.encode()) < 3e6
    page = page_of_attribution(made_attribution([" token"] * 40, n_layers=30, n_heads=9))
    assert len(page.encode()) < 3e6
    page = page_of_norms(made_norms(12, 64, scopes, causal=False, n_heads=12), [" token"] * 64)
    assert len(page.encode()) < 6e6


def test_an_unwritable_file_is_one_error(tmp_path):
    with pytest.raises(OutputError, match="cannot write"):
        write(tmp_path / "no" / "page.html", "x")
    write(tmp_path / "page.html", "é")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == "é"


def test_show_opens_a_browser(monkeypatch, tmp_path):
    opened = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    path = show("<p>é</p>")
    assert opened == [path.as_uri()] and path.parent == tmp_path and path.read_text(encoding="utf-8") == "<p>é</p>"
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(OutputError, match="temporary"):
        show("x")


def test_show_in_a_notebook(monkeypatch):
    shown = []
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(HTML=str, display=shown.append))
    page = page_of_norms(made_norms(), NASTY)
    assert show(page) is None
    (frame,) = shown
    assert frame == iframe(page) and unescape(re.search(r'srcdoc="([^"]*)"', frame)[1]) == page
    assert "allow-same-origin" not in frame


def test_a_cell_of_a_notebook_never_fails():
    norms = made_norms()
    assert notebook_view(lambda: page_of_norms(norms, NASTY), "a table").startswith("<iframe")
    assert notebook_view(lambda: page_of_norms(norms, ["<a>"]), "a table") == "a table"
    told = notebook_view(lambda: page_of_norms(norms, NASTY), "a table", largest=1000)
    assert told.startswith("a table") and "call .show()" in told


def test_norms_show_themselves(monkeypatch, tmp_path):
    opened = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    norms = made_norms()
    norms.show(NASTY, layer=0)
    (path,) = tmp_path.iterdir()
    assert opened == [path.as_uri()] and data_of(path.read_text(encoding="utf-8"))["open"]["layer"] == 0
    assert norms._repr_html_().startswith("<p>BlockNorms")  # it keeps no token strings, so the table stays
