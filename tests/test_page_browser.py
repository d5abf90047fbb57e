"""The pages in a real headless browser, at the size of a laptop and of a phone, light and dark."""

import base64
import csv
import io
import json
import re
import shutil
import time
import xml.dom.minidom

import pytest
import torch
from page_results import NASTY, POST_LN, made_attribution, made_both_stacks, made_norms

from tl_norms.page import iframe, page_of_attribution, page_of_norms, write

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SIZES = [(1280, 800), (390, 844)]
TOKENS = ["The", " keys", " to", " the", " cabinet", " are", " on", " the"]
LONG = [*NASTY, *(f" word{i}" for i in range(30)), " extraordinarily", "long" * 12]
SOURCE = ["das", "Haus", "</script>", "ist", "</s>"]
LEFT, RIGHT, UP, DOWN, ENTER, ESCAPE, TAB = (*("\ue012", "\ue014", "\ue013", "\ue015", "\ue007", "\ue00c", "\ue004"),)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no chromium is installed")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"),
        *("disable-component-update", "disable-sync", "disable-dev-shm-usage"),
        f"user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = shutil.which("chromedriver")
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver) if driver else None)
    yield found
    found.quit()


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a page; afterwards nothing may have been complained about or fetched."""
    browser.get("about:blank")
    browser.get_log("browser"), browser.get_log("performance")

    def open_page(page, link="", size=(1280, 800), mode="light"):
        path = tmp_path / "page.html"
        write(path, page)
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": mode}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.get("about:blank")  # or a link that differs in its fragment alone would not load anew
        browser.get(path.as_uri() + link)
        return browser

    yield open_page
    assert browser.get_log("browser") == []
    asked = re.findall(r'"url":"((?!file:|data:|blob:|about:)[^"]*)"', str(browser.get_log("performance")))
    assert asked == []


def state(browser, name):
    return browser.execute_script("return state[arguments[0]]", name)


def keys(browser, *pressed):
    from selenium.webdriver import ActionChains

    ActionChains(browser).send_keys(*pressed).perform()


def chips(browser):
    return browser.execute_script("return chips().map(c => [c.firstChild.textContent, c.lastChild.textContent])")


def choose(browser, name, value):
    browser.execute_script(
        "const e = document.getElementById(arguments[0]); e.value = arguments[1]; e.dispatchEvent(new Event('input'))",
        *(name, value),
    )


def pictures(browser):
    return browser.execute_script("return [...document.querySelectorAll('canvas.map')].map(c => c.toDataURL())")


def at_cell(browser, panel, query, key, event="pointermove"):
    """An event in the middle of a cell of a map; the rows of the tooltip."""
    script = """
    const { layout } = shown[arguments[0]], c = document.querySelectorAll('canvas.map')[arguments[0]];
    const b = c.getBoundingClientRect(), kind = arguments[3] === 'click' ? MouseEvent : PointerEvent;
    const clientX = b.left + layout.left + (arguments[2] + .5) * layout.cell;
    const clientY = b.top + layout.top + (arguments[1] + .5) * layout.cell;
    c.dispatchEvent(new kind(arguments[3], { bubbles: true, clientX, clientY }));
    return [...document.querySelectorAll('#tip:not([hidden]) tr')].map(r => [...r.children].map(d => d.textContent));
    """
    return browser.execute_script(script, panel, query, key, event)


def number(text):
    return float(text.replace("\u2212", "-").replace("+", ""))


# --- norms -----------------------------------------------------------------------------------------------------------


def test_weights_stand_beside_norms(opened):
    norms = made_norms()
    browser = opened(page_of_norms(norms, TOKENS))
    assert (state(browser, "layer"), state(browser, "scope")) == (1, POST_LN[-1])
    assert [text for text, _ in chips(browser)] == [token.replace(" ", "·") for token in TOKENS]
    assert browser.find_element("id", "caption").text.startswith("Layer 1, attention + residual")
    choose(browser, "scope", "attn_res")
    choose(browser, "diagonal", "on")
    for query, key in ((4, 3), (7, 0), (5, 5)):
        row, weights = norms["attn_res"][1, 0, query, : query + 1], norms.attention[1, 0, query, : query + 1]
        found = at_cell(browser, 1, query, key)
        assert [line[0] for line in found] == ["attention weight", "norm"]
        for line, values in zip(found, (weights, row), strict=True):
            assert number(line[1]) == pytest.approx(float(values[key]), rel=1e-3)
            share = f"{100 * values[key] / values.sum():.{1 if values[key] < 0.1 * values.sum() else 0}f} % of the row"
            assert line[2] == f"{share} · rank {int((values > values[key]).sum()) + 1} of {query + 1}"
    ratios = [ratio for _, ratio in chips(browser)]
    assert ratios[3] == f"{100 * float(norms.mixing_ratio('attn_res')[1, 0, 3]):.0f} %"


def test_the_diagonal_is_left_out_where_it_drowns_the_rest(opened):
    norms = made_norms(scopes=("attn", "attn_res"))
    norms["attn"][:, 0].diagonal(dim1=-2, dim2=-1).fill_(0.1)
    browser = opened(page_of_norms(norms, TOKENS, layer=0, scope="attn_res"))
    top = float(norms["attn_res"][0, 0].tril(-1).max())
    bars = """return [...document.querySelectorAll('.panels .bar')]
        .map(b => [b.children[2].textContent, b.lastChild.textContent])"""
    assert browser.execute_script(bars)[1] == [f"{top:.3g}", "diagonal left out"]
    assert at_cell(browser, 1, 0, 0)[1][2] == "own vector, left out"
    choose(browser, "scope", "attn")
    assert [note for _, note in browser.execute_script(bars)] == ["", ""]
    choose(browser, "diagonal", "off")
    assert [note for _, note in browser.execute_script(bars)] == ["diagonal left out"] * 2


def test_darker_is_longer_in_a_light_browser_and_lighter_in_a_dark_one(opened):
    norms = made_norms(1, 3, ("attn",), causal=False)
    norms["attn"][0, 0] = torch.tensor([[0.0, 4.0, 2.0], [1.0, 3.0, 4.0], [0.0, 0.0, 1.0]])
    pixels = """
    const { layout: l } = shown[1], c = document.querySelectorAll('canvas.map')[1], all = [];
    const image = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
    for (let q = 0; q < 3; q++) for (let k = 0; k < 3; k++) {
      const at = 4 * (Math.floor(l.top + (q + .5) * l.cell) * c.width + Math.floor(l.left + (k + .5) * l.cell));
      all.push(image[at] + image[at + 1] + image[at + 2]);
    }
    return all;
    """
    order = norms["attn"][0, 0].flatten()
    for mode, sign in (("light", -1), ("dark", 1)):
        browser = opened(page_of_norms(norms, ["a", "b", "c"]), "#diagonal=on", mode=mode)
        light = torch.tensor(browser.execute_script(pixels), dtype=torch.float32) * sign
        assert light[order == 0].unique().numel() == 1
        assert all(light[i] < light[j] for i in range(9) for j in range(9) if order[i] < order[j])


def test_scales(opened):
    norms = made_norms(3, scopes=("attn",))
    norms["attn"][:] = norms["attn"] * torch.tensor([1.0, 10, 100])[:, None, None, None]
    browser = opened(page_of_norms(norms, TOKENS, layer=0), "#diagonal=on")
    top = "return [...document.querySelectorAll('.panels .bar')].at(-1).children[2].textContent"
    assert number(browser.execute_script(top)) == pytest.approx(float(norms["attn"][0].max()), rel=5e-3)
    choose(browser, "scale", "all")
    assert number(browser.execute_script(top)) == pytest.approx(float(norms["attn"].max()), rel=5e-3)
    before = pictures(browser)
    choose(browser, "scale", "row")
    assert browser.execute_script(top) == "1" and pictures(browser)[1] != before[1]


def test_heads(opened):
    norms = made_norms(n_heads=5)
    browser = opened(page_of_norms(norms, TOKENS))
    keys(browser, "2")
    thumbs = browser.find_elements("css selector", ".heads .thumb")
    assert len(thumbs) == 5 and thumbs[0].is_displayed()
    thumbs[3].click()
    assert state(browser, "head") == 3
    found = at_cell(browser, 0, 6, 2)
    assert number(found[0][1]) == pytest.approx(float(norms.patterns[1][0, 3, 6, 2]), rel=1e-3)
    assert number(found[1][1]) == pytest.approx(float(norms.head_norms[1, 0, 3, 6, 2]), rel=1e-3)
    keys(browser, LEFT)
    assert state(browser, "head") == 2


def test_the_feed_forward_before_and_after(opened):
    norms = made_norms()
    browser = opened(page_of_norms(norms, TOKENS))
    keys(browser, "3")
    found = at_cell(browser, 2, 5, 1)
    before, after = (norms[scope][1, 0, 5] for scope in ("attn_res_ln", "attn_res_ln_ff"))
    assert number(found[0][1]) == pytest.approx(float(before[1]), rel=1e-3)
    assert number(found[1][1]) == pytest.approx(float(after[1]), rel=1e-3)
    change = 100 * float(after[1] / after.sum() - before[1] / before.sum())
    assert number(found[2][1].replace(" %", "")) == pytest.approx(change, abs=0.51)
    browser = opened(page_of_norms(made_norms(scopes=("attn", "attn_res")), TOKENS), "#view=ff")
    button = browser.find_element("css selector", "[data-value=ff]")
    assert state(browser, "view") == "weights" and not button.is_enabled()


def test_the_overview_leads_to_a_layer(opened):
    browser = opened(page_of_norms(made_norms(6), TOKENS))
    first = pictures(browser)
    browser.find_elements("css selector", ".thumbs .thumb")[2].click()
    assert state(browser, "layer") == 2 and pictures(browser) != first
    assert browser.find_element("id", "caption").text.startswith("Layer 2,")
    keys(browser, "]")
    assert state(browser, "layer") == 3
    browser.execute_script("document.activeElement.blur()")
    keys(browser, "[", "[")
    assert state(browser, "layer") == 1


def test_a_click_pins_a_token_and_colours_the_sentence(opened):
    norms = made_norms(scopes=("attn",))
    browser = opened(page_of_norms(norms, TOKENS), "#diagonal=on")
    browser.execute_script("chips()[5].click()")
    assert state(browser, "pin") == 5 and "what each token put into “·are”" in browser.find_element("id", "legend").text
    row = norms["attn"][1, 0, 5]
    colours = browser.execute_script("return chips().map(c => c.style.background)")
    assert len(set(colours[:6])) > 2 and colours[6:] == ["", ""]
    shown = [number(value or "nan") for _, value in chips(browser)][:6]
    assert shown == pytest.approx(row[:6].tolist(), abs=float(row.max()) / 10)
    browser.find_element("css selector", "[data-value=from]").click()
    column = [number(value or "nan") for _, value in chips(browser)][5:]
    assert column == pytest.approx(norms["attn"][1, 0, 5:, 5].tolist(), abs=float(norms["attn"][1, 0, :, 5].max()) / 10)
    at_cell(browser, 1, 6, 2, "click")
    assert (state(browser, "pin"), state(browser, "dir")) == (6, "into")
    keys(browser, ESCAPE)
    assert state(browser, "pin") == -1


def test_the_keyboard_is_enough(opened):
    browser = opened(page_of_norms(made_norms(), TOKENS))
    browser.execute_script("chips()[0].focus()")
    keys(browser, RIGHT, RIGHT, ENTER)
    assert state(browser, "pin") == 2
    browser.execute_script("document.querySelectorAll('canvas.map')[1].focus()")
    keys(browser, DOWN, DOWN, RIGHT)
    assert browser.execute_script("return hover") == {"q": 3, "k": 1}  # the first key starts at the pinned token
    assert "norm" in browser.find_element("id", "readout").get_property("textContent")
    keys(browser, ENTER)
    assert state(browser, "pin") == 3
    keys(browser, "t")
    assert browser.execute_script("return theme()") == "dark"
    keys(browser, "?")
    assert browser.find_element("id", "helping").is_displayed()
    keys(browser, ENTER)
    assert not browser.find_element("id", "helping").is_displayed()
    keys(browser, "/", "KEY")
    assert browser.execute_script("return [...hits]") == [1]
    keys(browser, ENTER)
    assert state(browser, "pin") == 1
    reached, seen = set(), browser.execute_script("document.body.tabIndex = -1; document.body.focus(); return true")
    for _ in range(40):
        keys(browser, TAB)
        reached.add(browser.execute_script("const e = document.activeElement; return e.id || e.className || e.tagName"))
    assert seen and {"search", "theme", "help", "layer", "scope", "map"} <= reached


def test_a_link_restores_what_was_shown(opened):
    page = page_of_norms(made_norms(6), TOKENS)
    browser = opened(page)
    assert "#" not in browser.current_url
    browser.execute_script("set({ layer: 3, scope: 'attn_res', pin: 4, dir: 'from', scale: 'row', theme: 'dark' })")
    link, before = browser.current_url, pictures(browser)
    again = opened(page, "#" + link.split("#")[1])
    assert pictures(again) == before and again.current_url == link
    assert again.execute_script("return [state.layer, state.scope, state.pin, state.dir, theme()]") == [
        *(3, "attn_res", 4, "from", "dark"),
    ]
    again.execute_script("location.hash = '#layer=5'")
    time.sleep(0.2)
    assert again.execute_script("return [state.layer, state.pin]") == [5, -1]
    odd = opened(page, "#layer=99&scope=none&pin=400&view=heads&head=77&diagonal=x&scale=%00&theme=pink&more=1")
    assert odd.execute_script("return [state.layer, state.scope, state.pin, state.head, state.diagonal]") == [
        *(5, POST_LN[-1], -1, 0, "auto"),
    ]


@pytest.mark.parametrize("causal", [True, False])
def test_another_scope_may_have_more_keys(opened, causal):
    norms = made_norms(3, 6, POST_LN, causal, batch=None, n_source=5, spread=1)
    browser = opened(page_of_norms(norms, NASTY[:6], keys=SOURCE), "#diagonal=on")
    for scope, width in (("attn", 6), ("attn_res_ln_ff", 11), ("attn_res", 6), ("attn_res_ln", 11)):
        choose(browser, "scope", scope)
        assert browser.execute_script("return shown[1].m.columns") == width
        for query, key in ((0, width - 1), (5, 2), (3, 0), (2, width - 1)):
            found = at_cell(browser, 1, query, key)
            if causal and query < key < 6:
                assert found == []
            else:
                line = next(line for line in found if line[0] == "norm")
                assert number(line[1]) == pytest.approx(float(norms[scope][-1, query, key]), rel=1e-3)
    browser.execute_script("chips()[7].click()")  # a token of the source sentence: where it went
    assert state(browser, "dir") == "from"
    shown = [number(value or "nan") for _, value in chips(browser)][:6]
    assert shown == pytest.approx(norms["attn_res_ln"][-1, :, 7].tolist(), abs=0.06)


# --- attribution -----------------------------------------------------------------------------------------------------


def test_the_sentence_has_signed_colours(opened):
    attribution = made_attribution(TOKENS)
    browser = opened(page_of_attribution(attribution))
    assert browser.find_element("id", "caption").text.startswith(f"{attribution.target_name} = ")
    colours = browser.execute_script("return chips().map(c => c.style.background.match(/[0-9]+/g).map(Number))")
    for value, (red, _, blue) in zip(attribution.tokens.tolist(), colours, strict=True):
        if abs(value) > 0.2:
            assert (blue > red) == (value > 0), "blue speaks for the target, red against it"
    shown = [number(value) for _, value in chips(browser)]
    assert shown == pytest.approx(attribution.tokens.tolist(), abs=0.051)


POINT = """
const [canvas, x, y, event] = arguments, b = canvas.getBoundingClientRect();
const kind = event === 'click' ? MouseEvent : PointerEvent;
canvas.dispatchEvent(new kind(event, { bubbles: true, clientX: b.left + x, clientY: b.top + y }));
return [...document.querySelectorAll('#tip:not([hidden]) tr')].map(r => [...r.children].map(d => d.textContent));
"""


def test_cuts_heads_and_edges_can_be_pointed_at(opened):
    attribution = made_attribution(TOKENS)
    browser = opened(page_of_attribution(attribution))
    one, two = browser.find_elements("css selector", "figure canvas.map")
    x, y = browser.execute_script("return [graph.x(4), graph.y(2) + graph.cell / 2]")
    found = browser.execute_script(POINT, one, x, y, "pointermove")
    row = attribution.stream[2]
    assert number(found[0][1]) == pytest.approx(float(row[4]), rel=6e-3)
    assert f"rank {int((row.abs() > row[4].abs()).sum()) + 1} of 8" in found[0][2]
    assert number(found[1][1]) == pytest.approx(float(attribution.ffn[1, 4]), rel=6e-3)
    x, y = browser.execute_script("return [grid.x(2) + 3, grid.y(1) + 3]")
    found = browser.execute_script(POINT, two, x, y, "pointermove")
    assert number(found[0][1]) == pytest.approx(float(attribution.heads[1, 2]), rel=6e-3)
    browser.execute_script(POINT, two, x, y, "click")
    assert state(browser, "head") == "L1H2"
    edges = attribution.edges(1)[2]
    first = browser.find_element("css selector", ".detail .edge .value").text
    assert number(first) == pytest.approx(float(edges.flatten()[edges.abs().argmax()]), rel=6e-3)


def strongest(attribution, n, keep):
    """The n strongest edges (layer, head, query, key) of those for which `keep` holds."""
    edges = torch.stack([attribution.edges(layer) for layer in attribution.layers])
    order = edges.abs().flatten().argsort(descending=True)
    places = [tuple(map(int, torch.unravel_index(at, edges.shape))) for at in order if edges.flatten()[at] != 0]
    return [place for place in places if keep(*place)][:n]


def test_an_edge_is_followed_back(opened):
    attribution = made_attribution(TOKENS)
    page = page_of_attribution(attribution)
    browser = opened(page)
    between = strongest(attribution, 24, lambda layer, head, query, key: query != key)
    drawn = browser.execute_script("return edgesShown(24).map(edgeId)")
    assert drawn == [".".join(map(str, edge)) for edge in between]
    last = next(edge for edge in between if edge[0] == 2 and edge[3] > 1)
    x, y = browser.execute_script(
        "const e = BY_ID.get(arguments[0]), layer = E.layer[e]; return [(graph.x(E.key[e]) + graph.x(E.query[e])) / 2,"
        " (graph.y(layer) + graph.y(layer + 1) + graph.cell) / 2]",
        ".".join(map(str, last)),
    )
    found = browser.execute_script("return underGraph(arguments[0], arguments[1])", x, y)
    assert found is not None and "edge" in found
    browser.execute_script("follow(BY_ID.get(arguments[0]))", ".".join(map(str, last)))
    earlier = strongest(attribution, 7, lambda layer, head, query, key: query == last[3] != key and layer < last[0])
    listed = browser.execute_script(
        "return [...document.querySelectorAll('.detail .edge[aria-pressed=false] .head')].map(e => e.textContent)"
    )
    assert listed == [f"L{layer}H{head}" for layer, head, _, _ in earlier]
    browser.find_elements("css selector", ".detail .edge[aria-pressed=false]")[0].click()
    assert state(browser, "trail") == ".".join(map(str, last)) + "_" + ".".join(map(str, earlier[0]))
    link = browser.current_url.split("#")[1]
    again = opened(page, "#" + link)
    assert again.execute_script("return trail().length") == 2
    keys(again, "\ue003")
    assert again.execute_script("return trail().length") == 1
    keys(again, ESCAPE)
    assert state(again, "trail") == ""


def test_a_pinned_token_chooses_edges(opened):
    attribution = made_attribution(TOKENS)
    browser = opened(page_of_attribution(attribution), "#pin=6")
    wanted = strongest(attribution, 24, lambda layer, head, query, key: query == 6 != key)
    assert browser.execute_script("return edgesShown(24).map(edgeId)") == [".".join(map(str, e)) for e in wanted]
    keys(browser, "f")
    wanted = strongest(attribution, 24, lambda layer, head, query, key: key == 6 != query)
    assert browser.execute_script("return edgesShown(24).map(edgeId)") == [".".join(map(str, e)) for e in wanted]


def test_edges_of_a_long_text_are_those_kept(opened, monkeypatch):
    monkeypatch.setattr("tl_norms.page.of_attribution.EDGE_NUMBERS", 30)
    attribution = made_attribution(TOKENS)
    browser = opened(page_of_attribution(attribution))
    assert browser.execute_script("return COUNT") == 30
    assert "strongest 10 of each layer" in browser.find_element("id", "footer").text


# --- both ------------------------------------------------------------------------------------------------------------


def page_of(kind, tokens):
    if kind == "norms":
        scopes = (*POST_LN, "attn_res_ln_ff_res")
        return page_of_norms(
            made_norms(30, len(tokens), scopes, n_heads=9), tokens, model_name="a-rather/long-name" * 2
        )
    return page_of_attribution(made_attribution(tokens, n_layers=30, n_heads=9))


VIEWS = [("norms", "#view=weights"), ("norms", "#view=heads&pin=5"), ("norms", "#view=ff"), ("attribution", "#pin=9")]
OUTSIDE = """
const out = [];
for (const e of document.querySelectorAll('body *')) {
  const b = e.getBoundingClientRect(), style = getComputedStyle(e);
  if (!b.width || style.visibility === 'hidden' || e.closest('.hidden')) continue;
  if (b.right > arguments[0] + 1 || b.left < -1) out.push([e.tagName, e.className, b.left, b.right]);
  const cuts = style.overflowX !== 'visible' && style.textOverflow !== 'ellipsis' && e.scrollWidth > e.clientWidth + 1;
  if (cuts && !['SELECT', 'INPUT'].includes(e.tagName)) out.push(['cut', e.className, e.scrollWidth, e.clientWidth]);
}
return out;
"""


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("kind, link", VIEWS)
def test_it_fits_the_screen_and_survives_any_token(opened, size, mode, kind, link):
    browser = opened(page_of(kind, LONG), link, size, mode)
    assert json.loads(browser.execute_script("return JSON.stringify(D.tokens)")) == LONG  # half a pair survives so
    assert len(browser.find_elements("css selector", "script")) == 2
    width = size[0]  # not innerWidth: on a phone that grows with what sticks out
    assert browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]") <= [width, width]
    assert browser.execute_script(OUTSIDE, width) == []
    ink, paper = browser.execute_script(
        "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
    )
    brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
    assert (brightness[0] < brightness[1]) == (mode == "light") and abs(brightness[0] - brightness[1]) > 450
    if size[0] == 1280:  # and uses the width
        used = browser.execute_script(
            "return Math.max(...[...document.querySelectorAll('#stage *')].map(e => e.getBoundingClientRect().right))"
        )
        assert used > 1180


@pytest.mark.parametrize("kind", ["norms", "attribution"])
def test_the_theme_can_be_chosen(opened, kind):
    browser = opened(page_of(kind, TOKENS))
    before = pictures(browser)
    browser.find_element("id", "theme").click()
    assert browser.execute_script("return getComputedStyle(document.documentElement).colorScheme") == "dark"
    assert pictures(browser)[0] != before[0] and "theme=dark" in browser.current_url
    browser.find_element("id", "theme").click()
    assert pictures(browser) == before


@pytest.mark.parametrize("kind", ["norms", "attribution"])
def test_downloads(opened, tmp_path, kind):
    norms, attribution = made_norms(), made_attribution(NASTY)
    page = page_of_norms(norms, NASTY) if kind == "norms" else page_of_attribution(attribution)
    browser = opened(page)
    where = {"behavior": "allow", "downloadPath": str(tmp_path)}
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", where)
    for form in ("png", "svg", "csv"):
        browser.find_element("css selector", "#download summary").click()
        browser.find_element("css selector", f"[data-format={form}]").click()
        deadline = time.monotonic() + 20
        while not (found := list(tmp_path.glob(f"*.{form}"))) and time.monotonic() < deadline:
            time.sleep(0.05)
        content = found[0].read_bytes()
        if form == "png":
            assert content.startswith(b"\x89PNG") and int.from_bytes(content[16:20], "big") > 1000
        elif form == "svg":
            drawing = xml.dom.minidom.parseString(content)
            assert len(drawing.getElementsByTagName("rect")) > 50
            words = [text.firstChild.data for text in drawing.getElementsByTagName("text") if text.firstChild]
            assert "&amp;{{DATA}}" in words and "·🎉" in words
        else:
            rows = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"))))
            if kind == "norms":
                assert len(rows) == 36 and {row["key_token"] for row in rows} >= {"line\nbreak", "\"quote'", " 🎉"}
                for row in rows[::7]:
                    value = norms[POST_LN[-1]][1, 0, int(row["query"]), int(row["key"])]
                    assert float(row[POST_LN[-1]]) == pytest.approx(float(value), rel=1e-3)
            else:
                cuts = [row for row in rows if row["kind"] == "stream" and row["layer_or_cut"] == "1"]
                found = torch.tensor([float(row["value"]) for row in cuts])
                torch.testing.assert_close(found, attribution.stream[1], rtol=1e-3, atol=1e-6)
                edge = next(row for row in rows if row["kind"] == "edge")
                place = [int(edge[name]) for name in ("head", "query", "key")]
                value = attribution.edges(int(edge["layer_or_cut"]))[tuple(place)]
                assert float(edge["value"]) == pytest.approx(float(value), rel=1e-3)


def test_it_works_inside_a_notebook(opened):
    page = page_of_norms(made_norms(), TOKENS)
    browser = opened(f"<!DOCTYPE html><title>notebook</title>{iframe(page)}")
    browser.switch_to.frame(browser.find_element("css selector", "iframe"))
    deadline = time.monotonic() + 20
    while not browser.find_elements("css selector", ".chip") and time.monotonic() < deadline:  # drawn in its own time
        time.sleep(0.05)
    browser.execute_script("chips()[3].click()")
    assert state(browser, "pin") == 3
    assert len(base64.b64decode(pictures(browser)[1].split(",")[1])) > 1000
    browser.switch_to.default_content()


def test_an_attribution_of_an_encoder_decoder_shows_the_source_sentence(opened):
    attribution = made_attribution(TOKENS)
    attribution.source_tokens, attribution.source_strings = torch.tensor([3.0, -0.5]), (("das", "</script>"),)
    browser = opened(page_of_attribution(attribution))
    shown = chips(browser)
    assert [word for word, _ in shown[-2:]] == ["das", "</script>"] and [text for _, text in shown[-2:]] == [
        "+3.0",
        "\u22120.5",
    ]
    assert "the source sentence +2.5" in browser.find_element("id", "caption").text
    browser.execute_script("chips()[chips().length - 2].click()")  # no edges are known of it: nothing is pinned
    assert state(browser, "pin") == -1
    rows = browser.execute_script("return PAGE.csv().filter((row) => row[0] === 'source')")
    assert [(row[-2], row[-1]) for row in rows] == [("das", 3), ("</script>", -0.5)]


def test_both_stacks_of_an_encoder_decoder_are_drawn(opened):
    found, n, m = made_both_stacks(TOKENS, SOURCE), len(TOKENS), len(SOURCE)
    browser = opened(page_of_attribution(found))
    told = browser.find_element("id", "caption").text.split(". Largest")[0]
    told = [number(text) for text in re.findall(r"[+\u2212]?\d+\.?\d*", told.split("=")[1])]
    assert len(told) == 4 and sum(told[1:]) == pytest.approx(told[0], abs=0.05)  # text, source, constants
    edges = [("", layer, 0, 0, found.edges(layer)) for layer in range(3)]
    edges += [("X", layer, 0, n, found.cross_edges(layer)) for layer in range(3)]
    edges += [("E", layer, n, n, found.edges(layer, "encoder")) for layer in range(2)]
    every = [
        (abs(value), f"{kind}{layer}.{h}.{down + q}.{right + k}")
        for kind, layer, down, right, values in edges
        for h, heads in enumerate(values.tolist())
        for q, row in enumerate(heads)
        for k, value in enumerate(row)
        if value and down + q != right + k
    ]
    wanted = [name for _, name in sorted(every, reverse=True)[:24]]
    assert {name[0] for name in wanted} >= {"X", "E"}
    assert browser.execute_script("return edgesShown(24).map(edgeId)") == wanted
    cross = next(name for name in wanted if name[0] == "X")
    browser.execute_script("follow(BY_ID.get(arguments[0]))", cross)
    listed = browser.execute_script(
        "return [...document.querySelectorAll('.detail .edge[aria-pressed=false] .head')].map(e => e.textContent)"
    )
    assert len(listed) == 7 and {name[0] for name in listed} == {"E"}  # only the encoder wrote there
    keys(browser, ESCAPE)
    # a row of the encoder's output, and a head of cross-attention
    one, two = browser.find_elements("css selector", "figure canvas.map")
    x, y = browser.execute_script("return [graph.x(arguments[0]), graph.y(BASE + 1) + graph.cell / 2]", n + 2)
    shown = browser.execute_script(POINT, one, x, y, "pointermove")
    assert number(shown[0][1]) == pytest.approx(float(found.beside[1, 2]), rel=6e-3)
    x, y = browser.execute_script("return [graph.x(arguments[0]), graph.y(1) + graph.cell / 2]", n + 3)
    shown = browser.execute_script(POINT, one, x, y, "pointermove")
    assert number(shown[0][1]) == pytest.approx(float(found.source_stream[1, 3]), rel=6e-3)
    x, y = browser.execute_script("return [grid.x(HEADS + 2) + 3, grid.y(2 + 1) + 3]")
    shown = browser.execute_script(POINT, two, x, y, "click")
    assert state(browser, "head") == "X1H2"
    assert number(shown[0][1]) == pytest.approx(float(found.cross_edges(1)[2].sum()), rel=6e-3)
    assert browser.execute_script("const m = headMap(headOf()); return [m.rows, m.columns]") == [n, m]
    keys(browser, ESCAPE)
    browser.execute_script("chips()[arguments[0]].click()", n + 1)
    assert state(browser, "pin") == n + 1
    touching = [name for _, name in sorted(every, reverse=True) if name.split(".")[2] == str(n + 1)][:24]
    assert browser.execute_script("return edgesShown(24).map(edgeId)") == touching
    rows = browser.execute_script("return PAGE.csv()")
    assert {row[0] for row in rows} >= {"encoder stream", "encoder output", "cross head", "encoder head", "cross edge"}
    there = next(row for row in rows if row[0] == "cross edge")
    layer, head, query, key = int(there[1]), int(there[2]), int(there[3]), int(there[5].split()[-1])
    assert there[6] == SOURCE[key]
    assert float(there[-1]) == pytest.approx(float(found.cross_edges(layer)[head, query, key]), rel=1e-3)


@pytest.mark.parametrize("size", SIZES)
def test_both_stacks_fit_the_screen(opened, size):
    page = page_of_attribution(made_both_stacks(LONG, LONG, n_layers=12, n_below=12, n_heads=12))
    browser = opened(page, "#pin=9&head=X3H2", size, "dark")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= size[0]
    assert browser.execute_script(OUTSIDE, size[0]) == []
