"""Pipelines, runs and threads that share a U-Net never see each other's features."""

import threading

import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
)
from support.small import BETAS, LoopPipe, demo_pipe, generate, loop_pipe, tiny_pipe

from stepcache import accelerate, last_run, restore


def pipes(count):
    """Pipelines on one U-Net."""
    unet = tiny_pipe().unet
    return [demo_pipe(unet=unet) for _ in range(count)]


def kinds(pipe):
    return last_run(pipe).kinds


def test_two_pipelines_share_a_unet():
    plain, fast, other = pipes(3)
    assert plain.unet is fast.unet
    want = generate(plain)
    accelerate(fast, interval=3)
    cached = generate(fast)
    assert torch.equal(generate(plain), want)
    assert not torch.equal(cached, want)
    accelerate(other, interval=2, branch=1)
    generate(other)
    assert torch.equal(generate(fast), cached)
    assert (kinds(fast), kinds(other)) == ("FPPFPP", "FPFPFP")
    restore(fast)
    assert torch.equal(generate(fast), want)
    generate(other)
    assert kinds(other) == "FPFPFP"
    restore(other)


def test_a_run_inside_a_run_of_another_pipe():
    """A preview in a callback: a second accelerated pipe on the same U-Net, then the first goes on."""
    outer, inner = pipes(2)
    accelerate(outer, interval=3), accelerate(inner, interval=2)
    want_outer, want_inner = generate(outer), generate(inner)
    previews = []

    def preview(pipe, i, t, tensors):
        if i == 1:
            previews.append(generate(inner))
        return {}

    assert torch.equal(generate(outer, callback_on_step_end=preview), want_outer)
    assert torch.equal(previews[0], want_inner)
    assert (kinds(outer), kinds(inner)) == ("FPPFPP", "FPFPFP")


def test_a_run_inside_a_run_of_the_same_pipe():
    pipe = accelerate(loop_pipe("least", scheduler=EulerDiscreteScheduler(**BETAS)), interval=3)
    ddim = loop_pipe("least")
    want = ddim(6)
    restore(pipe)
    pipe = accelerate(LoopPipe(ddim.unet, DDIMScheduler(**BETAS)), interval=3)
    cached = pipe(6)

    def again(pipe, i):
        if i == 1:
            assert torch.equal(pipe(6), cached)  # DDIM keeps no state between its steps

    assert torch.equal(pipe(6, on_step=again), cached)
    assert not torch.equal(want, cached)


def test_two_threads_with_a_pipeline_each_share_a_unet():
    settings = [(3, 0), (2, 1), (1, 0)]
    *fast, plain = pipes(4)
    for pipe, setting in zip(fast, settings, strict=True):
        accelerate(pipe, *setting)
    # The U-Net is shared, the tokenizer must not be: a fast tokenizer keeps its padding as state, so that threads which
    # call one at the same time now and then get prompts of the wrong length, without stepcache too.
    prompt, negative = plain.encode_prompt("tiger face", "cpu", 1, True)
    options = {"prompt": None, "prompt_embeds": prompt, "negative_prompt_embeds": negative, "seed": 7}
    want = [generate(pipe, **options) for pipe in (*fast, plain)]
    errors = []

    def work(pipe, latents):
        try:
            for _ in range(3):
                assert torch.equal(generate(pipe, **options), latents)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=pair) for pair in zip([*fast, plain], want, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert "forward" not in vars(plain.unet)


def test_two_threads_run_the_same_stateless_pipe():
    """The scheduler (DDIM) keeps nothing between steps, so stock allows it; the runs must not share a feature."""
    pipe = accelerate(loop_pipe("least"), interval=3)
    want = pipe(6)
    results = []
    barrier = threading.Barrier(2, timeout=60)
    work = lambda: results.append(pipe(6, on_step=lambda *_: barrier.wait()))  # noqa: E731  # steps in turn
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2 and all(torch.equal(result, want) for result in results)
