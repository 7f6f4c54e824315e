"""The package lists every folder, and ships what it lists."""

import tomllib
from pathlib import Path

import rcnnpipe

ROOT = Path(__file__).parents[1]


def test_every_package_is_listed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {path.parent for path in (ROOT / "rcnnpipe").rglob("__init__.py")}
    names = {str(folder.relative_to(ROOT)).replace("/", ".") for folder in folders}
    assert set(settings["tool"]["setuptools"]["packages"]) == names | {"rcnnpipe.stages"}


def test_version_is_in_the_changelog() -> None:
    assert f"## {rcnnpipe.__version__}" in (ROOT / "CHANGELOG.md").read_text()
