"""The ladder: ways to run one pipeline, from eager to stepcache compiled, captured and with its Triton join.

Each variant gets a pipeline of its own: the same weights in modules of their own. What one of them does to its U-Net
(DeepCache replaces the forward of every block, and its `disable` leaves that behind) none of the others can see, and
what it has compiled stays with it while others run in between.
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

from stepcache import accelerate

# Name in `GridSpec.variants` and on the command line -> name in the rows.
LADDER = {
    "eager": "eager",
    "deepcache": "DeepCache 0.1.1",
    "compile": "torch.compile",
    "compile+deepcache": "torch.compile + DeepCache 0.1.1",
    "stepcache-eager": "stepcache eager",
    "stepcache-compiled": "stepcache compiled",
    "stepcache-graphs": "stepcache compiled + CUDA graphs",
    "stepcache-triton": "stepcache compiled + CUDA graphs + Triton join",
}
MODES = ("default", "reduce-overhead", "max-autotune")

_EACH_MODE = ("compile", "stepcache-compiled")
_ONLY_CUDA = ("stepcache-graphs", "stepcache-triton")


@dataclass(frozen=True)
class Variant:
    """A rung of the ladder. mode: torch.compile's, "" where it is given none. interval None: nothing is reused."""

    key: str
    mode: str = ""
    interval: int | None = None
    branch: int | None = None

    @property
    def name(self) -> str:
        """What the rows call it."""
        return LADDER[self.key]

    @property
    def label(self) -> str:
        """Name and mode, for messages."""
        return f"{self.name}, {self.mode}" if self.mode else self.name

    @property
    def compiles(self) -> bool:
        """Whether torch.compile has a part in it."""
        return self.captures or bool(self.mode)

    @property
    def captures(self) -> bool:
        """Whether stepcache is to capture its graphs."""
        return self.key in _ONLY_CUDA

    def missing(self, device: str) -> str:
        """What it needs and is not here; "" where it can run."""
        if device != "cuda" and self.key in _ONLY_CUDA:
            return "needs CUDA"
        if device != "cuda" and self.mode == "reduce-overhead":
            return "reduce-overhead is CUDA graphs, needs CUDA"
        if "deepcache" in self.key and find_spec("DeepCache") is None:
            return "needs DeepCache: pip install DeepCache==0.1.1"
        return ""

    def put_on(self, pipe: Any, backend: str = "inductor") -> Any:
        """A pipeline that runs this way on the weights of `pipe`, which stays as it is. Compiles at its first call.

        backend: torch.compile's; modes are Inductor's, any other backend is given none.
        """
        ours = self.key.startswith("stepcache")
        pipe = twin(pipe, own_kernels=ours)
        if ours:
            return accelerate(pipe, self.interval or 1, self.branch or 0, **self._settings(backend))
        if self.key.startswith("compile"):
            # With DeepCache on, whole graphs cannot be had. Compiled before the helper is put on, since the other way
            # round its timestep.item() breaks the graph at the very first line.
            _isolate(pipe.unet)
            fullgraph = self.key == "compile"
            pipe.unet = torch.compile(pipe.unet, fullgraph=fullgraph, **_compile_options(self.mode, backend))
        if self.key.endswith("deepcache"):
            from DeepCache import DeepCacheSDHelper

            helper = DeepCacheSDHelper(pipe=pipe)
            helper.set_params(cache_interval=self.interval, cache_branch_id=self.branch)
            helper.enable()
        return pipe

    def _settings(self, backend: str) -> dict[str, Any]:
        """Arguments of `accelerate`."""
        if self.key == "stepcache-eager":
            return {"compile": False, "cuda_graphs": False, "kernels": False}
        if self.key == "stepcache-compiled":
            return {"compile": _compile_options(self.mode, backend), "cuda_graphs": False, "kernels": False}
        own = True if backend == "inductor" else {"backend": backend}
        return {"compile": own, "cuda_graphs": True, "kernels": self.key == "stepcache-triton"}


def ladder(keys: Sequence[str], modes: Sequence[str], reuse: tuple[int, int]) -> list[Variant]:
    """The variants of those keys, in that order, in each mode where they have one; `reuse`: (interval, branch)."""
    variants = []
    for key in keys:
        mine = modes if key in _EACH_MODE else [{"compile+deepcache": modes[0]}.get(key, "")]
        pair = (None, None) if key in ("eager", "compile") else reuse
        variants += [Variant(key, mode, *pair) for mode in mine]
    return variants


def twin(pipe: Any, own_kernels: bool = False) -> Any:
    """Another pipeline with the same weights, but with U-Net modules and a scheduler of its own.

    own_kernels: it has 4-d weights of its own, too. `accelerate` puts them into channels_last on a GPU, and the others'
    are to stay as they were loaded. Price: their memory, for as long as the pipeline lives.
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
    """Give the U-Net's forward a code object of its own.

    Dynamo counts recompilations by code object, and gives up on one after eight: without this, torch.compile with
    DeepCache, which gets there, would leave the other variants of its process uncompiled.
    """
    stock: Any = type(unet).forward
    own = types.FunctionType(
        stock.__code__.replace(), stock.__globals__, stock.__name__, stock.__defaults__, stock.__closure__
    )
    own.__kwdefaults__ = stock.__kwdefaults__
    unet.forward = types.MethodType(own, unet)
