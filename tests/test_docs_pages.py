"""The API reference has an entry for every public name."""

import importlib
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

API = Path(__file__).parents[1] / "docs" / "api"
PACKAGES = (
    "tl_norms",
    "tl_norms.methods",
    "tl_norms.metrics",
    "tl_norms.studies",
    "tl_norms.alignment",
    "tl_norms.plot",
    "tl_norms.faithfulness",
    "tl_norms.faithfulness.tasks",
)


def _documented() -> list[object]:
    """What the pages show: objects, and all of a module that is shown whole."""
    shown: list[object] = []
    for page in API.glob("*.md"):
        for path in re.findall(r"^::: ([\w.]+)", page.read_text(encoding="utf-8"), re.MULTILINE):
            module, _, name = path.rpartition(".")
            found = getattr(importlib.import_module(module), name, None) or importlib.import_module(path)
            shown += vars(found).values() if isinstance(found, ModuleType) else [found]
    return shown


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_has_an_entry(package):
    module = importlib.import_module(package)
    shown = {id(value) for value in _documented()}
    assert not [name for name in module.__all__ if id(getattr(module, name)) not in shown]


NOTEBOOKS = sorted((Path(__file__).parents[1] / "tutorials").glob("*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs_have_no_warnings_and_name_no_machine(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    assert outputs  # a notebook is stored with what it printed
    for output in outputs:
        assert output["output_type"] != "error" and output.get("name") != "stderr"
        for text in (output.get("text", ""), output.get("data", {}).get("text/plain", "")):
            assert not re.search(r"/(home|root|work|tmp|usr|content)/|[A-Z]:\\", "".join(text)), text


PAGES = [*sorted((Path(__file__).parents[1] / "docs").glob("*.md")), Path(__file__).parents[1] / "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_no_formula_is_taken_for_a_tag(page):
    """A browser shows nothing of <g_j, x_j> outside code: such products are written with ⟨ ⟩."""
    text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert not re.findall(r"<[^\W\d]\w*[_^,][^>]*>", text)
