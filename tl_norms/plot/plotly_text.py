"""Text for plotly, and a grey that is seen on any page."""

GREY = "rgba(128,128,128,{})"  # with its opacity


def escaped(text: str) -> str:
    """Text that plotly takes for text: not as markup (`<s>` is a token), nor as a formula between dollars."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("$", "&#36;")
