"""Pipelines whose calls are generators, coroutines or asynchronous generators."""

import asyncio
import gc

import pytest
import torch
from diffusers import DDIMScheduler
from support.small import BETAS, ONE_LEVEL, LoopPipe, captured, make_inputs, make_unet

from stepcache import accelerate, last_run, restore, warmup
from stepcache.errors import InvalidSetting


class StreamingPipe(LoopPipe):
    """A pipeline whose call is a generator."""

    def __call__(self, steps=7):
        self.scheduler.set_timesteps(steps)
        inputs = make_inputs(self.unet)
        latents = inputs["sample"]
        for t in self.scheduler.timesteps:
            with torch.no_grad():
                noise = self.unet(latents, t, inputs["encoder_hidden_states"]).sample
            latents = self.scheduler.step(noise, t, latents).prev_sample
            sent = yield latents
            latents = latents if sent is None else sent
        return "done"


class AsynchronousPipe(StreamingPipe):
    async def __call__(self, steps=7):
        latents = None
        for latents in super().__call__(steps):  # noqa: B007
            await asyncio.sleep(0)
        return latents


class AsynchronouslyStreamingPipe(StreamingPipe):
    async def __call__(self, steps=7):
        for latents in super().__call__(steps):
            await asyncio.sleep(0)
            yield latents


def streaming(cls):
    return cls(make_unet("least", **ONE_LEVEL), DDIMScheduler(**BETAS))


def test_a_call_that_is_a_generator():
    pipe = accelerate(streaming(StreamingPipe), interval=3)
    plain = streaming(StreamingPipe)
    want = [*plain()]
    generator = pipe()
    got = [next(generator)]
    got.append(generator.send(None))
    with pytest.raises(StopIteration) as ended:
        while True:
            got.append(next(generator))
    assert ended.value.value == "done" and len(got) == 7
    assert last_run(pipe).kinds == "FPPFPPF" and last_run(pipe).steps == 7
    assert torch.equal(got[0], want[0]) and not torch.equal(got[-1], want[-1])
    accelerate(pipe, interval=1)
    assert all(map(torch.equal, pipe(), want))
    assert all(map(torch.equal, restore(pipe)(), want))


def test_a_pipe_that_was_restored_before_its_generator_began():
    pipe = accelerate(streaming(StreamingPipe), interval=3)
    generator = pipe()
    restore(pipe)
    assert all(map(torch.equal, generator, streaming(StreamingPipe)()))


def test_warming_up_a_call_that_is_a_generator():
    class Sized(StreamingPipe):
        def __call__(self, height=128, width=128, num_inference_steps=7):
            return (yield from super().__call__(num_inference_steps))

    pipe = captured(streaming(Sized), 3)
    assert warmup(pipe, 128, 128, progress=False).captures == 2
    assert len([*pipe(num_inference_steps=4)]) == 4 and last_run(pipe).captures == 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("cls", [AsynchronousPipe, AsynchronouslyStreamingPipe])
def test_a_call_that_must_be_awaited_cannot_be_warmed_up_and_leaves_nothing(cls):
    with pytest.raises(InvalidSetting, match=f"cannot await the call of a {cls.__name__}"):
        warmup(accelerate(streaming(cls)), 128, 128, progress=False)
    gc.collect()


def test_what_is_sent_to_an_asynchronous_generator_and_its_end():
    class Asked(LoopPipe):
        ended = False

        async def __call__(self):
            try:
                while True:
                    self.sent = yield
            finally:
                self.ended = True

    async def ask(pipe):
        generator = pipe()
        await generator.asend(None)
        await generator.asend("hello")
        await generator.aclose()
        return pipe.sent, pipe.ended

    assert asyncio.run(ask(accelerate(streaming(Asked)))) == ("hello", True)


def test_the_record_stays_if_a_generator_only_hands_out_what_was_made():
    class Lazy(LoopPipe):
        def __call__(self, steps):
            return (image for image in super().__call__(steps))

    pipe = accelerate(streaming(Lazy), 3)
    images = pipe(4)
    assert last_run(pipe).kinds == "FPPF"
    assert len([*images]) == 2 and last_run(pipe).kinds == "FPPF"


def test_calls_that_are_coroutines_or_asynchronous_generators():
    want = [*accelerate(streaming(StreamingPipe), interval=3)()]
    pipe = accelerate(streaming(AsynchronousPipe), interval=3)
    assert torch.equal(asyncio.run(pipe()), want[-1]) and last_run(pipe).kinds == "FPPFPPF"
    pipe = accelerate(streaming(AsynchronouslyStreamingPipe), interval=3)

    async def collect():
        return [latents async for latents in pipe()]

    assert all(map(torch.equal, asyncio.run(collect()), want)) and last_run(pipe).kinds == "FPPFPPF"


def test_what_is_thrown_into_an_asynchronous_generator():
    class Retrying(LoopPipe):
        async def __call__(self):
            try:
                yield "made"
            except ValueError as error:
                yield f"again, {error}"

    async def thrown(pipe):
        generator = pipe()
        made = [await generator.asend(None), await generator.athrow(ValueError("brighter"))]
        with pytest.raises(StopAsyncIteration):
            await generator.asend(None)
        generator = pipe()
        await generator.asend(None)
        with pytest.raises(KeyError):
            await generator.athrow(KeyError())
        return made

    assert asyncio.run(thrown(accelerate(streaming(Retrying)))) == ["made", "again, brighter"]
