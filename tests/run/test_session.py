"""Steps, slots and runs. Every way in which DeepCache's helper breaks is tested here."""

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    PNDMScheduler,
)
from support.small import BETAS, LoopPipe, engine_of, generate, loop_pipe, make_inputs, make_unet, tiny_pipe

from stepcache import RunRecord, Schedule, accelerate, denoising, last_run, restore
from stepcache.run.session import MAX_SLOTS


def kinds(pipe):
    return last_run(pipe).kinds


def loop_with(scheduler, **options):
    return LoopPipe(make_unet("least"), scheduler(**BETAS, **options))


def test_each_run_starts_with_a_full_step_whatever_its_length():
    pipe = accelerate(loop_pipe("least"), interval=3)
    for steps, want in ((7, "FPPFPPF"), (4, "FPPF"), (5, "FPPFP"), (1, "F")):
        pipe(steps)
        assert kinds(pipe) == want
        assert last_run(pipe).steps == steps


def test_a_record_in_words():
    record = RunRecord(list("FPP"), 3, [(2, 4, 16, 16), (1, 4, 8, 8)], 65536)
    assert str(record) == "FPP: 3 steps, sizes 2x4x16x16, 1x4x8x8, 64.0 KiB of features held"
    assert str(RunRecord(["F"], 1)) == "F: 1 step, sizes none, 0 bytes of features held"


def test_changed_strength_starts_anew():
    """img2img: 0.5, then 0.55, then 0.6 of 20 steps. DeepCache starts the second run on the first one's features."""
    pipe, fresh = accelerate(loop_pipe("least"), interval=3), accelerate(loop_pipe("least"), interval=3)
    for start in (10, 9, 8):
        result = pipe(20, start=start)
        assert kinds(pipe) == Schedule.uniform(3).kinds(20 - start)
        accelerate(fresh, interval=3)  # nothing of an earlier run can be left
        assert torch.equal(result, fresh(20, start=start))


def test_heun_follows_loop_iterations():
    pipe = accelerate(loop_with(HeunDiscreteScheduler), interval=2)
    pipe(6)
    assert kinds(pipe) == "FPFPFPFPFPF"  # 11 iterations for 6 steps


def test_kdpm2_follows_loop_iterations():
    pipe = accelerate(loop_with(KDPM2DiscreteScheduler), interval=3)
    pipe(4)
    assert kinds(pipe) == Schedule.uniform(3).kinds(len(pipe.scheduler.timesteps))


def test_pndm_with_its_repeated_timestep():
    pipe = accelerate(loop_with(PNDMScheduler, skip_prk_steps=True), interval=2)
    pipe(8)
    assert len(set(pipe.scheduler.timesteps.tolist())) < len(pipe.scheduler.timesteps)
    assert kinds(pipe) == "FPFPFPFPF"


def test_karras_tails_with_repeated_timesteps():
    pipe = accelerate(loop_with(DPMSolverMultistepScheduler, use_karras_sigmas=True), interval=2)
    pipe(50)
    assert len(set(pipe.scheduler.timesteps.tolist())) < 50
    assert kinds(pipe) == "FP" * 25


def test_guidance_dropped_mid_run_runs_full_on_the_new_batch():
    pipe = accelerate(loop_pipe("least"), interval=4)
    inputs = make_inputs(pipe.unet)
    pipe.scheduler.set_timesteps(8)
    with torch.no_grad(), denoising(pipe):
        latents, text = inputs["sample"], inputs["encoder_hidden_states"]
        for i, t in enumerate(pipe.scheduler.timesteps):
            if i == 2:
                latents, text = latents[:1], text[:1]
            noise = pipe.unet(latents, t, encoder_hidden_states=text).sample
            latents = pipe.scheduler.step(noise, t, latents).prev_sample
    assert kinds(pipe) == "FPFPFPPP"
    assert last_run(pipe).buckets == [(2, 4, 16, 16), (1, 4, 16, 16)]


@pytest.mark.parametrize("kind", ["keyword", "int", "0-d", "batched", "foreign"])
def test_any_timestep_will_do(kind):
    pipe = accelerate(loop_pipe("least"), interval=2)
    inputs = make_inputs(pipe.unet)
    pipe.scheduler.set_timesteps(4)

    def predict(sample, t):
        text = inputs["encoder_hidden_states"]
        if kind == "keyword":
            return pipe.unet(sample=sample, timestep=t, encoder_hidden_states=text).sample
        t = {"int": int(t), "0-d": t, "batched": t.expand(2), "foreign": t + 3}[kind]
        return pipe.unet(sample, t, text).sample

    with torch.no_grad(), denoising(pipe):
        latents = inputs["sample"]
        for t in pipe.scheduler.timesteps:
            latents = pipe.scheduler.step(predict(latents, t), t, latents).prev_sample
    assert kinds(pipe) == "FPFP"
    assert latents.isfinite().all()


def two_pass_loop(pipe, steps=6):
    """Separate passes of the same shape for cond and uncond."""
    inputs = make_inputs(pipe.unet, batch=1)
    uncond, cond = inputs["encoder_hidden_states"], -inputs["encoder_hidden_states"]
    pipe.scheduler.set_timesteps(steps)
    latents = inputs["sample"]
    with torch.no_grad():
        for t in pipe.scheduler.timesteps:
            a = pipe.unet(latents, t, encoder_hidden_states=uncond).sample
            b = pipe.unet(latents, t, encoder_hidden_states=cond).sample
            latents = pipe.scheduler.step(a + 3 * (b - a), t, latents).prev_sample
    return latents


def batched_loop(pipe, steps=6):
    """The same with both passes in one batch."""
    inputs = make_inputs(pipe.unet, batch=1)
    text = torch.cat([inputs["encoder_hidden_states"], -inputs["encoder_hidden_states"]])
    pipe.scheduler.set_timesteps(steps)
    latents = inputs["sample"]
    with torch.no_grad():
        for t in pipe.scheduler.timesteps:
            a, b = pipe.unet(torch.cat([latents] * 2), t, encoder_hidden_states=text).sample.chunk(2)
            latents = pipe.scheduler.step(a + 3 * (b - a), t, latents).prev_sample
    return latents


def test_several_unet_calls_in_a_step_have_a_feature_each():
    pipe = accelerate(loop_pipe("least"), interval=3, branch=1)
    with denoising(pipe):
        separate = two_pass_loop(pipe)
    assert kinds(pipe) == "FFPPPPFFPPPP"
    assert last_run(pipe).buffer_bytes == 2 * 16 * 16 * 16 * 4
    with denoising(pipe):
        batched = batched_loop(pipe)
    assert (separate - batched).abs().max() < 1e-4


def panorama_loop(pipe, steps=6):
    """Three views per step, each with its own scheduler.step, as in diffusers' panorama pipeline."""
    inputs = make_inputs(pipe.unet, batch=3)
    views = list(inputs["sample"].split(1))
    pipe.scheduler.set_timesteps(steps)
    with torch.no_grad():
        for t in pipe.scheduler.timesteps:
            for i, text in enumerate(inputs["encoder_hidden_states"].split(1)):
                noise = pipe.unet(views[i], t, encoder_hidden_states=text).sample
                views[i] = pipe.scheduler.step(noise, t, views[i]).prev_sample
    return torch.cat(views)


def test_views_that_step_on_their_own_are_slots_of_one_step():
    pipe = accelerate(loop_pipe("least"), interval=3)
    with denoising(pipe):
        views = panorama_loop(pipe)
    assert kinds(pipe) == "FFFPPPPPPFFFPPPPPP"
    assert last_run(pipe).steps == 6
    inputs = make_inputs(pipe.unet, batch=3)
    with torch.no_grad(), denoising(pipe):
        latents = inputs["sample"]
        for t in pipe.scheduler.timesteps:
            noise = pipe.unet(latents, t, encoder_hidden_states=inputs["encoder_hidden_states"]).sample
            latents = pipe.scheduler.step(noise, t, latents).prev_sample
    assert (views - latents).abs().max() < 1e-4


def test_a_feature_older_than_the_last_full_step_is_not_used():
    """Guidance only in the middle of the run: the batch is 1, then 2, then 1 again."""
    pipe = accelerate(loop_pipe("least"), interval=4)
    inputs = make_inputs(pipe.unet)
    pipe.scheduler.set_timesteps(10)
    batches = [1, 1, 1, 2, 2, 2, 1, 1, 1, 1]
    with torch.no_grad(), denoising(pipe):
        for t, batch in zip(pipe.scheduler.timesteps, batches, strict=True):
            latents, text = inputs["sample"][:batch], inputs["encoder_hidden_states"][:batch]
            pipe.scheduler.step(pipe.unet(latents, t, encoder_hidden_states=text).sample, t, latents)
    #                           FPPP FPPP FP by schedule; step 3 has a new batch, and step 6 a feature of step 0 alone
    assert kinds(pipe) == "FPPFFPFPFP"


def test_a_slot_that_the_last_full_step_did_not_have_runs_full():
    pipe = accelerate(loop_pipe("least"), interval=3)
    inputs = make_inputs(pipe.unet)
    pipe.scheduler.set_timesteps(6)
    with torch.no_grad(), denoising(pipe):
        for i, t in enumerate(pipe.scheduler.timesteps):
            for _ in range(1 if i == 3 else 2):
                noise = pipe.unet(**{**inputs, "timestep": t}).sample
            pipe.scheduler.step(noise, t, inputs["sample"])
    assert kinds(pipe) == "FF" + "PP" + "PP" + "F" + "PF" + "PP"


def test_an_interrupted_run_leaves_nothing_to_the_next():
    pipe = accelerate(loop_pipe("least"), interval=3)
    want = pipe(6)

    def stop(pipe, i):
        if i == 1:
            raise RuntimeError("stopped by hand")

    with pytest.raises(RuntimeError, match="stopped by hand"):
        pipe(6, on_step=stop)
    assert kinds(pipe) == "FP"
    assert "step" not in vars(pipe.scheduler) and "forward" not in vars(pipe.unet)
    assert torch.equal(pipe(6), want)
    assert kinds(pipe) == "FPPFPP"


def test_an_interrupted_img2img_run_starts_full_where_it_enters_later():
    pipe = accelerate(loop_pipe("least"), interval=5)
    with pytest.raises(ZeroDivisionError):
        pipe(10, on_step=lambda pipe, i: 1 / (i - 2))
    late = pipe(10, start=4)
    assert kinds(pipe) == "FPPPPF"
    assert torch.equal(late, accelerate(loop_pipe("least"), interval=5)(10, start=4))


def test_inference_mode_and_back():
    pipe = accelerate(loop_pipe("least"), interval=3)
    want = pipe(6)
    accelerate(pipe, interval=3)  # new buffers, first written in inference mode
    with torch.inference_mode():
        assert torch.equal(pipe(6), want)
    assert torch.equal(pipe(6), want)
    assert kinds(pipe) == "FPPFPP"


def test_one_feature_a_slot_at_one_address():
    pipe = accelerate(loop_pipe("least"), interval=3)
    pipe(6)
    feature = only_feature(pipe)
    address = feature.data_ptr()
    assert last_run(pipe).buffer_bytes == feature.numel() * 4 == 2 * 8 * 16 * 16 * 4
    for _ in range(3):
        pipe(4)
        assert only_feature(pipe).data_ptr() == address


def only_feature(pipe):
    (bucket,) = engine_of(pipe).unet_graphs.buckets.held.values()
    (kept,) = bucket.slots
    return kept.values[0].tensors[0]


def test_max_buckets_bounds_the_memory():
    pipe = accelerate(loop_pipe("least"), interval=2, max_buckets=2)
    sizes = []
    for batch in (1, 2, 3, 1):
        pipe(4, batch=batch)
        sizes.append(last_run(pipe).buffer_bytes // (8 * 16 * 16 * 4))
    assert sizes == [1, 3, 5, 4]
    assert kinds(pipe) == "FPFP"


def test_a_loop_that_never_steps_runs_full_in_bounded_memory(caplog):
    pipe = accelerate(loop_pipe("least"), interval=2)
    inputs = make_inputs(pipe.unet, batch=1)
    with torch.no_grad(), denoising(pipe):
        want = pipe.unet(**inputs).sample
        for _ in range(MAX_SLOTS + 5):
            assert torch.equal(pipe.unet(**inputs).sample, want)
    assert set(kinds(pipe)) == {"F"}
    assert last_run(pipe).buffer_bytes <= (MAX_SLOTS + 1) * 8 * 16 * 16 * 4
    assert "without one scheduler.step" in caplog.text


def test_a_loop_without_a_scheduler_advances_by_hand():
    pipe = accelerate(loop_pipe("least"), interval=2)
    inputs = make_inputs(pipe.unet)
    with torch.no_grad(), denoising(pipe, steps=4) as run:
        for _ in range(4):
            pipe.unet(**inputs)
            run.advance()
    assert kinds(pipe) == "FPFP"


def test_last_full_steps_by_count():
    pipe = accelerate(loop_pipe("least"), schedule=Schedule.uniform(4, first=2, last=2))
    pipe(9)
    assert kinds(pipe) == "FFPPFPPFF"
    pipe(9, start=3)  # the loop has 6 steps, the scheduler says 9: `last` counts from the end that it knows
    assert kinds(pipe) == "FFPPFP"
    demo = accelerate(tiny_pipe(), schedule=Schedule.uniform(4, last=2))
    generate(demo, steps=7)
    assert kinds(demo) == "FPPPFFF"
    with torch.no_grad(), denoising(demo, steps=3):
        inputs = make_inputs(demo.unet)
        demo.scheduler.set_timesteps(7)
        for t in demo.scheduler.timesteps[:3]:
            demo.scheduler.step(demo.unet(**inputs).sample, t, inputs["sample"])
    assert kinds(demo) == "FFF"


def test_lora_scale_is_applied_and_taken_back():
    from peft import LoraConfig

    pipe = tiny_pipe()
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False), "extra")
    want = {scale: generate(pipe, cross_attention_kwargs={"scale": scale}) for scale in (1.0, 0.5, 0.0)}
    assert not torch.equal(want[1.0], want[0.5])
    accelerate(pipe, interval=1)
    for scale, latents in want.items():
        assert torch.equal(generate(pipe, cross_attention_kwargs={"scale": scale}), latents)
    restore(pipe)
    assert torch.equal(generate(pipe), want[1.0])


def test_a_stock_call_at_a_full_step_leaves_no_feature_for_the_next():
    """Gradients at step 3, where a full step was due: steps 4 and 5 must not go on with step 0's feature."""
    pipe = accelerate(loop_pipe("least"), interval=3)
    inputs = make_inputs(pipe.unet, batch=1)
    text = inputs["encoder_hidden_states"]
    pipe.scheduler.set_timesteps(7)
    x = inputs["sample"]
    with denoising(pipe):
        for i, t in enumerate(pipe.scheduler.timesteps):
            with torch.set_grad_enabled(i == 3):
                noise = pipe.unet(x, t, encoder_hidden_states=text.requires_grad_(i == 3)).sample
            x = pipe.scheduler.step(noise.detach(), t, x).prev_sample
    assert kinds(pipe) == "FPPSFPF"
