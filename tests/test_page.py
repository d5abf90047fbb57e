"""The page of `--html`, as text and in a real headless browser."""

import json
import re
import shutil

import pytest
import torch
from plot_results import block_norms

import tl_norms
from tl_norms.cli import page

TEXT = "The keys to the cabinet are on the table."
NASTY = [
    "</script><script>alert(1)</script>",
    "</script <!--<script ",
    "&amp;",
    "\"quote'",
    "line\nbreak",
    "🎉",
    "\u2028",
    "é",
]
FACTS = {"model": "some/<model>", "text": " ".join(NASTY), "dtype": "float32", "versions": {"torch": torch.__version__}}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def norms(minilm):
    with torch.no_grad():
        _, cache = minilm.run_with_cache(TEXT)
        return tl_norms.block_norms(cache, "all")


def made(n_layers: int = 2, n: int = 8, scopes: tuple[str, ...] = ("attn", "attn_res"), causal: bool = True):
    """A result with numbers of our own."""
    torch.manual_seed(0)
    maps = {scope: torch.rand(n_layers, 1, n, n) * 10 ** (3 * torch.rand(n_layers, 1, n, n)) for scope in scopes}
    if causal:
        maps = {scope: value.tril() for scope, value in maps.items()}
    return tl_norms.BlockNorms(
        scopes=scopes,
        layers=tuple(range(n_layers)),
        maps=maps,
        mixing_ratios={scope: torch.rand(n_layers, 1, n) for scope in scopes},
        value_norms=torch.rand(n_layers, 1, 2, n),
        patterns=tuple(torch.rand(1, 2, n, n) for _ in range(n_layers)),
        error={scope: torch.tensor([1e-7] * (n_layers - 1) + [float("nan")]) for scope in scopes},
        processing=(),
        skipped=(),
        causal=causal,
        mask=None,
        chain=scopes,
    )


def data_of(text: str) -> dict:
    """What the page holds, found as a browser would: up to the first end tag."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


def test_the_page_holds_the_numbers():
    norms = made()
    data = data_of(page.render(norms, NASTY, FACTS))
    assert data["tokens"] == NASTY and data["text"] == FACTS["text"] and data["layers"] == [0, 1]
    rows, columns = torch.tril_indices(8, 8)
    for scope in norms.scopes:
        found = torch.tensor(data["maps"][scope])
        torch.testing.assert_close(found, norms[scope][:, 0][:, rows, columns], rtol=5.1e-4, atol=0)
        ratios = torch.tensor(data["ratios"][scope])
        torch.testing.assert_close(ratios, norms.mixing_ratio(scope)[:, 0], rtol=5.1e-4, atol=0)
        assert data["errors"][scope][1] is None


def test_tokens_cannot_leave_their_place():
    text = page.render(made(), NASTY, FACTS)
    assert text.count("</script") == 2 and text.count("<script") == 2
    assert "<title>some/&lt;model&gt;: norm-based attention maps</title>" in text
    assert "\u2028" not in text


def test_nothing_is_fetched():
    text = page.render(made(), NASTY, FACTS)
    assert "default-src 'none'" in text
    assert not re.search(r"https?://|@import|src=|url\(", text.replace("default-src", ""))


def test_size_of_twelve_layers_and_64_tokens():
    scopes = ("attn", "attn_res", "attn_res_ln", "attn_res_ln_ff", "attn_res_ln_ff_res", "attn_res_ln_ff_res_ln")
    text = page.render(made(12, 64, scopes, causal=False), ["token"] * 64, FACTS)
    assert len(text.encode()) < 5e6


SOURCE = ["das", "Haus", "</script>", "ist", "</s>"]


@pytest.mark.parametrize("causal", [True, False])
def test_keys_of_the_encoder_are_kept_behind_the_own_ones(causal):
    norms = block_norms(n_source=5, causal=causal)
    for keys in (SOURCE, NASTY[:6] + SOURCE):
        data = data_of(page.render(norms, NASTY[:6], FACTS, keys))
        assert data["source"] == SOURCE and set(data["widths"].values()) == {6, 11}
    for scope, width in data["widths"].items():
        whole = torch.ones(6, width, dtype=torch.bool)
        whole[:, :6] = whole[:, :6].tril() if causal else whole[:, :6]
        found = torch.tensor(data["maps"][scope])
        torch.testing.assert_close(found, norms[scope][:, whole], rtol=5.1e-4, atol=0)
    with pytest.raises(page.OutputError, match="5 keys of the encoder, but 2 were given"):
        page.render(norms, NASTY[:6], FACTS, ["a", "b"])


def test_tokens_must_fit():
    with pytest.raises(page.OutputError, match="8 positions, but 3 tokens"):
        page.render(made(), ["a", "b", "c"], FACTS)


def test_an_unwritable_file_is_one_error(tmp_path):
    with pytest.raises(page.OutputError, match="cannot write"):
        page.write(str(tmp_path / "no" / "page.html"), made(), NASTY, FACTS)


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
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = shutil.which("chromedriver")
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver) if driver else None)
    yield found
    found.quit()


SIZES = [(1280, 800), (390, 844)]
SET = """
const e = document.getElementById(arguments[0]);
e[arguments[1]] = arguments[2];
e.dispatchEvent(new Event('input'));
"""
LABELS = "return ['queries', 'keys'].map(i => [...document.getElementById(i).children].map(e => e.textContent))"
HOVER = """
const c = document.getElementById('map'), b = c.getBoundingClientRect(), n = D.tokens.length, s = b.width / n;
c.dispatchEvent(new PointerEvent('pointermove', {clientX: b.left + (arguments[1] + .5) * s,
  clientY: b.top + (arguments[0] + .5) * s, bubbles: true}));
return document.getElementById('tip').textContent.split('\\n');
"""


def opened(browser, path, size=(1280, 800), mode="light"):
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": mode}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(path.as_uri())
    return browser


def picture(browser) -> str:
    return browser.execute_script("return document.getElementById('map').toDataURL()")


def no_complaints(browser):
    assert browser.get_log("browser") == []


def test_controls_change_the_map(browser, norms, minilm, tmp_path):
    path = tmp_path / "page.html"
    tokens = minilm.to_str_tokens(TEXT)
    page.write(str(path), norms, tokens, FACTS)
    opened(browser, path)
    assert browser.find_element("id", "scope").get_property("value") == norms.scopes[-1]
    assert browser.execute_script(LABELS) == [tokens, tokens]
    first = picture(browser)
    browser.find_element("id", "layer").send_keys("\ue014")  # arrow right: the slider has the keyboard
    assert browser.find_element("id", "layername").text == "1"
    second = picture(browser)
    assert second != first
    browser.execute_script(SET, "layer", "value", "5")
    browser.execute_script(SET, "scope", "value", "attn")
    third = picture(browser)
    assert third not in (first, second)
    for query, key in ((4, 5), (0, 0), (11, 3)):
        assert browser.execute_script(HOVER, query, key) == [
            f"query {query}  {tokens[query]}",
            f"key {key}  {tokens[key]}",
            f"{float(norms['attn'][5, 0, query, key]):.4g}",
        ]
    ratio = round(100 * float(norms.mixing_ratio("attn")[5, 0, 7]))
    assert browser.execute_script("return document.getElementById('ratios').children[7].textContent") == f"{ratio} %"
    browser.execute_script(SET, "diagonal", "checked", True)
    left_out = picture(browser)
    browser.execute_script(SET, "diagonal", "checked", False)
    assert picture(browser) != left_out
    no_complaints(browser)


def test_darker_is_longer_in_a_light_browser(browser, tmp_path):
    norms = made(1, 3, ("attn",), causal=False)
    norms["attn"][0, 0] = torch.tensor([[0.0, 4.0, 2.0], [1.0, 3.0, 4.0], [0.0, 0.0, 1.0]])
    path = tmp_path / "page.html"
    page.write(str(path), norms, ["a", "b", "c"], FACTS)
    pixels = """
    const c = document.getElementById('map'), s = c.width / 3, all = [];
    const image = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
    for (let q = 0; q < 3; q++) for (let k = 0; k < 3; k++) {
      const at = 4 * (Math.floor((q + .5) * s) * c.width + Math.floor((k + .5) * s));
      all.push(image[at] + image[at + 1] + image[at + 2]);
    }
    return all;
    """
    order = norms["attn"][0, 0].flatten()
    for mode, sign in (("light", -1), ("dark", 1)):
        opened(browser, path, mode=mode)
        light = torch.tensor(browser.execute_script(pixels), dtype=torch.float32) * sign
        assert light[order == 0].unique().numel() == 1
        assert all(light[i] < light[j] for i in range(9) for j in range(9) if order[i] < order[j])
    no_complaints(browser)


@pytest.mark.parametrize("causal", [True, False])
def test_another_scope_may_have_more_keys(browser, tmp_path, causal):
    path, norms, tokens = tmp_path / "page.html", block_norms(n_source=5, causal=causal), NASTY[:6]
    page.write(str(path), norms, tokens, FACTS, SOURCE)
    opened(browser, path)
    hover = HOVER.replace("b.width / n", "b.height / n")
    for scope, width in (("attn", 6), ("attn_res_ln_ff", 11), ("attn_res", 6), ("attn_res_ln", 11)):
        browser.execute_script(SET, "scope", "value", scope)
        queries, keys = browser.execute_script(LABELS)
        assert (len(queries), len(keys)) == (6, width) and keys[6:] == SOURCE[: width - 6]
        box = browser.execute_script(
            "const b = document.getElementById('map').getBoundingClientRect(); return [b.width / b.height, b.height]"
        )
        assert box[0] == pytest.approx(width / 6) and box[1] > 60
        for query, key in ((0, width - 1), (5, 2), (3, 0), (2, width - 1)):
            shown = browser.execute_script(hover, query, key)
            if causal and query < key < 6:
                assert shown[2] == "later token, not seen"
            else:
                assert float(shown[2]) == pytest.approx(float(norms[scope][0, query, key]), rel=1e-3)
            if key >= 6:
                assert shown[1] == f"key {key} (source {key - 6})  {SOURCE[key - 6]}"
    no_complaints(browser)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["light", "dark"])
def test_it_fits_the_screen_and_survives_any_token(browser, tmp_path, size, mode):
    path, norms, tokens = tmp_path / "page.html", made(12, 64), NASTY * 8
    page.write(str(path), norms, tokens, FACTS)
    opened(browser, path, size, mode)
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")  # the map scrolls inside
    assert browser.execute_script("return D.tokens") == tokens
    assert len(browser.find_elements("css selector", "script")) == 2
    for query, key in ((60, 3), (0, 0), (17, 17)):  # key <= query is all that a causal page holds
        shown = browser.execute_script(HOVER, query, key)[2]
        assert float(shown) == pytest.approx(float(norms["attn_res"][0, 0, query, key]), rel=1e-3)
    assert browser.execute_script(HOVER, 3, 60)[2] == "later token, not seen"
    ink, paper = browser.execute_script(
        "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
    )
    brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
    assert (brightness[0] < brightness[1]) == (mode == "light") and abs(brightness[0] - brightness[1]) > 450
    no_complaints(browser)
