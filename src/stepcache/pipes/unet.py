"""Checks that a pipe can be accelerated: it has a U-Net, and nothing else has replaced the U-Net's forward."""

from __future__ import annotations

from torch import nn

from ..errors import AlreadyCached, UnsupportedPipeline
from .seat import ORIGINAL, seat


def checked_unet(pipe: object) -> nn.Module:
    """The pipe's U-Net. Raises UnsupportedPipeline or AlreadyCached, with the reason, if it cannot be accelerated."""
    unet = _unet_of(pipe)
    _check_unwrapped(unet)
    _check_no_cache_hooks(unet)
    return unet


def _check_unwrapped(unet: nn.Module) -> None:
    """Raise AlreadyCached if something else has replaced the U-Net's forward."""
    if type(unet).__name__ == "OptimizedModule" or getattr(unet, "_compiled_call_impl", None) is not None:
        raise AlreadyCached(
            "pipe.unet is compiled already, which hides its layers. Give stepcache the plain U-Net, which it compiles "
            "itself (pipe.unet = pipe.unet._orig_mod after torch.compile; pipe.unet._compiled_call_impl = None after "
            "pipe.unet.compile)."
        )
    owner, name = seat(unet)
    forward = getattr(owner, name)
    forward = getattr(forward, ORIGINAL, forward)
    if getattr(forward, "__func__", None) is not type(unet).forward:
        who = getattr(forward, "__qualname__", repr(forward))
        raise AlreadyCached(
            f"The U-Net's forward is replaced by {who}: another cache or wrapper is on it. Two of them give wrong "
            "images, so remove the other one first (DeepCache: helper.disable())."
        )


def _check_no_cache_hooks(unet: nn.Module) -> None:
    """Raise AlreadyCached if the U-Net's layers have hooks of diffusers' own caches."""
    for module in unet.modules():  # each run does this, and named_modules() takes twice as long
        registry = vars(module).get("_diffusers_hook")
        caches = [hook for hook in registry.hooks if "cache" in hook or "broadcast" in hook] if registry else ()
        if caches:
            path = next(path for path, other in unet.named_modules() if other is module)
            raise AlreadyCached(
                f"diffusers' {caches[0]} hook is on the U-Net ({path or 'itself'}). Two caches give wrong images, so "
                "disable that one first."
            )


def _unet_of(pipe: object) -> nn.Module:
    """The pipe's U-Net. Raises UnsupportedPipeline, with the type and what to do, if the pipe is unsuitable."""
    name = type(pipe).__name__
    unet = getattr(pipe, "unet", None)
    if unet is None and getattr(pipe, "transformer", None) is not None:
        raise UnsupportedPipeline(
            f"{name} denoises with a transformer ({type(pipe.transformer).__name__}). stepcache is for U-Nets; "  # type: ignore[attr-defined]
            "for diffusion transformers use cache-dit or diffusers' own enable_cache."
        )
    scheduler = getattr(pipe, "scheduler", None)
    if unet is not None and scheduler is not None and not hasattr(scheduler, "step"):
        raise UnsupportedPipeline(
            f"{name} steps with a {type(scheduler).__name__}, which has no step(), and stepcache counts calls of that. "
            "Run this pipeline without stepcache."
        )
    if unet is None or scheduler is None or not callable(pipe):
        hint = " That is the U-Net itself; pass the pipeline that holds it." if hasattr(pipe, "up_blocks") else ""
        raise UnsupportedPipeline(
            f"accelerate() takes a diffusers pipeline with .unet and .scheduler, got {name}: {pipe!r:.80}.{hint}"
        )
    return unet
