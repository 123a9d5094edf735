"""Engines of concurrent runs and of shallow copies: which are kept, and what is reported."""

import copy
import gc
import threading
import weakref

import torch
from support.small import ONE_LEVEL, captured, demo_pipe, generate, loop_pipe, make_unet

from stepcache import accelerate, last_run, restore
from stepcache.forwards import family_of
from stepcache.graphs.engine import Engine
from stepcache.graphs.settings import GraphSettings
from stepcache.graphs.unet import UNetGraphs
from stepcache.run.attach import attachment_of
from stepcache.run.pool import RECENT, Pool


def at_once(pipe, count):
    """Run the pipe in `count` threads, in all of them at the same time; returns the results."""
    together, results = threading.Barrier(count), [None] * count

    def work(i):
        results[i] = pipe(4, on_step=lambda pipe, step: together.wait() if step == 1 else None)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_memory_of_threads_is_reported_and_freed_when_they_are_gone():
    pipe = captured(loop_pipe("least", **ONE_LEVEL), 3)
    want = pipe(4)
    alone = last_run(pipe)
    one = alone.buffer_bytes, alone.static_bytes
    assert all(torch.equal(result, want) for result in at_once(pipe, 8))
    assert (last_run(pipe).buffer_bytes, last_run(pipe).static_bytes) == (8 * one[0], 8 * one[1])
    # Threads that go on running at the same time keep theirs, and capture nothing again.
    at_once(pipe, 8)
    assert last_run(pipe).captures == 0
    for _ in range(RECENT):
        assert torch.equal(pipe(4), want) and last_run(pipe).captures == 0
    assert (last_run(pipe).buffer_bytes, last_run(pipe).static_bytes) == one
    assert len(attachment_of(pipe).pool._idle) == 1


def test_threads_that_start_together_are_counted_while_their_engines_are_made():
    pool, together = Pool(), threading.Barrier(2)
    unet = make_unet("least", **ONE_LEVEL)
    engines = []

    def make(compilations):
        together.wait()
        return Engine(UNetGraphs(family_of(unet), None, GraphSettings()))

    threads = [threading.Thread(target=lambda: engines.append(pool.take(unet, make))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for engine in engines:
        pool.give_back(unet, engine)
    assert len(pool._idle) == 2


def test_a_copy_for_each_request_captures_nothing_again():
    """A server that makes a shallow copy of its pipeline for each request, as diffusers' example does."""
    pipe = captured(demo_pipe(), 3)
    want = generate(pipe, steps=3)
    assert last_run(pipe).captures == 2
    for _ in range(2):
        request = copy.copy(pipe)
        assert type(request).__name__ == type(pipe).__name__ and vars(request) == vars(pipe)
        assert torch.equal(generate(request, steps=3), want)
        assert last_run(request).kinds == last_run(pipe).kinds
        assert last_run(request).captures == 0
    restore(request)
    assert torch.equal(generate(pipe, steps=3), want) and last_run(pipe).captures == 0


def test_copies_go_their_own_ways():
    pipe = captured(loop_pipe("least", **ONE_LEVEL), 3)
    want = pipe(4)
    other, third = copy.copy(pipe), copy.copy(pipe)
    other.unet = make_unet("least", **{**ONE_LEVEL, "block_out_channels": (16,)})
    other(4)
    assert last_run(other).captures == 2
    accelerate(third, interval=2, compile=False, cuda_graphs=False)
    third(4)
    assert last_run(third).kinds == "FPFP"
    assert torch.equal(pipe(4), want) and last_run(pipe).captures == 0


def test_the_last_one_to_leave_frees_the_memory():
    pipe = captured(loop_pipe("least", **ONE_LEVEL), 3)
    pipe(4)
    (engine,) = attachment_of(pipe).pool._idle
    buckets = engine.unet_graphs.buckets
    other, dropped = copy.copy(pipe), copy.copy(pipe)
    del dropped
    gc.collect()
    restore(pipe)
    assert buckets.held
    unet = weakref.ref(pipe.unet)
    del pipe
    restore(other)
    assert not buckets.held
    del other
    gc.collect()
    assert unet() is None
