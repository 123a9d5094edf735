"""A VAE's decoder, compiled and captured: accelerate(..., vae=True).

A run replaces the forward of `vae.decoder`, not `vae.decode`, so the VAE still does its own slicing (one call per
image) and tiling (one call per tile). Each shape has a bucket with one program that keeps nothing. Nothing is skipped
or approximated: run eager, captured or not, images are the same bit for bit.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..forwards.nested import tensors_of
from ..packages.job import decoding
from .bucket import Bucket, Buckets, key_of
from .capture import Capture
from .compiled import Compilations
from .fallback import Fallback
from .freshness import Freshness
from .jobs import DECODERS_GRAPH, Jobs, runs_on
from .kept import Kept
from .packaged import Source
from .program import Program, compiled
from .progress import Costs
from .settings import GraphSettings

# Tiles of one image have up to four shapes: inner, right edge, bottom edge, corner.
TILE_SHAPES = 4

NAME = "decoder"
ADVICE = " Pipelines that move a float16 VAE to float32 for each image cause this: use a VAE that needs no upcast."


class DecoderGraphs:
    """The buckets of one VAE's decoder, for one run at a time.

    max_buckets: how many are held; four times as many while the VAE tiles. costs: totals to add to. compilations:
    shared by all runs of a pipe.
    """

    def __init__(self, settings: GraphSettings, max_buckets: int, costs: Costs, compilations: Compilations) -> None:
        # Regional compiles transformer blocks, and a decoder has none.
        self.settings = replace(settings, compile=False) if settings.compile == "regional" else settings
        self.max_buckets, self.costs, self.compilations = max_buckets, costs, compilations
        self.fallback = Fallback("the VAE's decoder", "pipe.vae", ADVICE)
        self.buckets = Buckets(max_buckets, self.fallback.say_once)
        self._decoder: weakref.ref[nn.Module] | None = None
        self._freshness = Freshness(self.fallback, by_run=True)  # of all captures

    def begin_run(self, vae: nn.Module, decoder: nn.Module) -> None:
        """Called before each run. The decoder may be another one than before, or have other hooks."""
        if not self.belongs_to(decoder):
            self.clear()
            # A weak reference: if the pipe drops its VAE, its graphs are freed too.
            self._decoder = weakref.ref(decoder, lambda _: self.clear())
            self._signature = inspect.signature(type(decoder).forward)
        self.fallback.look(vae)
        self.buckets.limit = self.max_buckets * (TILE_SHAPES if getattr(vae, "use_tiling", False) else 1)
        self._freshness.begin_run()

    def belongs_to(self, decoder: nn.Module) -> bool:
        return self._decoder is not None and self._decoder() is decoder

    def call(self, decoder: nn.Module, stock: Callable[..., Tensor], args: tuple[Any, ...], kwargs: Any) -> Tensor:
        """One call of the decoder with its forward's arguments, from a graph if possible."""
        device = next(tensor.device for tensor in tensors_of((args, kwargs)))
        custom = not self.fallback.hooks and getattr(stock, "__func__", None) is not type(decoder).forward
        plain = self.settings.is_plain(device)
        if custom and not plain:
            self.fallback.say_once("The VAE's decoder has a custom forward: it runs unaccelerated.")
        if custom or (not plain and self.fallback.is_eager(decoder)):
            return stock(*args, **kwargs)
        inputs = self._signature.bind(decoder, *args, **kwargs).arguments
        inputs.pop("self")
        key = key_of(inputs, device)
        bucket = self.buckets.get(key, functools.partial(self._make, key, type(decoder), inputs, device))
        bucket.note(inputs)
        return stock(*args, **kwargs) if plain else bucket.run(NAME, decoder, inputs, bucket.kept(0), 0)

    def _make(self, key: Hashable, kind: type[nn.Module], inputs: dict[str, Any], device: torch.device) -> Bucket:
        what = _label(inputs)
        backend, options = self.settings.backend(device), self.settings.compile_options(device)
        compute = decoding(kind)
        if options is not None:
            compute = compiled(compute, what, options, self.costs, self.compilations, (kind, key))
        if self.settings.packages is not None:
            source = Source(self.settings.packages, self.fallback.say_once, compiles=options is not None)
            compute = source.wrap(NAME, what, compute, DECODERS_GRAPH, inputs)
        capture = None if backend is None else Capture(backend, device, self.costs, self._freshness)
        return Bucket({NAME: Program(what, compute)}, capture, make_kept=functools.partial(Kept, values=0))

    def add_jobs(self, decoder: nn.Module, jobs: Jobs) -> None:
        """Add what packages of the shapes that have run are made from."""
        for bucket in list(self.buckets.held.values()):  # another thread may run
            if not runs_on(decoder, bucket):
                continue
            options = self.settings.package_options(bucket.device)
            for inputs, _ in list(bucket.examples.values()):
                jobs.add(decoder, NAME, _label(inputs), bucket.device, options, DECODERS_GRAPH, inputs)

    def clear(self) -> None:
        """Drop all graphs and free their memory."""
        self.buckets.clear()
        self._decoder, self._freshness = None, Freshness(self.fallback, by_run=True)


def _label(inputs: dict[str, Any]) -> str:
    return "decoder graph " + "x".join(map(str, tensors_of(inputs)[0].shape))
