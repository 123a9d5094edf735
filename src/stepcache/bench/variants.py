"""The ladder of variants: ways to run a pipeline, from eager to stepcache compiled, captured and with its Triton join.

Each variant has its own pipeline: shared weights in separate modules. So no variant sees what another does to its U-Net
(DeepCache replaces the forward of every block, and its `disable` does not undo that), and each keeps what it has
compiled while others run in between.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from typing import Any

import torch
from torch import nn

from ..api import accelerate
from ..reuse.predict import Predict
from .spec import LADDER

_EACH_MODE = ("compile", "compile+fewer-steps", "stepcache-compiled")
_ALONE = ("eager", "compile")  # whose work does not depend on interval and branch
_ONLY_CUDA = ("stepcache-graphs", "stepcache-triton")


@dataclass(frozen=True)
class Variant:
    """A rung of the ladder.

    mode: of torch.compile, or "". interval, branch: of what is reused, or of the variant whose cost fewer steps are to
    match; None for the others. predict: as in `accelerate`; of stepcache only.
    """

    key: str
    mode: str = ""
    interval: int | None = None
    branch: int | None = None
    predict: Predict = "hold"

    @property
    def name(self) -> str:
        """The name in the rows."""
        return LADDER[self.key]

    @property
    def label(self) -> str:
        return f"{self.name}, {self.mode}" if self.mode else self.name

    @property
    def compiles(self) -> bool:
        """Whether torch.compile is used."""
        return self.captures or bool(self.mode)

    @property
    def captures(self) -> bool:
        """Whether stepcache captures its graphs."""
        return self.key in _ONLY_CUDA

    @property
    def shortens(self) -> bool:
        """Whether it is the original with fewer steps."""
        return self.key.endswith("fewer-steps")

    @property
    def original(self) -> Variant:
        """For fewer steps, the variant whose pipeline it runs."""
        return Variant("compile" if self.mode else "eager", self.mode)

    def missing(self, device: str) -> str:
        """What it needs that is missing here, or ""."""
        if device != "cuda" and self.key in _ONLY_CUDA:
            return "needs CUDA"
        if device != "cuda" and self.mode == "reduce-overhead":
            return "reduce-overhead is CUDA graphs, needs CUDA"
        if "deepcache" in self.key and find_spec("DeepCache") is None:
            return "needs DeepCache: pip install DeepCache==0.1.1"
        return ""

    def put_on(self, pipe: Any, backend: str = "inductor") -> Any:
        """A pipeline that runs this way with the weights of `pipe`, which does not change. Compiles at its first call.

        backend: of torch.compile; only Inductor gets the mode.
        """
        ours = self.key.startswith("stepcache")
        pipe = twin(pipe, own_kernels=ours and pipe.unet.device.type == "cuda")
        if ours:
            settings = self._settings(backend)
            return accelerate(pipe, self.interval or 1, self.branch or 0, predict=self.predict, **settings)
        if self.key.startswith("compile"):
            # DeepCache breaks graphs. Compile before enabling its helper: otherwise its timestep.item() breaks the
            # graph in the first line.
            _isolate(pipe.unet)
            fullgraph = not self.key.endswith("deepcache")
            pipe.unet = torch.compile(pipe.unet, fullgraph=fullgraph, **_compile_options(self.mode, backend))
        if self.key.endswith("deepcache"):
            from DeepCache import DeepCacheSDHelper

            helper = DeepCacheSDHelper(pipe=pipe)
            helper.set_params(cache_interval=self.interval, cache_branch_id=self.branch)
            helper.enable()
        return pipe

    def _settings(self, backend: str) -> dict[str, Any]:
        if self.key == "stepcache-eager":
            return {"compile": False, "cuda_graphs": False, "kernels": False}
        if self.key == "stepcache-compiled":
            return {"compile": _compile_options(self.mode, backend), "cuda_graphs": False, "kernels": False}
        own = True if backend == "inductor" else {"backend": backend}
        return {"compile": own, "cuda_graphs": True, "kernels": self.key == "stepcache-triton"}


def ladder(
    keys: Sequence[str], modes: Sequence[str], reuse: tuple[int, int], predict: Predict = "hold"
) -> list[Variant]:
    """The variants of `keys` in order, in each mode if they have modes. reuse: (interval, branch)."""
    variants = []
    for key in keys:
        mine = modes if key in _EACH_MODE else [{"compile+deepcache": modes[0]}.get(key, "")]
        interval, branch = (None, None) if key in _ALONE else reuse
        ours = predict if key.startswith("stepcache") else "hold"
        variants += [Variant(key, mode, interval, branch, ours) for mode in mine]
    return variants


def twin(pipe: Any, own_kernels: bool = False) -> Any:
    """A pipeline with the same weights, but its own U-Net modules and scheduler.

    own_kernels: it also has its own 4-d weights, for `accelerate`, which puts them into channels_last on a GPU. That
    must not change the other variants'. This costs their memory.
    """
    other = copy.copy(pipe)
    shared = chain(pipe.unet.parameters(), pipe.unet.buffers())
    weights = {id(tensor): tensor for tensor in shared if not (own_kernels and tensor.dim() == 4)}
    other.unet = copy.deepcopy(pipe.unet, weights)
    other.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    return other


def _compile_options(mode: str, backend: str) -> dict[str, Any]:
    return {"mode": mode} if backend == "inductor" else {"backend": backend}


def _isolate(unet: nn.Module) -> None:
    """Give the U-Net's forward its own code object.

    Dynamo counts recompilations per code object and gives up after eight. torch.compile with DeepCache gets there, and
    would leave other variants in the process uncompiled.
    """
    stock: Any = type(unet).forward
    own = types.FunctionType(
        stock.__code__.replace(), stock.__globals__, stock.__name__, stock.__defaults__, stock.__closure__
    )
    own.__kwdefaults__ = stock.__kwdefaults__
    unet.forward = types.MethodType(own, unet)
