"""Other pipes, graphs and threads in a process that has captured graphs. On a GPU, -m gpu.

Reading torch's sources predicted each of these faults before any GPU had run this.
"""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers import DDIMScheduler
from support.gpu_runs import BOTH, CAPTURED, WIDE, close, eager, make_pipe, run, scribble
from support.small import BETAS, LoopPipe, make_unet

from stepcache import accelerate, last_run, restore
from stepcache.errors import StepCacheError

pytestmark = pytest.mark.gpu


def wide_pipe():
    """A pipe in half precision, wide enough for products that need cuBLAS's workspace."""
    pipe = make_pipe("sd", **WIDE)
    pipe.unet.half()
    return pipe


def move_the_weights(unet):
    """Like fusing or unfusing a LoRA: same shapes, other memory, other values."""
    for parameter in unet.parameters():
        parameter.data = parameter.data * 1.01


def in_threads(*jobs):
    """Run the jobs at the same time, each on its own stream; raises what one of them raises."""
    begin = threading.Barrier(len(jobs))

    def work(job):
        with torch.cuda.stream(torch.cuda.Stream()):
            begin.wait()
            job()
            torch.cuda.current_stream().synchronize()

    torch.cuda.synchronize()
    with ThreadPoolExecutor(len(jobs)) as pool:
        for future in [pool.submit(work, job) for job in jobs]:
            future.result()


# A graph contains the address of cuBLAS's workspace, which must live as long as the graph.


@pytest.mark.parametrize("what", ["restore", "eviction", "weights replaced"])
def test_replays_are_right_after_another_pipes_graphs_went(what):
    one, other = wide_pipe(), wide_pipe()
    want = eager(one)
    accelerate(other, 2, max_buckets=1, **CAPTURED)
    run(other)
    accelerate(one, 3, **CAPTURED)
    assert close(run(one), want)
    if what == "restore":
        restore(other)
    elif what == "eviction":
        run(other, batch=3)
    else:
        move_the_weights(other.unet)
        run(other)
    scribble()
    for _ in range(2):
        assert close(run(one), want)
        assert last_run(one).captures == 0


def test_replays_are_right_beside_torchs_own_graphs():
    """torch.compile(mode="reduce-overhead") anywhere in the process clears all workspaces when it records."""
    pipe = wide_pipe()
    want = eager(pipe)
    accelerate(pipe, 3, **CAPTURED)
    run(pipe)
    weight = torch.randn(512, 512, device="cuda", dtype=torch.half) / 23
    theirs = torch.compile(lambda x: (x @ weight).relu() @ weight, mode="reduce-overhead", dynamic=False)
    with torch.no_grad():
        for _ in range(4):
            theirs(torch.ones(64, 512, device="cuda", dtype=torch.half))
    scribble()
    assert close(run(pipe), want)
    assert last_run(pipe).captures == 0


# Inputs.


@pytest.mark.parametrize("options", [CAPTURED, BOTH], ids=["captured", "compiled and captured"])
def test_residuals_of_a_controlnet_in_torchs_own_graphs(options):
    """It returns the same tensors at each replay, with new values but no new version."""
    pipe = make_pipe("least")
    generator = torch.Generator("cuda").manual_seed(3)
    shapes = [(2, 8, 16, 16), (2, 8, 16, 16), (2, 8, 8, 8), (2, 16, 8, 8), (2, 16, 8, 8)]
    patterns = [torch.randn(shape, generator=generator, device="cuda") for shape in shapes]

    def residuals(strength):
        return tuple(pattern * strength for pattern in patterns)

    def given(make, rising=True):
        steps = itertools.cycle(range(8))

        def more(latents):
            torch.compiler.cudagraph_mark_step_begin()
            *down, mid = make(torch.full((1,), 0.2 + 0.2 * next(steps) * rising, device="cuda"))
            return {"down_block_additional_residuals": tuple(down), "mid_block_additional_residual": mid}

        return more

    want = eager(pipe, 2, more=given(residuals))
    assert not close(eager(pipe, 2, more=given(residuals, rising=False)), want)  # as if the first ones stayed
    theirs = torch.compile(residuals, mode="reduce-overhead", dynamic=False)
    accelerate(pipe, 2, **options)
    for _ in range(3):
        assert close(run(pipe, more=given(theirs)), want)
    assert last_run(pipe).captures == 0


def test_a_mask_on_the_host_among_the_inputs():
    """An IP-Adapter's masks stay on the device where the user made them; its attention moves them at each call."""
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
    from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection

    pipe = make_pipe("least")
    unet, processors = pipe.unet, dict(pipe.unet.attn_processors)
    torch.manual_seed(0)
    for name in processors:
        if "attn2" in name:
            features = unet.get_submodule(name.removesuffix(".processor")).to_q.in_features
            processors[name] = IPAdapterAttnProcessor2_0(features, 8, num_tokens=(2,), scale=0.7)
    unet.set_attn_processor(processors)
    unet.encoder_hid_proj = MultiIPAdapterImageProjection([ImageProjection(6, 8, 2)])
    unet.config.encoder_hid_dim_type = "ip_image_proj"
    unet.cuda().requires_grad_(False)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1
    embeds = torch.randn(2, 1, 6, device="cuda")

    def given(mask):
        return lambda latents: {
            "added_cond_kwargs": {"image_embeds": [embeds]},
            "cross_attention_kwargs": {"ip_adapter_masks": [mask]},
        }

    want = eager(pipe, more=given(mask))
    assert not close(eager(pipe, more=given(1 - mask)), want)
    accelerate(pipe, 3, **CAPTURED)
    for _ in range(2):
        assert close(run(pipe, more=given(mask)), want)
    restore(pipe)
    other = make_pipe("sd")
    want = eager(other)
    assert close(run(accelerate(other, 3, **CAPTURED)), want)
    assert last_run(other).captures == 2


def test_a_capture_that_failed_leaves_room_for_the_next_one():
    """A module that waits for the device cannot be captured: its pipe runs uncaptured; other pipes still capture."""
    pipe = make_pipe("sd")
    want = eager(pipe)
    pipe.unet.mid_block.register_forward_hook(lambda module, args, output: (None, output.sum().item())[0])
    accelerate(pipe, 3, **CAPTURED)
    for _ in range(2):
        assert close(run(pipe), want)
        assert last_run(pipe).captures == 0
    restore(pipe)
    # If the allocator still assumes the capture (torch 2.11), it allocates to its pool and never frees that.
    torch.cuda.empty_cache()
    start = torch.cuda.memory_reserved()
    held = torch.empty(1 << 26, device="cuda")
    del held
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= start
    other = make_pipe("sd")
    accelerate(other, 3, **CAPTURED)
    for captures in (2, 0):
        assert close(run(other), want)
        assert last_run(other).captures == captures


# Threads.


def test_one_thread_captures_while_another_drops_graphs():
    one, other = make_pipe("sd"), make_pipe("sd")
    plain = LoopPipe(other.unet, DDIMScheduler(**BETAS))
    want = eager(one)

    def capturing():
        for _ in range(6):
            assert close(run(accelerate(one, 3, **CAPTURED)), want)
            restore(one)

    def dropping():
        accelerate(other, 3, **CAPTURED)
        for _ in range(6):
            run(other)
            move_the_weights(other.unet)
            got = run(other)
            assert last_run(other).captures == 2
            assert close(got, eager(plain))

    in_threads(capturing, dropping)


def test_torchs_own_graphs_from_a_worker_thread():
    """They work there, or raise a StepCacheError; the main thread's still work either way."""
    unet = make_unet("least").cuda()
    pipe, other = (LoopPipe(unet, DDIMScheduler(**BETAS)) for _ in range(2))
    want = eager(pipe)

    def work():
        accelerate(other, 3, compile={"mode": "reduce-overhead"})
        try:
            for _ in range(3):
                assert close(run(other), want)
        except StepCacheError as error:
            assert len(str(error)) > 20

    in_threads(work)
    restore(other)
    accelerate(pipe, 3, compile={"mode": "reduce-overhead"})
    for _ in range(3):
        assert close(run(pipe), want)
