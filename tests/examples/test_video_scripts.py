"""Examples that make videos, with random, tiny models."""

from pathlib import Path

import pytest
import torch
from diffusers import (
    AnimateDiffPipeline,
    DDIMScheduler,
    EulerDiscreteScheduler,
    MotionAdapter,
    StableDiffusionPipeline,
    StableVideoDiffusionPipeline,
    UNet2DConditionModel,
    UNetSpatioTemporalConditionModel,
)
from diffusers.utils import export_to_gif
from PIL import Image
from support.builders import BETAS, PICTURE, quiet, sd, unet_of
from support.cases.video import FRAMES, MOVING, SVD_UNET, motion_adapter, svd_parts
from support.scripts import counted, quiet_load, run_script, seeded

from stepcache import accelerate


def size_of(path):
    with Image.open(path) as video:
        assert video.format == "GIF"
        return video.n_frames, video.size


def gif_of(video, folder):
    """The bytes of a pipeline's first video as a GIF."""
    return Path(export_to_gif(video.frames[0], str(folder / "wanted.gif"))).read_bytes()


@pytest.fixture(scope="module")
def animatediff(tmp_path_factory):
    """The folders of a Stable Diffusion without motion and of a motion adapter."""
    folder = tmp_path_factory.mktemp("animatediff")
    torch.manual_seed(0)
    sd(StableDiffusionPipeline, unet=UNet2DConditionModel(**MOVING)).save_pretrained(folder / "pipeline")
    motion_adapter(motion_max_seq_length=8).save_pretrained(folder / "adapter")
    return folder / "pipeline", folder / "adapter"


@pytest.mark.parametrize(("interval", "branch", "full"), [(3, 0, 17), (5, 1, 10)])
def test_animatediff(interval, branch, full, animatediff, tmp_path, capsys):
    out = tmp_path / "rocket.gif"
    options = ["--interval", interval, "--branch", branch] if branch else []  # else by default
    with counted() as calls:
        run_script("animatediff", *animatediff, "a rocket launch", out, "--frames", FRAMES, *options)
    kinds, _, rest = capsys.readouterr().out.partition(":")
    assert kinds.count("F") == full and len(kinds) == 50 and f"sizes 2x4x{FRAMES}x16x16" in rest
    assert calls["UNetMotionModel"] == 50 and calls["UNetMidBlockCrossAttnMotion"] == full
    assert size_of(out) == (FRAMES, (32, 32))

    pipe = quiet_load(AnimateDiffPipeline, animatediff[0], motion_adapter=MotionAdapter.from_pretrained(animatediff[1]))
    trained = {"beta_schedule": "linear", "timestep_spacing": "linspace", "clip_sample": False}
    pipe.scheduler = DDIMScheduler(**{**BETAS, **trained})
    accelerate(pipe, interval, branch)
    video = pipe("a rocket launch", num_frames=FRAMES, generator=seeded())
    assert out.read_bytes() == gif_of(video, tmp_path)


def test_svd(tmp_path, capsys):
    unet = unet_of({**SVD_UNET, "num_frames": FRAMES}, UNetSpatioTemporalConditionModel)
    scheduler = EulerDiscreteScheduler(prediction_type="v_prediction", timestep_type="continuous")
    pipe = quiet(StableVideoDiffusionPipeline(**svd_parts(), unet=unet, scheduler=scheduler))
    pipe.save_pretrained(tmp_path / "pipeline")
    PICTURE.save(tmp_path / "photo.png")
    out = tmp_path / "video.gif"
    with counted() as calls:
        run_script("svd", tmp_path / "pipeline", tmp_path / "photo.png", out, "--height", 32, "--width", 64)
    kinds, _, rest = capsys.readouterr().out.partition(":")
    assert kinds == "FP" * 12 + "F" and f"sizes 2x{FRAMES}x8x16x32" in rest
    assert calls["UNetSpatioTemporalConditionModel"] == 25 and calls["UNetMidBlockSpatioTemporal"] == 13
    assert size_of(out) == (FRAMES, (64, 32))

    accelerate(pipe, interval=2)
    video = pipe(PICTURE.resize((64, 32)), height=32, width=64, decode_chunk_size=4, generator=seeded())
    assert out.read_bytes() == gif_of(video, tmp_path)
    accelerate(pipe, interval=2, branch=1)
    video = pipe(PICTURE.resize((64, 32)), height=32, width=64, decode_chunk_size=4, generator=seeded())
    assert out.read_bytes() != gif_of(video, tmp_path)
