"""The zoo is that of TransformerLens 4: older versions boot fewer models, and some of these fail inside them."""

from pathlib import Path

import pytest

try:
    from transformer_lens import HookedTransformer  # noqa: F401  versions up to 3 have it
except ImportError:
    pass
else:
    collect_ignore_glob = ["test_*.py"]

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of a model one after another: a worker that has booted it runs them all."""
    places = [place for place, item in enumerate(items) if item.path.parent == HERE]
    ordered = sorted((items[place] for place in places), key=_model)
    for place, item in zip(places, ordered, strict=True):
        items[place] = item


def _model(item: pytest.Item) -> str:
    params = getattr(item, "callspec", None)
    return "" if params is None else str(params.params.get("name", ""))
