"""A VAE's decoder, compiled and captured: accelerate(..., vae=True).

In a run the forward of `vae.decoder` is replaced, not `vae.decode`: slicing and tiling stay the VAE's own business.
With slicing the decoder is called image by image, with tiling tile by tile, and each shape is a bucket with one program
that keeps nothing. Nothing is skipped or approximated: eager, captured or not, images are the same bit for bit.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

from ..forwards.guidance import Compute, KeptValues, Values
from ..forwards.nested import tensors_of
from .bucket import Bucket, Buckets, key_of
from .capture import Capture
from .compiled import Compilations
from .fallback import Fallback
from .kept import Kept
from .program import Program, compiled
from .progress import Costs
from .settings import GraphSettings

# Tiles of one image have up to four shapes: inside, at the right edge, at the lower edge, in the corner.
TILE_SHAPES = 4

NAME = "decoder"
ADVICE = (
    " Pipelines that move a float16 VAE to float32 for each image do that: call vae.to(torch.float32) once instead."
)


class DecoderGraphs:
    """The buckets of one VAE's decoder. For one run at a time.

    max_buckets: how many are held, or four times as many while the VAE tiles. costs: what making them costs is added.
    compilations: what has been compiled, which all runs of a pipe share.
    """

    def __init__(self, settings: GraphSettings, max_buckets: int, costs: Costs, compilations: Compilations) -> None:
        self.settings, self.max_buckets, self.costs, self.compilations = settings, max_buckets, costs, compilations
        self.buckets = Buckets(max_buckets)
        self.fallback = Fallback("the VAE's decoder", "pipe.vae", ADVICE)
        self._decoder: weakref.ref[nn.Module] | None = None
        self._plain: dict[torch.device, bool] = {}

    def begin_run(self, vae: nn.Module, decoder: nn.Module) -> None:
        """Called before a run in which `decoder` may be called: another one than before, or with other hooks."""
        if not self.belongs_to(decoder):
            self.clear()
            # Weakly: the pipe may drop its VAE, and the graphs go with it.
            self._decoder = weakref.ref(decoder, lambda _: self.clear())
            self._signature = inspect.signature(type(decoder).forward)
        self.fallback.look(vae)
        self.buckets.limit = self.max_buckets * (TILE_SHAPES if getattr(vae, "use_tiling", False) else 1)
        for bucket in self.buckets.held.values():
            if bucket.capture is not None:
                bucket.capture.begin_run()

    def belongs_to(self, decoder: nn.Module) -> bool:
        """Whether these graphs are that decoder's."""
        return self._decoder is not None and self._decoder() is decoder

    def call(self, decoder: nn.Module, stock: Callable[..., Tensor], args: tuple[Any, ...], kwargs: Any) -> Tensor:
        """One call of the decoder with its forward's arguments, from a graph where that is possible."""
        device = next(tensor.device for tensor in tensors_of((args, kwargs)))
        if self._is_plain(device) or self.fallback.is_eager(decoder):
            return stock(*args, **kwargs)
        if not self.fallback.hooks and getattr(stock, "__func__", None) is not type(decoder).forward:
            self.fallback.say_once("The VAE's decoder has a forward of its own: it runs as it is.")
            return stock(*args, **kwargs)
        inputs = self._signature.bind(decoder, *args, **kwargs).arguments
        inputs.pop("self")
        key = key_of(inputs, device)
        bucket = self.buckets.get(key, functools.partial(self._make, key, type(decoder), inputs, device))
        return bucket.run(NAME, decoder, inputs, bucket.kept(0), 0)

    def _is_plain(self, device: torch.device) -> bool:
        """Whether nothing is compiled or captured on the device, so that the decoder's own forward is as good."""
        if device not in self._plain:
            self._plain[device] = self._options(device) is None and self.settings.backend(device) is None
        return self._plain[device]

    def _options(self, device: torch.device) -> dict[str, Any] | None:
        # Regional: a decoder has no transformer blocks to compile in the place of the whole.
        return None if self.settings.compile == "regional" else self.settings.compile_options(device)

    def _make(self, key: Hashable, kind: type[nn.Module], inputs: dict[str, Any], device: torch.device) -> Bucket:
        what = "decoder graph " + "x".join(map(str, tensors_of(inputs)[0].shape))
        backend, options, compute = self.settings.backend(device), self._options(device), _decode(kind)
        if options is not None:
            compute = compiled(compute, what, options, self.costs, self.compilations, (kind, key))
        capture = None if backend is None else Capture(backend, device, self.costs, self.fallback, by_run=True)
        return Bucket({NAME: Program(what, compute)}, capture, make_kept=functools.partial(Kept, values=0))

    def clear(self) -> None:
        """Drop all graphs and give their memory back."""
        self.buckets.clear()
        self._decoder = None


def _decode(kind: type[nn.Module]) -> Compute:
    forward = kind.forward

    def decode(decoder: nn.Module, kept: KeptValues, inputs: dict[str, Any]) -> tuple[Tensor, Values]:
        return forward(decoder, **inputs), ()

    return decode
