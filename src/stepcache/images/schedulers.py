"""Schedulers by their names on the command line."""

from __future__ import annotations

from typing import Any

from ..errors import InvalidSetting

# Name on the command line -> class in diffusers, and changes to the config of the pipeline's own scheduler.
SCHEDULERS: dict[str, tuple[str, dict[str, object]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),  # as in Stable Diffusion 1.x
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "kdpm2": ("KDPM2DiscreteScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {}),
    "dpm++-karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}


def swap_scheduler(pipe: Any, name: str | None, steps: int) -> None:
    """Give `pipe` the scheduler of that name; None keeps its own. InvalidSetting if the scheduler cannot do `steps`.

    It keeps the config that it finds, but for Karras sigmas: those the name decides.
    """
    import diffusers

    if name is not None:
        cls, extra = SCHEDULERS[name]
        changes = {"use_karras_sigmas": False, **extra}
        pipe.scheduler = getattr(diffusers, cls).from_config(pipe.scheduler.config, **changes)
    try:
        pipe.scheduler.set_timesteps(steps)
    except (ValueError, IndexError, RuntimeError) as error:
        kind = type(pipe.scheduler).__name__
        raise InvalidSetting(f"{kind} cannot do --steps {steps} ({error}). Take another number.") from error
