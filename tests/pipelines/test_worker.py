"""An accelerated pipe is sent to a process that was spawned, and runs there as it does here."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import torch
from support.small import captured, generate
from support.ways import make_pipe

from stepcache import last_run


def work(pipe):
    """In the other process: latents, and what was done for them there."""
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)
    latents = generate(pipe, 4)
    return latents.tolist(), last_run(pipe).kinds, last_run(pipe).captures


def test_a_worker_process():
    pipe = captured(make_pipe(), interval=3)
    want = generate(pipe, 4)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        latents, kinds, captures = pool.submit(work, pipe).result()
    assert torch.equal(torch.tensor(latents), want)
    assert (kinds, captures) == ("FPPF", 2)
    # torch has moved the weights here to memory that both processes share, and so this one's graphs are stale.
    assert torch.equal(generate(pipe, 4), want) and last_run(pipe).captures == 2
