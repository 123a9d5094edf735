"""Programs run from packages, as long as the model is as it was when the package was made."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NotCompiled
from ..forwards.autocast import autocasts
from ..forwards.guidance import Compute, KeptValues, Values
from ..forwards.nested import tensors_of
from ..packages.loaded import ALIGNED, Package
from ..packages.manifest import Entry
from ..packages.spec import spec_of, strides_of
from ..packages.state import NotPackaged, state_of, weights_of
from ..packages.store import Packages
from ..packages.switches import switches
from .snapshot import Snapshot
from .turns import exclusive, when_quiet


class Source:
    """The packages of one pipe, and how to say that there is none.

    say: warns with a text, once. compiles: whether programs without a package are compiled; else they run eager.
    """

    def __init__(self, packages: Packages, say: Callable[[str], None], compiles: bool) -> None:
        self.packages, self._say = packages, say
        self._otherwise = "is compiled as usual" if compiles else "runs eager"

    def wrap(
        self,
        program: str,
        what: str,
        compute: Compute,
        graph: dict[str, Any],
        inputs: dict[str, Any],
        left_out: Callable[[nn.Module], Iterable[nn.Module]] = lambda module: (),
    ) -> Compute:
        """`compute`, or a program that runs from a package where one fits.

        graph: what `Entry.graph` says of the settings. If there is none for these and the inputs, and only packages may
        run, NotCompiled is raised: now for a full step or a decoder, for a partial step when it is called.
        """
        try:
            if autocasts(next(tensor.device.type for tensor in tensors_of(inputs))):
                raise NotPackaged("packages are made without autocast")
            entries = self.packages.of(program, graph, spec_of(inputs))
            if not entries:
                raise NotPackaged(f"there is none with these settings for {_shapes(inputs)}")
        except NotPackaged as error:
            if self.packages.only and program == "partial":  # interval=1 never calls it
                return self._refused(what, str(error))
            self.miss(what, error)
            return compute
        return Packaged(self, what, entries, compute, left_out)

    def _refused(self, what: str, reason: str) -> Compute:
        def refused(module: nn.Module, kept: KeptValues, inputs: dict[str, Any]) -> tuple[Tensor, Values]:
            self.miss(what, reason)
            raise AssertionError("unreachable")

        return refused

    def miss(self, what: str, reason: object) -> None:
        """Say, or raise, that a program is not run from a package."""
        folder = self.packages.folder
        if self.packages.only:
            raise NotCompiled(
                f"compiled_only=True, and the {what} cannot run from a package in {str(folder)!r}: {reason}. Compile "
                "it ahead of time (`stepcache compile`, save_compiled), or leave compiled_only out."
            )
        self._say(f"The {what} does not run from a package in {folder}: {reason}. It {self._otherwise}.")


class Packaged:
    """A program that runs from one of `entries`, or as `compute` while the model's state is that of none."""

    def __init__(
        self,
        source: Source,
        what: str,
        entries: Sequence[Entry],
        compute: Compute,
        left_out: Callable[[nn.Module], Iterable[nn.Module]],
    ) -> None:
        self._source, self._what, self._entries = source, what, entries
        self._compute, self._left_out = compute, left_out
        self._bound: _Bound | None = None

    def __call__(self, module: nn.Module, kept: KeptValues, inputs: dict[str, Any]) -> tuple[Tensor, Values]:
        bound = self._bound
        if bound is None or not bound.holds(module, kept):
            bound = self._bound = self._bind(module, kept, inputs)
        return self._compute(module, kept, inputs) if bound.package is None else bound.run(kept, inputs)

    def _bind(self, module: nn.Module, kept: KeptValues, inputs: dict[str, Any]) -> _Bound:
        without = list(self._left_out(module))
        bound = _Bound(module, without, kept)
        try:
            state = state_of(module, without)
            entry = self._source.packages.find(self._entries, state, spec_of(kept))
            device = inputs_device(inputs)
            weights = weights_of(module, state.weights)
            _check(weights, device)
            with exclusive():  # CUDA loads modules, which no capture allows
                package = self._source.packages.load(entry, device)
            unload_when_quiet(package, device)
            bound.give(package, entry, weights, device)
        except NotPackaged as error:
            self._source.miss(self._what, error)
        return bound


class _Bound:
    """A model as it was when looked at, and the package found for it (None: none)."""

    def __init__(self, module: nn.Module, without: Iterable[nn.Module], kept: KeptValues) -> None:
        self._module, self._snapshot = weakref.ref(module), Snapshot(module, without)
        self._kept, self._switches = _forms(kept), switches()
        self.package: Package | None = None

    def give(self, package: Package, entry: Entry, weights: list[Tensor], device: torch.device) -> None:
        self.package, self._weights, self._device = package, weights, device
        self._strides = strides_of(entry.kept) + strides_of(entry.inputs)

    def holds(self, module: nn.Module, kept: KeptValues) -> bool:
        """Whether module, kept values and torch's switches are as they were."""
        same = self._module() is module and self._kept == _forms(kept) and self._switches == switches()
        return same and self._snapshot.holds()

    def run(self, kept: KeptValues, inputs: dict[str, Any]) -> tuple[Tensor, Values]:
        assert self.package is not None
        given = (*tensors_of(kept), *tensors_of(inputs))
        laid = [_laid(tensor, strides, self._device) for tensor, strides in zip(given, self._strides, strict=True)]
        output, *values = self.package.run([*self._weights, *laid])
        return output, tuple(values)


_unloading: weakref.WeakSet[Package] = weakref.WeakSet()


def unload_when_quiet(package: Package, device: torch.device) -> None:
    """Have the package's code unloaded while no graph is captured, and none that calls it runs.

    Unloading synchronises a GPU, and the garbage collector may do it at any moment.
    """
    if package in _unloading:
        return
    _unloading.add(package)
    held = [package.loader]

    def unload() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        held.clear()

    weakref.finalize(package, when_quiet, unload).atexit = False


def inputs_device(inputs: dict[str, Any]) -> torch.device:
    """The device of a model's first input, its sample."""
    return tensors_of(inputs)[0].device


def _shapes(inputs: dict[str, Any]) -> str:
    """The shapes of inputs in words. Nested ones go by their outer name."""
    found = {name: tensors_of(value) for name, value in inputs.items()}
    shapes = {name: ", ".join("x".join(map(str, tensor.shape)) for tensor in value) for name, value in found.items()}
    return ", ".join(f"{name} {shape}".strip() for name, shape in shapes.items())


def _forms(kept: KeptValues) -> list[Any]:
    return [(tensor.shape, tensor.dtype) for tensor in tensors_of(kept)]


def _laid(tensor: Tensor, strides: tuple[int, ...], device: torch.device) -> Tensor:
    """The tensor with the strides that a package reads, which checks nothing itself, on its device."""
    if tensor.stride() == strides and tensor.device == device:
        return tensor
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=device).copy_(tensor)


def _check(weights: Sequence[Tensor], device: torch.device) -> None:
    """Raise NotPackaged for weights that native code could not read where they are."""
    for tensor in weights:
        if tensor.device != device:
            raise NotPackaged(f"weights are on {tensor.device}, its inputs on {device}")
        if device.type == "cuda" and tensor.data_ptr() % ALIGNED:
            raise NotPackaged(f"a weight's address is no multiple of {ALIGNED} bytes")
