"""The real architectures on the meta device, and what a call of them runs."""

import json
from collections import Counter
from importlib.resources import files

import torch
from diffusers import UNet2DConditionModel
from torch.utils._python_dispatch import TorchDispatchMode

COUNTED = {"aten::convolution": "conv", "aten::native_group_norm": "norm", "aten::cat": "cat"}


class Count(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = COUNTED.get(func._schema.name)
        if name:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def meta_unet(name):
    config = json.loads((files("stepcache") / "assets" / "unets" / f"{name}.json").read_text())
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(config).half().eval().requires_grad_(False)


def meta_inputs(unet):
    config, size = unet.config, unet.config.sample_size
    with torch.device("meta"):
        inputs = {
            "sample": torch.empty(2, 4, size, size, dtype=torch.half),
            "timestep": torch.empty(1),
            "encoder_hidden_states": torch.empty(2, 77, config.cross_attention_dim, dtype=torch.half),
        }
        if config.addition_embed_type == "text_time":
            embeds = {"text_embeds": torch.empty(2, 1280, dtype=torch.half), "time_ids": torch.empty(2, 6).half()}
            inputs["added_cond_kwargs"] = embeds
    return inputs


def counted(function, *args, **kwargs):
    with torch.no_grad(), Count() as mode:
        result = function(*args, **kwargs)
    return result, (mode.counts["conv"], mode.counts["norm"], mode.counts["cat"])
