"""The faults that a first run on a GPU would meet, each tested without one, on the stand-in."""

import gc
import threading
import time
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from support.forward_checks import skip_shapes
from support.small import captured, graphs_of, loop_pipe, make_inputs
from support.vaes import CAPTURED, decode, make_graphs, make_latents, make_vae

from stepcache import accelerate, denoising, last_run, restore
from stepcache.graphs import standin
from stepcache.graphs.backends import CudaBackend, capture
from stepcache.graphs.hosttensor import HostTensor, on_host
from stepcache.graphs.standin import StandInBackend, StandInGraph

CPU = torch.device("cpu")


def replace_weights(module):
    for parameter in module.parameters():
        parameter.data = parameter.data.clone()


def run(pipe, steps=6, residuals=None, timestep=lambda t: t, **inputs):
    """A hand-written loop; residuals(i): of a ControlNet, at step i."""
    call = make_inputs(pipe.unet)
    latents, text = call["sample"], call["encoder_hidden_states"]
    pipe.scheduler.set_timesteps(steps)
    with torch.no_grad(), denoising(pipe):
        for i, t in enumerate(pipe.scheduler.timesteps):
            more = {} if residuals is None else residuals(i)
            noise = pipe.unet(latents, timestep(t), encoder_hidden_states=text, **more, **inputs).sample
            latents = pipe.scheduler.step(noise, t, latents).prev_sample
    return latents


# cuBLAS workspaces: each pool has its own.


def evict_a_bucket():
    other = captured(loop_pipe("least"), 3, max_buckets=1)
    other(3), other(3, batch=1)


def restore_another_pipe():
    other = captured(loop_pipe("least"), 3)
    other(3)
    restore(other)


def swap_the_weights_of_another_pipe():
    other = captured(loop_pipe("least"), 3)
    other(3)
    replace_weights(other.unet)
    other(3)


def capture_a_decoder_again():
    vae, graphs, latents = make_vae(), make_graphs(CAPTURED), make_latents()
    decode(graphs, vae, latents)
    replace_weights(vae)
    decode(graphs, vae, latents)
    assert graphs.costs.captures == 2


def run_trees():
    StandInBackend().clear_workspaces()  # before and after each of their captures


@pytest.mark.parametrize(
    "event",
    [evict_a_bucket, restore_another_pipe, swap_the_weights_of_another_pipe, capture_a_decoder_again, run_trees],
)
def test_live_graphs_keep_their_workspace(event):
    pipe, graphs, vae, latents = captured(loop_pipe("least"), 3), make_graphs(CAPTURED), make_vae(), make_latents()
    image, picture = pipe(6), decode(graphs, vae, latents)
    event()
    assert torch.equal(pipe(6), image) and torch.equal(decode(graphs, vae, latents), picture)
    assert last_run(pipe).captures == 0 and graphs.costs.captures == 1


def test_the_graphs_of_one_pipe_keep_theirs_when_one_of_its_buckets_goes():
    pipe = captured(loop_pipe("least"), 3, max_buckets=2)
    pipe(6, batch=1)
    image = pipe(6)
    pipe(6, batch=3)
    assert torch.equal(pipe(6), image) and last_run(pipe).captures == 0


def test_no_workspace_is_left_in_a_pool_that_goes(monkeypatch):
    """In torch 2.11 only we clear the workspace that a capture made in its pool."""
    monkeypatch.setattr(standin, "RESET_CLEARS", False)
    pipe, other = captured(loop_pipe("least"), 3), captured(loop_pipe("least"), 3)
    image = pipe(6)
    restore(pipe)
    assert torch.equal(other(6), image) and last_run(other).captures == 2


def recorded_cuda(monkeypatch, fails=None):
    """`CudaBackend` on a machine without CUDA: returns its calls to torch, in order."""
    asked = []

    def note(name, result=None):
        return lambda *args, **kwargs: asked.append(name) or result

    @contextmanager
    def graph(*args, **options):
        asked.append(f"begin, {options['capture_error_mode']}")
        try:
            yield
        finally:
            asked.append("end")

    stream = SimpleNamespace(wait_stream=note("wait"))
    for name, value in {
        "device": lambda device: nullcontext(),
        "Stream": lambda device: stream,
        "current_stream": lambda *device: stream,
        "set_stream": lambda stream: None,
        "stream": lambda stream: nullcontext(),
        "CUDAGraph": lambda: "graph",
        "graph": graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    for name in ("_cuda_clearCublasWorkspaces", "_cuda_endAllocateToPool", "_cuda_releasePool"):
        monkeypatch.setattr(torch._C, name, note(name), raising=False)
    monkeypatch.setattr("stepcache.graphs.backends._capture_streams", {})

    def function():
        asked.append("run")
        if fails and asked.count("run") == 4:
            raise fails

    return asked, function


def test_on_cuda_workspaces_are_cleared_before_and_after_the_capture(monkeypatch):
    asked, function = recorded_cuda(monkeypatch)
    assert capture(CudaBackend(), function, (0, 1), torch.device("cuda", 0)) == "graph"
    clear = "_cuda_clearCublasWorkspaces"
    assert asked == ["wait", "run", "run", "run", clear, "begin, thread_local", "run", "end", clear, "wait"]


# Inputs whose contents change without a new version.


def controlnet(unet, replayed):
    """Residuals that a graph writes at each step, to the same tensors."""
    shapes = skip_shapes(unet, make_inputs(unet))
    static, by = [torch.zeros(shape) for shape in (*shapes, shapes[-1])], torch.zeros(())
    graph = StandInGraph(lambda: [tensor.copy_(by.expand_as(tensor)) for tensor in static])

    def residuals(i):
        by.fill_(0.1 * (i + 1))
        graph.replay()
        down, mid = (static[:-1], static[-1]) if replayed else ([t.clone() for t in static[:-1]], static[-1].clone())
        return {"down_block_additional_residuals": tuple(down), "mid_block_additional_residual": mid}

    return residuals


def test_a_captured_controlnets_residuals_are_copied_at_each_call():
    """Under torch.compile(mode="reduce-overhead") it returns the same tensors each time, with the same version."""
    pipe = loop_pipe("least")
    want = run(accelerate(pipe, 3), residuals=controlnet(pipe.unet, replayed=False))
    captured(pipe, 3)
    assert torch.equal(run(pipe, residuals=controlnet(pipe.unet, replayed=True)), want)
    assert last_run(pipe).captures == 2


def test_inputs_of_one_dtype_are_copied_at_once(monkeypatch):
    copies, copy_all = [], torch._foreach_copy_
    monkeypatch.setattr(
        torch, "_foreach_copy_", lambda to, of, **options: copies.append(len(of)) or copy_all(to, of, **options)
    )
    pipe = captured(loop_pipe("sdxl"), 3)
    pipe(4)
    # Sample, timestep, text and two added conditions, all in float32, at each step.
    assert copies == [5, 5, 5, 5]


# Locks: nothing synchronises during a capture.


class Slow(StandInBackend):
    """A capture that sets `began` once it has begun, and ends when `go_on` returns."""

    began, go_on = threading.Event(), staticmethod(lambda: None)

    def record(self, function, pool, device):
        def slow():
            function()
            self.began.set()
            self.go_on()

        return super().record(slow, pool, device)


@contextmanager
def slow_capture(go_on):
    """Inside, another thread is mid-capture, until `go_on` returns. Checks that thread's result."""
    pipe, results = loop_pipe("least"), []
    want = accelerate(pipe, 2)(4)
    backend = type("Slow", (Slow,), {"began": threading.Event(), "go_on": staticmethod(go_on)})
    accelerate(pipe, 2, cuda_graphs=backend)

    def first_call():
        results.append((pipe(4), last_run(pipe).captures))

    thread = threading.Thread(target=first_call)
    thread.start()
    assert backend.began.wait(60)
    try:
        yield
    finally:
        thread.join()
    ((image, captures),) = results
    assert captures == 2 and torch.equal(image, want)  # it was not invalidated


def test_graphs_are_given_up_when_nobody_captures():
    """Restoring a pipe does not wait for another thread's capture."""
    ended = threading.Event()
    pipe = captured(loop_pipe("least"), 2)
    pipe(4)
    (graphs,) = graphs_of(pipe)
    with slow_capture(lambda: ended.wait(60)):
        restore(pipe)
        assert graphs.backend.released == 0 and not graphs.backend.graphs[0].is_reset
        ended.set()
    assert graphs.backend.released == 1 and all(graph.is_reset for graph in graphs.backend.graphs)


def test_weights_replaced_while_another_thread_captures():
    pipe = captured(loop_pipe("least"), 2)
    want = pipe(4)
    replace_weights(pipe.unet)
    with slow_capture(lambda: time.sleep(0.3)):
        assert torch.equal(pipe(4), want)
    assert last_run(pipe).captures == 2


@pytest.mark.parametrize("cuda_graphs", [False, StandInBackend], ids=["direct", "captured"])
def test_what_is_tuned_when_it_is_compiled_waits_for_a_capture(cuda_graphs, monkeypatch):
    """Inductor and Triton time candidates, and synchronise, in the first call of a compiled function."""
    tuned = []

    def compile_and_tune(function, **options):
        def call(*args):
            if call not in tuned:
                StandInBackend().synchronize(CPU)
                tuned.append(call)
            return function(*args)

        return call

    pipe = loop_pipe("least")
    want = accelerate(pipe, 2)(4)
    monkeypatch.setattr(torch, "compile", compile_and_tune)
    accelerate(pipe, 2, compile=True, cuda_graphs=cuda_graphs)
    with slow_capture(lambda: time.sleep(0.5)):
        assert torch.equal(pipe(4), want)
    assert len(tuned) == 2


def test_weights_are_put_into_channels_last_when_nobody_captures():
    ended, pipe = threading.Event(), loop_pipe("least")
    weight = pipe.unet.mid_block.resnets[0].conv1.weight
    with slow_capture(lambda: ended.wait(60)):
        thread = threading.Thread(target=accelerate, args=(pipe, 2), kwargs={"channels_last": True})
        thread.start()
        thread.join(0.5)
        assert thread.is_alive() and weight.is_contiguous()
        ended.set()
        thread.join()
    assert not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last)


def test_a_pipe_that_the_garbage_collector_finds_in_a_capture_is_freed_after_it():
    dead = [captured(loop_pipe("least"), 2)]
    dead[0](4)
    (graphs,) = graphs_of(dead[0])
    backend, seen = graphs.backend, []
    del graphs

    class Collecting(StandInBackend):
        def record(self, function, pool, device):
            def work():
                function()
                dead.clear()
                gc.collect()
                seen.append(backend.released)

            return super().record(work, pool, device)

    pipe = loop_pipe("least")
    want = accelerate(pipe, 2)(4)
    assert torch.equal(accelerate(pipe, 2, cuda_graphs=Collecting)(4), want)
    assert seen == [0, 1] and backend.released == 1 and last_run(pipe).captures == 2


# Tensors on the host.


class Masked(AttnProcessor):
    """Moves its mask to the device, as IP-Adapter's does."""

    def __call__(self, attn, hidden_states, *args, mask=None, **kwargs):
        return super().__call__(attn, hidden_states, *args, **kwargs) * mask.to(hidden_states.device)


def test_a_mask_of_the_host_among_the_inputs_is_captured():
    pipe = loop_pipe("least")
    pipe.unet.set_attn_processor(Masked())
    mask = torch.tensor([0.5])
    want = run(accelerate(pipe, 3), cross_attention_kwargs={"mask": mask})
    captured(pipe, 3)
    for _ in range(2):
        assert torch.equal(run(pipe, cross_attention_kwargs={"mask": on_host(mask)}), want)
    assert not graphs_of(pipe)[0].failed and last_run(pipe).kinds == "FPPFPP"


@pytest.mark.parametrize("cuda_graphs", [False, StandInBackend], ids=["eager", "captured"])
@pytest.mark.parametrize("expanded", [False, True])
def test_timesteps_of_the_host_cost_no_wait(cuda_graphs, expanded):
    """Pipelines of DDPM, DDIM, LDM and PNDM have them there, and so may hand-written loops."""
    pipe = loop_pipe("least")
    form = (lambda t: t.expand(2)) if expanded else (lambda t: t)
    want = run(accelerate(pipe, 3), timestep=form)
    accelerate(pipe, 3, cuda_graphs=cuda_graphs)
    HostTensor.waits = 0
    assert torch.equal(run(pipe, timestep=lambda t: form(on_host(t))), want)
    assert HostTensor.waits == 0
    # A different timestep for each element: no loop does this, but the U-Net takes it.
    run(pipe, timestep=lambda t: on_host(torch.tensor([901, 1])))
    assert HostTensor.waits == 0


def test_after_a_failed_capture_the_allocator_is_clean():
    class Failing(StandInBackend):
        def record(self, function, pool, device):
            def fails():
                function()
                raise RuntimeError("not permitted")

            return super().record(fails, pool, device)

    pipe = accelerate(loop_pipe("least"), 3, cuda_graphs=Failing)
    want = pipe(6)
    (graphs,) = graphs_of(pipe)
    assert graphs.failed and graphs.backend.released == 1
    other = captured(loop_pipe("least"), 3)
    assert torch.equal(other(6), want) and last_run(other).captures == 2


@pytest.mark.parametrize("told", [True, False], ids=["torch ended it", "torch 2.11"])
def test_on_cuda_a_failed_capture_is_ended_in_the_allocator(monkeypatch, told):
    asked, function = recorded_cuda(monkeypatch, fails=RuntimeError("CUDA error: capture was invalidated"))
    if told:

        def not_recording(device, pool):
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")

        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", not_recording)
    with pytest.raises(RuntimeError, match="was invalidated"):
        capture(CudaBackend(), function, (0, 1), torch.device("cuda", 0))
    clear = "_cuda_clearCublasWorkspaces"
    undone = [] if told else ["_cuda_endAllocateToPool", "_cuda_releasePool"]
    assert asked[asked.index("end") :] == ["end", *undone, clear]
