"""Examples that make videos, with random, tiny models."""

import pytest
import torch
from diffusers import (
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableVideoDiffusionPipeline,
    UNet2DConditionModel,
    UNetSpatioTemporalConditionModel,
)
from PIL import Image
from support.builders import PICTURE, quiet, sd, unet_of
from support.cases.video import FRAMES, MOVING, SVD_UNET, motion_adapter, svd_parts
from support.scripts import counted, run_script


def frames_of(path):
    with Image.open(path) as video:
        assert video.format == "GIF"
        return video.n_frames, video.size


@pytest.fixture(scope="module")
def animatediff(tmp_path_factory):
    """The folders of a Stable Diffusion without motion and of a motion adapter."""
    folder = tmp_path_factory.mktemp("animatediff")
    torch.manual_seed(0)
    sd(StableDiffusionPipeline, unet=UNet2DConditionModel(**MOVING)).save_pretrained(folder / "pipeline")
    motion_adapter(motion_max_seq_length=8).save_pretrained(folder / "adapter")
    return folder / "pipeline", folder / "adapter"


@pytest.mark.parametrize(
    ("options", "full"),
    [([], 17), (["--interval", 5, "--branch", 1], 10)],
    ids=["defaults", "interval and branch"],
)
def test_animatediff(options, full, animatediff, tmp_path, capsys):
    out = tmp_path / "rocket.gif"
    with counted() as calls:
        run_script("animatediff", *animatediff, "a rocket launch", out, "--frames", FRAMES, *options)
    kinds, _, rest = capsys.readouterr().out.partition(":")
    assert kinds.count("F") == full and len(kinds) == 50 and f"sizes 2x4x{FRAMES}x16x16" in rest
    assert calls["UNetMotionModel"] == 50 and calls["UNetMidBlockCrossAttnMotion"] == full
    assert frames_of(out) == (FRAMES, (32, 32))


def test_svd(tmp_path, capsys):
    unet = unet_of({**SVD_UNET, "num_frames": FRAMES}, UNetSpatioTemporalConditionModel)
    scheduler = EulerDiscreteScheduler(prediction_type="v_prediction", timestep_type="continuous")
    pipe = StableVideoDiffusionPipeline(**svd_parts(), unet=unet, scheduler=scheduler)
    quiet(pipe).save_pretrained(tmp_path / "pipeline")
    PICTURE.save(tmp_path / "photo.png")
    out = tmp_path / "video.gif"
    with counted() as calls:
        run_script("svd", tmp_path / "pipeline", tmp_path / "photo.png", out, "--height", 32, "--width", 64)
    kinds, _, rest = capsys.readouterr().out.partition(":")
    assert kinds == "FP" * 12 + "F" and f"sizes 2x{FRAMES}x8x16x32" in rest
    assert calls["UNetSpatioTemporalConditionModel"] == 25 and calls["UNetMidBlockSpatioTemporal"] == 13
    assert frames_of(out) == (FRAMES, (64, 32))
