"""Pipelines with loops of their own, as people write them: what is counted where a loop is not diffusers' usual one."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import DiffusionPipeline
from support.builders import LEAN, ddim, quiet, random, unet_of
from support.cases.case import PLAIN, Case


class OwnPipeline(DiffusionPipeline):
    """A U-Net, a scheduler, and two prompts."""

    def __init__(self, unet: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    def begin(self, steps: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents [1, 4, 8, 8] and prompts [1, 5, 4], unconditional and conditional."""
        self.scheduler.set_timesteps(steps)
        return random(1, 4, 8, 8), random(1, 5, 4, seed=6), random(1, 5, 4, seed=7)

    def guided(self, latents: torch.Tensor, t: Any, without: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        noise = self.unet(torch.cat([latents] * 2), t, encoder_hidden_states=torch.cat([without, text])).sample
        unconditional, conditional = noise.chunk(2)
        return unconditional + 3 * (conditional - unconditional)


class SeparatePassesPipeline(OwnPipeline):
    @torch.no_grad()
    def __call__(self, num_inference_steps: int = 5) -> torch.Tensor:
        latents, without, text = self.begin(num_inference_steps)
        for t in self.scheduler.timesteps:
            unconditional = self.unet(latents, t, encoder_hidden_states=without).sample
            conditional = self.unet(latents, timestep=t, encoder_hidden_states=text, return_dict=False)[0]
            noise = unconditional + 3 * (conditional - unconditional)
            latents = self.scheduler.step(noise, t, latents, return_dict=False)[0]
        return latents


class GuidanceCutOffPipeline(OwnPipeline):
    @torch.no_grad()
    def __call__(self, num_inference_steps: int = 5) -> torch.Tensor:
        latents, without, text = self.begin(num_inference_steps)
        for i, t in enumerate(self.scheduler.timesteps):
            noise = (
                self.guided(latents, t, without, text)
                if i < 2
                else self.unet(latents, t, encoder_hidden_states=text).sample
            )
            latents = self.scheduler.step(noise, t, latents).prev_sample
        return latents


class NoSchedulerStepPipeline(OwnPipeline):
    """Its own Euler step: nobody can tell where one step ends."""

    @torch.no_grad()
    def __call__(self, num_inference_steps: int = 5) -> torch.Tensor:
        latents, without, text = self.begin(num_inference_steps)
        for t in self.scheduler.timesteps:
            latents = latents - 0.1 * self.guided(latents, t, without, text)
        return latents


class OtherSchedulerPipeline(OwnPipeline):
    """It steps with a scheduler that it makes itself."""

    @torch.no_grad()
    def __call__(self, num_inference_steps: int = 5) -> torch.Tensor:
        latents, without, text = self.begin(num_inference_steps)
        scheduler = type(self.scheduler).from_config(self.scheduler.config)
        scheduler.set_timesteps(num_inference_steps)
        for t in scheduler.timesteps:
            latents = scheduler.step(self.guided(latents, t, without, text), t, latents).prev_sample
        return latents


class TilesPipeline(OwnPipeline):
    """Two tiles, averaged before one scheduler.step (MultiDiffusion's other form)."""

    @torch.no_grad()
    def __call__(self, num_inference_steps: int = 5) -> torch.Tensor:
        latents, without, text = self.begin(num_inference_steps)
        tiles = (slice(0, 6), slice(2, 8))
        for t in self.scheduler.timesteps:
            value, count = torch.zeros_like(latents), torch.zeros_like(latents)
            for x in tiles:
                value[..., x] += self.guided(latents[..., x], t, without, text)
                count[..., x] += 1
            latents = self.scheduler.step(value / count, t, latents).prev_sample
        return latents


class TwoSizesPipeline(OwnPipeline):
    """High-resolution fix: a second loop, at twice the size, in the same call."""

    @torch.no_grad()
    def __call__(self, num_inference_steps: int = 5) -> torch.Tensor:
        latents, without, text = self.begin(num_inference_steps)
        for t in self.scheduler.timesteps:
            latents = self.scheduler.step(self.guided(latents, t, without, text), t, latents).prev_sample
        latents = torch.nn.functional.interpolate(latents, scale_factor=2)
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps[2:]:
            latents = self.scheduler.step(self.guided(latents, t, without, text), t, latents).prev_sample
        return latents


class TwoUNetsPipeline(OwnPipeline):
    """Experts: another U-Net for the later steps, under a name that stepcache does not look at."""

    def __init__(self, unet: Any, second_unet: Any, scheduler: Any) -> None:
        super().__init__(unet, scheduler)
        self.register_modules(second_unet=second_unet)

    @torch.no_grad()
    def __call__(self, num_inference_steps: int = 5) -> torch.Tensor:
        latents, without, text = self.begin(num_inference_steps)
        for i, t in enumerate(self.scheduler.timesteps):
            if i < 3:
                noise = self.guided(latents, t, without, text)
            else:
                noise = self.second_unet(latents, t, encoder_hidden_states=text).sample
            latents = self.scheduler.step(noise, t, latents).prev_sample
        return latents


def own(cls: type, **more: Any) -> Any:
    return quiet(cls(unet=unet_of(LEAN), scheduler=ddim(), **{name: make() for name, make in more.items()}))


def row(cls: type, feature: str, kinds: str = PLAIN, **more: Any) -> Case:
    return Case(cls.__name__, feature, functools.partial(own, cls, **more), kinds=kinds)


CASES = [
    row(SeparatePassesPipeline, "a pass each with and without prompt", "FFPPPPFFPP"),
    row(GuidanceCutOffPipeline, "guidance dropped mid-run", "FPFFP"),
    row(NoSchedulerStepPipeline, "a loop that steps without scheduler.step", "FFFFF"),
    row(OtherSchedulerPipeline, "a loop that steps with another scheduler", "FFFFF"),
    row(TilesPipeline, "tiles", "FF" + "PP" * 2 + "FF" + "PP"),
    row(TwoSizesPipeline, "two loops in a call, at two sizes", PLAIN + "FPP"),
    row(TwoUNetsPipeline, "a second U-Net, left alone", "FPP", second_unet=functools.partial(unet_of, LEAN)),
]
