"""The hooks of the documentation site."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from repository_scripts import script

ROOT = Path(__file__).parents[1]


@pytest.fixture
def hook():
    return script("site_notebooks").on_post_page


def page(source):
    return SimpleNamespace(file=SimpleNamespace(src_uri=source))


CELL = (
    '<div class="jp-RenderedHTMLCommon jp-RenderedMarkdown">'
    '<p>for $x$ and $$a &lt; b$$ see <a href="2_b.ipynb#c">b</a></p></div>'
)


def test_links_between_notebooks_lead_to_pages_and_formulas_are_mathml(hook):
    found = hook(f"<p>costs $5 and $6</p>{CELL}", page("notebooks/1_a.ipynb"), None)
    assert 'href="2_b.html#c"' in found and "<p>costs $5 and $6</p>" in found
    assert found.count("<math") == 2 and found.count('display="block"') == 1 and "$x$" not in found
    assert "&#x0003C;" in found or "&lt;" in found


def test_other_pages_are_left_as_they_are(hook):
    assert hook(CELL, page("faq.md"), None) == CELL
