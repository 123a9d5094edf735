"""Methods that somebody put onto a pipe (T-GATE's): a loop there is no run, so accelerate() does not let it pass."""

import functools
from types import MethodType

import pytest
import torch
from support.small import LoopPipe, loop_pipe, make_inputs, state_of

import stepcache
from stepcache import accelerate, last_run
from stepcache.errors import AlreadyCached


@torch.no_grad()
def tgate(self, steps=4, gate_step=10):
    """As T-GATE's: a copy of the pipeline's loop."""
    self.scheduler.set_timesteps(steps)
    inputs = make_inputs(self.unet)
    for t in self.scheduler.timesteps:
        noise = self.unet(**{**inputs, "timestep": t}).sample
        inputs["sample"] = self.scheduler.step(noise, t, inputs["sample"]).prev_sample
    return inputs["sample"]


def in_a_nested_function(self):
    return [self.scheduler.step(self.unet(t), t, t) for t in self.scheduler.timesteps]


def wrapped(self):
    @functools.wraps(tgate)
    def run(*args, **kwargs):
        return tgate(self, *args, **kwargs)

    return run


@pytest.mark.parametrize(
    "put", [lambda pipe: MethodType(tgate, pipe), lambda pipe: MethodType(in_a_nested_function, pipe), wrapped]
)
def test_a_loop_on_the_pipe_is_refused_by_name(put):
    pipe = loop_pipe("least")
    pipe.tgate = put(pipe)
    before = state_of(pipe)
    words = r"pipe\.tgate, which test_loops put on this LoopPipe, .* call del pipe\.tgate first"
    with pytest.raises(AlreadyCached, match=words):
        accelerate(pipe, 2)
    assert state_of(pipe) == before
    del pipe.tgate
    accelerate(pipe, 2)(4)
    assert last_run(pipe).kinds == "FPFP"


def with_a_block(self, steps=4):
    with stepcache.denoising(self):
        return tgate(self, steps)


def with_all_in_one(self):
    with stepcache.denoising(self):
        return [self.scheduler.step(self.unet(**inputs).sample, 1, 1) for inputs in ({},)]


def width(self):
    return self.unet.config.sample_size


def train_step(self, optimizer):
    loss = self.unet(**make_inputs(self.unet)).sample.mean()
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize("method", [with_a_block, with_all_in_one, width, train_step])
def test_other_methods_on_the_pipe_are_let_pass(method):
    pipe = loop_pipe("least")
    pipe.mine = MethodType(method, pipe)
    accelerate(pipe, 2)
    if method is with_a_block:
        pipe.mine()
        assert last_run(pipe).kinds == "FPFP"


def test_a_part_of_the_pipelines_own_loop_may_be_replaced():
    class Parted(LoopPipe):
        def denoise(self):
            raise AssertionError

        def __call__(self):
            return self.denoise()

    pipe = loop_pipe("least")
    pipe.__class__ = Parted
    pipe.denoise = MethodType(tgate, pipe)
    accelerate(pipe, 2)()
    assert last_run(pipe).kinds == "FPFP"
