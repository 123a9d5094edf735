"""Guidance reuse, against a pipeline whose U-Net is a loop by hand; and where it is refused."""

import copy

import pytest
import torch
from diffusers import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.models.attention_processor import AttnProcessor2_0
from PIL import Image
from support.small import (
    ATTENDED,
    captured,
    demo_pipe,
    engine_of,
    generate,
    loop_pipe,
    make_inputs,
    sdxl_pipe,
    tiny_pipe,
)

from stepcache import Schedule, accelerate, denoising, last_run
from stepcache.errors import InvalidSetting, UnsupportedPipeline
from stepcache.forwards import family_of
from stepcache.forwards.guidance import conditional_half
from stepcache.pipes.batches import HALVED


class ByHand:
    """A U-Net forward with guidance reuse out of plain lists; `damping` 0 holds. guided: False runs the whole batch."""

    def __init__(self, unet, mask, damping=0.0, branch=0):
        self.unet, self.mask, self.damping = unet, mask, damping
        self.family = family_of(unet)
        self.cut = self.family.layout(unet).cut(branch)
        self.history, self.step = [], 0

    def guess(self, i, which):
        (b, *newest), (a, *before) = self.history[-1], self.history[-2] if len(self.history) > 1 else self.history[-1]
        if a == b or not self.damping:
            return newest[which]
        return newest[which] + self.damping * (i - b) / (b - a) * (newest[which] - before[which])

    def __call__(self, *args, **kwargs):
        i, self.step = self.step, self.step + 1
        inputs, _, return_dict = self.family.bind(*args, **kwargs)
        n = inputs["sample"].shape[0] // 2
        if self.mask[i] == "F":
            output, feature = self.family.full(self.unet, self.cut, **inputs)
            self.history.append((i, feature[n:], output[n:] - output[:n]))
        else:
            half = {
                name: value[n:] if name in ("sample", "encoder_hidden_states") else value
                for name, value in inputs.items()
            }
            if "added_cond_kwargs" in half:
                half["added_cond_kwargs"] = {k: v[n:] for k, v in half["added_cond_kwargs"].items()}
            cond = self.family.partial(self.unet, self.cut, self.guess(i, 0), **half)
            output = torch.cat([cond - self.guess(i, 1), cond])
        return self.family.wrap(output, return_dict)


def by_hand(pipe, mask, damping=0.0, branch=0, **call):
    unet = copy.deepcopy(pipe.unet)
    unet.forward = ByHand(unet, mask, damping, branch)
    return generate(type(pipe)(**{**pipe.components, "unet": unet}, **_extra(pipe)), steps=len(mask), **call)


def _extra(pipe):
    return {} if isinstance(pipe, StableDiffusionXLPipeline) else {"requires_safety_checker": False}


@pytest.mark.parametrize(
    ("make", "mask", "predict", "damping"),
    [
        (tiny_pipe, "FPPFPPFP", "hold", 0.0),
        (tiny_pipe, "FPPFPPFP", "linear", 1.0),
        (tiny_pipe, "FPFPPPFP", 0.5, 0.5),
        (sdxl_pipe, "FPFPPPFP", 0.5, 0.5),
    ],
)
def test_runs_equal_a_loop_by_hand(make, mask, predict, damping):
    pipe = make()
    want = by_hand(pipe, mask, damping, branch=1)
    accelerate(pipe, branch=1, schedule=Schedule.explicit(mask), predict=predict, guidance="reuse")
    for _ in range(2):
        torch.testing.assert_close(generate(pipe, steps=len(mask)), want, rtol=1e-4, atol=1e-4)
    assert last_run(pipe).kinds == mask


def test_several_images_a_call():
    pipe = tiny_pipe()
    prompts = {"prompt": ["tiger face", "red apple", "rose"]}
    want = by_hand(pipe, "FPPFPP", **prompts)
    accelerate(pipe, 3, guidance="reuse")
    torch.testing.assert_close(generate(pipe, **prompts), want, rtol=1e-4, atol=1e-4)


def test_guidance_rescale():
    pipe = tiny_pipe()
    want = by_hand(pipe, "FPPFPP", guidance_rescale=0.7)
    assert not torch.equal(want, by_hand(pipe, "FPPFPP"))
    accelerate(pipe, 3, guidance="reuse")
    torch.testing.assert_close(generate(pipe, guidance_rescale=0.7), want, rtol=1e-4, atol=1e-4)


def test_interval_1_is_the_original_bit_for_bit():
    pipe = tiny_pipe()
    want = generate(pipe)
    accelerate(pipe, 1, guidance="reuse", predict="linear")
    assert torch.equal(generate(pipe), want)


def test_without_guidance_a_batch_of_two_is_two_images():
    """guidance_scale=1: the batch holds prompts, not halves, though it is as large as one with guidance."""
    pipe = tiny_pipe()
    accelerate(pipe, 3)
    prompts = {"prompt": ["tiger face", "red apple"], "guidance_scale": 1.0}
    want = generate(pipe, **prompts)
    accelerate(pipe, 3, guidance="reuse")
    generate(pipe)  # one image with guidance first: the same shapes, another bucket
    assert torch.equal(generate(pipe, **prompts), want)
    assert len(engine_of(pipe).unet_graphs.buckets.held) == 2


def test_guidance_dropped_mid_run():
    def drop(pipe, step, timestep, tensors):
        if step == 3:
            pipe._guidance_scale = 1.0
            tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1]
        return tensors

    call = {"callback_on_step_end": drop, "callback_on_step_end_tensor_inputs": ["prompt_embeds"], "steps": 9}
    pipe = tiny_pipe()
    original = generate(pipe, **call)
    accelerate(pipe, 1, guidance="reuse")
    assert torch.equal(generate(pipe, **call), original)
    accelerate(pipe, 3, guidance="reuse")
    assert torch.isfinite(generate(pipe, **call)).all()
    # Steps 4 and 5 have no feature of their batch: the first of them runs full, the second on it.
    assert last_run(pipe).kinds == "FPPFFPFPP" and [size[0] for size in last_run(pipe).buckets] == [2, 1]


def test_image_to_image_and_inpainting():
    image, mask = Image.new("RGB", (64, 64), "gray"), Image.new("L", (64, 64), 255)
    for cls, extra in ((StableDiffusionImg2ImgPipeline, {}), (StableDiffusionInpaintPipeline, {"mask_image": mask})):
        pipe, call = demo_pipe(cls), {"image": image, "strength": 1.0, "sized": False, **extra}
        want = by_hand(pipe, "FPPFPP", **call)
        accelerate(pipe, 3, guidance="reuse")
        torch.testing.assert_close(generate(pipe, **call), want, rtol=1e-4, atol=1e-4)


def test_the_feature_is_half_as_large_and_the_difference_is_small():
    pipe = tiny_pipe()
    accelerate(pipe, 3)
    generate(pipe)
    whole = last_run(pipe).buffer_bytes
    accelerate(pipe, 3, guidance="reuse")
    generate(pipe)
    difference = 1 * 4 * 16 * 16 * 4
    assert last_run(pipe).buffer_bytes == whole // 2 + difference


def test_a_partial_step_costs_half():
    """Counted by torch, not timed."""
    from torch.utils.flop_counter import FlopCounterMode

    counts = {}
    for guidance in ("both", "reuse"):
        pipe = accelerate(tiny_pipe(), guidance=guidance, schedule=Schedule.explicit("FP"))
        per_step = []

        def note(pipe, step, timestep, tensors, per_step=per_step):
            per_step.append(counter.get_total_flops())
            return tensors

        with FlopCounterMode(display=False) as counter:
            generate(pipe, steps=2, callback_on_step_end=note)
        counts[guidance] = per_step[1] - per_step[0]
    assert counts["reuse"] == pytest.approx(counts["both"] / 2, rel=0.01)


@pytest.mark.parametrize("predict", ["hold", "linear"])
def test_captured(predict):
    pipe = tiny_pipe(unet=ATTENDED)
    want = generate(accelerate(pipe, 3, guidance="reuse", predict=predict), steps=9)
    captured(pipe, 3, guidance="reuse", predict=predict)
    for captures in (2, 0):
        assert torch.equal(generate(pipe, steps=9), want)
        assert last_run(pipe).captures == captures


def test_compiled():
    """With lines, so that both the feature and the difference are blends."""
    from torch._dynamo.testing import CompileCounter

    pipe, counter = tiny_pipe(unet=ATTENDED), CompileCounter()
    want = generate(accelerate(pipe, 3, guidance="reuse", predict="linear"), steps=9)
    accelerate(pipe, 3, guidance="reuse", predict="linear", compile={"backend": counter})
    for _ in range(2):
        torch.testing.assert_close(generate(pipe, steps=9), want, rtol=1e-3, atol=1e-3)
    assert counter.frame_count == 2


def test_the_second_half_of_every_conditioning():
    batch = torch.arange(4.0)
    inputs = {
        "sample": batch.view(4, 1, 1, 1),
        "timestep": torch.zeros(1),
        "added_cond_kwargs": {"image_embeds": [batch.view(4, 1)], "time_ids": batch},
        "control_down": (batch.view(4, 1, 1, 1),),
        "cross_attention_kwargs": {"ip_adapter_masks": [torch.ones(1, 1, 8, 8)], "name": "x"},
    }
    half = conditional_half(inputs)
    assert half["sample"].flatten().tolist() == [2, 3] and half["timestep"].shape == (1,)
    assert half["added_cond_kwargs"]["image_embeds"][0].flatten().tolist() == [2, 3]
    assert half["added_cond_kwargs"]["time_ids"].tolist() == [2, 3]
    assert half["control_down"][0].flatten().tolist() == [2, 3]
    assert half["cross_attention_kwargs"]["ip_adapter_masks"][0].shape == (1, 1, 8, 8)
    assert half["cross_attention_kwargs"]["name"] == "x" and inputs["sample"].shape[0] == 4


def test_pipelines_of_another_batch_are_refused_and_stay_as_they_were():
    from diffusers import StableDiffusionInstructPix2PixPipeline

    pipe = demo_pipe(StableDiffusionInstructPix2PixPipeline)
    with pytest.raises(UnsupportedPipeline, match=r"InstructPix2Pix.*StableDiffusionXLPipeline"):
        accelerate(pipe, guidance="reuse")
    assert type(pipe) is StableDiffusionInstructPix2PixPipeline
    with pytest.raises(UnsupportedPipeline, match="LoopPipe"):
        accelerate(loop_pipe(), guidance="reuse")


def test_a_subclass_counts_where_it_keeps_the_loop():
    class Same(StableDiffusionPipeline):
        pass

    class Other(StableDiffusionPipeline):
        def __call__(self, *args, **kwargs):
            return super().__call__(*args, **kwargs)

    generate(accelerate(demo_pipe(Same), guidance="reuse"))
    with pytest.raises(UnsupportedPipeline, match="Other"):
        accelerate(demo_pipe(Other), guidance="reuse")


def test_accelerating_again_and_copies_keep_it():
    pipe = accelerate(tiny_pipe(), 3, guidance="reuse")
    want = generate(pipe)
    assert torch.equal(generate(accelerate(pipe, 3, guidance="reuse")), want)
    assert torch.equal(generate(copy.deepcopy(pipe)), want)


def test_a_loop_by_hand_runs_both_halves(caplog):
    """What the pipe says of guidance is its last call's: a batch of two images is not taken for two halves."""
    pipe = tiny_pipe()
    inputs = make_inputs(pipe.unet, batch=2)

    @torch.no_grad()
    def loop():
        pipe.scheduler.set_timesteps(4)
        x, text = inputs["sample"], inputs["encoder_hidden_states"]
        with denoising(pipe):
            for t in pipe.scheduler.timesteps:
                x = pipe.scheduler.step(pipe.unet(x, t, encoder_hidden_states=text).sample, t, x).prev_sample
        return x

    accelerate(pipe, 3)
    want = loop()
    accelerate(pipe, 3, guidance="reuse")
    assert torch.equal(loop(), want)  # before any call
    generate(pipe)
    assert torch.equal(loop(), want)
    assert "guidance is not reused" in caplog.text


def test_a_processor_that_looks_across_the_batch_gets_all_of_it(caplog):
    class AcrossTheBatch(AttnProcessor2_0):
        def __call__(self, attn, hidden_states, *args, **kwargs):
            first = hidden_states[: max(1, hidden_states.shape[0] // 2)].mean(0, keepdim=True)
            return super().__call__(attn, hidden_states + 0.1 * first, *args, **kwargs)

    pipe = copy.deepcopy(tiny_pipe())
    pipe.unet.set_attn_processor(AcrossTheBatch())
    accelerate(pipe, 3)
    want = generate(pipe)
    accelerate(pipe, 3, guidance="reuse")
    assert torch.equal(generate(pipe), want)
    assert "AcrossTheBatch on the U-Net may look across the batch" in caplog.text


def test_what_is_no_way_of_guidance_is_refused():
    for value in ("alternate", "", None, 1):
        with pytest.raises(InvalidSetting, match="guidance must be"):
            accelerate(tiny_pipe(), guidance=value)


def test_known_pipelines_exist_and_tell_whether_guidance_is_on():
    import diffusers

    for name in HALVED:
        if "_backends" in vars(getattr(diffusers, name)):
            continue  # a stand-in of diffusers' for a pipeline whose packages are not here (Kolors: sentencepiece)
        assert isinstance(getattr(diffusers, name).do_classifier_free_guidance, property), name
