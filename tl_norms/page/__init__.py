"""The interactive page of a result: one file, opened from disk or shown in a notebook, that makes no request.

    text.py           the words of a page: tokens, names, what is missing
    packing.py        arrays as short text: float16 with a scale per layer
    of_norms.py       what a page of `BlockNorms` holds
    of_attribution.py what a page of an attribution holds
    assemble.py       data, style and scripts put into page.html
    display.py        a file, a browser, a notebook

The scripts are put together in the order that assemble.py lists: numbers and colours first, then pen.js (one drawing
for the screen and for SVG), map.js (a query × key map), what both pages share (shell.js and its parts), and last the
page's own. Two functions make pages, `page_of_norms` and `page_of_attribution`; four show them: `show`, `iframe`,
`notebook_view` and `write`.
"""

from .display import iframe, notebook_view, show, write
from .errors import OutputError, PageInputError
from .of_attribution import page_of_attribution
from .of_norms import page_of_norms

__all__ = [
    "OutputError",
    "PageInputError",
    "iframe",
    "notebook_view",
    "page_of_attribution",
    "page_of_norms",
    "show",
    "write",
]
