"""Which buckets are held, and that a user hears of those that keep coming back."""

import logging

import pytest
import torch
from support.small import ATTENDED, captured, loop_pipe, make_inputs

from stepcache import accelerate, denoising, last_run
from stepcache.graphs import bucket
from stepcache.graphs.bucket import RETURNS, Bucket, Buckets


def test_the_least_recently_used_bucket_goes():
    buckets, freed = Buckets(2), []

    class Held:
        nbytes = 3

        def free(self):
            freed.append(self)

    def make():
        return Bucket({}, Held())

    a, b = buckets.get("a", make), buckets.get("b", make)
    for each in (a, b):
        each.kept(0).write([torch.zeros(1, 4)])
    assert buckets.nbytes == 32 and buckets.static_nbytes == 6
    assert buckets.get("a", make) is a
    c = buckets.get("c", make)
    assert list(buckets.held) == ["a", "c"] and freed == [b.capture]
    assert buckets.get("a", make) is a and buckets.get("c", make) is c
    assert buckets.nbytes == 16 and isinstance(c, Bucket)
    buckets.clear()
    assert not buckets.held and len(freed) == 3


def run_once(pipe, length=3, batch=2):
    """Two steps with a prompt of that many tokens; returns how many graphs were captured."""
    inputs = make_inputs(pipe.unet, batch)
    sample = inputs["sample"]
    text = inputs["encoder_hidden_states"][:, :1].repeat(1, length, 1)
    pipe.scheduler.set_timesteps(2)
    with torch.no_grad(), denoising(pipe):
        for t in pipe.scheduler.timesteps:
            pipe.scheduler.step(pipe.unet(sample, t, text).sample, t, sample)
    return last_run(pipe).captures


@pytest.fixture
def pipe():
    return captured(loop_pipe("least", **ATTENDED), 2)


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_five_prompt_lengths_take_turns(pipe, caplog):
    """Compel's long prompts."""
    lengths = (1, 2, 3, 4, 5)
    assert [run_once(pipe, length) for length in lengths] == [2] * 5
    assert [run_once(pipe, length) for length in lengths] == [0] * 5
    assert not warnings_of(caplog)


def test_prompt_lengths_are_bounded_too(pipe, caplog, monkeypatch):
    assert bucket.VARIANTS >= 5
    monkeypatch.setattr(bucket, "VARIANTS", 2)
    for _ in range(3):
        assert [run_once(pipe, length) for length in (1, 2, 3)] == [2] * 3
    (message,) = warnings_of(caplog)
    assert message.startswith("3 kinds of inputs (prompt lengths") and "keeps 2" in message


def test_sizes_in_rotation_are_said_once_with_the_way_out(pipe, caplog):
    captured(pipe, 2, max_buckets=2)
    batches = (1, 2, 3)
    assert [run_once(pipe, batch=batch) for batch in batches] == [2] * 3
    assert not warnings_of(caplog)
    for _ in range(2):
        assert [run_once(pipe, batch=batch) for batch in batches] == [2] * 3
    (message,) = warnings_of(caplog)
    assert "3 sizes take turns, and max_buckets=2 keeps fewer" in message and "max_buckets=3" in message
    captured(pipe, 2, max_buckets=3)
    assert [run_once(pipe, batch=batch) for batch in (*batches, *batches)] == [2] * 3 + [0] * 3


def test_a_size_goes_with_all_its_prompt_lengths(pipe):
    captured(pipe, 2, max_buckets=2)
    for batch, length in ((1, 1), (1, 2), (2, 1), (1, 1)):
        run_once(pipe, length, batch)
    assert run_once(pipe, 3, batch=3) == 2  # the least recently used size, 2, goes
    assert [run_once(pipe, length, 1) for length in (1, 2)] == [0, 0]
    assert run_once(pipe, 1, batch=2) == 2


def test_eager_buckets_that_return_cost_nothing_worth_a_word(caplog):
    pipe = accelerate(loop_pipe("least", **ATTENDED), 2, max_buckets=1)
    for _ in range(RETURNS + 1):
        for batch in (1, 2):
            run_once(pipe, batch=batch)
    assert not warnings_of(caplog)
