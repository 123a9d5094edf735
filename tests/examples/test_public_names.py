"""The examples are for copying, so they use public names of stepcache only."""

import ast

import pytest

import stepcache
from benchmarks import ROOT

EXAMPLES = sorted((ROOT / "examples").rglob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_only_public_names_are_imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not [name.name for name in node.names if name.name.split(".")[0] == "stepcache"]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "stepcache":
            assert node.module in ("stepcache", "stepcache.errors")
            public = stepcache.__all__ if node.module == "stepcache" else vars(stepcache.errors)
            assert not [name.name for name in node.names if name.name not in public or name.name.startswith("_")]


def test_there_are_examples():
    assert {"batch.py", "batch_ray.py", "batch_torchrun.py", "server.py", "train_demo.py"} <= {
        path.name for path in EXAMPLES
    }
