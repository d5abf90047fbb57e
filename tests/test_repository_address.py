"""The repository's address is one setting: where it is missing, what is shown without it, first cells that install."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from repository_scripts import script

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(path.name for path in (ROOT / "tutorials").glob("*.ipynb"))
GITHUB = "https://github.com/someone/somewhere"


address = script("repository_address")


def first_cell_of(notebook: Path) -> str:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "".join(next(cell["source"] for cell in cells if cell["cell_type"] == "code"))


@pytest.fixture
def copy(tmp_path):
    """The files that hold the address, elsewhere."""
    for name in ("README.md", "CITATION.cff", "mkdocs.yml", "docs/tutorials.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "tutorials").mkdir()
    for name in NOTEBOOKS:
        shutil.copy(ROOT / "tutorials" / name, tmp_path / "tutorials" / name)
    return tmp_path


def write(root: Path, where: str) -> None:
    for path, text in list(address.written(root, where)):
        path.write_text(text, encoding="utf-8")


def test_the_address_of_pyproject_is_everywhere():
    where = address.address((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wrong = [str(path.relative_to(ROOT)) for path in address.outdated(ROOT, where)]
    assert not wrong, f"not {where or 'without an address'}: {wrong}. Run `python scripts/repository_address.py`."


def test_the_setting_is_read_from_its_table_only():
    assert address.address('[project]\nname = "x"\n# Repository = "https://no"\n') == ""
    assert address.address('[project.urls]\n# Repository = "https://no"\n[tool.x]\nRepository = "https://no"\n') == ""
    assert address.address(f'[project.urls]\nHome = "x"\nRepository = "{GITHUB}.git"\n[tool.x]\n') == GITHUB


def test_without_an_address_no_badge_is_shown_and_cells_say_what_to_fill_in(copy):
    write(copy, GITHUB)
    write(copy, "")
    for path in [copy / "README.md", *(copy / "tutorials").glob("*.ipynb")]:
        assert "badge.svg" not in path.read_text(encoding="utf-8"), path.name
    for name in NOTEBOOKS:
        line = next(
            line for line in first_cell_of(copy / "tutorials" / name).splitlines() if line.startswith("ADDRESS")
        )
        assert line.startswith('ADDRESS = ""  # ') and "fill it in here" in line


def test_an_address_is_written_to_every_place_and_can_change(copy):
    assert {path.name for path in address.outdated(copy, GITHUB)} == {
        "README.md", "CITATION.cff", "mkdocs.yml", "tutorials.md", *NOTEBOOKS
    }  # fmt: skip
    write(copy, "https://git.example.org/other")
    write(copy, GITHUB)
    assert not address.outdated(copy, GITHUB)
    for path in copy.rglob("*.*"):
        text = path.read_text(encoding="utf-8")
        assert "git.example.org" not in text and GITHUB in text, path.name
    for name in NOTEBOOKS:
        text = (copy / "tutorials" / name).read_text(encoding="utf-8")
        assert text.count(f"colab.research.google.com/github/someone/somewhere/blob/main/tutorials/{name}") == 1
    assert (copy / "README.md").read_text(encoding="utf-8").count("badge.svg") == 2


def test_what_is_no_address_is_refused():
    with pytest.raises(ValueError, match="no address"):
        address.first_cell('https://x"; import os', "1_x.ipynb")


def test_a_cell_does_nothing_off_colab_and_asks_for_the_address_on_it():
    code = address.first_cell("", "1_x.ipynb").replace("    %pip", "    pass  # %pip")
    exec(code, {})
    stand_in = {"google.colab": object()}
    spec, importlib.util.find_spec = importlib.util.find_spec, lambda name: None
    try:
        sys.modules.update(stand_in)
        with pytest.raises(AssertionError, match="fill in ADDRESS"):
            exec(code, {})
    finally:
        importlib.util.find_spec = spec
        del sys.modules["google.colab"]


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> str:
    """What is in this folder now, as a git repository of its own: its address."""
    folder = tmp_path_factory.mktemp("repository") / "tl_norms"
    folder.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("tl_norms", "tutorials/alignment_model"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "-q"], ["add", "-A"], [*who, "commit", "-q", "-m", "all"]):
        subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True)
    return f"file://localhost{folder}"  # pip wants a host where extras are named


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    """Python with everything that is installed here but tl_norms, in an environment of its own."""
    folder = tmp_path_factory.mktemp("clean")
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    others = folder / "others"
    others.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        plain = entry.name.lower().lstrip("_")
        if not plain.startswith(("tl_norms", "editable", "pip", "setuptools")) and entry.suffix != ".pth":
            (others / entry.name).symlink_to(entry)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (folder / "venv" / "lib" / version / "site-packages" / "others.pth").write_text(f"{others}\n")
    return folder / "venv" / "bin" / "python"


RUN = """
import sys, types
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
try:
    import tl_norms
    sys.exit("tl_norms is here before it is installed: " + tl_norms.__file__)
except ImportError:
    pass
sys.modules["google.colab"] = types.ModuleType("google.colab")
shell.run_cell(sys.stdin.read()).raise_error()
import importlib
importlib.invalidate_caches()
import tl_norms
print("FILE", tl_norms.__file__)
"""


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_first_cells_are_those_of_the_address(name):
    where = address.address((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert first_cell_of(ROOT / "tutorials" / name) == address.first_cell(where, name)


DIFFERENT = list({address.first_cell("", name): name for name in NOTEBOOKS[::-1]}.values())  # one of every kind


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt" or shutil.which("git") is None, reason="needs git")
@pytest.mark.parametrize("name", DIFFERENT)
def test_first_cells_install_the_package_in_a_clean_environment(name, repository, clean, tmp_path):
    """With a stand-in for google.colab, from another directory; what the package needs is there already."""
    pytest.importorskip("IPython", reason="notebooks need IPython")
    here = address.first_cell(repository, name)
    plain = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    plain |= {"IPYTHONDIR": str(tmp_path / "ipython")}
    done = subprocess.run([str(clean), "-c", RUN], input=here, cwd=tmp_path, env=plain, capture_output=True, text=True)
    try:
        assert done.returncode == 0, done.stdout + done.stderr
        assert str(clean.parents[1]) in done.stdout.split("FILE ")[1]
        if name.startswith("4"):
            assert (tmp_path / "tl_norms_repository" / "tutorials" / "alignment_model" / "config.json").exists()
    finally:
        subprocess.run([str(clean), "-m", "pip", "uninstall", "-q", "-y", "tl_norms"], env=plain, check=True)
