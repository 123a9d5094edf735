"""The packages that a pipe may run: what is in the folder, for which settings and models, and loading."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..forwards.join import fused_join
from .folder import damage, not_yours, read_manifest
from .loaded import Package, load
from .maker import unusable
from .manifest import NAME, Entry, Manifest, Unreadable
from .spec import shapes
from .state import ModelState, NotPackaged, config_of, difference
from .switches import switches

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
            for entry in reversed(self.manifest.packages)  # the last made first
            if entry.program == program and _fits(entry.graph, graph) and repr(shapes(entry.inputs)) == wanted
        ]

    def find(self, entries: Iterable[Entry], model: ModelState, kept: Any) -> Entry:
        """The one of `entries` for that state of the model and those kept values. Raises NotPackaged if none is."""
        reason = "there is none"
        for entry in entries:
            if entry.model != model.digest:
                reason = difference(self.manifest.models[entry.model], model.about)
            elif entry.graph.get("switches") != switches():
                reason = f"they are for torch's switches {entry.graph.get('switches')}, which are {switches()} here"
            elif repr(shapes(entry.kept)) != repr(shapes(kept)):
                reason = (
                    "they are for another prediction of the feature (predict=..., or batches that are not two halves)"
                )
            else:
                return entry
        raise NotPackaged(reason)

    def load(self, entry: Entry, device: torch.device) -> Package:
        """The package of this entry. Its file is checked again, because it may have changed since.

        Raises NotPackaged for a package that cannot be loaded, or not for this device.
        """
        wrong = unusable(self.manifest.maker, device) or _unsound(self.folder, entry)
        if wrong:
            raise NotPackaged(wrong)
        try:
            if entry.graph.get("joins"):
                fused_join(lambda shape: True)  # imports the Triton ops, which the package asks torch for
            return load(self.folder / entry.file, entry.sha256, device)
        except (RuntimeError, ImportError) as error:
            reason = (str(error).splitlines() or ["RuntimeError"])[0]
            raise NotPackaged(f"{self.folder / entry.file} cannot be loaded: {reason}") from None

    def unsuited(self, unet: nn.Module, graph: dict[str, Any], vae: bool) -> str:
        """Why none of the packages is for this U-Net with these settings, as far as both show; "" if some may be.

        vae: whether a decoder is wanted too. Where the weights are, their layout, and adapters may change before the
        first call, and are compared then.
        """
        tensor = next(unet.parameters())
        try:
            config = config_of(unet)
        except NotPackaged as error:
            return f"the U-Net's config {error}"
        reason = unusable(self.manifest.maker, _device_of(self.manifest.maker, tensor.device))
        if not reason and vae and not any(entry.program == "decoder" for entry in self.manifest.packages):
            reason = "vae=True, and there are none for a decoder"
        if reason:
            return reason
        about = {"class": f"{type(unet).__module__}.{type(unet).__qualname__}", "config": config}
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


def _device_of(maker: dict[str, Any], device: torch.device) -> torch.device:
    """Where packages of this maker would run. Offloaded weights, and those that are yet to be moved, are on a CPU."""
    there = maker.get("device")
    wanted = there.get("type") if isinstance(there, dict) else None
    return torch.device("cuda") if wanted == "cuda" != device.type and torch.cuda.is_available() else device


def _dtypes(about: dict[str, Any]) -> list[str]:
    weights = about.get("weights")
    return sorted({weight[0] for weight in weights.values()}) if isinstance(weights, dict) else []


def _unsound(folder: Path, entry: Entry) -> str:
    return not_yours(folder, entry.file) or damage(folder, entry)


def open_packages(path: str | os.PathLike[str], only: bool = False) -> Packages:
    """The packages in the folder `path`. Raises Unreadable, with file and reason, if none can be used.

    A package whose file is damaged, or which another user may write, is left out with a warning. only: it raises then,
    too.
    """
    folder = Path(path)
    if (folder / NAME).exists() and (unsafe := not_yours(folder, NAME)):
        raise Unreadable(unsafe)
    manifest = read_manifest(folder)
    found = [(entry, _unsound(folder, entry)) for entry in manifest.packages]
    sound = tuple(entry for entry, wrong in found if not wrong)
    wrongs = [(entry, wrong) for entry, wrong in found if wrong]
    if wrongs and (only or not sound):
        raise Unreadable(wrongs[0][1])
    for entry, wrong in wrongs:
        logger.warning("The package of the %s is not used: %s.", entry.what, wrong)
    return Packages(folder, Manifest(manifest.maker, manifest.models, sound), only)
