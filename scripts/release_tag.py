"""Refuse a release whose tag is not the version of the package, of the changelog and of the citation.

python scripts/release_tag.py v0.1.0
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def mistakes(root: Path, tag: str) -> list[str]:
    """What does not fit the tag."""

    def first(name: str, pattern: str) -> str:
        found = re.search(pattern, (root / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
        return found[1] if found else "none"

    said = {
        "tl_norms/__init__.py": first("tl_norms/__init__.py", r'^__version__ = "(.*)"'),
        "CITATION.cff": first("CITATION.cff", r"^version: (.*)"),
        "CHANGELOG.md": first("CHANGELOG.md", r"^## (.*)"),
    }
    return [f"the tag is {tag}, but {name} says {version}" for name, version in said.items() if tag != f"v{version}"]


if __name__ == "__main__":
    found = mistakes(ROOT, sys.argv[1])
    sys.exit("\n".join(found) or None)
