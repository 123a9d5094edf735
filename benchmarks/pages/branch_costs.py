"""What each branch costs in the U-Nets of known models: the tables of docs/models.

Counted as `stepcache inspect` counts, on the meta device: no weights, and nothing measured. Four configs come with the
package, some are the defaults of diffusers' classes, and the others are written down here. test_branch_costs.py
compares their numbers of parameters with the published ones.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.pages.markdown_table import table
from stepcache.commands.quiet import quiet
from stepcache.forwards import family_of
from stepcache.forwards.macs import BranchMacs, branch_macs, meta_unet
from stepcache.images.unet_configs import read_config

# The branches of the outermost level in most U-Nets, the first one below it, and a deep one. Counting all takes long.
BRANCHES = (0, 1, 2, 3, 6)
INTERVALS = (2, 3, 5)


@dataclass(frozen=True)
class Architecture:
    """A model's U-Net, and the call that is counted.

    config: that of the U-Net, or the name of a bundled one. height, width: of the latents. what: of which size the
    output is. source: where the config is from.
    """

    name: str
    config: Mapping[str, Any] | str
    height: int
    width: int
    what: str
    source: str = "the package's own copy"

    def unet(self) -> Any:
        """The U-Net on the meta device."""
        return meta_unet(read_config(self.config) if isinstance(self.config, str) else self.config)


SIMPLE = {
    "_class_name": "UNet2DConditionModel",
    "down_block_types": ("ResnetDownsampleBlock2D", *("SimpleCrossAttnDownBlock2D",) * 3),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": (*("SimpleCrossAttnUpBlock2D",) * 3, "ResnetUpsampleBlock2D"),
    "layers_per_block": 3,
    "attention_head_dim": 64,
    "resnet_time_scale_shift": "scale_shift",
}
IF_XL = {
    **SIMPLE,
    "in_channels": 3,
    "out_channels": 6,
    "block_out_channels": (704, 1408, 2112, 2816),
    "cross_attention_dim": 2816,
    "cross_attention_norm": "group_norm",
    "act_fn": "gelu",
    "addition_embed_type": "text",
    "encoder_hid_dim": 4096,
    "encoder_hid_dim_type": "text_proj",
}
KANDINSKY_21 = {
    **SIMPLE,
    "in_channels": 4,
    "out_channels": 8,
    "block_out_channels": (384, 768, 1152, 1536),
    "cross_attention_dim": 768,
    "addition_embed_type": "text_image",
    "addition_embed_type_num_heads": 64,
    "encoder_hid_dim": 1024,
    "encoder_hid_dim_type": "text_image_proj",
}
DDPM_256 = {
    "_class_name": "UNet2DModel",
    "block_out_channels": (128, 128, 256, 256, 512, 512),
    "down_block_types": (*("DownBlock2D",) * 4, "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", *("UpBlock2D",) * 4),
    "layers_per_block": 2,
    "attention_head_dim": None,
}
WRITTEN = "written down in benchmarks/pages/branch_costs.py"


def _defaults(cls: str) -> str:
    return f"the defaults of diffusers' `{cls}`"


ARCHITECTURES = {
    "sd15": Architecture("Stable Diffusion 1.5", "sd15", 64, 64, "512 x 512 pixels"),
    "sd21": Architecture("Stable Diffusion 2.1", "sd21", 96, 96, "768 x 768 pixels"),
    "sdxl": Architecture("SDXL", "sdxl", 128, 128, "1024 x 1024 pixels"),
    "sdxl_refiner": Architecture("SDXL's refiner", "sdxl-refiner", 128, 128, "1024 x 1024 pixels"),
    "svd": Architecture(
        "Stable Video Diffusion XT",
        {"_class_name": "UNetSpatioTemporalConditionModel"},
        72,
        128,
        "25 frames of 1024 x 576 pixels",
        _defaults("UNetSpatioTemporalConditionModel"),
    ),
    "animatediff": Architecture(
        "AnimateDiff on Stable Diffusion 1.5",
        {"_class_name": "UNetMotionModel", "cross_attention_dim": 768},
        64,
        64,
        "16 frames of 512 x 512 pixels",
        "SD 1.5's with `MotionAdapter`'s defaults",
    ),
    "modelscope": Architecture(
        "ModelScope",
        {"_class_name": "UNet3DConditionModel"},
        32,
        32,
        "16 frames of 256 x 256 pixels",
        _defaults("UNet3DConditionModel"),
    ),
    "if_xl": Architecture("DeepFloyd IF-I-XL", IF_XL, 64, 64, "64 x 64 pixels", WRITTEN),
    "kandinsky21": Architecture("Kandinsky 2.1's decoder", KANDINSKY_21, 96, 96, "768 x 768 pixels", WRITTEN),
    "ddpm256": Architecture("DDPM, LSUN and CelebA-HQ", DDPM_256, 256, 256, "256 x 256 pixels", WRITTEN),
    "ldm256": Architecture(
        "Latent diffusion, CelebA-HQ",
        {"_class_name": "UNet2DModel"},
        64,
        64,
        "256 x 256 pixels",
        _defaults("UNet2DModel"),
    ),
}


@functools.cache
def branches_table(key: str) -> str:
    """A line for each of BRANCHES: its share of a full step, the bounds, and the feature of a call of batch 1."""
    architecture = ARCHITECTURES[key]
    with quiet("diffusers"):
        unet = architecture.unet()
    joins = len(family_of(unet).layout(unet).joins)
    rows = list(branch_macs(unet, architecture.height, architecture.width, branches=[b for b in BRANCHES if b < joins]))
    header = ("branch", "of a full step's MACs", *(f"bound, interval {n}" for n in INTERVALS), "feature", "MB in fp16")
    parameters = sum(parameter.numel() for parameter in unet.parameters())
    title = (
        f"**{architecture.name}**, {architecture.what}: {parameters / 1e6:,.0f} M parameters, {joins} branches, "
        f"{rows[0].full_macs / 1e9:,.0f} GMACs in a full step. Config: {architecture.source}."
    )
    return f"{title}\n\n{table(header, [_line(row) for row in rows])}"


def _line(row: BranchMacs) -> tuple[str, ...]:
    # A video's frames are the batch inside the U-Net.
    frames, *image = row.feature_shape
    shape = (frames, *image) if frames > 1 else image
    return (
        f"{row.branch}", f"{row.share:.1%}", *(f"{row.bound(interval):.2f}x" for interval in INTERVALS),
        " x ".join(map(str, shape)), f"{row.feature_bytes() / 1e6:.3g}",
    )  # fmt: skip


def _of(key: str) -> Callable[[Path], str]:
    return lambda results: branches_table(key)


TABLES = {f"branches_{key}": _of(key) for key in ARCHITECTURES}
