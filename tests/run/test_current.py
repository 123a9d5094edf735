"""Runs that are no plain call: generators, coroutines, other contexts, several at once."""

import asyncio
import contextvars
import copy
import gc
import threading
import weakref
from contextlib import ExitStack, contextmanager

import pytest
import torch
from diffusers import DDIMScheduler
from support.small import BETAS, ONE_LEVEL, LoopPipe, captured, loop_pipe, make_inputs, make_unet

from stepcache import accelerate, denoising, last_run
from stepcache.run import watch
from stepcache.run.current import _of_generators, runs


def loop(pipe, seed=1, steps=7):
    """Yields the latents of each step of a hand-written loop."""
    inputs = make_inputs(pipe.unet, seed=seed)
    latents = inputs["sample"]
    pipe.scheduler.set_timesteps(steps)
    with denoising(pipe):
        for t in pipe.scheduler.timesteps:
            with torch.no_grad():
                noise = pipe.unet(latents, t, inputs["encoder_hidden_states"]).sample
            latents = pipe.scheduler.step(noise, t, latents).prev_sample
            yield latents


@pytest.fixture(params=["eager", "captured"])
def pipe(request):
    made = loop_pipe("least", **ONE_LEVEL)
    yield accelerate(made, 3) if request.param == "eager" else captured(made, 3)
    assert not list(runs()) and not _of_generators


def test_two_generators_in_turn_do_not_mix(pipe):
    alone = [[*loop(pipe, seed)][-1] for seed in (1, 2)]
    for turns in ((0, 1) * 7, (0, 0, 1, 0, 1, 1, 1, 0, 0, 1, 0, 1, 0, 1)):
        generators = loop(pipe, 1), loop(pipe, 2)
        latest = [None, None]
        for i in turns:
            latest[i] = next(generators[i])
        assert all(map(torch.equal, latest, alone))
        for generator in generators:
            assert next(generator, None) is None  # ended
        assert last_run(pipe).kinds == "FPPFPPF"


def test_between_two_advances_the_unet_is_the_original(pipe):
    inputs = make_inputs(pipe.unet)
    want = LoopPipe(pipe.unet, pipe.scheduler).unet(**inputs).sample
    generator = loop(pipe)
    for _ in range(2):
        next(generator)
    assert torch.equal(pipe.unet(**inputs).sample, want)
    next(generator)
    assert last_run(pipe).kinds == "FPP"
    generator.close()


@pytest.mark.parametrize("where", ["contexts", "threads"])
def test_a_server_advances_a_generator_elsewhere(pipe, where):
    want = [*loop(pipe)]
    generator, got = loop(pipe), []

    def advance():
        got.append(next(generator, None))

    for _ in range(8):
        if where == "contexts":
            contextvars.Context().run(advance)
        else:
            thread = threading.Thread(target=advance)
            thread.start()
            thread.join()
    assert got.pop() is None
    assert all(map(torch.equal, got, want)) and last_run(pipe).kinds == "FPPFPPF"


def test_an_asynchronous_generator_and_tasks_in_turn(pipe):
    async def asynchronous(seed):
        for latents in loop(pipe, seed):
            await asyncio.sleep(0)
            yield latents

    async def block(seed):
        inputs = make_inputs(pipe.unet, seed=seed)
        with denoising(pipe) as session:
            for t in range(5, 0, -1):
                with torch.no_grad():
                    pipe.unet(inputs["sample"], t, inputs["encoder_hidden_states"])
                session.advance()
                await asyncio.sleep(0)
        return session.record.kinds

    async def last(generator):
        latents = None
        async for item in generator:
            latents = item
        return latents

    async def both():
        return await asyncio.gather(last(asynchronous(1)), last(asynchronous(2)), block(3), block(4))

    alone = [[*loop(pipe, seed)][-1] for seed in (1, 2)]
    one, two, *kinds = asyncio.run(both())
    assert torch.equal(one, alone[0]) and torch.equal(two, alone[1]) and kinds == ["FPPFP"] * 2


def test_a_block_that_is_left_in_another_context(pipe):
    """anyio and Gradio run what follows a `yield` elsewhere."""
    stack = ExitStack()
    context = contextvars.copy_context()
    context.run(stack.enter_context, denoising(pipe))
    assert len(context.run(lambda: [*runs()])) == 1
    contextvars.Context().run(stack.close)
    assert not context.run(lambda: [*runs()])
    assert pipe(4) is not None and last_run(pipe).kinds == "FPPF"


def test_blocks_of_two_pipes_in_each_other():
    one, two = (accelerate(loop_pipe("least", **ONE_LEVEL), n) for n in (2, 3))
    inputs = make_inputs(one.unet)
    del inputs["timestep"]
    with torch.no_grad(), denoising(one) as first, denoising(two) as second:
        for t in range(6, 0, -1):
            one.unet(timestep=t, **inputs)
            two.unet(timestep=t, **inputs)
            first.advance()
            second.advance()
    assert (last_run(one).kinds, last_run(two).kinds) == ("FPFPFP", "FPPFPP")


def test_a_suspended_generator_that_is_dropped_frees_everything(pipe):
    unet = weakref.ref(pipe.unet)

    def suspended():
        generator = loop(pipe)
        next(generator)
        return contextvars.Context().run(lambda: generator)

    generator = suspended()
    assert _of_generators
    feature = weakref.ref(next(iter(_of_generators.values()))[0].engine.unet_graphs)
    inner, pipe.unet = pipe.unet, make_unet("least", **ONE_LEVEL)
    del inner
    assert unet() is not None
    del generator
    gc.collect()
    assert not _of_generators and feature() is None and unet() is None


@pytest.mark.parametrize("which", ["itself", "a copy"])
def test_a_plain_run_inside_of_a_generators(pipe, which):
    """A preview, made by code that the generator calls."""
    inputs = make_inputs(pipe.unet)

    def steps(inside):
        latents = inputs["sample"]
        with denoising(pipe) as session:
            for t in range(900, 200, -100):
                with torch.no_grad():
                    noise = pipe.unet(latents, t, inputs["encoder_hidden_states"]).sample
                inside()
                session.advance()
                latents = latents - 0.1 * noise
                yield latents
        assert session.record.kinds == "FPPFPPF"

    def preview():
        with denoising(copy.copy(pipe) if which == "a copy" else pipe) as session, torch.no_grad():
            for t in (5, 4):
                previews.append(pipe.unet(2 * inputs["sample"], t, inputs["encoder_hidden_states"]).sample)
                session.advance()
        assert session.record.kinds == "FP"

    previews = []
    preview()
    want, alone = [*steps(lambda: None)], previews.copy()
    got = [*steps(preview)]
    assert all(map(torch.equal, got, want)) and len(previews) == 16
    assert all(map(torch.equal, previews, alone * 8))


def test_a_generator_inside_of_a_plain_run(pipe):
    want = [*loop(pipe)]
    other = loop(pipe)
    first = next(other)
    got = []
    with denoising(pipe) as session, torch.no_grad():  # entered later, but the generator is what runs
        got += [first, *other]
    assert all(map(torch.equal, got, want)) and session.record.kinds == ""


def test_a_block_in_a_context_manager_of_the_users(pipe):
    @contextmanager
    def timed():
        with denoising(pipe) as session:
            yield session

    inputs = make_inputs(pipe.unet)
    with timed() as session, torch.no_grad():
        for t in range(4, 0, -1):
            pipe.unet(inputs["sample"], t, inputs["encoder_hidden_states"])
            session.advance()
    assert last_run(pipe).kinds == "FPPF"


def test_a_block_in_a_generator_whose_loop_is_elsewhere_is_said(pipe, caplog):
    """As in a fixture, or in a dependency of a web framework."""

    def dependency():
        with denoising(pipe):
            yield

    generator, inputs = dependency(), make_inputs(pipe.unet)
    next(generator)
    pipe.unet(**inputs)
    assert next(generator, "ended") == "ended"
    assert last_run(pipe).kinds == "" and caplog.text.count("saw no U-Net call") == 1


def test_the_garbage_collector_may_close_a_run_while_another_begins(pipe, monkeypatch):
    class Holder:
        pass

    def abandon():
        holder = Holder()
        holder.itself, holder.generator = holder, loop(pipe)
        next(holder.generator)

    init = watch._Replacement.__init__

    def collecting(self, *args):
        gc.collect()
        init(self, *args)

    gc.disable()
    try:
        abandon()
        assert _of_generators
        monkeypatch.setattr(watch._Replacement, "__init__", collecting)
        other = accelerate(loop_pipe("least", **ONE_LEVEL), 2)
        thread = threading.Thread(target=other, args=(2,), daemon=True)
        thread.start()
        thread.join(60)
        assert not thread.is_alive() and not _of_generators
    finally:
        gc.enable()


def test_a_call_that_is_a_generator_with_a_block_of_its_own():
    class Blocked(LoopPipe):
        def __call__(self):
            yield from loop(self)

    pipe = accelerate(Blocked(make_unet("least", **ONE_LEVEL), DDIMScheduler(**BETAS)), 3)
    assert all(map(torch.equal, pipe(), loop(pipe)))
    assert len([*pipe()]) == 7 and last_run(pipe).kinds == "FPPFPPF"
