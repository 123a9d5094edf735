"""A DDIM loop with classifier-free guidance: a pipeline without text encoder and VAE."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor


class GuidedLoop:
    """Denoises latents with `unet` and Stable Diffusion's noise schedule, guidance 7.5."""

    def __init__(self, unet: Any) -> None:
        self.unet = unet
        self.scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")

    def denoised(self, latents: Tensor, steps: int, **conditions: Any) -> Iterator[Tensor]:
        """The latents [B, 4, H, W] after each of the `steps`.

        conditions: of the U-Net call, batch 2B, the unconditional half first.
        """
        self.scheduler.set_timesteps(steps, device=latents.device)
        for t in self.scheduler.timesteps:
            both = self.scheduler.scale_model_input(torch.cat([latents] * 2), t)
            uncond, cond = self.unet(both, t, **conditions).sample.chunk(2)
            latents = self.scheduler.step(uncond + 7.5 * (cond - uncond), t, latents).prev_sample
            yield latents
