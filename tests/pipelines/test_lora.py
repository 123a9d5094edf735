"""LoRAs that come, go and change on an accelerated pipe: each time its images are those of stock with the same."""

import functools

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from peft import get_peft_model_state_dict
from support.builders import TINY, TINY_XL, sd, sdxl
from support.cases.adapters import lora
from support.cases.case import four_steps
from support.small import captured

from stepcache import accelerate, last_run, restore

# One level, with layers of a LoRA in what a partial step of branch 0 runs and in what it leaves out.
ONE_LEVEL = {
    "block_out_channels": (8,),
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
}
SD, SDXL = {**TINY, **ONE_LEVEL}, {**TINY_XL, **ONE_LEVEL}


def make_pipe():
    return sd(StableDiffusionPipeline, SD)


# Enough where each step is a full one.
two_steps = functools.partial(four_steps, num_inference_steps=2)


# In this order; each is done to every pipe.
CHANGES = {
    "load": lambda pipe: pipe.load_lora_weights(lora(pipe.unet), adapter_name="style"),
    "scale": lambda pipe: pipe.set_adapters(["style"], [0.4]),
    "load another": lambda pipe: pipe.load_lora_weights(lora(pipe.unet, 2, rank=3), adapter_name="subject"),
    "both": lambda pipe: pipe.set_adapters(["style", "subject"], [0.7, 0.5]),
    "swap": lambda pipe: pipe.set_adapters(["subject"], [1.0]),
    "disable": lambda pipe: pipe.disable_lora(),
    "enable": lambda pipe: pipe.enable_lora(),
    "a scale for each block": lambda pipe: pipe.set_adapters(
        ["subject"], [{"unet": {"down": 0.9, "mid": 0.5, "up": 0.2}}]
    ),
    "delete": lambda pipe: pipe.delete_adapters(["style"]),
    "fuse": lambda pipe: pipe.fuse_lora(lora_scale=0.6),
    "unfuse": lambda pipe: pipe.unfuse_lora(),
    "unload": lambda pipe: pipe.unload_lora_weights(),
}


SOME = ("load", "load another", "both", "fuse", "unfuse", "unload")


@pytest.mark.parametrize(
    "make, changes", [(make_pipe, CHANGES), (lambda: sdxl(StableDiffusionXLPipeline, SDXL), SOME)], ids=["sd", "sdxl"]
)
def test_changes_on_an_accelerated_pipe(make, changes):
    stock, full, reusing, replaying = (make() for _ in range(4))
    plain = four_steps(stock)
    accelerate(full, interval=1)
    accelerate(reusing, interval=3)
    captured(replaying, interval=3)
    four_steps(reusing), four_steps(replaying)
    seen = [plain]
    for name in changes:
        for pipe in (stock, full, reusing, replaying):
            CHANGES[name](pipe)
        want = four_steps(stock)
        assert torch.equal(four_steps(full), want), name
        cached = four_steps(reusing)
        assert last_run(reusing).kinds == "FPPF" and not torch.equal(cached, want), name
        assert torch.equal(four_steps(replaying), cached), name
        assert torch.equal(want, seen[-1]) == (name == "delete"), name  # of an adapter that is not in use
        seen.append(want)
    # Not to the bit: fusing and unfusing adds and subtracts.
    torch.testing.assert_close(seen[-1], plain, rtol=1e-3, atol=1e-3)
    assert torch.equal(four_steps(restore(reusing)), seen[-1])


def test_changes_in_channels_last():
    """Fusing writes to weights or replaces them; layers of a LoRA come round them and go."""
    stock, full, replaying = (make_pipe() for _ in range(3))
    loaded = {name: (p, p.stride()) for name, p in full.unet.named_parameters()}
    accelerate(full, interval=1, channels_last=True)
    captured(replaying, interval=1, channels_last=True)
    two_steps(replaying)
    for name, change in CHANGES.items():
        for pipe in (stock, full, replaying):
            change(pipe)
        want = two_steps(stock)
        for pipe in (full, replaying):
            torch.testing.assert_close(two_steps(pipe), want, rtol=1e-5, atol=1e-5, msg=name)
            weights = {n: p for n, p in pipe.unet.named_parameters() if p.dim() == 4 and "lora" not in n}
            assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights.values()), name
    assert two_steps(restore(full)).isfinite().all()
    for name, p in full.unet.named_parameters():
        assert p is loaded[name][0] and p.stride() == loaded[name][1], name
    # While it is fused, too.
    accelerate(full, interval=1, channels_last=True)
    CHANGES["load"](full), CHANGES["fuse"](full), two_steps(full)
    restore(full)
    for name, p in full.unet.named_parameters():
        if "lora" not in name:
            assert p.stride() == loaded[name.replace(".base_layer", "")][1], name


def test_a_lora_is_saved_from_a_unet_in_channels_last(tmp_path):
    stock, pipe = make_pipe(), make_pipe()
    accelerate(pipe, interval=1, channels_last=True)
    for one, name in ((stock, "stock"), (pipe, "fast")):
        CHANGES["load"](one), two_steps(one)
        layers = get_peft_model_state_dict(one.unet, adapter_name="style")
        assert any(value.dim() == 4 and value.shape[2:] != (1, 1) for value in layers.values())
        one.save_lora_weights(tmp_path / name, unet_lora_layers=layers)
    file = "pytorch_lora_weights.safetensors"
    assert (tmp_path / "stock" / file).read_bytes() == (tmp_path / "fast" / file).read_bytes()


def test_a_scale_in_the_call():
    stock, pipe, replaying = (make_pipe() for _ in range(3))
    for one in (stock, pipe, replaying):
        CHANGES["load"](one)
    accelerate(pipe, interval=1)
    captured(replaying, interval=1)
    results = []
    for scale in (1.0, 0.3, 0.0, 0.3):
        scaled = {"cross_attention_kwargs": {"scale": scale}}
        results.append(two_steps(stock, **scaled))
        assert torch.equal(two_steps(pipe, **scaled), results[-1])
        assert torch.equal(two_steps(replaying, **scaled), results[-1])
    assert not torch.equal(results[0], results[1]) and not torch.equal(results[1], results[2])
    assert torch.equal(two_steps(pipe), results[0])


def test_hot_swapping_writes_the_weights_in_place():
    """Weights of the same shapes take the place of the old ones: graphs need not be captured anew."""
    stock, pipe = make_pipe(), make_pipe()
    for one in (stock, pipe):
        one.load_lora_weights(lora(one.unet), adapter_name="style")
    captured(pipe, interval=1)
    before = two_steps(pipe)
    for one in (stock, pipe):
        one.load_lora_weights(lora(one.unet, seed=3), adapter_name="style", hotswap=True)
    after = two_steps(pipe)
    assert torch.equal(after, two_steps(stock)) and not torch.equal(after, before)
    assert last_run(pipe).captures == 0
