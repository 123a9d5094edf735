"""Calls that need gradients, of inputs or of weights, run the original."""

import torch
from support.small import loop_pipe, make_inputs, make_unet

from stepcache import accelerate, denoising, last_run


def kinds(pipe):
    return last_run(pipe).kinds


def test_a_call_that_wants_gradients_runs_the_stock_forward():
    pipe = accelerate(loop_pipe("least"), interval=2)
    inputs = make_inputs(pipe.unet)
    sample = inputs["sample"].clone().requires_grad_()
    with torch.no_grad():
        plain = pipe.unet(**inputs).sample
    pipe.scheduler.set_timesteps(3)
    with denoising(pipe):
        for t in pipe.scheduler.timesteps:
            guided = pipe.unet(**{**inputs, "sample": sample}).sample
            (gradient,) = torch.autograd.grad(guided.square().sum(), sample)
            with torch.no_grad():
                noise = pipe.unet(**inputs).sample
            pipe.scheduler.step(noise, t, inputs["sample"])
    assert kinds(pipe) == "SFSPSF"
    assert torch.equal(guided, plain) and gradient.abs().sum() > 0


def test_a_loop_that_forgot_no_grad_is_told(caplog):
    """Loaded weights require gradients."""
    pipe = accelerate(loop_pipe("least"), interval=3)
    pipe.unet.requires_grad_()

    def loop():
        latents, text = (make_inputs(pipe.unet)[name] for name in ("sample", "encoder_hidden_states"))
        pipe.scheduler.set_timesteps(4)
        with denoising(pipe):
            for t in pipe.scheduler.timesteps:
                latents = pipe.scheduler.step(pipe.unet(latents, t, text).sample, t, latents).prev_sample
        return kinds(pipe)

    assert loop() == "SSSS"
    assert "4 of 4 U-Net calls in a denoising block required gradients" in caplog.text
    assert "torch.no_grad()" in caplog.text
    caplog.clear()
    with torch.no_grad():
        assert loop() == "FPPF"
    assert not caplog.text


def test_gradients_of_weights_are_the_stock_forwards():
    pipe, stock = accelerate(loop_pipe("least"), interval=2), make_unet("least").requires_grad_()
    pipe.unet.requires_grad_()
    inputs = make_inputs(stock)
    pipe.scheduler.set_timesteps(2)
    with denoising(pipe):
        for t in pipe.scheduler.timesteps:
            for unet in (pipe.unet, stock):
                unet(inputs["sample"], t, inputs["encoder_hidden_states"]).sample.square().sum().backward()
            pipe.scheduler.step(inputs["sample"], t, inputs["sample"])
    assert kinds(pipe) == "SS"
    for (name, mine), its in zip(pipe.unet.named_parameters(), stock.parameters(), strict=True):
        assert torch.equal(mine.grad, its.grad), name


def test_a_gradient_to_the_prompt_runs_the_stock_forward():
    pipe = accelerate(loop_pipe("least"), interval=2)
    inputs = make_inputs(pipe.unet)
    text = inputs["encoder_hidden_states"].requires_grad_()
    pipe.scheduler.set_timesteps(2)
    gradients = []
    with denoising(pipe):
        for t in pipe.scheduler.timesteps:
            noise = pipe.unet(inputs["sample"], t, text).sample
            gradients.append(torch.autograd.grad(noise.square().sum(), text)[0])
            pipe.scheduler.step(noise.detach(), t, inputs["sample"])
    assert kinds(pipe) == "SS"
    noise = pipe.unet(inputs["sample"], pipe.scheduler.timesteps[1], text).sample
    assert torch.equal(gradients[1], torch.autograd.grad(noise.square().sum(), text)[0])
