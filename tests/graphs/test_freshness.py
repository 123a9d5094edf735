"""What makes captured graphs stale, and what does not: changes to the U-Net between and within runs."""

import copy

import pytest
import torch
from support.changes import move_the_data, other_processor, replace_weight
from support.small import (
    ATTENDED,
    LoopPipe,
    captured,
    demo_pipe,
    generate,
    loop_pipe,
    tiny_pipe,
)

from stepcache import accelerate, last_run


def test_a_unet_that_changes_at_every_step_is_given_up(caplog):
    """A callback that changes a module's setting after each step makes every capture stale."""
    pipe = loop_pipe("least", **ATTENDED)
    attention = pipe.unet.up_blocks[0].attentions[-1].transformer_blocks[0].attn1
    scale = attention.scale

    def on_step(pipe, i):
        attention.scale = scale * (1 + i)

    def run():
        attention.scale = scale
        return pipe(12, on_step=on_step)

    accelerate(pipe, 2)
    want = run()
    captured(pipe, 2)
    for _ in range(2):
        assert torch.equal(run(), want)
    assert last_run(pipe).captures == 0
    assert "settings of the U-Net keep changing" in caplog.text


@pytest.mark.parametrize("name, captures", [("conv_in", 2), ("down_blocks.0.resnets.0.conv1", 1)])
def test_a_weight_of_other_strides_at_the_old_address_is_captured_again(name, captures):
    """A re-laid weight may return to its old address, but a captured kernel expects its old layout."""
    pipe = captured(loop_pipe("least", **ATTENDED), 3)
    pipe(6)
    weight = pipe.unet.get_submodule(name).weight
    address, values = weight.data_ptr(), weight.detach().clone(memory_format=torch.channels_last)
    weight.data = weight.data.as_strided(weight.shape, values.stride())
    weight.data.copy_(values)
    assert weight.data_ptr() == address
    got = pipe(6)
    assert last_run(pipe).captures == captures
    torch.testing.assert_close(got, accelerate(loop_pipe("least", **ATTENDED), 3)(6), rtol=0, atol=1e-5)
    pipe(6)
    assert last_run(pipe).captures == 0


def replace_a_weight(unet):
    replace_weight(unet.up_blocks[-1].resnets[-1].conv1)


def reload(unet):
    unet.load_state_dict({k: v * 1.01 for k, v in unet.state_dict().items()}, assign=True)


def freeu(unet):
    unet.enable_freeu(0.9, 0.2, 1.2, 1.4)


@pytest.mark.parametrize("change", [replace_a_weight, move_the_data, reload, freeu, other_processor])
def test_captured_again_after(change):
    pipe = captured(loop_pipe("least", **ATTENDED), 3)
    pipe(4)
    change(pipe.unet)
    got = pipe(6)
    assert last_run(pipe).captures == 2
    want = accelerate(LoopPipe(copy.deepcopy(pipe.unet), copy.deepcopy(pipe.scheduler)), 3)(6)
    assert torch.equal(got, want)
    pipe(6)
    assert last_run(pipe).captures == 0


def check_an_update_in_place_is_seen(pipe, before):
    """By the graphs that are there already. before: the latents until now."""
    with torch.no_grad():
        pipe.unet.conv_out.weight.mul_(1.1)
    after = pipe(6)
    assert last_run(pipe).captures == 0
    assert not torch.equal(before, after)
    assert torch.equal(after, accelerate(LoopPipe(pipe.unet, pipe.scheduler), 3)(6))


def test_weights_that_return_to_their_old_addresses_need_no_capture():
    """Moved away and back, a model's weights are often new storages in the old memory, which the graphs still read."""
    pipe = captured(loop_pipe("least", **ATTENDED), 3)
    memory = [bytearray(t.untyped_storage().tolist()) for t in pipe.unet.parameters()]

    def load():
        for parameter, bytes_ in zip(pipe.unet.parameters(), memory, strict=True):
            parameter.data = torch.frombuffer(bytes_, dtype=torch.float32).view(parameter.shape)

    load()
    before = pipe(6)
    load()
    check_an_update_in_place_is_seen(pipe, before)


def test_not_captured_again_after_an_update_in_place():
    pipe = captured(loop_pipe("least", **ATTENDED), 3)
    check_an_update_in_place_is_seen(pipe, before=pipe(6))


def test_lora_load_scale_fuse_and_unload():
    from peft import LoraConfig

    pipe = tiny_pipe(unet=ATTENDED)
    plain = demo_pipe(unet=pipe.unet)
    captured(pipe, 3), accelerate(plain, 3)

    def check(captures):
        assert torch.equal(generate(pipe), generate(plain))
        assert last_run(pipe).captures == captures

    check(2)
    check(0)
    torch.manual_seed(0)
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False), "a")
    check(2)
    pipe.unet.set_adapters(["a"], weights=[0.3])
    check(2)
    check(0)
    pipe.unet.fuse_lora()
    check(2)
    pipe.unet.unfuse_lora()
    check(2)
    pipe.unet.fuse_lora()
    check(2)
    pipe.unet.unfuse_lora()
    check(2)
    pipe.unet.disable_adapters()
    check(2)
    pipe.unet.delete_adapters("a")
    check(2)


def replace_a_deep_weight(unet):
    layer = unet.down_blocks[0].resnets[0].conv1
    layer.weight = torch.nn.Parameter(layer.weight * 1.5, requires_grad=False)


@pytest.mark.parametrize("change, captures", [(replace_a_weight, 4), (replace_a_deep_weight, 3)])
def test_a_change_in_mid_run_is_seen_at_once(change, captures):
    """Partial steps check the modules they run; the next full step checks the others."""

    def run(pipe):
        result = pipe(9, on_step=lambda pipe, i: i == 3 and change(pipe.unet))
        assert last_run(pipe).kinds == "FPPFPPFPP"
        return result

    pipe = captured(loop_pipe("least", **ATTENDED), 3)
    got = run(pipe)
    assert last_run(pipe).captures == captures
    assert torch.equal(got, run(accelerate(loop_pipe("least", **ATTENDED), 3)))
