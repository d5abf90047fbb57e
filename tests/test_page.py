"""The pages of norms and attributions, as text. test_page_browser.py opens them."""

import re
import sys
import webbrowser
from dataclasses import replace
from html import unescape
from types import SimpleNamespace

import pytest
import torch
from page_results import NASTY, POST_LN, data_of, made_attribution, made_norms, numbers, unpacked
from plot_results import block_norms

import tl_norms
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
    norms = block_norms(n_source=5, causal=causal)
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
    data = data_of(page_of_norms(replace(norms, patterns=None), NASTY))
    assert data["attention"] is None and data["heads"] is None
    kept = replace(norms, patterns=None, kept_attention=norms.attention, kept_attention_ratio=torch.rand(2, 1, 8))
    data = data_of(page_of_norms(kept, NASTY))
    assert data["heads"] is None and unpacked(data["attention"]).shape == (2, 36)
    with pytest.raises(PageInputError, match="keeps no maps"):
        page_of_norms(replace(norms, maps={}), NASTY)


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
    attribution.value = attribution.value[None]
    with pytest.raises(PageInputError, match="one target"):
        page_of_attribution(attribution, batch=0)


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
    assert notebook_view(norms, lambda: page_of_norms(norms, NASTY)).startswith("<iframe")
    told = notebook_view(norms, lambda: page_of_norms(norms, ["<a>"]))
    assert told.startswith("<pre>BlockNorms, 2 layers") and "no page: this result has 8 positions" in told
    assert "call .show()" in notebook_view(norms, lambda: page_of_norms(norms, NASTY), largest=1000)
