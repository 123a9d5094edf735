"""IP-Adapters that come, go and change on an accelerated pipe."""

import itertools

import torch
from diffusers import StableDiffusionPipeline
from support.builders import TINY, image_encoder, sd
from support.cases.adapters import EMBEDDING, load_ip_adapter
from support.cases.case import four_steps
from support.small import captured

from stepcache import accelerate, last_run


def test_loaded_scaled_and_unloaded():
    stock, full, reusing, replaying = (
        sd(StableDiffusionPipeline, TINY, image_encoder=image_encoder(8)) for _ in range(4)
    )
    accelerate(full, interval=1)
    accelerate(reusing, interval=3)
    captured(replaying, interval=3)
    plain = four_steps(stock)
    pipes = stock, full, reusing, replaying
    embeds = {"ip_adapter_image_embeds": [EMBEDDING]}
    seen = [plain]
    for change, call in (
        (load_ip_adapter, embeds),
        (lambda pipe: pipe.set_ip_adapter_scale(0.2), embeds),
        (lambda pipe: pipe.set_ip_adapter_scale({"down": 0.9, "up": {"block_1": [0.1, 0.9]}}), embeds),
        (lambda pipe: pipe.unload_ip_adapter(), {}),
    ):
        for pipe in pipes:
            change(pipe)
        seen.append(four_steps(stock, **call))
        assert torch.equal(four_steps(full, **call), seen[-1])
        cached = four_steps(reusing, **call)
        assert last_run(reusing).kinds == "FPPF" and not torch.equal(cached, seen[-1])
        assert torch.equal(four_steps(replaying, **call), cached)
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(seen))
    assert torch.equal(seen[-1], plain)
