"""A hook of the documentation site: links from one notebook to another lead to its page."""

import re


def on_post_page(output: str, page, config) -> str:
    """What mkdocs calls with the HTML of a page before it is written."""
    if not page.file.src_uri.startswith("notebooks/"):
        return output
    return re.sub(r'href="(\d_\w+)\.ipynb(#[^"]*)?"', r'href="\1.html\2"', output)
