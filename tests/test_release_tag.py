"""A release is refused unless its tag is the version everywhere."""

import shutil
from pathlib import Path

import pytest
from repository_scripts import script

import tl_norms

ROOT = Path(__file__).parents[1]
FILES = ("tl_norms/__init__.py", "CITATION.cff", "CHANGELOG.md")


@pytest.fixture
def mistakes():
    return script("release_tag").mistakes


@pytest.fixture
def released(tmp_path):
    """The three files, as they are on the day of a release."""
    (tmp_path / "tl_norms").mkdir()
    for name in FILES:
        shutil.copy(ROOT / name, tmp_path / name)
    text = (tmp_path / "CHANGELOG.md").read_text(encoding="utf-8")
    (tmp_path / "CHANGELOG.md").write_text(text.replace(" (unreleased)", "", 1), encoding="utf-8")
    return tmp_path


def test_the_tag_of_the_version_is_taken(mistakes, released):
    assert mistakes(released, f"v{tl_norms.__version__}") == []


def test_another_tag_is_refused_with_every_file(mistakes, released):
    found = mistakes(released, "v99.0.0")
    assert len(found) == 3 and all(name in line for name, line in zip(FILES, found, strict=True))


def test_a_changelog_that_says_unreleased_is_refused(mistakes, released):
    shutil.copy(ROOT / "CHANGELOG.md", released / "CHANGELOG.md")
    (line,) = mistakes(released, f"v{tl_norms.__version__}")
    assert "unreleased" in line
