"""The packages that a pipe may run: what is in the folder, for which settings and models, and loading."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .folder import damage, read_manifest
from .loaded import Package, load
from .maker import unusable
from .manifest import Entry, Manifest, Unreadable
from .spec import shapes
from .state import ModelState, NotPackaged, config_of, difference

logger = logging.getLogger("stepcache")


class Packages:
    """The packages in a folder, all of them whole when it was opened.

    only: whether a program without a package is refused instead of compiled.
    """

    def __init__(self, folder: Path, manifest: Manifest, only: bool) -> None:
        self.folder, self.manifest, self.only = folder, manifest, only

    def of(self, program: str, graph: dict[str, Any], inputs: Any) -> list[Entry]:
        """The packages for that program, settings and shapes, of any model. graph: a `graph` without joins."""
        wanted = repr(shapes(inputs))
        return [
            entry
            for entry in self.manifest.packages
            if entry.program == program and _fits(entry.graph, graph) and repr(shapes(entry.inputs)) == wanted
        ]

    def find(self, entries: Iterable[Entry], model: ModelState, kept: Any) -> Entry:
        """The one of `entries` for that state of the model and those kept values. Raises NotPackaged if none is."""
        reason = "there is none"
        for entry in entries:
            if entry.model != model.digest:
                reason = difference(self.manifest.models[entry.model], model.about)
            elif repr(shapes(entry.kept)) != repr(shapes(kept)):
                reason = "they are for another prediction of the feature (predict=...)"
            else:
                return entry
        raise NotPackaged(reason)

    def load(self, entry: Entry, device: torch.device) -> Package:
        """The package of this entry. Its file is checked again, because it may have changed since."""
        wrong = damage(self.folder, entry)
        if wrong:
            raise NotPackaged(wrong)
        try:
            return load(self.folder / entry.file, entry.sha256, device)
        except RuntimeError as error:
            reason = (str(error).splitlines() or ["RuntimeError"])[0]
            raise NotPackaged(f"{self.folder / entry.file} cannot be loaded: {reason}") from None

    def unsuited(self, unet: nn.Module, graph: dict[str, Any]) -> str:
        """Why none of the packages is for this U-Net with these settings, as far as both show; "" if some may be.

        Its weights' layout and its adapters may change before the first call, and are compared then.
        """
        tensor = next(unet.parameters())
        reason = unusable(self.manifest.maker, tensor.device)
        if reason:
            return reason
        about = {"class": f"{type(unet).__module__}.{type(unet).__qualname__}", "config": config_of(unet)}
        reason = "there are none for a U-Net"
        for entry in self.manifest.packages:
            saved = self.manifest.models[entry.model]
            if entry.program == "decoder":
                continue
            reason = difference({name: saved.get(name) for name in about}, about)
            if not reason and _dtypes(saved) and str(tensor.dtype).removeprefix("torch.") not in _dtypes(saved):
                reason = f"they are for weights in {', '.join(_dtypes(saved))}, these are {tensor.dtype}"
            if not reason and not _fits(entry.graph, graph):
                reason = difference({name: entry.graph.get(name) for name in graph}, graph)
            if not reason:
                return ""
        return reason


def _fits(made: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether a package's `graph` is what settings ask for. kernels="auto" takes what was measured when it was made."""
    same = all(made.get(name) == value for name, value in wanted.items() if name != "kernels")
    kernels = wanted["kernels"]
    return same and (kernels == "auto" or made.get("joins") == ("all" if kernels else []))


def _dtypes(about: dict[str, Any]) -> list[str]:
    weights = about.get("weights")
    return sorted({weight[0] for weight in weights.values()}) if isinstance(weights, dict) else []


def open_packages(path: str | os.PathLike[str], only: bool = False) -> Packages:
    """The packages in the folder `path`. Raises Unreadable, with file and reason, if none can be used.

    A package whose file is damaged is left out with a warning. only: it raises then, too.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    sound = []
    for entry in manifest.packages:
        wrong = damage(folder, entry)
        if wrong and only:
            raise Unreadable(wrong)
        if wrong:
            logger.warning("The package of the %s is not used: %s.", entry.what, wrong)
        else:
            sound.append(entry)
    return Packages(folder, Manifest(manifest.maker, manifest.models, tuple(sound)), only)
