from diffusers import StableDiffusionXLAutoBlocks
from support.modular import modular_pipe
from support.small import loop_pipe, tiny_pipe

from stepcache import accelerate
from stepcache.pipes.modular import blocks_of, inputs_of, is_modular


def test_which_pipes_are_modular():
    assert is_modular(modular_pipe()) and is_modular(accelerate(modular_pipe()))
    assert not is_modular(tiny_pipe()) and not is_modular(loop_pipe("least"))


def test_inputs():
    auto = inputs_of(modular_pipe())
    assert {"prompt", "image", "height", "latents", "output_type"} < auto.keys() and not any(auto.values())
    inpainting = inputs_of(modular_pipe(blocks=StableDiffusionXLAutoBlocks().get_workflow("inpainting")))
    assert [name for name, needed in inpainting.items() if needed] == ["image", "mask_image"]


def test_blocks_are_the_pipes_own():
    pipe = modular_pipe()
    names = {type(block).__name__: block for block in blocks_of(pipe)}
    assert names["StableDiffusionXLAutoBlocks"] is pipe._blocks and "StableDiffusionXLDenoiseStep" in names
