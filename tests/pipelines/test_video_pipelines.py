"""Whole video pipelines in what only they do. Every one of them is a row of the table that test_cases.py runs."""

import pytest
import torch
from diffusers import AnimateDiffPipeline, EulerDiscreteScheduler, HeunDiscreteScheduler, UNetMotionModel
from support.builders import BETAS, ready
from support.cases import case_of
from support.cases.video import CASES, FRAMES, PIXELS, animatediff
from support.small import captured

from stepcache import accelerate, last_run, restore, warmup
from stepcache.errors import UnsupportedPipeline
from stepcache.forwards import family_of
from stepcache.forwards.guidance import conditional_half

ANIMATEDIFF = case_of("AnimateDiffPipeline: text to video")
SVD = case_of("StableVideoDiffusionPipeline: image to video")
MODELSCOPE = case_of("TextToVideoSDPipeline: text to video")


@pytest.mark.parametrize("case", [SVD, ANIMATEDIFF, MODELSCOPE], ids=lambda case: case.name)
def test_the_second_run_captures_nothing(case):
    pipe = captured(case.build(), interval=3)
    first = case.output(pipe)
    assert last_run(pipe).captures == 2 and len(last_run(pipe).buckets) == 1
    assert torch.equal(case.output(pipe), first)
    assert last_run(pipe).captures == 0 and last_run(pipe).kinds == case.kinds


@pytest.mark.parametrize("cls, kinds", [(EulerDiscreteScheduler, "FPPFP"), (HeunDiscreteScheduler, "FPPFPPFPP")])
def test_other_schedulers(cls, kinds):
    pipe = animatediff(AnimateDiffPipeline, cls(**BETAS))
    want = ANIMATEDIFF.output(pipe)
    assert torch.equal(ANIMATEDIFF.output(accelerate(pipe, interval=1)), want)
    ANIMATEDIFF.output(accelerate(pipe, interval=3))
    assert last_run(pipe).kinds == kinds


def test_other_lengths_and_several_videos_are_buckets_of_their_own():
    pipe = accelerate(ANIMATEDIFF.build(), interval=3)
    for change, size in (
        ({}, (2, 4, 3, 8, 8)),
        ({"num_frames": 2}, (2, 4, 2, 8, 8)),
        ({"prompt": ["tiger", "rose"]}, (4, 4, 3, 8, 8)),
    ):
        ANIMATEDIFF.output(pipe, **change)
        assert last_run(pipe).buckets == [size] and last_run(pipe).kinds == "FPPFP"


@pytest.mark.parametrize("case", [SVD, ANIMATEDIFF], ids=lambda case: case.name)
def test_warmup(case):
    pipe = captured(case.build(), interval=3)
    assert warmup(pipe, PIXELS, PIXELS, num_frames=FRAMES).captures == 2
    case.output(pipe)
    assert last_run(pipe).captures == 0


@pytest.mark.parametrize("case", [SVD, ANIMATEDIFF], ids=lambda case: case.name)
def test_decoded_frames(case):
    frames = case.output(accelerate(case.build(), interval=3), num_inference_steps=2, output_type="pt")
    assert frames.shape == (1, FRAMES, 3, PIXELS, PIXELS) and frames.isfinite().all()


class ByHand:
    """A U-Net forward with guidance reuse out of plain variables."""

    def __init__(self, unet, kinds):
        self.unet, self.kinds, self.family = unet, list(kinds), family_of(unet)
        self.cut = self.family.layout(unet).cut(1)

    def __call__(self, *args, **kwargs):
        frames = args[0].shape[2]
        if self.kinds.pop(0) == "F":
            inputs, _, return_dict = self.family.bind(*args, **kwargs)
            output, feature = self.family.full(self.unet, self.cut, **inputs)
            self.feature, self.difference = feature[frames:], output[1:] - output[:1]
            return self.family.wrap(output, return_dict)
        # The stock call of the second video alone: prompts and residuals come once a frame.
        args = (args[0][1:], *args[1:])
        kwargs["encoder_hidden_states"] = kwargs["encoder_hidden_states"][frames:]
        for name in ("down_block_additional_residuals", "mid_block_additional_residual"):
            value = kwargs.get(name)
            if value is not None:
                many = isinstance(value, (list, tuple))
                kwargs[name] = [item[frames:] for item in value] if many else value[frames:]
        if kwargs.get("added_cond_kwargs"):
            kwargs["added_cond_kwargs"] = {k: v[1:] for k, v in kwargs["added_cond_kwargs"].items()}
        inputs, _, return_dict = self.family.bind(*args, **kwargs)
        conditional = self.family.partial(self.unet, self.cut, self.feature, **inputs)
        return self.family.wrap(torch.cat([conditional - self.difference, conditional]), return_dict)


GUIDED = [case for case in CASES if case.family == "UNetMotionModel" and case.call["guidance_scale"] > 1]


@pytest.mark.parametrize("case", GUIDED, ids=lambda case: case.name)
def test_guidance_reuse_equals_a_loop_by_hand(case):
    pipe, twin = case.build(), case.build()
    twin.unet.forward = ByHand(twin.unet, case.kinds)
    want = case.output(twin)
    accelerate(pipe, 3, branch=1, guidance="reuse")
    torch.testing.assert_close(case.output(pipe), want, rtol=1e-4, atol=1e-4)
    assert last_run(pipe).kinds == case.kinds
    # The feature of one half, and the difference of the outputs.
    feature = twin.unet.forward.feature
    ((_, _, frames, height, width),) = last_run(pipe).buckets
    assert last_run(pipe).buffer_bytes == 4 * (feature.numel() + frames * 4 * height * width)


def test_guidance_reuse_captured_and_without_guidance():
    case = case_of("AnimateDiffControlNetPipeline: ControlNet")
    pipe = case.build()
    want = case.output(accelerate(pipe, 3, guidance="reuse"))
    assert torch.equal(case.output(captured(pipe, 3, guidance="reuse")), want)
    want = case.output(accelerate(pipe, 3), guidance_scale=1.0)
    assert torch.equal(case.output(accelerate(pipe, 3, guidance="reuse"), guidance_scale=1.0), want)


@pytest.mark.parametrize("case", [SVD, MODELSCOPE], ids=lambda case: case.name)
def test_guidance_reuse_is_refused(case):
    """SVD asks a tensor on the device whether guidance is on, ModelScope tells nobody."""
    with pytest.raises(UnsupportedPipeline, match=r"known to be \[unconditional, conditional\]"):
        accelerate(case.build(), guidance="reuse")


def test_the_half_of_a_frames_prompts():
    pipe = ANIMATEDIFF.build()
    family = family_of(pipe.unet)
    text = torch.arange(2.0 * FRAMES).view(-1, 1, 1).expand(-1, 5, 4)
    inputs = family.bind(torch.zeros(2, 4, FRAMES, 8, 8), 1, text).inputs
    half = conditional_half(inputs)["encoder_hidden_states"]
    assert half.shape == (1, FRAMES, 5, 4) and half[0, :, 0, 0].tolist() == [3, 4, 5]


@pytest.mark.parametrize("split", [False, True])
def test_free_noise(split):
    """Longer than the motion modules' context: the windows are inside of them, the U-Net is called once a step."""
    pipe = ANIMATEDIFF.build()
    plain = ANIMATEDIFF.output(pipe)
    pipe.enable_free_noise(context_length=4, context_stride=2)
    if split:
        pipe.enable_free_noise_split_inference(spatial_split_size=32, temporal_split_size=3)
    call = {"num_frames": 7, "prompt": {0: "tiger face", 4: "rose"}, "num_inference_steps": 3}
    want = ANIMATEDIFF.output(pipe, **call)
    assert torch.equal(ANIMATEDIFF.output(accelerate(pipe, interval=1), **call), want)
    for branch in (0, 3):
        cached = ANIMATEDIFF.output(accelerate(pipe, interval=3, branch=branch), **call)
        assert last_run(pipe).kinds == "FPP" and last_run(pipe).buckets == [(2, 4, 7, 8, 8)]
        assert cached.isfinite().all()
    if not split:
        restore(pipe)
        pipe.disable_free_noise()
        assert torch.equal(ANIMATEDIFF.output(pipe), plain)


def test_free_init_starts_its_schedule_again():
    """Several denoising loops in one call."""
    pipe = ANIMATEDIFF.build()
    pipe.enable_free_init(num_iters=2)
    want = ANIMATEDIFF.output(pipe, num_inference_steps=4)
    assert torch.equal(ANIMATEDIFF.output(accelerate(pipe, interval=1), num_inference_steps=4), want)
    assert last_run(pipe).kinds == "F" * 8
    ANIMATEDIFF.output(accelerate(pipe, interval=3), num_inference_steps=4)
    assert last_run(pipe).kinds == "FPPF" * 2


def test_ip_adapter_image():
    """A picture as prompt: its embeddings come once a video, unlike the text's."""
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
    from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection

    pipe = ANIMATEDIFF.build()
    assert isinstance(pipe.unet, UNetMotionModel)
    processors = dict(pipe.unet.attn_processors)
    for name in processors:
        if "attn2" in name and "motion_modules" not in name:
            to_q = pipe.unet.get_submodule(name.removesuffix(".processor")).to_q
            processors[name] = IPAdapterAttnProcessor2_0(to_q.in_features, 4, num_tokens=(2,), scale=0.7)
    pipe.unet.set_attn_processor(processors)
    pipe.unet.encoder_hid_proj = MultiIPAdapterImageProjection([ImageProjection(6, 4, 2)])
    pipe.unet.config.encoder_hid_dim_type = "ip_image_proj"
    ready(pipe.unet)
    embeds = torch.randn(2, 1, 6, generator=torch.Generator().manual_seed(5))
    call = {"ip_adapter_image_embeds": [embeds]}
    want = ANIMATEDIFF.output(pipe, **call)
    assert not torch.equal(want, ANIMATEDIFF.output(pipe, ip_adapter_image_embeds=[embeds.flip(0)]))
    assert torch.equal(ANIMATEDIFF.output(accelerate(pipe, interval=1), **call), want)
    for guidance in ("both", "reuse"):
        assert ANIMATEDIFF.output(accelerate(pipe, interval=3, guidance=guidance), **call).isfinite().all()
        assert last_run(pipe).kinds == "FPPFP"
