"""Pipelines and callbacks that change the U-Net after a run has begun."""

import types

import pytest
import torch
from diffusers import DDIMScheduler
from support.small import ATTENDED, BETAS, LoopPipe, captured, make_unet

from stepcache import accelerate, last_run, restore
from stepcache.errors import UnsupportedUNet


class PatchingPipe(LoopPipe):
    """As the community's reference pipelines do: its call patches the U-Net, then runs its loop."""

    patch = staticmethod(lambda unet: None)

    def __call__(self, *args, **kwargs):
        self.patch(self.unet)
        return super().__call__(*args, **kwargs)


@pytest.fixture
def pipe():
    return PatchingPipe(make_unet("least", **ATTENDED), DDIMScheduler(**BETAS))


def replaced_forward(unet):
    block = unet.up_blocks[0]
    block.forward = types.MethodType(lambda self, *args, **kwargs: 2 * type(self).forward(self, *args, **kwargs), block)


def hooked_block(unet):
    unet.up_blocks[0].register_forward_hook(lambda module, args, output: 2 * output)


@pytest.mark.parametrize("patch", [replaced_forward, hooked_block])
def test_blocks_patched_in_the_call_are_refused_in_the_first_call_too(pipe, patch):
    accelerate(pipe, interval=3)
    pipe.patch = patch
    for _ in range(2):
        with pytest.raises(UnsupportedUNet, match=r"up_blocks\.0 has .* of its own"):
            pipe(4)
    # The run left nothing behind, and restored the pipe runs with its patch.
    assert "forward" not in vars(pipe.unet)
    assert restore(pipe)(4).isfinite().all()


def test_blocks_patched_in_a_callback_are_refused_at_the_next_full_step(pipe):
    accelerate(pipe, interval=3)
    with pytest.raises(UnsupportedUNet, match=r"up_blocks\.0"):
        pipe(6, on_step=lambda pipe, i: hooked_block(pipe.unet) if i == 1 else None)
    assert last_run(pipe).kinds == "FPP"


@pytest.mark.parametrize("put_on", ["eager", "captured"])
def test_a_layers_hook_from_a_callback_is_called_from_then_on(pipe, put_on):
    pipe = captured(pipe, 3) if put_on == "captured" else accelerate(pipe, 3)
    calls = []

    def on_step(pipe, i):
        if i == 2:
            layer = pipe.unet.up_blocks[0].resnets[-1]
            layer.register_forward_hook(lambda module, args, output: (calls.append(i), 0.5 * output)[1])

    pipe(8)
    got = pipe(8, on_step=on_step)
    assert len(calls) == 5  # the layer of the last join runs in each of steps 3 to 7
    pipe.unet.up_blocks[0].resnets[-1]._forward_hooks.clear()
    assert torch.equal(got, accelerate(pipe, 3, compile=False, cuda_graphs=False)(8, on_step=on_step))
