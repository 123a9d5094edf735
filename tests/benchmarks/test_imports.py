"""The folders of benchmarks/ import each other in one direction, and only public names of stepcache."""

import ast

import pytest

from benchmarks import ROOT

SHARED = {"benchmarks", "benchmarks.console", "benchmarks.gpu"}
MAY_IMPORT = {
    "engine": SHARED,
    "kernels": SHARED | {"engine"},
    "frontier": SHARED,
    "gate": {"benchmarks", "benchmarks.console"},  # it starts without torch
    "pages": SHARED | {"engine", "kernels", "frontier", "gate"},
}
FILES = sorted((ROOT / "benchmarks").rglob("*.py"))


def imports(path):
    """(module, names) of each import; names is () for `import module`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module, tuple(alias.name for alias in node.names)


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_between_folders_go_one_way(folder):
    for path in FILES:
        if path.parent.name != folder:
            continue
        for module, _ in imports(path):
            if module.split(".")[0] == "benchmarks":
                target = module.split(".")[1] if module.count(".") else ""
                assert module in MAY_IMPORT[folder] or target in MAY_IMPORT[folder] | {folder}, (path.name, module)


def test_every_folder_is_known():
    assert {path.parent.name for path in FILES} == {"benchmarks", *MAY_IMPORT}


def test_only_public_names_of_stepcache_are_imported():
    private = [
        (path.name, module, name)
        for path in FILES
        for module, names in imports(path)
        for name in (*module.split("."), *names)
        if module.split(".")[0] == "stepcache" and name.startswith("_")
    ]
    assert not private
