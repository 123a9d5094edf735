"""The real architectures with fewer channels, in fp16, and what a call of them runs."""

import json
from collections import Counter
from importlib.resources import files

import torch
from diffusers import UNet2DConditionModel
from torch.utils._python_dispatch import TorchDispatchMode

from stepcache.forwards.macs import example_inputs

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


# A fortieth of the channels and one transformer layer at a time: as many convolutions, GroupNorms and concats.
NARROW = {
    "sample_size": 16,
    "norm_num_groups": 4,
    "cross_attention_dim": 8,
    "attention_head_dim": 2,
    "transformer_layers_per_block": 1,
}


def narrow_unet(name):
    config = json.loads((files("stepcache") / "assets" / "unets" / f"{name}.json").read_text())
    channels = [width // 40 for width in config["block_out_channels"]]
    unet = UNet2DConditionModel.from_config({**config, **NARROW, "block_out_channels": channels})
    return unet.half().eval().requires_grad_(False)


def zeros_for(unet):
    """Inputs of the family's `full` and `partial`."""
    inputs = example_inputs(unet, 16, 16, batch=2)
    added = {name: value.half() for name, value in inputs.pop("added_cond_kwargs", {}).items()}
    inputs = {name: value if name == "timestep" else value.half() for name, value in inputs.items()}
    return {**inputs, "added_cond_kwargs": added} if added else inputs


def counted(function, *args, **kwargs):
    with torch.no_grad(), Count() as mode:
        result = function(*args, **kwargs)
    return result, (mode.counts["conv"], mode.counts["norm"], mode.counts["cat"])
