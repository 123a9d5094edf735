"""The manifest of a folder of packages: plain JSON, checked before anything else in the folder is touched."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from ..files.reading import NotJson, infinity, parsed

FORMAT = 1
NAME = "manifest.json"

_FILE = re.compile(r"[\w.-]+\.pt2")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Unreadable(Exception):
    """Why a manifest cannot be used. For stepcache itself: callers name the folder."""


@dataclass(frozen=True)
class Entry:
    """One package.

    what: in words ("full graph 2x4x64x64"). program: "full", "partial" or "decoder". model: digest of the model's
    state. graph: what else its graph depends on: branch, guidance, kernels, and the joins that run on the Triton ops.
    inputs, kept: specs (spec.py). seconds: that compiling took.
    """

    what: str
    program: str
    model: str
    graph: dict[str, Any]
    inputs: Any
    kept: Any
    file: str = ""
    sha256: str = ""
    nbytes: int = 0
    seconds: float = 0.0

    @property
    def key(self) -> str:
        """What tells it from other packages. Those of equal keys replace each other."""
        graph = {name: value for name, value in self.graph.items() if name != "joins"}
        return json.dumps([self.program, self.model, graph, self.inputs, self.kept])


@dataclass(frozen=True)
class Manifest:
    """maker: of all packages (maker.py). models: `ModelState.about` by digest."""

    maker: dict[str, Any]
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    packages: tuple[Entry, ...] = ()

    def with_packages(self, entries: Iterable[Entry], models: dict[str, dict[str, Any]]) -> Manifest:
        """This manifest with further packages, and without those that they replace."""
        packages = {entry.key: entry for entry in (*self.packages, *entries)}
        used = {entry.model for entry in packages.values()}
        states = {digest: about for digest, about in (self.models | models).items() if digest in used}
        return Manifest(self.maker, states, tuple(packages.values()))

    def written(self) -> str:
        """As text."""
        packages = [asdict(entry) for entry in self.packages]
        parts = {"format": FORMAT, "maker": self.maker, "packages": packages, "models": self.models}
        return json.dumps(parts, indent=1)


def manifest_of(text: str) -> Manifest:
    """The manifest in `text`. Raises Unreadable, with the reason."""
    try:
        data = parsed(text, constant=infinity)  # a model's config may hold one
    except NotJson as error:
        raise Unreadable(f"it is not JSON ({error})") from None
    if not isinstance(data, dict) or "format" not in data:
        raise Unreadable("stepcache did not write it")
    if data["format"] != FORMAT:
        raise Unreadable(f"its format is {data['format']!r}, this stepcache reads {FORMAT}")
    maker, models, packages = (_part(data, name, kind) for name, kind in _PARTS.items())
    if not all(isinstance(about, dict) for about in models.values()):
        raise Unreadable("its models are damaged")
    entries = tuple(_entry(item, i) for i, item in enumerate(packages))
    unknown = {entry.model for entry in entries} - set(models)
    if unknown:
        raise Unreadable(f"it has no model {min(unknown)}")
    return Manifest(maker, models, entries)


_PARTS = {"maker": dict, "models": dict, "packages": list}


def _part(data: dict[str, Any], name: str, kind: type) -> Any:
    if not isinstance(data.get(name), kind):
        raise Unreadable(f"its {name} are damaged")
    return data[name]


_FIELDS: dict[str, Any] = {
    "what": str,
    "program": str,
    "model": str,
    "graph": dict,
    "inputs": dict,
    "kept": list,
    "file": str,
    "sha256": str,
    "nbytes": int,
    "seconds": (int, float),
}


def _entry(item: Any, index: int) -> Entry:
    wrong = not isinstance(item, dict) or set(item) != set(_FIELDS)
    if wrong or not all(isinstance(item[name], kind) for name, kind in _FIELDS.items()):
        raise Unreadable(f"its package {index} is damaged")
    if not _FILE.fullmatch(item["file"]) or not _SHA256.fullmatch(item["sha256"]):
        raise Unreadable(f"its package {index} has no proper file name and SHA-256")
    return Entry(**item)
