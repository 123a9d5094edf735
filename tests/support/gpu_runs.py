"""Runs on a GPU for the tests marked so: small U-Nets, and a loop that shows a wrong output in its latents.

Whatever is compiled is so with {"mode": "default"}, said explicitly: a test takes seconds, whatever the defaults are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler
from support.small import BETAS, LoopPipe, make_inputs, make_unet

from stepcache import accelerate, denoising, restore

DEFAULT = {"mode": "default"}
EAGER: dict[str, Any] = {"compile": False, "cuda_graphs": False}
CAPTURED: dict[str, Any] = {"compile": False}
COMPILED: dict[str, Any] = {"compile": DEFAULT, "cuda_graphs": False}
BOTH: dict[str, Any] = {"compile": DEFAULT}
"""Arguments of `accelerate`."""

WIDE = {"block_out_channels": (64, 128, 128, 128), "norm_num_groups": 8, "attention_head_dim": 8}
"""Changes that make "sd" wide enough for cuBLAS to split sums, for which it needs a workspace."""


def make_pipe(name: str = "sd", scheduler: object = None, **changes: object) -> LoopPipe:
    return LoopPipe(make_unet(name, **changes).cuda(), scheduler or DDIMScheduler(**BETAS))


def inputs_of(unet: torch.nn.Module, batch: int = 2, seed: int = 1) -> dict[str, Any]:
    """`make_inputs` on the GPU and in the U-Net's dtype, without a timestep."""

    def there(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: there(item) for name, item in value.items()}
        return value.to("cuda", unet.dtype if value.is_floating_point() else None)

    inputs = there(make_inputs(unet, batch, seed=seed))
    del inputs["timestep"]
    return inputs


def run(
    pipe: LoopPipe,
    steps: int = 8,
    batch: int = 2,
    seed: int = 1,
    *,
    no_waits_from: int | None = None,
    timesteps: torch.Tensor | None = None,
    more: Callable[[torch.Tensor], dict[str, Any]] = lambda latents: {},
) -> torch.Tensor:
    """The latents of a denoising loop whose scheduler is out of the way: they move by the prediction alone.

    no_waits_from: the step from which on nothing may wait for the device. timesteps: by default on the device. more:
    further arguments of a U-Net call, from its latents.
    """
    inputs = inputs_of(pipe.unet, batch, seed)
    latents = inputs.pop("sample")
    if timesteps is None:
        timesteps = torch.linspace(999, 1, steps, device="cuda").long()
    with torch.no_grad(), denoising(pipe) as session:
        try:
            for i, t in enumerate(timesteps):
                if i == no_waits_from:
                    torch.cuda.synchronize()
                    torch.cuda.set_sync_debug_mode("error")
                latents = latents - 0.1 * pipe.unet(latents, t, **inputs, **more(latents)).sample
                session.advance()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return latents


def eager(pipe: LoopPipe, *reuse: int, **options: Any) -> torch.Tensor:
    """What a run must give: the same schedule with nothing compiled or captured. The pipe is restored."""
    latents = run(accelerate(pipe, *(reuse or (3,)), **EAGER), **options)
    restore(pipe)
    return latents


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Up to another order of sums, which a network and a few steps enlarge."""
    return bool((a - b).abs().max() <= (2e-3 if a.dtype == torch.float32 else 2e-2) * b.abs().max())


def scribble(sizes: Sequence[int] = (1 << 10, 1 << 16, 1 << 20, 1 << 23, 1 << 25)) -> None:
    """Write NaN over memory that was given back: who still reads it shows."""
    held = [torch.full((size // 4,), float("nan"), device="cuda") for size in sizes for _ in range(8)]
    torch.cuda.synchronize()
    del held
