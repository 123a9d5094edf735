"""Weights in channels_last: images and values stay the same, and restore puts every stride back."""

import copy
import logging
from types import SimpleNamespace

import accelerate as hf_accelerate
import numpy as np
import pytest
import torch
from support.layouts import ENGINES, Weights, addresses, close, images, in_place, kernels, laid_out
from support.small import (
    ONE_LEVEL,
    demo_pipe,
    loop_pipe,
    make_unet,
    own_demo,
    state_of,
)

from stepcache import accelerate, last_run, restore
from stepcache.errors import BranchOutOfRange, InvalidSetting
from stepcache.run import channels_last as module
from stepcache.run.attach import attachment_of
from stepcache.run.channels_last import ChannelsLast, Part


def test_a_pipelines_images_and_weights():
    pipe = own_demo()
    odd, own = pipe.unet.conv_in.weight, pipe.unet.conv_out.weight
    odd.data = odd.data.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)
    own.data = own.data.contiguous(memory_format=torch.channels_last)
    weights, decoder = Weights(pipe.unet), Weights(pipe.vae)
    want, own_address, modules = images(accelerate(pipe, 3)), own.data_ptr(), state_of(pipe).modules
    weights.assert_restored()
    before = addresses(pipe.unet)
    accelerate(pipe, 3, channels_last=True)
    assert in_place(pipe.unet) and own.data_ptr() == own_address
    assert (
        sum(now != then for now, then in zip(addresses(pipe.unet), before, strict=True)) == len(kernels(pipe.unet)) - 1
    )
    weights.assert_same_values()
    decoder.assert_restored()
    laid = addresses(pipe.unet)
    close(images(pipe), want)
    assert last_run(pipe).kinds == "FPPFPP"
    assert addresses(pipe.unet) == laid and state_of(pipe).modules == modules
    restore(pipe)
    weights.assert_restored()
    assert own.is_contiguous(memory_format=torch.channels_last) and own.data_ptr() == own_address
    assert torch.equal(images(accelerate(pipe, 3)), want)


@pytest.mark.parametrize("engine", ENGINES)
def test_engines(engine):
    pipe = loop_pipe("least", **(ONE_LEVEL if engine == "compiled" else {}))
    weights = Weights(pipe.unet)
    want = accelerate(pipe, 3)(6)
    accelerate(pipe, 3, channels_last=True, **ENGINES[engine])
    close(pipe(6), want)
    again = pipe(6)
    close(again, want)
    assert last_run(pipe).captures == last_run(pipe).compile_seconds == 0
    assert in_place(pipe.unet)
    restore(pipe)
    weights.assert_restored()
    assert torch.equal(accelerate(pipe, 3)(6), want)


def test_by_default_weights_on_a_cpu_stay_as_they_are():
    for options in ({}, {"channels_last": "auto"}, {"channels_last": False}):
        pipe = loop_pipe("least")
        weights, before = Weights(pipe.unet), addresses(pipe.unet)
        accelerate(pipe, 3, **options)(4)
        weights.assert_restored()
        assert addresses(pipe.unet) == before
        restore(pipe)
        assert addresses(pipe.unet) == before


@pytest.mark.parametrize("device", ["cuda:0", torch.device("cuda"), 0])
def test_auto_is_for_models_that_hooks_take_to_cuda(device):
    unet, layout = make_unet("least"), ChannelsLast("auto")
    hook = SimpleNamespace(execution_device="cpu")
    unet._hf_hook = SimpleNamespace(hooks=[hook])
    layout.hold([Part("U-Net", unet, unet)])
    assert not in_place(unet)
    hook.execution_device = device
    layout.hold([Part("U-Net", unet, unet)])
    assert in_place(unet)
    layout.close()
    assert not in_place(unet)


def test_values_that_there_are_not():
    pipe = loop_pipe("least")
    for value in (None, 1, "always", torch.channels_last):
        with pytest.raises(InvalidSetting, match='channels_last must be "auto", True or False, got'):
            accelerate(pipe, channels_last=value)


def test_what_cannot_be_accelerated_keeps_its_weights():
    pipe = loop_pipe("least")
    before = addresses(pipe.unet)
    with pytest.raises(BranchOutOfRange):
        accelerate(pipe, branch=99, channels_last=True)
    assert addresses(pipe.unet) == before


@pytest.mark.parametrize("accelerated_before", [False, True])
def test_out_of_memory_halfway(monkeypatch, accelerated_before):
    pipe = loop_pipe("least")
    weights = Weights(pipe.unet)
    if accelerated_before:
        accelerate(pipe, interval=2)
    count, lay = [], module.lay

    def fails(*args):
        count.append(1)
        if len(count) == 5:
            raise torch.OutOfMemoryError
        lay(*args)

    monkeypatch.setattr(module, "lay", fails)
    with pytest.raises(torch.OutOfMemoryError):
        accelerate(pipe, channels_last=True)
    weights.assert_restored()
    assert (attachment_of(pipe) is not None) == accelerated_before


def test_accelerating_again_re_lays_nothing_twice():
    pipe = accelerate(loop_pipe("least"), 3, channels_last=True)
    laid = addresses(pipe.unet)
    accelerate(pipe, 2, channels_last=True)
    assert addresses(pipe.unet) == laid and in_place(pipe.unet)
    accelerate(pipe, 2, channels_last=False)
    assert not in_place(pipe.unet)
    restore(accelerate(pipe, 2, channels_last=True))
    assert not in_place(pipe.unet)


CHANGES = {
    "another dtype and back": lambda unet: unet.to(torch.float64).to(torch.float32),
    "to": lambda unet: unet.to("cpu"),
    "stock layout": lambda unet: unet.to(memory_format=torch.contiguous_format),
    "new data": lambda unet: [
        setattr(p, "data", p.data.clone(memory_format=torch.contiguous_format)) for p in kernels(unet)
    ],
    "new parameters": lambda unet: unet.load_state_dict(make_unet("least").state_dict(), assign=True),
    "new modules": lambda unet: setattr(unet, "conv_in", copy.deepcopy(make_unet("least").conv_in)),
    "new parameters with the old strides": lambda unet: unet.load_state_dict(
        {name: value.clone() for name, value in unet.state_dict().items()}, assign=True
    ),
}


@pytest.mark.parametrize(
    "change, engine",
    [*((change, "eager") for change in CHANGES), ("stock layout", "captured"), ("new modules", "captured")],
)
def test_weights_that_are_moved_or_replaced_in_between(change, engine):
    pipe, stock = loop_pipe("least"), make_unet("least")
    want = accelerate(pipe, 3)(6)
    accelerate(pipe, 3, channels_last=True, **ENGINES[engine])
    close(pipe(6), want)
    CHANGES[change](pipe.unet)
    pipe.unet.requires_grad_(False)
    close(pipe(6), want)
    assert in_place(pipe.unet)
    restore(pipe)
    for (name, now), then in zip(pipe.unet.named_parameters(), stock.parameters(), strict=True):
        assert torch.equal(now, then) and now.stride() == then.stride(), name


def test_parameters_that_are_replaced_often_are_forgotten():
    pipe = accelerate(loop_pipe("least"), 3, channels_last=True)
    count = len(kernels(pipe.unet))
    for _ in range(3):
        CHANGES["new parameters"](pipe.unet)
        pipe(1)
    ((_, share),) = attachment_of(pipe).layout._shares
    assert len(share._held) == count
    restore(pipe)
    assert not share._held and not any(p in module._origins for p in pipe.unet.parameters())


def test_a_layout_that_the_user_gives_in_the_meantime_is_restored():
    pipe = accelerate(loop_pipe("least"), 3, channels_last=True)
    weight = pipe.unet.conv_out.weight
    odd = weight.data.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)
    weight.data = odd
    assert restore(pipe).unet.conv_out.weight.data_ptr() == odd.data_ptr()
    accelerate(pipe, 3, channels_last=True)
    weight.data = plain = odd.contiguous()
    pipe(4)
    assert in_place(pipe.unet)
    restore(pipe)
    assert weight.stride() == plain.stride() != odd.stride()


def test_a_weight_of_another_shape_is_left_to_the_user():
    pipe = accelerate(loop_pipe("least"), 3, channels_last=True)
    weight = pipe.unet.conv_in.weight
    weight.data = torch.zeros(8, 9, 3, 3).contiguous(memory_format=torch.channels_last)
    address = weight.data_ptr()
    restore(pipe)
    assert weight.data_ptr() == address and not any(laid_out(pipe.unet)[1:])


def test_a_hook_on_the_model_moves_it_as_it_is():
    pipe = loop_pipe("least")
    weights = Weights(pipe.unet)
    want = accelerate(pipe, 3)(6)
    hf_accelerate.cpu_offload_with_hook(pipe.unet, execution_device="cpu")
    accelerate(pipe, 3, channels_last=True)
    close(pipe(6), want)
    assert in_place(pipe.unet)
    restore(pipe)
    weights.assert_restored()


def test_hooks_on_the_layers_are_not_interfered_with(caplog):
    pipe = loop_pipe("least")
    want = accelerate(pipe, 3)(6)
    restore(pipe)
    hf_accelerate.cpu_offload(pipe.unet, torch.device("cpu"))
    accelerate(pipe, 3, channels_last=True)
    for _ in range(2):
        assert torch.equal(pipe(6), want)
    assert caplog.text.count("offload the U-Net layer by layer") == 1
    hf_accelerate.hooks.remove_hook_from_submodules(pipe.unet)
    assert not in_place(pipe.unet)
    close(pipe(6), want)
    assert in_place(pipe.unet)
    restore(pipe)
    assert not in_place(pipe.unet)


def test_hooks_on_the_layers_that_come_and_go_in_the_meantime():
    """They make new Parameters with the old strides."""
    pipe = loop_pipe("least")
    want = accelerate(pipe, 3)(6)
    accelerate(pipe, 3, channels_last=True)
    hf_accelerate.cpu_offload(pipe.unet, torch.device("cpu"))
    close(pipe(6), want)
    hf_accelerate.hooks.remove_hook_from_submodules(pipe.unet)
    assert in_place(pipe.unet)
    restore(pipe)
    assert not in_place(pipe.unet)
    assert torch.equal(accelerate(pipe, 3)(6), want)


def test_group_offloading_is_not_interfered_with():
    pipe = loop_pipe("least")
    weights = Weights(pipe.unet)
    pipe.unet.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    before = addresses(pipe.unet)
    accelerate(pipe, 3, channels_last=True)(4)
    assert addresses(pipe.unet) == before
    restore(pipe)
    weights.assert_restored()


def test_inference_mode_leaves_ordinary_weights():
    pipe = accelerate(loop_pipe("least"), 3, channels_last=True)
    pipe.unet.to(memory_format=torch.contiguous_format)
    with torch.inference_mode():
        pipe(4)
    assert in_place(pipe.unet) and not any(p.is_inference() for p in pipe.unet.parameters())
    with torch.inference_mode():
        restore(pipe)
    assert not in_place(pipe.unet) and not any(p.is_inference() for p in pipe.unet.parameters())
    pipe.unet.requires_grad_(True)
    pipe.unet.conv_in(torch.randn(1, 4, 8, 8)).sum().backward()


def test_weights_that_come_from_the_meta_device():
    unet, layout = make_unet("least").to("meta"), ChannelsLast(True)
    for load in (False, True):
        if load:
            unet.load_state_dict(make_unet("least").state_dict(), assign=True)
        layout.hold([Part("U-Net", unet, unet)])
        assert in_place(unet) == load
    layout.close()
    assert not in_place(unet)


def test_the_vaes_decoder():
    pipe = own_demo()
    unet, vae = Weights(pipe.unet), Weights(pipe.vae)
    want = images(accelerate(pipe, 3))
    for options in (ENGINES["captured"], ENGINES["eager"]):
        accelerate(pipe, 3, vae=True, channels_last=True, **options)
        close(images(pipe), want)
        assert in_place(pipe.unet) and in_place(pipe.vae.decoder) and not in_place(pipe.vae.encoder)
        accelerate(pipe, 3, channels_last=True)
        assert in_place(pipe.unet) and not in_place(pipe.vae.decoder)
        accelerate(pipe, 3, vae=True, channels_last=True, **options)
        assert in_place(pipe.vae.decoder)
        old, pipe.vae = pipe.vae, copy.deepcopy(demo_pipe().vae)
        close(images(pipe), want)
        assert in_place(pipe.vae.decoder) and not in_place(old.decoder)
        pipe.vae = old
        restore(pipe)
        unet.assert_restored(), vae.assert_restored()


@pytest.mark.parametrize("engine", ["eager", "captured"])
def test_restore_mid_run(engine):
    """The run continues with the weights it started with."""
    pipe = loop_pipe("least")
    weights = Weights(pipe.unet)
    want = accelerate(pipe, 3)(6)
    accelerate(pipe, 3, channels_last=True, **ENGINES[engine])
    during = []

    def once(pipe, i):
        if i == 1:
            restore(pipe)
        during.append(in_place(pipe.unet))

    close(pipe(6, on_step=once), want)
    assert during == [True] * 6
    weights.assert_restored()


def test_it_is_told_once(caplog):
    caplog.set_level(logging.INFO, "stepcache")
    pipe = loop_pipe("least")
    accelerate(pipe, 3, channels_last=True)
    pipe(4)
    assert caplog.messages.count(f"put {len(kernels(pipe.unet))} weights of the U-Net into channels_last") == 1


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{"compile": False, "cuda_graphs": False}, {"compile": False}, {}], ids=str)
def test_on_a_gpu(options):
    pipe = own_demo()
    unet, vae = Weights(pipe.unet), Weights(pipe.vae)
    accelerate(pipe, 3, vae=True, **options)
    assert not in_place(pipe.unet)
    pipe.to("cuda")
    want = images(accelerate(pipe, 3, compile=False, cuda_graphs=False, channels_last=False))
    accelerate(pipe, 3, vae=True, **options)
    assert in_place(pipe.unet) and in_place(pipe.vae.decoder)
    for _ in range(2):
        assert np.abs(images(pipe) - want).max() < 0.02
    restore(pipe)
    pipe.to("cpu")
    unet.assert_restored(), vae.assert_restored()
