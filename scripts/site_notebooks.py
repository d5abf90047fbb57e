"""A hook of the documentation site: links from one notebook to another lead to its page, and formulas are formulas.

Formulas become MathML while the site is built, which browsers show without a script and without the network.
"""

import html
import re

_CELL = re.compile(r'(<div class="[^"]*jp-RenderedMarkdown[^"]*"[^>]*>)(.*?)(</div>)', re.DOTALL)
_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$(\S(?:[^$\n]*\S)?)\$", re.DOTALL)


def on_post_page(output: str, page, config) -> str:
    """What mkdocs calls with the HTML of a page before it is written."""
    if not page.file.src_uri.startswith("notebooks/"):
        return output
    output = re.sub(r'href="(\d_\w+)\.ipynb(#[^"]*)?"', r'href="\1.html\2"', output)
    return _CELL.sub(lambda found: found[1] + _FORMULA.sub(_mathml, found[2]) + found[3], output)


def _mathml(found: re.Match) -> str:
    from latex2mathml.converter import convert

    display = found[1] is not None
    return convert(html.unescape(found[1] if display else found[2]), display="block" if display else "inline")
