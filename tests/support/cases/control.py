"""ControlNets, T2I-Adapters, and guidance of other kinds than classifier-free: PAG, SAG, views of a panorama."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusers
import torch
from diffusers import (
    ControlNetModel,
    ControlNetUnionModel,
    MultiAdapter,
    T2IAdapter,
    UNet2DConditionModel,
)
from support.builders import (
    BETAS,
    LEAN,
    LEAN_XL,
    ONCE,
    OTHER_PICTURE,
    PICTURE,
    TINY,
    ddim,
    ready,
    sd,
    sdxl,
    vae_of,
)
from support.cases.case import IMAGE, INPAINT, SHORT, SIZED, TEXT, partial, works
from support.cases.video import MOVING, motion_adapter


def control_net(config: Mapping[str, Any]) -> Any:
    """A ControlNet for U-Nets of that config; its hint is halved, as the VAE halves pictures."""
    unet = UNet2DConditionModel(**config)
    return ready(ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16)))


def with_control(cls: type, make: Any = sd, config: Mapping[str, Any] = LEAN, count: int = 1, **components: Any) -> Any:
    torch.manual_seed(1)
    nets = [control_net({**config, "in_channels": 4}) for _ in range(count)]
    return make(cls, config, controlnet=nets[0] if count == 1 else nets, **components)


def with_union(cls: type) -> Any:
    torch.manual_seed(1)
    config = {
        **{key: value for key, value in LEAN_XL.items() if key not in ("sample_size", *ONCE)},
        "num_control_type": 3, "num_trans_channel": 8, "num_trans_head": 2, "num_proj_channel": 8,
        "conditioning_embedding_out_channels": (8, 16), "attention_head_dim": 2,
    }  # fmt: skip
    return sdxl(cls, controlnet=ready(ControlNetUnionModel(**config)))


def with_adapter(cls: type, make: Any = sd, count: int = 1, **options: Any) -> Any:
    torch.manual_seed(1)
    kind = "full_adapter" if make is sd else "full_adapter_xl"
    # SDXL's first block is one without attention, which takes the residual after its downsampler.
    options = {"channels": [8, 16], "num_res_blocks": 1, "downscale_factor": 2 if make is sd else 4, **options}
    adapters = [ready(T2IAdapter(**options, adapter_type=kind)) for _ in range(count)]
    return make(cls, adapter=adapters[0] if count == 1 else MultiAdapter(adapters))


def panorama(cls: type, scheduler: Any = None) -> Any:
    """Its views are 64 latents wide whatever the VAE is, and it takes that for one that divides sizes by 8."""
    vae = vae_of(
        block_out_channels=(4, 4, 4, 4), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    return sd(cls, vae=vae, scheduler=scheduler or ddim())


def animated(cls: type) -> Any:
    torch.manual_seed(1)
    pipe = sd(cls, MOVING, motion_adapter=motion_adapter(motion_max_seq_length=4), **PAG)
    ready(pipe.unet)
    return pipe


XL_CONTROL = {"make": sdxl, "config": LEAN_XL}

PANORAMA = {**TEXT, "num_inference_steps": 4, "height": 64, "width": 576}
MODES = {"control_mode": [0, 2], "control_image": [PICTURE, OTHER_PICTURE]}

PAG = {"pag_applied_layers": ["down"]}

CASES = [
    works("StableDiffusionControlNetPipeline", "one ControlNet", with_control, {**SIZED, "image": PICTURE}),
    works(
        "StableDiffusionControlNetPipeline",
        "several ControlNets",
        partial(with_control, count=2),
        {**SIZED, "image": [PICTURE, OTHER_PICTURE], "controlnet_conditioning_scale": [0.5, 0.8]},
    ),
    works(
        "StableDiffusionControlNetPipeline", "guess mode", with_control, {**SIZED, "image": PICTURE, "guess_mode": True}
    ),
    works(
        "StableDiffusionControlNetPipeline",
        "start and end",
        with_control,
        {**SIZED, "image": PICTURE, "control_guidance_start": 0.3, "control_guidance_end": 0.7},
    ),
    works(
        "StableDiffusionControlNetImg2ImgPipeline",
        "one ControlNet",
        with_control,
        {**IMAGE, "control_image": OTHER_PICTURE},
        SHORT,
    ),
    works(
        "StableDiffusionControlNetInpaintPipeline",
        "one ControlNet",
        with_control,
        {**INPAINT, "control_image": OTHER_PICTURE},
    ),
    works(
        "StableDiffusionXLControlNetPipeline",
        "one ControlNet",
        partial(with_control, **XL_CONTROL),
        {**SIZED, "image": PICTURE},
    ),
    works(
        "StableDiffusionXLControlNetPipeline",
        "several ControlNets, guess mode, start and end",
        partial(with_control, **XL_CONTROL, count=2),
        {**SIZED, "image": [PICTURE, OTHER_PICTURE], "guess_mode": True, "control_guidance_end": [0.5, 1.0]},
    ),
    works(
        "StableDiffusionXLControlNetImg2ImgPipeline",
        "one ControlNet",
        partial(with_control, **XL_CONTROL),
        {**IMAGE, "control_image": OTHER_PICTURE},
        SHORT,
    ),
    works(
        "StableDiffusionXLControlNetInpaintPipeline",
        "one ControlNet",
        partial(with_control, **XL_CONTROL),
        {**INPAINT, "control_image": OTHER_PICTURE},
        SHORT,
    ),
    works("StableDiffusionXLControlNetUnionPipeline", "several kinds of control", with_union, {**SIZED, **MODES}),
    works(
        "StableDiffusionXLControlNetUnionImg2ImgPipeline",
        "several kinds of control",
        with_union,
        {**IMAGE, **MODES},
        SHORT,
    ),
    works(
        "StableDiffusionXLControlNetUnionInpaintPipeline",
        "several kinds of control",
        with_union,
        {**INPAINT, **MODES},
        SHORT,
    ),
    works("StableDiffusionAdapterPipeline", "one T2I-Adapter", with_adapter, {**SIZED, "image": PICTURE}),
    works(
        "StableDiffusionAdapterPipeline",
        "several T2I-Adapters",
        partial(with_adapter, count=2),
        {**SIZED, "image": [PICTURE, OTHER_PICTURE], "adapter_conditioning_scale": [0.5, 0.8]},
    ),
    works(
        "StableDiffusionXLAdapterPipeline",
        "one T2I-Adapter",
        partial(with_adapter, make=sdxl),
        {**SIZED, "image": PICTURE, "adapter_conditioning_factor": 0.5},
        captured_kinds="FPFFP",
    ),
    works("StableDiffusionPAGPipeline", "perturbed attention", partial(sd, **PAG), SIZED),
    works("StableDiffusionPAGImg2ImgPipeline", "perturbed attention", partial(sd, **PAG), IMAGE, SHORT),
    works("StableDiffusionPAGInpaintPipeline", "perturbed attention", partial(sd, **PAG), INPAINT, SHORT),
    works(
        "StableDiffusionControlNetPAGPipeline",
        "perturbed attention",
        partial(with_control, **PAG),
        {**SIZED, "image": PICTURE},
    ),
    works(
        "StableDiffusionControlNetPAGInpaintPipeline",
        "perturbed attention",
        partial(with_control, **PAG),
        {**INPAINT, "control_image": OTHER_PICTURE},
    ),
    works("StableDiffusionXLPAGPipeline", "perturbed attention", partial(sdxl, **PAG), SIZED),
    works(
        "StableDiffusionXLPAGImg2ImgPipeline",
        "perturbed attention",
        partial(sdxl, **PAG),
        {**IMAGE, "strength": 0.8},
        SHORT,
    ),
    works("StableDiffusionXLPAGInpaintPipeline", "perturbed attention", partial(sdxl, **PAG), INPAINT, SHORT),
    works(
        "StableDiffusionXLControlNetPAGPipeline",
        "perturbed attention",
        partial(with_control, **XL_CONTROL, **PAG),
        {**SIZED, "image": PICTURE},
    ),
    works(
        "StableDiffusionXLControlNetPAGImg2ImgPipeline",
        "perturbed attention",
        partial(with_control, **XL_CONTROL, **PAG),
        {**IMAGE, "control_image": OTHER_PICTURE},
        SHORT,
    ),
    works("StableDiffusionSAGPipeline", "self-attention guidance", partial(sd, TINY), SIZED, "S" * 10),
    works("StableDiffusionPanoramaPipeline", "views", panorama, PANORAMA, "FFPPPPFF"),
    works(
        "StableDiffusionPanoramaPipeline",
        "views with a scheduler that has a state",
        partial(panorama, scheduler=diffusers.DPMSolverMultistepScheduler(**BETAS)),
        PANORAMA,
        "FFPPPPFF",
    ),
    works(
        "AnimateDiffPAGPipeline",
        "perturbed attention",
        animated,
        {**SIZED, "num_frames": 2},
        family="UNetMotionModel",
    ),
]
