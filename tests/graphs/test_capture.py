"""The capture engine on the stand-in backend, which is as hostile as CUDA graphs."""

import threading

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler, PNDMScheduler
from support.small import (
    ATTENDED,
    BETAS,
    LoopPipe,
    captured,
    demo_pipe,
    engine_of,
    generate,
    graphs_of,
    loop_pipe,
    make_inputs,
    make_unet,
)

from stepcache import accelerate, denoising, last_run, restore
from stepcache.forwards.nested import tensors_of
from stepcache.graphs import capture as engine
from stepcache.run.attach import attachment_of


def test_the_demo_pipelines_images_are_the_uncaptured_ones():
    pipe = demo_pipe()
    for settings in ((1, 0), (3, 0), (2, 11)):
        want = generate(accelerate(pipe, *settings), steps=4, output_type="np")
        got = generate(captured(pipe, *settings), steps=4, output_type="np")
        assert (got == want).all()
        assert last_run(pipe).captures == (1 if settings[0] == 1 else 2)
    restore(pipe)


@pytest.mark.parametrize(
    "scheduler, options",
    [(PNDMScheduler, {"skip_prk_steps": True}), (HeunDiscreteScheduler, {}), (DPMSolverMultistepScheduler, {})],
)
def test_schedulers_that_keep_raw_outputs_across_steps(scheduler, options):
    """PNDM appends the U-Net's output to a list, and the next replay must not overwrite it."""
    pipe = loop_pipe("least", **ATTENDED, scheduler=scheduler(**BETAS, **options))
    want = accelerate(pipe, 3)(8)
    assert torch.equal(captured(pipe, 3)(8), want)


def test_two_captures_a_bucket_and_none_later():
    pipe = captured(loop_pipe("least", **ATTENDED), 3)
    first = pipe(7)
    assert last_run(pipe).captures == 2
    for steps in (7, 4, 10):
        pipe(steps)
        assert last_run(pipe).captures == 0
    assert torch.equal(pipe(7), first)
    (graphs,) = graphs_of(pipe)
    # One graph for F and one for P, replayed in the order F P P F ...
    assert [graph.replays for graph in graphs.backend.graphs] == [3 + 3 + 2 + 4 + 3, 4 + 4 + 2 + 6 + 4]


def test_expanded_inputs_have_slots_of_their_own():
    def run(pipe):
        inputs = make_inputs(pipe.unet)
        text = inputs["encoder_hidden_states"][:1].expand(2, -1, -1)
        latents = inputs["sample"]
        with torch.no_grad(), denoising(pipe) as session:
            for t in torch.tensor([900.0, 600.0, 300.0]):
                latents = latents - 0.1 * pipe.unet(latents, t.expand(2), text).sample
                session.advance()
        return latents

    pipe = loop_pipe("least", **ATTENDED)
    want = run(accelerate(pipe, 2))
    # Static inputs are contiguous, so a matrix product may round differently than on the expanded tensor.
    torch.testing.assert_close(run(captured(pipe, 2)), want, rtol=1e-5, atol=1e-5)
    assert last_run(pipe).captures == 2


def test_autocast_has_buckets_of_its_own():
    pipe = loop_pipe("least", **ATTENDED)
    plain = accelerate(pipe, 3)(4)
    with torch.autocast("cpu", torch.bfloat16):
        cast = accelerate(pipe, 3)(4)
    assert not torch.equal(plain, cast)
    captured(pipe, 3)
    for _ in range(2):
        assert torch.equal(pipe(4), plain)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(pipe(4), cast)
    assert last_run(pipe).captures == 0
    assert len(graphs_of(pipe)) == 2


def test_an_input_that_cannot_be_compared():
    from stepcache.graphs.bucket import signature

    class Odd:
        __hash__ = None

    odd = Odd()
    assert signature({"x": odd}) == signature({"x": odd}) != signature({"x": Odd()})
    hash(signature({"x": odd}))


def test_an_input_changed_in_place_is_copied_again():
    pipe = loop_pipe("least", **ATTENDED)
    inputs = make_inputs(pipe.unet)

    def run():
        text, latents = inputs["encoder_hidden_states"].clone(), inputs["sample"]
        pipe.scheduler.set_timesteps(6)
        with torch.no_grad(), denoising(pipe):
            for t in pipe.scheduler.timesteps:
                noise = pipe.unet(latents, t, encoder_hidden_states=text).sample
                latents = pipe.scheduler.step(noise, t, latents).prev_sample
                text.mul_(-1)
        return latents

    accelerate(pipe, 3)
    want = run()
    captured(pipe, 3)
    assert torch.equal(run(), want)


def test_an_inference_tensor_is_copied_each_time():
    pipe = loop_pipe("least", **ATTENDED)
    want = accelerate(pipe, 3)(6)
    captured(pipe, 3)
    with torch.inference_mode():
        assert torch.equal(pipe(6), want)
    assert torch.equal(pipe(6), want)


def test_a_feature_that_was_allocated_anew_is_captured_again():
    """An uncaptured call in between may write other strides, to another address than the graph has."""
    pipe = captured(loop_pipe("least", **ATTENDED), 3)
    want = pipe(6)
    kept = next(iter(engine_of(pipe).unet_graphs.buckets.held.values())).slots[0]
    (old,) = kept.values[0].tensors
    kept.write([old.to(memory_format=torch.channels_last)])
    assert kept.values[0].tensors[0] is not old
    assert torch.equal(pipe(6), want)
    assert last_run(pipe).captures == 2 and last_run(pipe).kinds == "FPPFPP"


def test_addresses_are_stable_and_memory_is_stated():
    pipe = captured(loop_pipe("least", **ATTENDED), 3)
    pipe(4)
    (graphs,) = graphs_of(pipe)

    def addresses(graphs):
        return [tensor.data_ptr() for tensor in (*tensors_of(graphs._inputs), graphs._output)]

    before = addresses(graphs)
    for _ in range(2):
        pipe(4)
        (again,) = graphs_of(pipe)
        assert again is graphs and addresses(graphs) == before
    latents, text = 2 * 4 * 16 * 16 * 4, 2 * 5 * 8 * 4
    assert last_run(pipe).static_bytes == latents + text + 4 + latents
    assert last_run(pipe).buffer_bytes == 2 * 8 * 16 * 16 * 4


def test_the_least_recently_used_bucket_is_freed():
    pipe = captured(loop_pipe("least", **ATTENDED), 2, max_buckets=2)
    pipe(4, batch=1), pipe(4, batch=2)
    first, second = graphs_of(pipe)
    pipe(4, batch=1)
    pipe(4, batch=3)
    assert second.backend.released == 1 and not second._graphs and second._inputs is None
    assert all(graph.is_reset for graph in second.backend.graphs)
    assert first.backend.released == 0
    assert len(graphs_of(pipe)) == 2
    want = accelerate(loop_pipe("least", **ATTENDED), 2)(4, batch=2)
    assert torch.equal(pipe(4, batch=2), want)
    kept = graphs_of(pipe)
    restore(pipe)
    assert all(graphs.backend.released == 1 and not graphs._graphs for graphs in kept)


def test_several_slots_get_graphs_each_and_more_run_uncaptured():
    def run(pipe, calls):
        inputs = make_inputs(pipe.unet, batch=1)
        pipe.scheduler.set_timesteps(5)
        latents = inputs["sample"]
        with torch.no_grad(), denoising(pipe):
            for t in pipe.scheduler.timesteps:
                outputs = [
                    pipe.unet(latents, t, encoder_hidden_states=inputs["encoder_hidden_states"] * (i - 1)).sample
                    for i in range(calls)
                ]
                latents = pipe.scheduler.step(sum(outputs) / calls, t, latents).prev_sample
        return latents

    pipe = loop_pipe("least", **ATTENDED)
    for calls, captures in ((2, 4), (6, 2 * engine.MAX_CAPTURED_SLOTS)):
        accelerate(pipe, 3, 1)
        want = run(pipe, calls)
        captured(pipe, 3, 1)
        assert torch.equal(run(pipe, calls), want)
        assert last_run(pipe).captures == captures
        assert last_run(pipe).buffer_bytes == calls * 8 * 16 * 16 * 4


def test_two_threads_on_one_pipe_are_captured_once_each():
    pipe = captured(loop_pipe("least", **ATTENDED), 3)
    want, captures = pipe(6), []
    barrier = threading.Barrier(2, timeout=60)

    def work():
        for _ in range(3):
            assert torch.equal(pipe(6, on_step=lambda *_: barrier.wait()), want)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cores = attachment_of(pipe).pool._idle
    captures = [core.unet_graphs.costs.captures for core in cores]
    assert captures == [2, 2]


def test_threads_with_a_pipeline_each_on_one_unet():
    unet = make_unet("least", **ATTENDED)
    pipes = [captured(LoopPipe(unet, EulerDiscreteScheduler(**BETAS)), n) for n in (2, 3)]
    want = [accelerate(LoopPipe(unet, EulerDiscreteScheduler(**BETAS)), n)(6) for n in (2, 3)]
    failed = []

    def work(pipe, latents):
        for _ in range(3):
            if not torch.equal(pipe(6), latents):
                failed.append(pipe)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(pipes, want, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_a_pool_whose_graphs_are_all_gone_is_not_captured_into():
    """At interval 1 there is one graph. Replacing a weight drops it, and its pool too."""
    pipe = captured(loop_pipe("least", **ATTENDED), 1)
    pipe(3)
    conv = pipe.unet.conv_in
    old = conv.weight
    conv.weight = torch.nn.Parameter(old.detach().clone(), requires_grad=False)
    try:
        pipe(3)
    finally:
        conv.weight = old
    assert last_run(pipe).captures == 1 and not graphs_of(pipe)[0].failed
