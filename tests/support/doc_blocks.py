"""Runs the pages' Python on the bundled demo pipeline, and checks what runs only elsewhere."""

from __future__ import annotations

import ast
import copy
import inspect
import shutil
import sys
import textwrap
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image
from support.pages import Block
from support.small import DEMO

import stepcache
from stepcache.images.pipelines import load_demo
from stepcache.plans.plan import MadeFor, Plan
from stepcache.settings import Settings

# What a page says -> what runs here. Any `from_pretrained` of a pipeline gives the demo, or a tiny one of that class;
# but a folder that is there is loaded.
DEVICES = {"cuda": "cpu"}
DTYPES = {"float16": "float32", "bfloat16": "float32", "half": "float32"}
SIZES = range(256, 4096, 64)
SMALLER = 8  # a size in pixels is divided by it

GPU, FRAGMENT = "needs a GPU", "fragment: "


class NotAsWritten(AssertionError):
    """A block of a page does not do what the page says, by page and line."""


class _Small(ast.NodeTransformer):
    """The substitutions above."""

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if isinstance(node.value, str) and node.value in DEVICES:
            return ast.copy_location(ast.Constant(DEVICES[node.value]), node)
        if type(node.value) is int and node.value in SIZES:
            return ast.copy_location(ast.Constant(node.value // SMALLER), node)
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.value, ast.Name) and node.value.id == "torch":
            node.attr = DTYPES.get(node.attr, node.attr)
        return node


class PageRun:
    """The Python of one page: its blocks in order, in one namespace, in the current folder.

    `pipe` is the demo pipeline, as on pages that begin with somebody's pipeline. `latents`, `text` and `image` are
    inputs of it. All else a page has to import or to make.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        self.names: dict[str, Any] = {}
        self.imported: dict[str, Any] = {}

    def _begin(self) -> None:
        """What the page's first block finds."""
        pipe = load_demo("cpu")
        _replace_loading(self.monkeypatch, copy.deepcopy(pipe))
        self.monkeypatch.chdir(self.folder)
        self.monkeypatch.setenv("STEPCACHE_CACHE", str(self.folder / "cache"))
        shutil.copy(f"{DEMO}/../prompts/demo.txt", self.folder / "prompts.txt")
        Plan(MadeFor.of(pipe, 7.5), "FPPPP" * 10, 0, "both", 2, 0.5, {}, 1.5).write(self.folder / "plan.json")
        self.names = {
            "pipe": pipe,
            "latents": torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
            "text": torch.zeros(2, 77, pipe.unet.config.cross_attention_dim),
            "image": Image.new("RGB", (64, 64), "gray"),
        }

    def block(self, block: Block) -> None:
        """Run a block, or check it if it is marked. Raises NotAsWritten."""
        tree = self._parsed(block)
        self._import(block, tree)
        if block.mark == GPU:
            self._check_calls(block, tree)
        elif block.mark.startswith("fragment"):
            if not block.mark.removeprefix("fragment").removeprefix(":").strip():
                raise NotAsWritten(f"{block.place}: <!-- {FRAGMENT}why --> says why the block cannot run.")
            self._check_calls(block, tree)
        else:
            self._run(block, tree)

    def _parsed(self, block: Block) -> ast.Module:
        try:
            tree = ast.parse(textwrap.dedent(block.text))
        except SyntaxError as error:
            line = block.line + (error.lineno or 1) - 1
            raise NotAsWritten(f"{block.page}:{line}: {error.msg}: {(error.text or '').strip()}") from error
        return ast.increment_lineno(tree, block.line - 1)

    def _run(self, block: Block, tree: ast.Module) -> None:
        if not self.names:
            self._begin()
        code = compile(ast.fix_missing_locations(_Small().visit(tree)), block.page, "exec")
        try:
            exec(code, self.names)
        except Exception as error:
            lines = [frame.lineno for frame in traceback.extract_tb(sys.exc_info()[2]) if frame.filename == block.page]
            line = lines[0] if lines and lines[0] else block.line
            text = block.text.splitlines()[line - block.line].strip()
            raise NotAsWritten(
                f"{block.page}:{line}: {type(error).__name__}: {error}\n    {text}\n(A block that needs a GPU has the "
                f"line <!-- {GPU} --> above it, one that cannot run at all <!-- {FRAGMENT}why -->.)"
            ) from error

    def _import(self, block: Block, tree: ast.Module) -> None:
        """Note what is imported from stepcache, for checks of calls; what stepcache and diffusers lack is an error."""
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name == "stepcache":
                        self.imported[alias.asname or alias.name] = stepcache
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("stepcache", "diffusers"):
                for alias in node.names:
                    found = getattr(import_module(node.module or ""), alias.name, None)
                    if found is None:
                        raise NotAsWritten(f"{block.page}:{node.lineno}: {node.module} has no {alias.name}")
                    if (node.module or "").startswith("stepcache"):
                        self.imported[alias.asname or alias.name] = found

    def _check_calls(self, block: Block, tree: ast.Module) -> None:
        """Calls of stepcache's names take these arguments; and `accelerate` these values, where they are literal."""
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            called = self._named(block, node.func)
            if called is None:
                continue
            place = f"{block.page}:{node.lineno}: {ast.unparse(node.func)}"
            keywords = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg is not None}
            signature = inspect.signature(called)
            whole = len(keywords) == len(node.keywords) and not any(isinstance(arg, ast.Starred) for arg in node.args)
            try:
                (signature.bind if whole else signature.bind_partial)(
                    *([None] * len(node.args) if whole else []), **keywords
                )
                if called is stepcache.accelerate:
                    _check_settings(node.args[1:], keywords)
            except (TypeError, stepcache.StepCacheError) as error:
                raise NotAsWritten(f"{place}: {error}") from error

    def _named(self, block: Block, node: ast.expr) -> Any:
        """What an expression names, if that is stepcache's."""
        if isinstance(node, ast.Name):
            return self.imported.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = self._named(block, node.value)
            if owner is not None and not hasattr(owner, node.attr):
                raise NotAsWritten(f"{block.page}:{node.lineno}: {ast.unparse(node.value)} has no {node.attr}")
            return None if owner is None else getattr(owner, node.attr)
        return None


def _check_settings(positional: list[ast.expr], keywords: dict[str, ast.expr]) -> None:
    """Of files that a call names, the page's test makes none."""
    values = {**dict(zip(("interval", "branch"), positional, strict=False)), **keywords}
    literal = {}
    for name, value in values.items():
        try:
            literal[name] = ast.literal_eval(value)
        except ValueError:
            continue
    for name in ("compiled", "compiled_only", "plan", "adapt"):
        literal.pop(name, None)
    Settings.check(**literal)


def _replace_loading(monkeypatch: pytest.MonkeyPatch, demo: Any) -> None:
    """`from_pretrained` of pipelines and models gives small ones, unless their path is a real folder."""
    pipeline, part = (cls.from_pretrained.__func__ for cls in (diffusers.DiffusionPipeline, diffusers.ModelMixin))
    generic = (diffusers.StableDiffusionPipeline, diffusers.DiffusionPipeline)

    def small(cls: type, *args: object, **kwargs: object) -> Any:
        if _is_there(*args):
            return pipeline(cls, *args, **kwargs)
        if cls in generic or cls.__name__.startswith("AutoPipeline"):
            return copy.deepcopy(demo)
        from support.cases import CASES

        return next(case for case in CASES if case.pipeline == cls.__name__ and case.reuses).build()

    autos = [getattr(diffusers, name) for name in dir(diffusers) if name.startswith("AutoPipelineFor")]
    for owner in (diffusers.DiffusionPipeline, *autos):
        monkeypatch.setattr(owner, "from_pretrained", classmethod(small))

    # A part that is loaded apart: the small pipeline that it is given to has its own.
    def none(cls: type, *args: object, **kwargs: object) -> Any:
        return part(cls, *args, **kwargs) if _is_there(*args) else None

    monkeypatch.setattr(diffusers.ModelMixin, "from_pretrained", classmethod(none))


def _is_there(folder: object = "", *others: object) -> bool:
    return bool(folder) and Path(str(folder)).is_dir()
