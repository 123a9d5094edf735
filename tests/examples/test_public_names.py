"""The examples are for copying, so they use public names of stepcache only."""

import ast
import json

import pytest

import stepcache
from benchmarks import ROOT

EXAMPLES = sorted([*(ROOT / "examples").rglob("*.py"), *(ROOT / "examples").rglob("*.ipynb")])


def source_of(path):
    """Python as it is in a script or in the code cells of a notebook."""
    if path.suffix == ".py":
        return path.read_text()
    cells = json.loads(path.read_text())["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_only_public_names_are_imported(path):
    for node in ast.walk(ast.parse(source_of(path))):
        if isinstance(node, ast.Import):
            assert not [name.name for name in node.names if name.name.split(".")[0] == "stepcache"]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "stepcache":
            assert node.module in ("stepcache", "stepcache.errors")
            public = stepcache.__all__ if node.module == "stepcache" else vars(stepcache.errors)
            assert not [name.name for name in node.names if name.name not in public or name.name.startswith("_")]


def test_there_are_examples():
    assert {"batch.py", "batch_ray.py", "batch_torchrun.py", "demo.ipynb", "server.py", "train_demo.py"} <= {
        path.name for path in EXAMPLES
    }
