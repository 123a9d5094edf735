"""pyproject.toml lists every package by name: a folder that it lacks would be missing from the wheel."""

import pytest

from benchmarks import ROOT


def test_every_folder_is_listed():
    tomllib = pytest.importorskip("tomllib")
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {
        ".".join((name, *path.parent.relative_to(ROOT / folder).parts))
        for name, folder in setuptools["package-dir"].items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert found - set(setuptools["packages"]) == set()
