"""Checks that a pipe can be accelerated: it has a U-Net, and nothing else has replaced the U-Net's forward."""

from __future__ import annotations

from types import FunctionType
from typing import Any

from torch import nn

from ..errors import AlreadyCached, StepCacheError, UnsupportedPipeline, UnsupportedUNet
from ..values import is_a, reason_of, shown
from .seat import ORIGINAL, seat


def checked_unet(pipe: object, scheduler: str = "scheduler") -> nn.Module:
    """The pipe's U-Net. Raises UnsupportedPipeline or AlreadyCached, with the reason, if it cannot be accelerated.

    scheduler: the name of the pipe's attribute that holds its scheduler.
    """
    unet = _unet_of(pipe, scheduler)
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
        if _left_by_accelerate(forward, unet):
            hooked = "" if (owner, name) == (unet, "forward") else "take the offloading hooks off it, then "
            raise AlreadyCached(
                "The U-Net's forward is what Accelerate's prepare() and unwrap_model() leave there for mixed "
                f"precision. Before accelerate(pipe), {hooked}call del pipe.unet.forward, and the class's own forward "
                "is back. It computes in the dtype of the weights (pipe.to(torch.bfloat16)), or in that of a "
                "torch.autocast around the pipeline's call."
            )
        who = getattr(forward, "__qualname__", shown(forward))
        raise AlreadyCached(
            f"The U-Net's forward is replaced by {who}: another cache or wrapper is on it. Two of them give wrong "
            "images, so remove the other one first (DeepCache: helper.disable())."
        )


def _left_by_accelerate(forward: Any, unet: nn.Module) -> bool:
    """Whether `forward` is the mixed-precision wrapper of Accelerate's `prepare`, or what `unwrap_model` makes of it.

    The latter unwraps too far: a decorated forward loses diffusers' own decorator, for LoRA's scale, too.
    """
    function = getattr(forward, "__func__", forward)
    if not isinstance(function, FunctionType):
        return False
    own: list[Any] = [type(unet).forward]
    while hasattr(own[-1], "__wrapped__"):
        own.append(own[-1].__wrapped__)
    return function in own or function.__globals__["__name__"].startswith("accelerate.")


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


def _unet_of(pipe: object, scheduler: str) -> nn.Module:
    """The pipe's U-Net. Raises UnsupportedPipeline, with the type and what to do, if the pipe is unsuitable."""
    name = type(pipe).__name__
    if is_a(pipe, type):
        raise UnsupportedPipeline(
            f"accelerate() takes a pipeline, got the class {pipe.__name__} itself. Make one first, as with "  # type: ignore[attr-defined]
            f"{pipe.__name__}.from_pretrained(...)."  # type: ignore[attr-defined]
        )
    try:
        getattr(pipe, "_stepcache_nothing", None)
        return _checked(pipe, name, getattr(pipe, "unet", None), scheduler)
    except StepCacheError:
        raise
    except Exception as error:
        raise UnsupportedPipeline(
            f"{name} cannot be looked at: reading an attribute of it raises {type(error).__name__}: "
            f"{reason_of(error)}. One that is missing must raise AttributeError."
        ) from error


def _checked(pipe: object, name: str, unet: Any, scheduler: str) -> nn.Module:
    if unet is None and getattr(pipe, "transformer", None) is not None:
        raise UnsupportedPipeline(
            f"{name} denoises with a transformer ({type(pipe.transformer).__name__}). stepcache is for U-Nets; "  # type: ignore[attr-defined]
            "for diffusion transformers use cache-dit or diffusers' own enable_cache."
        )
    stepper = getattr(pipe, scheduler, None)
    if unet is not None and not hasattr(stepper, "step"):
        others = [key for key, value in getattr(pipe, "__dict__", {}).items() if _steps(value)]
        ways = " or ".join(f'accelerate(pipe, scheduler="{other}")' for other in others)
        if stepper is not None:
            raise UnsupportedPipeline(
                f"{name} steps with a {type(stepper).__name__}, which has no step(), and stepcache counts calls of "
                f"that. {f'Call {ways}' if ways else 'Run this pipeline without stepcache'}."
            )
        if ways:
            raise UnsupportedPipeline(f"{name} has no .{scheduler:.80}, but {', '.join(others)}: call {ways}.")
    if unet is not None and stepper is not None and not callable(pipe):
        way_out = "Give its class a __call__ that runs the loop."
        if hasattr(pipe, "components"):
            way_out = (
                "If its methods make other pipelines of its components, make such a pipeline yourself, accelerate it "
                "and call it: pipe = StableDiffusionPipeline(**mega.components); accelerate(pipe)."
            )
        raise UnsupportedPipeline(f"{name} has no __call__, and accelerate() speeds up calls of the pipe. {way_out}")
    if unet is None or stepper is None:
        hint = " That is the U-Net itself; pass the pipeline that holds it." if hasattr(pipe, "up_blocks") else ""
        raise UnsupportedPipeline(
            f"accelerate() takes a diffusers pipeline with .unet and .{scheduler:.80}, got {name}: {shown(pipe)}.{hint}"
        )
    if not is_a(unet, nn.Module):
        raise UnsupportedUNet(
            f"The .unet of this {name} is {shown(unet)}, which is no torch.nn.Module: stepcache runs the layers of a "
            "diffusers U-Net itself. Run this pipeline without stepcache."
        )
    return unet


def _steps(value: object) -> bool:
    try:
        return hasattr(value, "step") and hasattr(value, "set_timesteps")
    except Exception:  # of an object of someone else's
        return False
