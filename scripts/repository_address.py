"""Write the repository's address, one setting, wherever it is needed: badges, first cells, documentation, citation.

python scripts/repository_address.py            writes what pyproject.toml says
python scripts/repository_address.py --check    says where something else is written; exit status 1 if so

The setting is `Repository` under `[project.urls]` in pyproject.toml. Without it no badge or link is shown, and
the first cell of a notebook says on Colab which line to fill in. Colab opens notebooks
of GitHub only: elsewhere there is no badge either.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BRANCH = "main"
_LINE = "the repository's address, such as https://github.com/OWNER/tl_norms: fill it in here"
_MODEL = "\n    !git clone -q --depth 1 {ADDRESS} tl_norms_repository  # for the folder alignment_model"
_CELL = """import importlib.util
import sys

ADDRESS = "{address}"{comment}
if "google.colab" in sys.modules and importlib.util.find_spec("tl_norms") is None:
    assert ADDRESS, "fill in ADDRESS above: where pip finds tl_norms"
    %pip install -q "tl_norms[{extras}] @ git+{{ADDRESS}}"{more}"""


def address(pyproject: str) -> str:
    """The setting, or "" without one."""
    urls = re.search(r"^\[project\.urls\]\n(.*?)(?=^\[|\Z)", pyproject, flags=re.MULTILINE | re.DOTALL)
    found = re.search(r'^Repository *= *"(.*)"', urls[1], flags=re.MULTILINE) if urls else None
    return found[1].removesuffix("/").removesuffix(".git") if found else ""


def first_cell(where: str, name: str) -> str:
    """What installs the package on Colab, for the notebook of this name."""
    if re.search(r'["\s{}]', where):
        raise ValueError(f"{where!r} is no address")
    number = name.partition("_")[0]
    extras = {"0": "metrics,plot", "4": "metrics,plot"}.get(number, "demo,metrics,plot")
    comment = "" if where else f"  # {_LINE}"
    return _CELL.format(address=where, comment=comment, extras=extras, more=_MODEL if number == "4" else "")


def _github(where: str) -> str | None:
    """OWNER/NAME."""
    found = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+)", where)
    return found[1] if found else None


def notebook(text: str, name: str, where: str) -> str:
    """A notebook with its badge and its first code cell."""
    content = json.loads(text)
    cells = content["cells"]
    code = next(cell for cell in cells if cell["cell_type"] == "code")
    code["source"] = first_cell(where, name).splitlines(keepends=True)
    lines = "".join(cells[0]["source"]).split("\n")
    if lines[0].startswith("[![Open in Colab]"):
        lines = lines[2:]
    if (short := _github(where)) is not None:
        page = f"https://colab.research.google.com/github/{short}/blob/{BRANCH}/tutorials/{name}"
        badge = f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({page})"
        lines = [badge, "", *lines]
    cells[0]["source"] = "\n".join(lines).splitlines(keepends=True)
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def readme(text: str, where: str) -> str:
    """The README with its badges."""
    badges = []
    if (short := _github(where)) is not None:
        workflow = f"https://github.com/{short}/actions/workflows/ci.yml"
        owner, _, name = short.partition("/")
        badges.append(f"[![CI]({workflow}/badge.svg)]({workflow})")
        badges.append(
            f"[![Documentation](https://img.shields.io/badge/docs-site-blue)](https://{owner}.github.io/{name}/)"
        )
        page = f"https://colab.research.google.com/github/{short}/blob/{BRANCH}/tutorials/0_quick_start.ipynb"
        badges.append(f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({page})")
    inner = "".join(f"{badge}\n" for badge in badges)
    return re.sub(r"(<!-- badges:begin -->\n).*?(<!-- badges:end -->)", rf"\g<1>{inner}\g<2>", text, flags=re.DOTALL)


def tutorials(text: str, where: str) -> str:
    """docs/tutorials.md: names of notebooks are links, to the pages of the site where there is no address."""
    text = re.sub(r"\[(`\w+\.ipynb`)\]\([^)]*\)", r"\1", text)
    folder = f"{where}/blob/{BRANCH}/tutorials" if where else "notebooks"
    return re.sub(r"^\| `(\w+\.ipynb)`", rf"| [`\1`]({folder}/\1)", text, flags=re.MULTILINE)


def _line(text: str, key: str, value: str, after: str) -> str:
    """A line `key: value` behind the one that starts with `after`; gone without a value."""
    text = re.sub(rf"^{key}: .*\n", "", text, flags=re.MULTILINE)
    return re.sub(rf"^({after}.*\n)", rf"\g<1>{key}: {value}\n", text, count=1, flags=re.MULTILINE) if value else text


def written(root: Path, where: str) -> Iterator[tuple[Path, str]]:
    """Every file that holds the address, and what it should be."""

    def text(path: Path) -> str:
        return path.read_text(encoding="utf-8")

    yield (path := root / "README.md"), readme(text(path), where)
    yield (path := root / "CITATION.cff"), _line(text(path), "repository-code", where and f'"{where}"', "type: ")
    yield (path := root / "mkdocs.yml"), _line(text(path), "repo_url", where, "site_description: ")
    yield (path := root / "docs" / "tutorials.md"), tutorials(text(path), where)
    for path in sorted((root / "tutorials").glob("*.ipynb")):
        yield path, notebook(text(path), path.name, where)


def outdated(root: Path, where: str) -> list[Path]:
    """Files in which the address is missing or another."""
    return [path for path, wanted in written(root, where) if path.read_text(encoding="utf-8") != wanted]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if a file is outdated")
    check = parser.parse_args().check
    where = address((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wrong = outdated(ROOT, where)
    for path in wrong:
        print(f"{path.relative_to(ROOT)}: {'another address' if check else 'written'}")
    if not check:
        for path, text in list(written(ROOT, where)):
            path.write_text(text, encoding="utf-8")
    if not where:
        print('no address yet: add `Repository = "https://..."` under [project.urls] in pyproject.toml')
    return int(check and bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
