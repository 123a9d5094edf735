"""Whole video pipelines, small: stock against interval=1 (bit-identical) and interval=3 (finite, as planned)."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    TextToVideoZeroPipeline,
    UNet2DConditionModel,
    UNetMotionModel,
)
from support.small import BETAS, captured
from support.video_pipes import FRAMES, PIPELINES, PIXELS, SHOWN, TINY, animatediff, parts, quiet, ready, run, svd

from stepcache import Schedule, accelerate, last_run, restore, warmup
from stepcache.errors import UnsupportedPipeline
from stepcache.forwards import family_of
from stepcache.forwards.guidance import conditional_half


@pytest.mark.parametrize("name", PIPELINES)
def test_every_pipeline(name):
    make, call, steps = PIPELINES[name]
    pipe = make()
    assert (type(pipe).__name__, type(pipe.unet).__name__) == SHOWN[name][:2]
    want = run(pipe, call)
    before = set(vars(pipe))
    assert torch.equal(run(accelerate(pipe, interval=1), call), want)
    assert last_run(pipe).kinds == "F" * steps
    cached = run(accelerate(pipe, interval=3), call)
    assert last_run(pipe).kinds == Schedule.uniform(3).kinds(steps)
    assert len(last_run(pipe).buckets) == 1
    assert cached.shape == want.shape and cached.isfinite().all() and not torch.equal(cached, want)
    restore(pipe)
    assert torch.equal(run(pipe, call), want) and set(vars(pipe)) == before


@pytest.mark.parametrize("name", ["svd", "animatediff", "modelscope"])
def test_captured(name):
    make, call, _ = PIPELINES[name]
    pipe = make()
    want = run(accelerate(pipe, interval=3), call)
    captured(pipe, interval=3)
    for captures in (2, 0):
        assert torch.equal(run(pipe, call), want)
        assert last_run(pipe).captures == captures and last_run(pipe).kinds == "FPPFPPFP"


def test_other_schedulers():
    for pipe, name in (
        (animatediff(scheduler=EulerDiscreteScheduler(**BETAS)), "animatediff"),
        (animatediff(scheduler=HeunDiscreteScheduler(**BETAS)), "animatediff"),
    ):
        call = PIPELINES[name][1]
        want = run(pipe, call)
        assert torch.equal(run(accelerate(pipe, interval=1), call), want)
        run(accelerate(pipe, interval=3), call)
        assert last_run(pipe).kinds == Schedule.uniform(3).kinds(len(pipe.scheduler.timesteps))


def test_other_lengths_and_several_videos_are_buckets_of_their_own():
    pipe = accelerate(animatediff(), interval=3)
    call = PIPELINES["animatediff"][1]
    for change, size in (({}, (2, 4, 3, 8, 8)), ({"num_frames": 2}, (2, 4, 2, 8, 8))):
        run(pipe, {**call, **change})
        assert last_run(pipe).buckets == [size]
    run(pipe, {**call, "prompt": ["tiger", "rose"]})
    assert last_run(pipe).buckets == [(4, 4, 3, 8, 8)] and last_run(pipe).kinds == "FPPFPPFP"


def test_warmup():
    pipe = captured(animatediff(), interval=3)
    call = PIPELINES["animatediff"][1]
    assert warmup(pipe, PIXELS, PIXELS, num_frames=FRAMES).captures == 2
    run(pipe, call)
    assert last_run(pipe).captures == 0
    pipe = captured(svd(), interval=3)
    assert warmup(pipe, PIXELS, PIXELS, num_frames=FRAMES).captures == 2
    run(pipe, PIPELINES["svd"][1])
    assert last_run(pipe).captures == 0


def test_frames_out_of_the_vae():
    """Not latents but pictures: the decoders are nobody's business here."""
    for name in ("svd", "animatediff"):
        make, call, _ = PIPELINES[name]
        pipe = accelerate(make(), interval=3)
        frames = pipe(**call, num_inference_steps=2, output_type="pt", generator=torch.manual_seed(0)).frames
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


ANIMATEDIFF = [name for name in PIPELINES if name.startswith(("animatediff", "pia")) and "unguided" not in name]


@pytest.mark.parametrize("name", ANIMATEDIFF)
def test_guidance_reuse_equals_a_loop_by_hand(name):
    make, call, steps = PIPELINES[name]
    pipe, twin = make(), make()
    twin.unet.forward = ByHand(make().unet, Schedule.uniform(3).kinds(steps))
    want = run(twin, call)
    accelerate(pipe, 3, branch=1, guidance="reuse")
    torch.testing.assert_close(run(pipe, call), want, rtol=1e-4, atol=1e-4)
    assert last_run(pipe).kinds == Schedule.uniform(3).kinds(steps)
    # The feature of one half, and the difference of the outputs.
    feature = twin.unet.forward.feature
    ((_, _, frames, height, width),) = last_run(pipe).buckets
    assert last_run(pipe).buffer_bytes == 4 * (feature.numel() + frames * 4 * height * width)


def test_guidance_reuse_captured_and_without_guidance():
    make, call, _ = PIPELINES["animatediff controlnet"]
    pipe = make()
    want = run(accelerate(pipe, 3, guidance="reuse"), call)
    assert torch.equal(run(captured(pipe, 3, guidance="reuse"), call), want)
    plain = {**call, "guidance_scale": 1.0}
    want = run(accelerate(pipe, 3), plain)
    assert torch.equal(run(accelerate(pipe, 3, guidance="reuse"), plain), want)


def test_guidance_reuse_is_refused_where_guidance_is_on_the_device():
    """SVD asks a tensor on the device whether guidance is on, ModelScope tells nobody."""
    for name in ("svd", "modelscope"):
        with pytest.raises(UnsupportedPipeline, match=r"known to be \[unconditional, conditional\]"):
            accelerate(PIPELINES[name][0](), guidance="reuse")


def test_the_half_of_a_frames_prompts():
    pipe = animatediff()
    family = family_of(pipe.unet)
    text = torch.arange(2.0 * FRAMES).view(-1, 1, 1).expand(-1, 5, 4)
    inputs = family.bind(torch.zeros(2, 4, FRAMES, 8, 8), 1, text).inputs
    half = conditional_half(inputs)["encoder_hidden_states"]
    assert half.shape == (1, FRAMES, 5, 4) and half[0, :, 0, 0].tolist() == [3, 4, 5]


@pytest.mark.parametrize("split", [False, True])
def test_free_noise(split):
    """Longer than the motion modules' context: the windows are inside of them, the U-Net is called once a step."""
    pipe = animatediff()
    plain = run(pipe, PIPELINES["animatediff"][1])
    pipe.enable_free_noise(context_length=4, context_stride=2)
    if split:
        pipe.enable_free_noise_split_inference(spatial_split_size=32, temporal_split_size=3)
    call = {**PIPELINES["animatediff"][1], "num_frames": 7, "prompt": {0: "tiger face", 4: "rose"}}
    want = run(pipe, call, steps=4)
    assert torch.equal(run(accelerate(pipe, interval=1), call, steps=4), want)
    for branch in (0, 3):
        cached = run(accelerate(pipe, interval=3, branch=branch), call, steps=4)
        assert last_run(pipe).kinds == "FPPF" and last_run(pipe).buckets == [(2, 4, 7, 8, 8)]
        assert cached.isfinite().all()
    if not split:
        restore(pipe)
        pipe.disable_free_noise()
        assert torch.equal(run(pipe, PIPELINES["animatediff"][1]), plain)


def test_free_init_interval_1():
    """Several denoising loops in one call."""
    pipe = animatediff()
    call = PIPELINES["animatediff"][1]
    pipe.enable_free_init(num_iters=2)
    want = run(pipe, call, steps=4)
    assert torch.equal(run(accelerate(pipe, interval=1), call, steps=4), want)
    assert last_run(pipe).kinds == "F" * 8


def test_free_init_starts_its_schedule_again():
    pipe = animatediff()
    pipe.enable_free_init(num_iters=2)
    run(accelerate(pipe, interval=3), PIPELINES["animatediff"][1], steps=4)
    assert last_run(pipe).kinds == "FPPF" * 2


def test_ip_adapter_image():
    """A picture as prompt: its embeddings come once a video, unlike the text's."""
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
    from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection

    pipe = animatediff()
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
    call = {**PIPELINES["animatediff"][1], "ip_adapter_image_embeds": [embeds]}
    want = run(pipe, call)
    assert not torch.equal(want, run(pipe, {**call, "ip_adapter_image_embeds": [embeds.flip(0)]}))
    assert torch.equal(run(accelerate(pipe, interval=1), call), want)
    for guidance in ("both", "reuse"):
        assert run(accelerate(pipe, interval=3, guidance=guidance), call).isfinite().all()
        assert last_run(pipe).kinds == "FPPFPPFP"


def zero_pipe():
    torch.manual_seed(0)
    unet = ready(UNet2DConditionModel(**TINY))
    pipe = TextToVideoZeroPipeline(
        **parts(), unet=unet, scheduler=DDIMScheduler(**BETAS), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    return quiet(pipe)


def test_text_to_video_zero():
    """Three loops in one call: two of the first frame, then one of all frames, which attend to the first."""

    def call(pipe):
        return pipe(
            "tiger face", video_length=FRAMES, height=PIXELS, width=PIXELS, num_inference_steps=10, t0=2, t1=4,
            guidance_scale=3.0, output_type="latent", generator=torch.Generator().manual_seed(0),
        ).images  # fmt: skip

    want = call(zero_pipe())
    pipe = accelerate(zero_pipe(), interval=1)
    assert torch.equal(call(pipe), want)
    accelerate(pipe, interval=3)
    cached = call(pipe)
    assert cached.isfinite().all() and not torch.equal(cached, want)
    # The last loop steps a copy of the scheduler, which the pipeline makes in its midst: it starts its schedule again.
    assert last_run(pipe).kinds == "FPPFPPF" + "FPPFP"
    assert last_run(pipe).buckets == [(2, 4, 8, 8), (2 * FRAMES, 4, 8, 8)]
    assert torch.equal(call(pipe), cached)
