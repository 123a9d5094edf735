"""What accelerate changes, and that restored, copied and saved pipes show none of it."""

import copy
import gc
import inspect
import json
import pickle
import weakref

import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline
from support.small import (
    BETAS,
    LoopPipe,
    demo_pipe,
    engine_of,
    generate,
    loop_pipe,
    make_inputs,
    make_unet,
    sdxl_pipe,
    state_of,
    tiny_pipe,
)

from stepcache import accelerate, denoising, last_run, restore
from stepcache.errors import (
    BranchOutOfRange,
    NotAccelerated,
)
from stepcache.graphs.standin import StandInBackend
from stepcache.run.attach import attachment_of
from stepcache.run.current import runs


def test_returns_the_same_pipe_of_the_same_name():
    pipe = tiny_pipe()
    assert accelerate(pipe) is pipe
    assert isinstance(pipe, StableDiffusionPipeline)
    assert type(pipe).__name__ == "StableDiffusionPipeline"
    assert inspect.signature(pipe.__call__) == inspect.signature(tiny_pipe().__call__)
    assert restore(pipe) is pipe
    assert type(pipe) is StableDiffusionPipeline


@pytest.mark.parametrize("make", [demo_pipe, sdxl_pipe])
def test_restore_leaves_everything_as_it_was(make):
    pipe = make()
    want = generate(pipe)
    before = state_of(pipe)
    accelerate(pipe, interval=3, branch=2)
    during = state_of(pipe)
    assert (during.pipe, during.modules, during.classes) == (before.pipe, before.modules, before.classes)
    assert not torch.equal(generate(pipe), want)
    restore(pipe)
    after = state_of(pipe)
    # The pipeline itself stores steps and guidance in a call; the call before `accelerate` stored the same.
    assert after == before
    assert torch.equal(generate(pipe), want)
    assert restore(restore(pipe)) is pipe
    assert state_of(pipe) == before


def test_interval_1_is_the_original_bit_for_bit():
    pipe = tiny_pipe()
    want = generate(pipe, output_type="np")
    assert (generate(accelerate(pipe, interval=1), output_type="np") == want).all()


def test_accelerating_twice_replaces():
    pipe = tiny_pipe()
    accelerate(pipe, interval=2)
    generate(pipe)
    accelerate(accelerate(pipe, interval=3), interval=4, branch=1)
    assert type(pipe).__base__ is StableDiffusionPipeline
    generate(pipe)
    assert last_run(pipe).kinds == "FPPPFP"
    restore(pipe)
    assert type(pipe) is StableDiffusionPipeline


def test_outside_a_run_the_unet_is_the_original():
    pipe = accelerate(loop_pipe("least"), interval=2)
    pipe(4)
    assert "forward" not in vars(pipe.unet) and "step" not in vars(pipe.scheduler)
    inputs = make_inputs(pipe.unet)
    with torch.no_grad():
        first, second = pipe.unet(**inputs).sample, pipe.unet(**inputs).sample
    assert torch.equal(first, second)
    assert last_run(pipe).kinds == "FPFP"


def test_the_watched_step_keeps_its_signature():
    """Pipelines inspect it to decide whether to pass eta and generator."""
    pipe = accelerate(loop_pipe("least"), interval=2)
    want = inspect.signature(pipe.scheduler.step)
    with denoising(pipe):
        assert "step" in vars(pipe.scheduler)
        assert inspect.signature(pipe.scheduler.step) == want
    assert "step" not in vars(pipe.scheduler)


def test_swapped_scheduler():
    pipe = accelerate(loop_pipe("least"), interval=2)
    pipe(4)
    first = pipe.scheduler
    pipe.scheduler = EulerDiscreteScheduler(**BETAS)
    got = pipe(5)
    assert last_run(pipe).kinds == "FPFPF"
    assert "step" not in vars(first) and "step" not in vars(pipe.scheduler)
    assert torch.equal(got, accelerate(loop_pipe("least", scheduler=EulerDiscreteScheduler(**BETAS)), interval=2)(5))


def test_another_unet_put_into_the_pipe():
    pipe = accelerate(loop_pipe("sd"), interval=2, branch=0)
    pipe(4)
    pipe.unet = make_unet("one layer")
    got = pipe(4)
    assert torch.equal(got, accelerate(loop_pipe("one layer"), interval=2)(4))
    accelerate(pipe, interval=2, branch=5)
    pipe.unet = make_unet("inpaint", in_channels=4)
    accelerate(pipe, interval=2, branch=5)
    pipe.unet = make_unet(
        "no mid block", block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",)
    )
    with pytest.raises(BranchOutOfRange, match="branch=5"):
        pipe(4)


def test_deepcopy_is_an_accelerated_pipe_of_its_own():
    pipe = accelerate(loop_pipe("least"), interval=3)
    want = pipe(6)
    copied = copy.deepcopy(pipe)
    assert type(copied) is not type(pipe) and type(copied).__base__ is LoopPipe
    assert copied.unet is not pipe.unet
    assert torch.equal(copied(6), want)
    assert last_run(copied).kinds == "FPPFPP"
    restore(copied)
    assert torch.equal(pipe(6), want)
    assert not torch.equal(copied(6), want)


def test_deepcopy_of_a_diffusers_pipeline():
    pipe = accelerate(tiny_pipe(), interval=3)
    want = generate(pipe)
    copied = copy.deepcopy(pipe)
    assert torch.equal(generate(copied), want)
    assert last_run(copied).kinds == "FPPFPP"


def test_pickle_keeps_the_settings():
    pipe = accelerate(loop_pipe("least"), interval=3)
    want = pipe(6)
    copied = pickle.loads(pickle.dumps(pipe))
    assert torch.equal(copied(6), want)
    assert last_run(copied).kinds == "FPPFPP"


def test_save_pretrained_saves_what_the_original_would(tmp_path):
    pipe = tiny_pipe()
    pipe.save_pretrained(tmp_path / "plain")
    accelerate(pipe, interval=3)
    generate(pipe)
    pipe.save_pretrained(tmp_path / "fast")
    names = sorted(p.relative_to(tmp_path / "plain") for p in (tmp_path / "plain").rglob("*") if p.is_file())
    assert len(names) > 8
    for name in names:
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "fast" / name).read_bytes(), name
    index = json.loads((tmp_path / "fast" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert len(list((tmp_path / "fast").rglob("*"))) == len(list((tmp_path / "plain").rglob("*")))


def test_to_another_dtype_after_accelerate():
    pipe = accelerate(copy.deepcopy(sdxl_pipe()), interval=2)  # a copy: its parts are shared between tests
    generate(pipe, steps=4)
    pipe.unet.to(torch.bfloat16), pipe.text_encoder.to(torch.bfloat16), pipe.text_encoder_2.to(torch.bfloat16)
    latents = generate(pipe, steps=4)
    assert last_run(pipe).kinds == "FPFP"
    assert latents.dtype == torch.bfloat16 and latents.isfinite().all()


def test_restore_and_the_pipes_end_free_the_buffers():
    for end in (restore, lambda pipe: None):
        pipe = accelerate(loop_pipe("least"), interval=2)
        pipe(4)
        (bucket,) = engine_of(pipe).unet_graphs.buckets.held.values()
        feature, unet = weakref.ref(bucket.slots[0].values[0].tensors[0]), weakref.ref(pipe.unet)
        del bucket
        gc.disable()  # reference counting alone must free the memory
        try:
            end(pipe)
            if end is restore:
                assert feature() is None
            del pipe
            assert feature() is None and unet() is None
        finally:
            gc.enable()


@pytest.mark.parametrize("again", [restore, lambda pipe: accelerate(pipe, interval=2)])
def test_restore_or_accelerate_in_a_run_frees_that_runs_buffers(again):
    pipe = accelerate(loop_pipe("least"), interval=3)
    features = []

    def once(pipe, i):
        if i == 1:
            session = next(runs())
            features.append(
                weakref.ref(next(iter(session.engine.unet_graphs.buckets.held.values())).slots[0].values[0].tensors[0])
            )
            again(pipe)

    pipe(6, on_step=once)
    gc.collect()
    assert features[0]() is None


def test_a_unet_that_is_dropped_takes_graphs_and_weights_along():
    pipe = accelerate(loop_pipe("least"), interval=2, cuda_graphs=StandInBackend)
    pipe(4)
    weight = weakref.ref(pipe.unet.conv_in.weight)
    backend = next(iter(engine_of(pipe).unet_graphs.buckets.held.values())).capture.backend
    pipe.unet = None
    gc.collect()
    assert weight() is None and backend.released == 1


def test_copies_made_during_a_run_are_their_own():
    """A preview in a callback steps a copy of the scheduler; a copy of the pipe runs with its own weights."""
    pipe = accelerate(loop_pipe("least", scheduler=EulerDiscreteScheduler(**BETAS)), interval=3)
    want = pipe(6)
    copies = []

    def preview(pipe, i):
        if i == 2:
            scheduler = copy.deepcopy(pipe.scheduler)
            t = scheduler.timesteps[i + 1]
            scheduler.step(torch.zeros(2, 4, 16, 16), t, torch.zeros(2, 4, 16, 16))
            copies.append(copy.deepcopy(pipe))

    assert torch.equal(pipe(6, on_step=preview), want)
    assert last_run(pipe).kinds == "FPPFPP"
    copied = copies[0]
    with torch.no_grad():
        copied.unet.conv_out.weight.zero_()
        copied.unet.conv_out.bias.zero_()
        assert not copied.unet(**make_inputs(copied.unet)).sample.any()
        assert pipe.unet(**make_inputs(pipe.unet)).sample.any()
    assert not torch.equal(copied(6), want)
    assert torch.equal(pipe(6), want)


def test_another_object_of_the_same_class_is_not_accelerated():
    pipe = accelerate(tiny_pipe(), interval=3)
    cached = generate(pipe)
    other = type(pipe)(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    assert torch.equal(generate(other), generate(tiny_pipe()))
    with pytest.raises(NotAccelerated):
        last_run(other)
    restore(other)
    assert torch.equal(generate(pipe), cached)
    assert engine_of(pipe).unet_graphs.buckets.nbytes
    accelerate(other, interval=2)
    generate(other)
    assert last_run(other).kinds == "FPFPFP" and last_run(pipe).kinds == "FPPFPP"
    assert type(restore(other)) is StableDiffusionPipeline
    assert torch.equal(generate(pipe), cached)


def test_accelerating_often_leaves_nothing_behind():
    pipe = loop_pipe("least")
    attachments = []
    for _ in range(5):
        accelerate(pipe)
        attachments.append(weakref.ref(attachment_of(pipe)))
        restore(pipe)
    gc.collect()
    assert not any(ref() for ref in attachments)


def test_offloading_hooks_stay_on_the_outside():
    """accelerate's hooks replace forward; stepcache replaces the one below them, and puts it back."""
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    class Count(ModelHook):
        calls = 0

        def pre_forward(self, module, *args, **kwargs):
            self.calls += 1
            return args, kwargs

    for order in ("before", "after"):
        pipe, hook = loop_pipe("least"), Count()
        if order == "before":
            add_hook_to_module(pipe.unet, hook)
        accelerate(pipe, interval=2)
        if order == "after":
            add_hook_to_module(pipe.unet, hook)
        pipe(4)
        assert last_run(pipe).kinds == "FPFP" and hook.calls == 4
        assert pipe.unet._old_forward.__func__ is type(pipe.unet).forward
        remove_hook_from_module(pipe.unet)
        pipe(4)
        assert last_run(pipe).kinds == "FPFP" and hook.calls == 4
