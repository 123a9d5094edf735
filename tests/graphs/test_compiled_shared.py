"""Compiled code outlives its bucket, and threads share it; torch's own CUDA graphs in a thread."""

import threading

import pytest
import torch
from support.small import ATTENDED, ONE_LEVEL, loop_pipe
from support.vaes import decode, make_graphs, make_latents, make_vae
from torch._dynamo.utils import counters

from stepcache import StepCacheError, accelerate, last_run
from stepcache.graphs import compiled as compiling
from stepcache.graphs.settings import GraphSettings
from stepcache.graphs.standin import StandInBackend


@pytest.mark.parametrize(
    "compile, cuda_graphs", [(True, StandInBackend), ("regional", False)], ids=["captured", "regional"]
)
def test_one_size_more_in_rotation_than_there_are_buckets_compiles_nothing_again(compile, cuda_graphs, monkeypatch):
    pipe = loop_pipe("least", **(ATTENDED if compile == "regional" else ONE_LEVEL))
    monkeypatch.setattr(compiling, "FIXED", {**compiling.FIXED, "backend": "eager"})
    accelerate(pipe, 2, compile=compile, cuda_graphs=cuda_graphs, max_buckets=1)
    want = [pipe(4, batch=n) for n in (1, 2)]
    graphs = counters["stats"]["unique_graphs"]
    for n in (1, 2):
        assert torch.equal(pipe(4, batch=n), want[n - 1])
        assert last_run(pipe).compile_seconds == 0
    assert counters["stats"]["unique_graphs"] == graphs


@pytest.mark.parametrize(
    "warm, cuda_graphs",
    [(False, False), (False, StandInBackend), (True, False)],
    ids=["direct", "captured", "compiled before"],
)
def test_a_second_thread_compiles_nothing_again(warm, cuda_graphs):
    """Even if both make their first call."""
    pipe = loop_pipe("least", **ONE_LEVEL)
    want = accelerate(pipe, 2)(4)
    accelerate(pipe, 2, compile={"backend": "eager"}, cuda_graphs=cuda_graphs)
    before = counters["stats"]["unique_graphs"]
    if warm:
        pipe(4)
    barrier, results = threading.Barrier(2, timeout=60), []

    def work():
        results.append(pipe(4, on_step=lambda pipe, i: barrier.wait() if i else None))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2 and all(torch.allclose(image, want, atol=1e-5) for image in results)
    assert counters["stats"]["unique_graphs"] - before == 2


def test_a_decoders_compiled_code_outlives_its_bucket():
    settings = GraphSettings({"backend": "eager"}, StandInBackend)
    graphs, vae = make_graphs(settings, max_buckets=1), make_vae()
    for batch in (1, 2):
        decode(graphs, vae, make_latents(batch))
    seconds = graphs.costs.compile_seconds
    decode(graphs, vae, make_latents(1))
    assert graphs.costs.compile_seconds == seconds > 0 and graphs.costs.captures == 3


def test_trees_in_a_thread_where_they_do_not_work_are_refused_by_name(monkeypatch):
    """torch 2.11 finds the state of its trees only in the thread that imported them."""
    errors = []

    def compile_as_torch_2_11(function, **options):
        def call(*args):
            assert threading.current_thread() is threading.main_thread()
            return function(*args)

        return call

    monkeypatch.setattr(torch, "compile", compile_as_torch_2_11)
    pipe = accelerate(loop_pipe("least"), 2, compile={"mode": "reduce-overhead"})

    def work():
        try:
            pipe(4)
        except StepCacheError as error:
            errors.append(str(error))

    pipe(4)
    thread = threading.Thread(target=work, name="worker 7")
    thread.start()
    thread.join()
    assert "'worker 7'" in errors[0] and "Leave capturing to stepcache" in errors[0]
