"""Where a page goes: a file, a browser, a notebook."""

import html as markup
import sys
import tempfile
import webbrowser
from collections.abc import Callable
from pathlib import Path

from ..errors import TLNormsError
from .errors import OutputError


def write(path: str | Path, page: str) -> None:
    """Write a page to a file.

    Raises:
        OutputError: the file cannot be written.

    Example:
        >>> write("norms.html", page_of_norms(norms, model.to_str_tokens(text)))    # doctest: +SKIP
    """
    try:
        Path(path).expanduser().write_text(page, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {str(path)!r}: {error.strerror or error}") from error


def show(page: str) -> Path | None:
    """Show a page: below the cell of a notebook, or else as a temporary file in the browser.

    Args:
        page: from `page_of_norms` or `page_of_attribution`

    Returns:
        The temporary file, which stays (without a browser, open or copy it by hand); None in a notebook.

    Raises:
        OutputError: no temporary file can be written.

    Example:
        >>> show(page_of_attribution(attribution))                              # doctest: +SKIP
    """
    if _in_notebook():
        from IPython.display import HTML, display  # pyright: ignore[reportMissingImports]

        display(HTML(iframe(page)))
        return None
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="tl_norms_", suffix=".html", delete=False, encoding="utf-8"
        ) as file:
            file.write(page)
    except OSError as error:
        raise OutputError(f"cannot write a temporary file: {error.strerror or error}") from error
    path = Path(file.name)
    webbrowser.open(path.as_uri())
    return path


def iframe(page: str, height: int = 820) -> str:
    """A page inside another one, as `_repr_html_` returns it: it sees nothing of the notebook around it.

    Args:
        page: from `page_of_norms` or `page_of_attribution`
        height: of the frame, in CSS pixels
    """
    return (
        f'<iframe title="tl_norms" sandbox="allow-scripts allow-downloads" style="width:100%;height:{height}px;'
        f'border:0;border-radius:8px" srcdoc="{markup.escape(page)}"></iframe>'
    )


def notebook_view(page: Callable[[], str], otherwise: str, *, largest: int = 8_000_000) -> str:
    """What `_repr_html_` of a result returns: its page in a frame, or something smaller where no page can be made.

    A result is shown at the end of every cell that makes one, so nothing is raised here, and a page that would fill the
    notebook is left to `show`.

    Args:
        page: makes the page
        otherwise: HTML in its place
        largest: in characters

    Example:
        >>> notebook_view(lambda: page_of_norms(norms, tokens), "<p>norms</p>")  # doctest: +SKIP
    """
    try:
        made = page()
    except TLNormsError:
        return otherwise
    if len(made) > largest:
        return f"{otherwise}<p>Its page has {len(made) / 1e6:.0f} MB: call .show()</p>"
    return iframe(made)


def _in_notebook() -> bool:
    """Whether this is the kernel of a notebook, without importing IPython."""
    shell = sys.modules.get("IPython")
    current = None if shell is None else shell.get_ipython()
    return hasattr(current, "kernel")
