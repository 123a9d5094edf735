"""Hooks and wrappers on blocks, which would have no effect."""

import pytest
from support.small import loop_pipe

from stepcache import accelerate
from stepcache.errors import UnsupportedUNet


def hook_a_block(unet):
    unet.up_blocks[1].register_forward_hook(lambda *args: None)


def patch_a_block(unet):
    unet.down_blocks[0].forward = lambda *args, **kwargs: None


def compile_a_block(unet):
    unet.down_blocks[1].compile(backend="eager")


@pytest.mark.parametrize(
    "touch, name",
    [(hook_a_block, "up_blocks.1"), (patch_a_block, "down_blocks.0"), (compile_a_block, "down_blocks.1")],
)
def test_what_sits_on_a_block_is_refused(touch, name):
    pipe = loop_pipe("least")
    touch(pipe.unet)
    with pytest.raises(UnsupportedUNet, match=f"{name} has .* of its own"):
        accelerate(pipe)
    pipe = accelerate(loop_pipe("least"))
    touch(pipe.unet)
    with pytest.raises(UnsupportedUNet, match=name):
        pipe(2)
