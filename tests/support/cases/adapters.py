"""What users load into a pipeline: LoRA, IP-Adapter, textual inversion."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from support.builders import PIXELS, TINY, TINY_XL, image_encoder, random, sd, sdxl, shared
from support.cases.case import SIZED, partial, works

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "conv1", "proj_in")


def lora(unet: torch.nn.Module, seed: int = 1, rank: int = 2) -> dict[str, torch.Tensor]:
    """A LoRA for `unet`, as a file of it holds: rank 2 on attentions and convolutions."""
    g = torch.Generator().manual_seed(seed)
    weights = {}
    for name, module in unet.named_modules():
        if name.endswith(TARGETS):
            into, out, *kernel = module.weight.shape[1], module.weight.shape[0], *module.weight.shape[2:]
            weights[f"unet.{name}.lora_A.weight"] = torch.randn(rank, into, *kernel, generator=g) * 0.3
            weights[f"unet.{name}.lora_B.weight"] = torch.randn(out, rank, *[1] * len(kernel), generator=g) * 0.3
    return weights


def with_lora(cls: type, make: Any = sd) -> Any:
    pipe = make(cls)
    pipe.load_lora_weights(lora(pipe.unet), adapter_name="style")
    pipe.load_lora_weights(lora(pipe.unet, seed=2), adapter_name="subject")
    pipe.set_adapters(["style", "subject"], [0.8, 0.5])
    return pipe


def ip_adapter(unet: Any, seed: int = 1) -> dict[str, Any]:
    """An IP-Adapter for `unet`, as a file of it holds: four tokens of an image's embedding of 8 channels."""
    g = torch.Generator().manual_seed(seed)
    width, tokens = unet.config.cross_attention_dim, 4
    weights, number = {}, 1
    for name in unet.attn_processors:
        if "attn2" in name:
            out = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
            for key in ("to_k_ip", "to_v_ip"):
                weights[f"{number}.{key}.weight"] = torch.randn(out, width, generator=g)
            number += 2
    projection = {
        "proj.weight": torch.randn(width * tokens, 8, generator=g),
        "proj.bias": torch.zeros(width * tokens),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    return {"image_proj": projection, "ip_adapter": weights}


def load_ip_adapter(pipe: Any, count: int = 1, scale: Any = 0.7) -> None:
    states = [ip_adapter(pipe.unet, seed) for seed in range(1, 1 + count)]
    pipe.load_ip_adapter(states, subfolder="", weight_name=[""] * count, image_encoder_folder=None)
    pipe.set_ip_adapter_scale(scale)


def with_ip_adapter(
    cls: type, make: Any = sd, config: Mapping[str, Any] = TINY, count: int = 1, scale: Any = 0.7
) -> Any:
    pipe = make(cls, config, image_encoder=image_encoder(8))
    load_ip_adapter(pipe, count, scale)
    return pipe


def with_textual_inversion(cls: type) -> Any:
    pipe = sd(cls, **copy.deepcopy({name: shared()[name] for name in ("tokenizer", "text_encoder")}))
    width = pipe.text_encoder.config.hidden_size
    pipe.load_textual_inversion({"<toy>": random(2, width)}, token="<toy>")
    return pipe


# Unconditional and conditional; of two pictures in the second.
EMBEDDING = random(2, 1, 8)
TWO = random(2, 2, 8, seed=6)
LEFT, RIGHT = torch.zeros(1, 2, PIXELS, PIXELS).unbind(1)
LEFT[..., : PIXELS // 2], RIGHT[..., PIXELS // 2 :] = 1, 1

CASES = [
    works("StableDiffusionPipeline", "LoRA", with_lora, SIZED),
    works("StableDiffusionPipeline", "LoRA, scaled", with_lora, {**SIZED, "cross_attention_kwargs": {"scale": 0.4}}),
    works("StableDiffusionXLPipeline", "LoRA", partial(with_lora, sdxl), SIZED),
    works("StableDiffusionPipeline", "IP-Adapter", with_ip_adapter, {**SIZED, "ip_adapter_image_embeds": [EMBEDDING]}),
    works(
        "StableDiffusionPipeline",
        "IP-Adapter, several",
        partial(with_ip_adapter, count=2, scale=[0.7, 0.4]),
        {**SIZED, "ip_adapter_image_embeds": [EMBEDDING, TWO]},
    ),
    works(
        "StableDiffusionPipeline",
        "IP-Adapter, masks",
        partial(with_ip_adapter, scale=[[0.7, 0.4]]),
        {
            **SIZED,
            "ip_adapter_image_embeds": [TWO],
            "cross_attention_kwargs": {"ip_adapter_masks": [torch.stack([LEFT[0], RIGHT[0]])[None]]},
        },
    ),
    works(
        "StableDiffusionXLPipeline",
        "IP-Adapter",
        partial(with_ip_adapter, sdxl, TINY_XL),
        {**SIZED, "ip_adapter_image_embeds": [EMBEDDING]},
    ),
    works(
        "StableDiffusionPipeline",
        "textual inversion",
        with_textual_inversion,
        {**SIZED, "prompt": "<toy> face"},
    ),
]
