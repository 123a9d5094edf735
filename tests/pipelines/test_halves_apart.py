"""The halves of guidance damped apart: whole pipelines against another implementation, and batches without halves."""

import functools

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPAGPipeline
from support.modular import denoised, modular_pipe
from support.small import ONE_LEVEL, captured, engine_of, generate, loop_pipe, sdxl_pipe, tiny_pipe

from benchmarks.frontier.dampings import Apart as ByHand
from benchmarks.frontier.weighted import weighted
from stepcache import accelerate, denoising, last_run
from stepcache.forwards import join

PAIRS = [(1.0, 0.0), (0.75, -0.5), (0.0, 1.0)]


def close(got, want, rtol=1e-4, atol=1e-4):
    torch.testing.assert_close(got, want, rtol=rtol, atol=atol)


def dpm(pipe):
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    return pipe


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("make", [tiny_pipe, lambda: dpm(tiny_pipe()), sdxl_pipe], ids=["SD", "SD, DPM++", "SDXL"])
def test_runs_equal_another_implementation(make, pair):
    pipe = make()
    call = functools.partial(
        generate, pipe, steps=9, guidance_scale=7.5, prompt=["tiger face"], num_images_per_prompt=2
    )
    with weighted(pipe, ByHand(3, *pair), 0, 9):
        want = call()
    accelerate(pipe, 3, predict=pair)
    for _ in range(2):  # the second run must not read the first one's features
        close(call(), want)
    assert last_run(pipe).kinds == "FPPFPPFPP"
    accelerate(pipe, 3, predict=pair[0])
    assert (call() - want).abs().max() > 1e-3  # the pair is not the line of the mean


@pytest.mark.parametrize("damping", [0.0, 0.5, 1.0])
def test_equal_dampings_are_the_line(damping):
    pipe = tiny_pipe()
    want = generate(accelerate(pipe, 3, predict=damping), steps=9)
    close(generate(accelerate(pipe, 3, predict=(damping, damping)), steps=9), want, rtol=1e-5, atol=1e-5)


def test_it_holds_no_more_than_a_line():
    pipe = tiny_pipe()
    held = []
    for predict in ("linear", (1, -0.25), "auto"):
        generate(accelerate(pipe, 2, predict=predict), steps=5)
        held.append(last_run(pipe).buffer_bytes)
    assert held[0] == held[1] == held[2]


def test_captured_graphs_have_them_too():
    pipe = tiny_pipe()
    want = generate(accelerate(pipe, 3, predict=(1, -0.5)), steps=9)
    captured(pipe, 3, predict=(1, -0.5))
    for captures in (2, 0):
        assert torch.equal(generate(pipe, steps=9), want)
        assert last_run(pipe).captures == captures


def test_one_compilation_a_graph_with_changing_weights():
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    pipe = tiny_pipe(unet=ONE_LEVEL)
    want = generate(accelerate(pipe, 3, predict="auto"), steps=9, guidance_scale=7.5)
    accelerate(pipe, 3, predict="auto", compile={"backend": counter})
    for _ in range(2):
        close(generate(pipe, steps=9, guidance_scale=7.5), want)
    assert counter.frame_count == 2


def test_the_triton_joins_take_them(monkeypatch):
    """kernels=True: the ops get the buffers and both rows of weights, and nobody sums them before."""
    pipe = tiny_pipe()
    call = functools.partial(generate, pipe, steps=7, guidance_scale=7.5)
    accelerate(pipe, 3, predict=(1, -0.5))
    want = call()
    accelerate(pipe, 3, predict=(1, -0.5), kernels=True)
    summed = []
    monkeypatch.setattr(join.Blend, "value", lambda self: summed.append(self) or None)
    close(call(), want)
    assert not summed


def test_guidance_dropped_mid_run():
    """The batch halves at step 5: no halves from there on, and the line is the mean's."""

    def drop(pipe, step, timestep, tensors):
        if step == 4:
            pipe._guidance_scale = 0.0
            tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1]
        return tensors

    pipe = tiny_pipe()
    call = functools.partial(
        generate, pipe, steps=12, callback_on_step_end=drop, callback_on_step_end_tensor_inputs=["prompt_embeds"]
    )
    accelerate(pipe, 3, predict=(0.5, 0.5))
    want = call()
    accelerate(pipe, 3, predict=(0.5, -1.0))
    got = call()
    assert last_run(pipe).kinds == "FPPFPFFPPFPP"  # step 5 has no feature of its batch
    first, second = engine_of(pipe).unet_graphs.buckets.held.values()
    assert first.slots[0].values[0].weights.shape == (2, 2) and second.slots[0].values[0].weights.shape == (2,)
    torch.testing.assert_close(second.slots[0].values[0].weights, torch.tensor([1 + 1 / 3, -1 / 3]))
    assert (got - want).abs().max() > 1e-4  # until step 5 there were halves


def test_without_guidance_the_line_is_the_means():
    pipe = tiny_pipe()
    call = functools.partial(generate, pipe, steps=9, guidance_scale=1.0, prompt=["tiger face", "red apple"])
    accelerate(pipe, 3, predict=0.75)
    want = call()
    accelerate(pipe, 3, predict=(0.75, -0.5))
    torch.testing.assert_close(call(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("pair", "line"), [((1, 0.5), 0.5), ((0.25, 1), 0.25), ((1, -0.5), 0.0)])
def test_batches_that_are_not_known_to_be_halves_take_the_lower_damping(pair, line, caplog):
    pipe = loop_pipe("least")
    want = accelerate(pipe, 3, predict=line)(9)
    assert caplog.text == ""
    close(accelerate(pipe, 3, predict=pair)(9), want, rtol=1e-5, atol=1e-5)
    assert f"so their dampings {pair[0]:g} and {pair[1]:g} are one: {line:g}." in caplog.text
    pipe = tiny_pipe(StableDiffusionPAGPipeline)  # three parts: unconditional, conditional, perturbed
    want = generate(accelerate(pipe, 3, predict=line), steps=9)
    close(generate(accelerate(pipe, 3, predict=pair), steps=9), want, rtol=1e-5, atol=1e-5)


def test_halves_in_calls_of_their_own():
    pipe = modular_pipe()
    want = denoised(accelerate(pipe, 3, predict=0.5), steps=9)
    close(denoised(accelerate(pipe, 3, predict=(1, 0.5)), steps=9), want, rtol=1e-5, atol=1e-5)


def test_a_denoising_block_does_not_tell_of_halves():
    pipe = tiny_pipe()

    def latents(predict):
        accelerate(pipe, 3, predict=predict)
        x, text = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 4, 96)
        pipe.scheduler.set_timesteps(9)
        with denoising(pipe):
            for t in pipe.scheduler.timesteps:
                x = pipe.scheduler.step(pipe.unet(x, t, encoder_hidden_states=text).sample, t, x).prev_sample
        return x

    with torch.no_grad():
        close(latents((1, 0.5)), latents(0.5), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [tiny_pipe, modular_pipe], ids=["one batch", "two calls"])
def test_with_guidance_reuse_feature_and_difference_are_damped_apart(make):
    """Each entry of the pair matters, and (d, d) is the line."""
    pipe, run = make(), generate if make is tiny_pipe else denoised

    def latents(predict):
        return run(accelerate(pipe, 3, predict=predict, guidance="reuse"), steps=9)

    close(latents((0.5, 0.5)), latents(0.5), rtol=1e-5, atol=1e-5)
    apart = [latents(pair) for pair in ((1, 0), (0, 1), (1, 1), (0, 0))]
    close(apart[3], latents("hold"), rtol=1e-5, atol=1e-5)
    for i, one in enumerate(apart):
        for other in apart[:i]:
            assert (one - other).abs().max() > 1e-5


def test_feature_and_difference_have_their_own_weights():
    pipe = accelerate(tiny_pipe(), 3, predict=(1, -0.5), guidance="reuse")
    generate(pipe, steps=8)  # the last step is two after the full steps 3 and 6
    (bucket,) = engine_of(pipe).unet_graphs.buckets.held.values()
    feature, difference = (value.weights.tolist() for value in bucket.slots[0].values)
    assert feature == pytest.approx([1 + 1 / 3, -1 / 3]) and difference == pytest.approx([1 - 1 / 6, 1 / 6])
