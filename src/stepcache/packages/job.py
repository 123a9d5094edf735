"""Making one package, in a process of its own (__main__.py).

The process gets the model's structure and inputs without their contents, and traces with fake tensors, so it needs no
memory for weights. A compiler that crashes or is killed takes nobody with it.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..forwards import family_of
from ..forwards.blend import Blend
from ..forwards.guidance import Compute, KeptValues, Values, steps_of
from ..forwards.join import JoinFunction, fused_join, reference_join
from ..forwards.join_shape import JoinShape
from ..forwards.nested import map_tensors, tensors_of
from .manifest import Entry
from .state import ModelState
from .switches import set_switches

Joins = frozenset[JoinShape] | None
"""The joins that run on the Triton ops; None: all that can."""


@dataclass(frozen=True)
class Job:
    """What a package is made from.

    entry: its entry in the manifest, as far as it is known before. model, inputs, kept: their tensors on the meta
    device. options: of Inductor. branch, reuse, joins: of a U-Net's steps.
    """

    entry: Entry
    state: ModelState
    model: nn.Module
    device: str
    inputs: dict[str, Any]
    kept: KeptValues
    options: dict[str, Any]
    branch: int = 0
    reuse: bool = False
    joins: Joins = frozenset()

    def compute(self) -> Compute:
        """The program as a function."""
        if self.entry.program == "decoder":
            return decoding(type(self.model))
        family = family_of(self.model)
        full, partial = steps_of(family, family.layout(self.model).cut(self.branch), _join(self.joins), self.reuse)
        return full if self.entry.program == "full" else partial


def decoding(kind: type[nn.Module]) -> Compute:
    """A call of a VAE's decoder of this class, as a program that keeps nothing."""
    forward = kind.forward

    def decode(decoder: nn.Module, kept: KeptValues, inputs: dict[str, Any]) -> tuple[Tensor, Values]:
        return forward(decoder, **inputs), ()

    return decode


def _join(joins: Joins) -> JoinFunction:
    if joins is None:
        return fused_join(lambda shape: True)
    return fused_join(joins.__contains__) if joins else reference_join


class _Flat(nn.Module):
    """A program whose arguments are flat lists of tensors: weights by name, kept values and inputs."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        # In a list, so that the model's weights are no constants of this module, but its inputs.
        self._model, self._names = [_Holder(job.model, job.compute())], job.state.weights
        self._inputs, self._kept = job.inputs, job.kept

    def forward(self, weights: list[Tensor], kept: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
        named = {f"model.{name}": weight for name, weight in zip(self._names, weights, strict=True)}
        arguments = _filled_kept(self._kept, kept), _filled(self._inputs, inputs)
        output, values = torch.func.functional_call(self._model[0], named, arguments)
        return [output, *values]


class _Holder(nn.Module):
    """The model as a submodule of a module whose forward is the program."""

    def __init__(self, model: nn.Module, compute: Compute) -> None:
        super().__init__()
        self.model, self._compute = model, compute

    def forward(self, kept: KeptValues, inputs: dict[str, Any]) -> tuple[Tensor, Values]:
        return self._compute(self.model, kept, inputs)


def _filled(like: Any, tensors: list[Tensor]) -> Any:
    """`like` with its tensors replaced by `tensors`, in order."""
    rest = iter(tensors)
    return map_tensors(lambda _: next(rest), like)


def _filled_kept(like: KeptValues, tensors: list[Tensor]) -> KeptValues:
    rest = iter(tensors)
    return tuple(
        Blend(tuple(next(rest) for _ in value.buffers), next(rest)) if isinstance(value, Blend) else next(rest)
        for value in like
    )


def exported(job: Job) -> torch.export.ExportedProgram:
    """The job's program, traced: its inputs are the lists of weights, kept values and inputs."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    named = {**dict(job.model.named_parameters()), **dict(job.model.named_buffers())}
    fake = FakeTensorMode()

    def faked(tensor: Tensor) -> Tensor:
        with fake:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=job.device)

    groups = [named[name] for name in job.state.weights], tensors_of(job.kept), tensors_of(job.inputs)
    arguments = tuple([faked(tensor) for tensor in group] for group in groups)
    with torch.no_grad():
        return torch.export.export(_Flat(job), arguments, strict=False)


def make(job: Job, path: Path) -> None:
    """Compile the job's program into the package `path`, whose name must end in ".pt2". Imports Inductor."""
    device = torch.device(job.device)
    set_switches(job.entry.graph["switches"])
    with torch.no_grad(), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        options = {**_own_options(), **job.options}
        torch._inductor.aoti_compile_and_package(exported(job), package_path=str(path), inductor_configs=options)


def _own_options() -> dict[str, Any]:
    """What stepcache asks of AOTInductor, as far as this torch knows it."""
    from torch._inductor import list_options

    known = set(list_options())
    return {name: value for name, value in _OPTIONS.items() if name in known}


_OPTIONS = {
    "aot_inductor.enable_line_tables": False,  # they make a package larger by a third
    # Otherwise code for a CPU has the compiling process's number of threads baked in, and reductions write past their
    # arrays in a process with more.
    "cpp.dynamic_threads": True,
}
