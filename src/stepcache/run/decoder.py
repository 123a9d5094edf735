"""The VAE's decoder, compiled and captured like the U-Net's graphs: accelerate(..., vae=True).

During a run the module `vae.decoder` is replaced by its graph, not `vae.decode`: slicing and tiling stay the VAE's own
business. With slicing the decoder is called image by image, with tiling tile by tile, and each shape that it is called
with is a bucket. Nothing is skipped or approximated: eager, captured or not, images are the same bit for bit.
"""

from __future__ import annotations

import functools
import inspect
import logging
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

from ..autocast import autocasts
from ..errors import AlreadyCached, UnsupportedVAE
from ..graphs import GraphSettings, hooks_on, signature, tensors_of
from ..graphs.baked import Baked
from ..graphs.buffers import Bucket, Buckets, Kept
from ..graphs.captured import MAX_STALE
from ..graphs.compiled import Programs
from ..graphs.costs import Costs
from ..graphs.function import Function, FunctionGraph

logger = logging.getLogger("stepcache")

# Where pipelines have their VAE (Kandinsky: movq).
NAMES = ("vae", "movq", "vqvae")

# Decoders that are one function of tensors, with the VAEs that have them.
DECODERS = {
    "diffusers.models.autoencoders.vae.Decoder": "AutoencoderKL, VQModel",
    "diffusers.models.autoencoders.vae.DecoderTiny": "AutoencoderTiny",
    "diffusers.models.autoencoders.vae.MaskConditionDecoder": "AsymmetricAutoencoderKL",
    "diffusers.models.autoencoders.autoencoder_kl_temporal_decoder.TemporalDecoder": "AutoencoderKLTemporalDecoder",
}

# Tiles of one image have up to four shapes: inside, at the right edge, at the lower edge, in the corner.
TILE_SHAPES = 4


def vae_of(pipe: object) -> tuple[nn.Module, nn.Module]:
    """The pipe's VAE and its decoder.

    UnsupportedVAE, with the types, where there is none or its decoder is not known; AlreadyCached where decoding is
    compiled already.
    """
    vae = next((vae for name in NAMES if (vae := getattr(pipe, name, None)) is not None), None)
    if vae is None:
        raise UnsupportedVAE(f"vae=True, but {type(pipe).__name__} has no VAE ({', '.join(NAMES)}). Leave it False.")
    decoder = getattr(vae, "decoder", None)
    compiled = type(decoder).__name__ == "OptimizedModule" or getattr(decoder, "_compiled_call_impl", None) is not None
    if compiled or hasattr(vars(vae).get("decode"), "_torchdynamo_orig_callable"):
        raise AlreadyCached(
            f"vae=True, but decoding is compiled already in this {type(vae).__name__}. Undo that (del vae.decode, or "
            "vae.decoder = vae.decoder._orig_mod), or leave vae=False."
        )
    kind = f"{type(decoder).__module__}.{type(decoder).__qualname__}"
    if kind not in DECODERS:
        raise UnsupportedVAE(
            f"vae=True, but the decoder of {type(vae).__name__}, {type(decoder).__qualname__}, is not known. Known are "
            f"those of {', '.join(DECODERS.values())}. With vae=False the U-Net is accelerated all the same."
        )
    assert isinstance(vae, nn.Module) and isinstance(decoder, nn.Module)
    return vae, decoder


class DecoderGraphs:
    """The graphs of one VAE's decoder, a bucket for each shape that it is called with. For one run at a time.

    max_buckets: how many of them are held, or four times as many while the VAE tiles; the least recently used one gives
    its memory back. What it takes to make them is added to `costs`. What is compiled is in `programs`, which all runs
    of a pipe share.
    """

    def __init__(self, settings: GraphSettings, max_buckets: int, costs: Costs, programs: Programs) -> None:
        self.settings, self.max_buckets, self.costs, self.programs = settings, max_buckets, costs, programs
        self.buckets: Buckets[FunctionGraph] = Buckets(max_buckets)
        self._decoder: weakref.ref[nn.Module] | None = None
        self._hooks = ""
        # What all captured graphs have baked in; None before the first one.
        self._baked: Baked | None = None
        self._stale = 0  # how often in a row it was no more
        self._first = True  # the first captured call of a run is still to come
        self._said: set[str] = set()
        self._plain: dict[torch.device, bool] = {}

    def begin_run(self, vae: nn.Module, decoder: nn.Module) -> None:
        """Called before a run in which `decoder` may be called: another one than before, or with other hooks."""
        if not self.belongs_to(decoder):
            self.clear()
            # Weakly: the pipe may drop its VAE, and the graphs go with it.
            self._decoder = weakref.ref(decoder, lambda _: self.clear())
            self._kind, self._signature = type(decoder), inspect.signature(type(decoder).forward)
        self._hooks, self._first = hooks_on(vae), True
        self.buckets.limit = self.max_buckets * (TILE_SHAPES if getattr(vae, "use_tiling", False) else 1)

    def belongs_to(self, decoder: nn.Module) -> bool:
        """Whether these graphs are that decoder's."""
        return self._decoder is not None and self._decoder() is decoder

    def call(self, decoder: nn.Module, stock: Callable[..., Tensor], args: tuple[Any, ...], kwargs: Any) -> Tensor:
        """One call of the decoder with its forward's arguments, from a graph where that is possible."""
        device = next(tensor.device for tensor in tensors_of((args, kwargs)))
        if self._is_plain(device) or self._must_be_eager(decoder):
            return stock(*args, **kwargs)
        if not self._hooks and getattr(stock, "__func__", None) is not type(decoder).forward:
            self._say_once("The VAE's decoder has a forward of its own: it runs as it is.")
            return stock(*args, **kwargs)
        inputs = self._signature.bind(decoder, *args, **kwargs).arguments
        inputs.pop("self")
        autocast = torch.get_autocast_dtype(device.type) if autocasts(device.type) else None
        key = signature(inputs), torch.is_inference_mode_enabled(), autocast
        graph = self.buckets.get(key, functools.partial(self._bucket, key, inputs, device)).graphs
        if graph.captured is None or graph.captured.failed or not self._may_capture():
            return graph.direct(decoder, inputs)
        output = graph.captured(decoder, inputs)
        if self._baked is None:
            self._baked = Baked(decoder)  # after the call, since some processors write to themselves when they run
        return output

    def _is_plain(self, device: torch.device) -> bool:
        """Whether on `device` nothing is compiled or captured, and the decoder's own forward is as good."""
        if device not in self._plain:
            self._plain[device] = self._options(device) is None and self.settings.backend(device) is None
        return self._plain[device]

    def _options(self, device: torch.device) -> dict[str, Any] | None:
        # Regional: a decoder has no transformer blocks to compile in the place of the whole.
        return None if self.settings.compile == "regional" else self.settings.compile_options(device)

    def _bucket(self, key: Hashable, inputs: dict[str, Any], device: torch.device) -> Bucket[FunctionGraph]:
        what = "decoder graph " + "x".join(map(str, tensors_of(inputs)[0].shape))
        backend = self.settings.backend(device)
        options, key = self._options(device), ("decoder", self._kind, key)
        graph = FunctionGraph(_forward_of(self._kind), options, backend, device, what, self.costs, self.programs, key)
        return Bucket(graph, Kept)

    def _must_be_eager(self, decoder: nn.Module) -> bool:
        if decoder.training:
            self._say_once("The VAE is in training mode: its decoder runs eager. Call vae.eval().")
        elif torch.is_grad_enabled():
            self._say_once("Gradients are enabled: the VAE's decoder runs eager. Use torch.no_grad().")
        elif self._hooks in ("inside", "forward"):
            self._say_once("Hooks sit on the VAE's layers: its decoder runs eager.")
        else:
            return False
        return True

    def _may_capture(self) -> bool:
        """Drop the captured graphs where what they have baked in is no more; False where nothing is to be captured."""
        if self._hooks:
            self._say_once("Offloading hooks move the VAE between runs: its decoder is not captured.")
            return False
        if self._stale > MAX_STALE:
            return False
        first, self._first = self._first, False
        if self._baked is None:
            return True
        if self._baked.holds():
            if first:  # tiles of one image have the same weights in any case
                self._stale = 0
            return True
        self._baked = None
        self._stale += 1
        for bucket in self.buckets.held.values():
            bucket.graphs.free()
        if self._stale > MAX_STALE:
            self._say_once(
                "The VAE's weights or settings change in every run: its decoder is not captured any more. Pipelines "
                "that move a float16 VAE to float32 for each image do that: call vae.to(torch.float32) once instead."
            )
            return False
        logger.info("decoder graphs: weights or settings of the VAE changed, capturing anew")
        return True

    def _say_once(self, reason: str) -> None:
        if reason not in self._said:
            self._said.add(reason)
            logger.warning(reason)

    def clear(self) -> None:
        """Drop all graphs and give their memory back."""
        self.buckets.clear()
        self._decoder = self._baked = None
        self._stale = 0

    @property
    def nbytes(self) -> int:
        """Bytes of static inputs and outputs of captured graphs."""
        return self.buckets.static_nbytes


def _forward_of(kind: type[nn.Module]) -> Function:
    forward = kind.forward

    def decode(decoder: nn.Module, inputs: dict[str, Any]) -> Tensor:
        return forward(decoder, **inputs)

    return decode
