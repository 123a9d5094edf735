"""Weights in channels_last that several pipes, copies, files and threads have, and that outlive a pipe."""

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from support.layouts import ENGINES, Weights, addresses, close, images, in_place
from support.small import (
    LoopPipe,
    captured,
    demo_pipe,
    loop_pipe,
    make_unet,
    own_demo,
    tiny_pipe,
)

from stepcache import accelerate, last_run, restore
from stepcache.run import channels_last as module
from stepcache.run.attach import attachment_of


def test_two_pipes_on_one_unet():
    first, second = (demo_pipe(unet=unet) for unet in [tiny_pipe().unet] * 2)
    weights = Weights(first.unet)
    want = images(accelerate(first, 3))
    accelerate(first, 3, channels_last=True), captured(second, 3, channels_last=True)
    close(images(first), want), close(images(second), want)
    restore(first)
    assert in_place(second.unet)
    close(images(second), want)
    assert last_run(second).captures == 0
    restore(second)
    weights.assert_restored()


def test_one_that_does_not_ask_sees_what_another_asks_for():
    asks, other = (LoopPipe(unet, loop_pipe("least").scheduler) for unet in [make_unet("least")] * 2)
    weights = Weights(asks.unet)
    captured(other, 3)
    want = other(6)
    accelerate(asks, 3, channels_last=True)
    close(other(6), want)
    assert last_run(other).captures == 2
    restore(other)
    assert in_place(asks.unet)
    captured(other, 3)(6)
    restore(asks)
    weights.assert_restored()
    assert torch.equal(other(6), want) and last_run(other).captures == 2


def test_unets_that_share_parameters():
    unet = make_unet("least")
    twin = copy.deepcopy(unet, {id(p): p for p in unet.parameters()})
    assert twin is not unet and addresses(twin) == addresses(unet)
    weights = Weights(unet)
    pipes = [accelerate(LoopPipe(each, loop_pipe("least").scheduler), 3, channels_last=True) for each in (unet, twin)]
    pipes[0](4)
    restore(pipes[0])
    assert in_place(unet)
    pipes[1](4)
    restore(pipes[1])
    weights.assert_restored()


def test_what_is_saved_is_what_would_have_been(tmp_path):
    pipe = own_demo()
    pipe.save_pretrained(tmp_path / "plain")
    pipe.unet.save_pretrained(tmp_path / "plain unet", max_shard_size="200KB")
    accelerate(pipe, 3, vae=True, channels_last=True)
    want = images(pipe)
    pipe.save_pretrained(tmp_path / "fast")
    pipe.unet.save_pretrained(tmp_path / "fast unet", max_shard_size="200KB")
    for one, other in (("plain", "fast"), ("plain unet", "fast unet")):
        names = sorted(p.relative_to(tmp_path / one) for p in (tmp_path / one).rglob("*") if p.is_file())
        assert len(names) > 2 and len(list((tmp_path / other).rglob("*"))) == len(list((tmp_path / one).rglob("*")))
        for name in names:
            assert (tmp_path / one / name).read_bytes() == (tmp_path / other / name).read_bytes(), name
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path / "fast", torch_dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    assert not in_place(loaded.unet)
    close(images(accelerate(loaded, 3)), want)


def test_other_ways_to_save_a_unet(tmp_path):
    pipe = accelerate(loop_pipe("least"), 3, channels_last=True)
    weights = Weights(pipe.unet)
    pipe.unet.save_pretrained(tmp_path, safe_serialization=False)
    loaded = UNet2DConditionModel.from_pretrained(tmp_path, use_safetensors=False)
    torch.save(pipe.unet.state_dict(), tmp_path / "state")
    plain = make_unet("least")
    plain.load_state_dict(torch.load(tmp_path / "state"))
    for model in (loaded, plain):
        for (_, want, _), got in zip(weights.then.values(), model.parameters(), strict=True):
            assert torch.equal(got, want)
    assert not in_place(plain)
    # The state dict still shares the model's memory: writing to it changes the model.
    state = pipe.unet.state_dict()
    state["conv_in.weight"].zero_()
    assert not pipe.unet.conv_in.weight.any()


@pytest.mark.parametrize("after_a_run", [False, True])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))])
def test_copies_and_pickles(copied, after_a_run):
    pipe = loop_pipe("least")
    weights = Weights(pipe.unet)
    want = accelerate(pipe, 3)(6)
    accelerate(pipe, 3, channels_last=True)
    other = copied(copied(pipe))
    restore(pipe)
    weights.assert_restored()
    assert in_place(other.unet)
    if after_a_run:
        close(other(6), want)
    restore(other)
    assert [p.stride() for p in other.unet.parameters()] == [p.stride() for p in pipe.unet.parameters()]
    assert torch.equal(accelerate(other, 3)(6), want)


def test_a_shallow_copy_needs_the_same_weights():
    pipe = accelerate(loop_pipe("least"), 3, channels_last=True)
    other = copy.copy(pipe)
    other(4)
    restore(pipe)
    assert in_place(other.unet)
    restore(other)
    assert not in_place(pipe.unet)


def test_a_copy_of_the_unet_alone_keeps_its_layout():
    pipe = accelerate(loop_pipe("least"), 3, channels_last=True)
    unet = copy.deepcopy(pipe.unet)
    restore(pipe)
    restore(accelerate(LoopPipe(unet, pipe.scheduler), 3, channels_last=True))
    assert in_place(unet) and not in_place(pipe.unet)


def test_a_pipe_that_is_gone_leaves_its_weights_to_the_next():
    unet = make_unet("least")
    weights = Weights(unet)
    pipe = accelerate(LoopPipe(unet, loop_pipe("least").scheduler), 3, channels_last=True)
    pipe(4)
    laid = addresses(unet)
    del pipe
    gc.collect()
    assert addresses(unet) == laid
    following = accelerate(LoopPipe(unet, loop_pipe("least").scheduler), 3, channels_last=True)
    following(4)
    assert addresses(unet) == laid
    restore(following)
    weights.assert_restored()
    assert not any(parameter in module._origins for parameter in unet.parameters())


def test_a_pipe_that_is_gone_but_not_collected_needs_nothing():
    unet = make_unet("least")
    first, second = (accelerate(LoopPipe(unet, loop_pipe("least").scheduler), 3, channels_last=True) for _ in range(2))
    gc.disable()
    try:
        kept = attachment_of(first)  # as a reference cycle would
        del first
        restore(second)
        assert kept is not None and not in_place(unet)
    finally:
        gc.enable()


def test_another_unet_put_into_the_pipe():
    pipe = accelerate(loop_pipe("least"), 3, channels_last=True)
    first = pipe.unet
    pipe(4)
    pipe.unet = make_unet("one layer")
    pipe(4)
    assert in_place(pipe.unet) and not in_place(first)
    second, pipe.unet = pipe.unet, None
    restore(pipe)
    assert not in_place(second)


def test_a_unet_that_is_dropped_takes_its_weights_along():
    pipe = accelerate(loop_pipe("least"), 3, channels_last=True)
    pipe(4)
    weight = weakref.ref(pipe.unet.conv_in.weight)
    gc.disable()
    try:
        pipe.unet = None
        assert weight() is None
    finally:
        gc.enable()


def test_threads_that_come_and_go():
    unet, errors = make_unet("least"), []
    weights = Weights(unet)
    want = accelerate(LoopPipe(unet, loop_pipe("least").scheduler), 3)(6)

    def work(options):
        try:
            for _ in range(4):
                pipe = accelerate(LoopPipe(unet, loop_pipe("least").scheduler), 3, channels_last=True, **options)
                close(pipe(6), want)
                restore(pipe)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(ENGINES[name],)) for name in ("eager", "captured")]
    held = accelerate(LoopPipe(unet, loop_pipe("least").scheduler), 3, channels_last=True)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    restore(held)
    weights.assert_restored()
