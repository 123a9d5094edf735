"""The CUDA path, on a GPU. Run with -m gpu.

The most important tests come first, in case a run is cut short: images, then what a run waits for and holds, then
threads and torch's other ways to compile. Each test takes seconds.
"""

import threading

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler
from support.gpu_runs import BOTH, CAPTURED, COMPILED, DEFAULT, EAGER, close, eager, inputs_of, make_pipe, run
from support.small import BETAS, LoopPipe, demo_pipe, engine_of, generate, make_unet

from stepcache import accelerate, last_run, restore, warmup

pytestmark = pytest.mark.gpu


# Images.


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_eager_without_reuse_is_the_original(name):
    pipe = make_pipe(name)
    inputs = inputs_of(pipe.unet)
    latents = inputs.pop("sample")
    with torch.no_grad():
        for t in torch.linspace(999, 1, 8, device="cuda").long():
            latents = latents - 0.1 * pipe.unet(latents, t, **inputs).sample
    assert close(eager(pipe, 1), latents)


@pytest.mark.parametrize(
    ("name", "options"),
    [("sd", CAPTURED), ("sdxl", CAPTURED), ("least", BOTH), ("sdxl", BOTH), ("least", COMPILED)],
    ids=["captured-sd", "captured-sdxl", "compiled and captured-least", "compiled and captured-sdxl", "compiled-least"],
)
def test_equals_eager(name, options):
    pipe = make_pipe(name)
    want = eager(pipe, 3, 1)
    accelerate(pipe, 3, 1, **options)
    captures = 0
    for _ in range(3):
        assert close(run(pipe), want)
        captures += last_run(pipe).captures
    assert captures == (0 if options is COMPILED else 2)
    assert not close(eager(pipe, 1), want)  # reuse shows, so another schedule would


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("options", [EAGER, CAPTURED, BOTH], ids=["eager", "captured", "compiled and captured"])
def test_joins_on_the_ops_equal_eager(options, dtype):
    pipe = make_pipe("least", block_out_channels=(64, 128), norm_num_groups=8)
    pipe.unet.to(dtype)
    want = eager(pipe, 3)
    accelerate(pipe, 3, kernels=True, predict="linear", **options)
    blended = run(pipe)
    assert close(run(pipe), blended)
    accelerate(pipe, 3, kernels=True, **options)
    assert close(run(pipe), want)


@pytest.fixture
def demo():
    """The demo pipeline on the GPU, without TF32: twenty steps with guidance enlarge its rounding beyond `close`."""
    pipe = demo_pipe()
    pipe.to("cuda")
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield pipe
    restore(pipe)
    pipe.to("cpu")


@pytest.mark.parametrize("options", [CAPTURED, BOTH], ids=["captured", "compiled and captured"])
def test_a_pipelines_images(demo, options):
    want = generate(accelerate(demo, 3, **EAGER))
    accelerate(demo, 3, **options)
    for captures in (2, 0):
        assert close(generate(demo), want)
        assert last_run(demo).captures == captures


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("options", [CAPTURED, BOTH], ids=["captured", "compiled and captured"])
def test_halves_damped_apart(demo, options, kernels):
    """The weights of each step reach the graphs, for the halves' mean and for their difference."""
    call = {"steps": 9, "guidance_scale": 7.5}
    want = generate(accelerate(demo, 3, predict=(1, -0.25), **EAGER), **call)
    accelerate(demo, 3, predict=(1, -0.25), kernels=kernels, **options)
    for _ in range(3):
        assert close(generate(demo, **call), want)
    assert not close(generate(accelerate(demo, 3, predict=1.0, **EAGER), **call), want)


@pytest.mark.parametrize("options", [CAPTURED, BOTH], ids=["captured", "compiled and captured"])
@pytest.mark.parametrize("channels_last", ["auto", True, False])
def test_the_layout_of_weights(channels_last, options):
    """Images are the same with each, and after restore all weights have their strides back (not their addresses)."""
    pipe = make_pipe("least")
    pipe.unet.half()
    before = {name: weight.stride() for name, weight in pipe.unet.named_parameters()}
    want = run(accelerate(pipe, 3, channels_last=False, **EAGER))
    for given in (EAGER, options):
        accelerate(pipe, 3, channels_last=channels_last, **given)
        for _ in range(2):
            assert close(run(pipe), want)
        restore(pipe)
        assert {name: weight.stride() for name, weight in pipe.unet.named_parameters()} == before


def test_weights_that_the_user_laid_out():
    pipe = make_pipe("sd")
    pipe.unet.half().to(memory_format=torch.channels_last)
    before = {name: weight.stride() for name, weight in pipe.unet.named_parameters()}
    want = eager(pipe)
    accelerate(pipe, 3, **CAPTURED)
    for captures in (2, 0):
        assert close(run(pipe), want)
        assert last_run(pipe).captures == captures
    restore(pipe)
    assert {name: weight.stride() for name, weight in pipe.unet.named_parameters()} == before


@pytest.mark.parametrize(
    "scheduler", [PNDMScheduler(**BETAS, skip_prk_steps=True), EulerDiscreteScheduler(**BETAS)], ids=["pndm", "euler"]
)
def test_schedulers_that_keep_raw_outputs(demo, scheduler):
    demo.scheduler = scheduler
    want = generate(accelerate(demo, 3, **EAGER))
    got = generate(accelerate(demo, 3, **CAPTURED))
    assert last_run(demo).captures == 2
    assert close(got, want)


def test_captured_again_after_a_weight_was_replaced():
    pipe = accelerate(make_pipe("sd"), 3, **CAPTURED)
    run(pipe)
    for parameter in pipe.unet.parameters():
        parameter.data = parameter.data * 1.01
    got = run(pipe)
    assert last_run(pipe).captures == 2
    restore(pipe)
    assert close(got, eager(pipe))


# What a run waits for, and what it holds.


def test_nothing_waits_for_the_device_and_addresses_stay():
    pipe = accelerate(make_pipe("sdxl"), 3, **CAPTURED)
    run(pipe)
    (bucket,) = engine_of(pipe).unet_graphs.buckets.held.values()
    address = bucket.slots[0].values[0].tensors[0].data_ptr()
    run(pipe, no_waits_from=4)
    assert last_run(pipe).captures == 0
    assert bucket.slots[0].values[0].tensors[0].data_ptr() == address


@pytest.mark.parametrize("options", [CAPTURED, BOTH], ids=["captured", "compiled and captured"])
def test_timesteps_on_the_host_are_not_waited_for(options):
    """Pipelines of DDPM, DDIM, LDM and PNDM and some loops have them there. A copy from pageable memory would wait."""
    pipe = make_pipe("least")
    timesteps = torch.linspace(999, 1, 8).long()
    want = eager(pipe, timesteps=timesteps)
    accelerate(pipe, 3, **options)
    assert close(run(pipe, timesteps=timesteps), want)
    assert close(run(pipe, timesteps=timesteps, no_waits_from=1), want)
    assert last_run(pipe).captures == 0


def test_replay_allocates_nothing_but_the_output():
    pipe = accelerate(make_pipe("sd"), 3, **CAPTURED)
    run(pipe, steps=4)
    torch.cuda.synchronize()
    counts = []
    for steps in (4, 8):
        before = torch.cuda.memory_stats()["allocation.all.allocated"]
        run(pipe, steps=steps)
        torch.cuda.synchronize()
        counts.append(torch.cuda.memory_stats()["allocation.all.allocated"] - before)
    assert last_run(pipe).captures == 0
    # Per step: the prediction, its tenth, the new latents, and a few from the loop's own indexing.
    assert counts[1] - counts[0] <= 4 * 6


def test_eviction_and_restore_give_the_memory_back():
    pipe = make_pipe("sd", sample_size=64)
    # cuBLAS allocates one workspace per stream, which is not ours to free, so have them allocated first.
    run(accelerate(pipe, 2, **CAPTURED))
    restore(pipe)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    start = torch.cuda.memory_reserved()
    accelerate(pipe, 2, max_buckets=1, **CAPTURED)
    run(pipe, batch=16)
    large = torch.cuda.memory_reserved()
    run(pipe, batch=1)
    assert torch.cuda.memory_reserved() < large
    restore(pipe)
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= start + 4 * 2**20


def test_warmup_leaves_nothing_for_the_first_request(demo):
    accelerate(demo, 3, **BOTH)
    record = warmup(demo, 64, 64, tune=False, progress=False)  # joins: test_tuning.py
    assert record.captures == 2 and record.compile_seconds > 0
    generate(demo)
    assert last_run(demo).captures == 0 and last_run(demo).compile_seconds == 0


# Threads, and torch's other ways.


def test_two_threads_with_a_stream_each():
    unet = make_unet("sd").cuda()
    pipes = [accelerate(LoopPipe(unet, DDIMScheduler(**BETAS)), n, **CAPTURED) for n in (2, 3)]
    want = [run(pipe) for pipe in pipes]
    failed = []

    def work(pipe, latents):
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                for _ in range(5):
                    if not close(run(pipe), latents):
                        failed.append("other latents")
                torch.cuda.current_stream().synchronize()
        except BaseException as error:
            failed.append(error)

    torch.cuda.synchronize()
    threads = [threading.Thread(target=work, args=pair) for pair in zip(pipes, want, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


@pytest.mark.parametrize(
    ("compile", "captured"), [({"mode": "reduce-overhead"}, 0), ("regional", 2), (DEFAULT, 2)], ids=str
)
def test_other_ways_to_compile(compile, captured):
    pipe = make_pipe("least")
    want = eager(pipe, 3, 1)
    accelerate(pipe, 3, 1, compile=compile)
    captures = 0
    for _ in range(3):
        assert close(run(pipe), want)
        captures += last_run(pipe).captures
    assert captures == captured
