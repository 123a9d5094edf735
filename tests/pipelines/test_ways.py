"""Every way of running of the table, with each engine: stock against interval=1 (bit-identical) and interval=3 (as
planned, and the same in all engines), whether it is accelerated before or after; or refused, and the pipe as it was.
"""

import contextlib
import functools
import itertools
import logging

import pytest
import torch
from support.small import engine_of, generate, graphs_of, state_of
from support.ways import ENGINES, NOT_CAPTURED, PARTS, REFUSED, RUNS_EAGER, WAYS, WORKS, Way, make_pipe

from stepcache import accelerate, last_run, restore
from stepcache.graphs.standin import StandInBackend
from stepcache.run.attach import attachment_of

STEPS, KINDS = 4, "FPPF"
OPTIONS = {"eager": {}, "compiled": {"compile": {"backend": "eager"}}, "captured": {"cuda_graphs": StandInBackend}}
# Of these, each changes something else, and so all are compiled at once: one that is not compiled shows there too.
AT_ONCE = [
    ["attention slicing", "feed-forward chunking", "gradient checkpointing", "channels_last", "pipe.to another dtype"],
    ["QKV projections fused and unfused", "torch.inference_mode", "model CPU offload"],
    ["custom attention processors", "torch.autocast"],
    ["VAE slicing, with vae=True", "VAE tiling, with vae=True"],
]


def at_once(features):
    """All ways of a line of AT_ONCE, as one."""
    ways = [way for way in WAYS if way.feature in features]
    assert len(ways) == len(features) and {way.compiled for way in ways} == {WORKS}

    def apply(pipe):
        for way in ways:
            way.apply(pipe)

    @contextlib.contextmanager
    def within():
        with contextlib.ExitStack() as stack:
            for way in ways:
                stack.enter_context(way.within())
            yield

    images, options, changes = ways[0].images, ways[0].options, any(way.changes for way in ways)
    return Way(", ".join(features), apply, within=within, images=images, options=options, changes=changes)


WORKING = [
    # Compiled, what another pipe or other parts give are the graphs of any pipe.
    pytest.param(way, engine, marks=pytest.mark.slow if engine == "compiled" and way in PARTS else [])
    for way in WAYS
    for engine in ENGINES
    if way.status(engine) != REFUSED and not (engine == "compiled" and way.feature in itertools.chain(*AT_ONCE))
] + [(at_once(features), "compiled") for features in AT_ONCE]
REFUSING = [way for way in WAYS if way.error is not None]
NOTHING = {images: Way("nothing", lambda pipe: None, images=images) for images in (False, True)}


def run(pipe, way):
    """Latents or images of two prompts."""
    with way.within():
        return torch.as_tensor(
            generate(
                pipe,
                STEPS,
                prompt=["tiger face", "red apple"],
                output_type="np" if way.images else "latent",
            )
        )


def applied(pipe, way):
    """The pipe with `way` applied, or the one that it makes."""
    made = way.apply(pipe)
    return pipe if made is None or not hasattr(made, "unet") else made


@functools.cache
def expected(way):
    """What comes of it without stepcache, with interval=1 and with interval=3, all eager."""
    pipe = applied(make_pipe(), way)
    stock = run(pipe, way)
    same = run(accelerate(pipe, interval=1), way)
    assert last_run(pipe).kinds == "F" * STEPS
    cached = run(accelerate(pipe, interval=3), way)
    assert last_run(pipe).kinds == KINDS
    assert torch.equal(run(restore(pipe), way), stock)
    return stock, same, cached


@functools.cache
def plain(images):
    """What a pipe gives to which nothing is done."""
    return run(make_pipe(), NOTHING[images])


def replays(pipe):
    """The captured graphs of the U-Net, and how often each was replayed."""
    # None before the first run, and none any more where the U-Net that they were of is gone.
    held = graphs_of(pipe) if attachment_of(pipe).pool._idle else []
    return {graph: graph.replays for graphs in held for graph, _ in graphs._graphs.values()}


def check_run(pipe, way, engine, want, caplog):
    """That a run gives `want` and is in `engine`, or is not and says so."""
    before = replays(pipe) if engine == "captured" else {}
    caplog.clear()
    assert torch.equal(run(pipe, way), want)
    assert last_run(pipe).kinds == KINDS
    status = way.status(engine)
    if engine == "captured":
        assert (replays(pipe) != before) == (status == WORKS)
    if engine == "compiled":
        assert bool(engine_of(pipe).unet_graphs.costs.compile_seconds) == (status == WORKS)
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and r.name == "stepcache"]
    assert [way.warning in message for message in warnings] == [True] * (status in (NOT_CAPTURED, RUNS_EAGER))


@pytest.mark.parametrize("way, engine", WORKING, ids=lambda value: getattr(value, "feature", value))
def test_works(way, engine, caplog):
    if way.needs:
        pytest.importorskip(way.needs)
    stock, same, cached = expected(way)
    assert torch.equal(same, stock)
    assert cached.isfinite().all() and not torch.equal(cached, stock)
    near = torch.allclose(stock.float(), plain(way.images).float(), rtol=1e-3, atol=1e-3)
    assert near != way.changes

    options = {**OPTIONS[engine], **way.options}
    before = accelerate(applied(make_pipe(), way), interval=3, **options)
    check_run(before, way, engine, cached, caplog)
    if engine == "compiled":
        return  # each order compiles; that graphs follow changes is the same code as in the captured engine
    after = accelerate(make_pipe(), interval=3, **options)
    run(after, NOTHING[way.images])  # captures graphs of the pipe as it is
    after = applied(after, way)
    if not way.carries:
        assert attachment_of(after) is None
        assert torch.equal(run(after, way), stock)
        accelerate(after, interval=3, **options)
    check_run(after, way, engine, cached, caplog)
    assert torch.equal(run(restore(after), way), stock)


@pytest.mark.parametrize("way", REFUSING, ids=lambda way: way.feature)
def test_refused(way):
    pipe = applied(make_pipe(), way)
    state = state_of(pipe)
    with pytest.raises(way.error, match=way.pattern):
        accelerate(pipe)
    assert state_of(pipe) == state
    pipe = accelerate(make_pipe(), interval=3)
    run(pipe, NOTHING[False])
    way.apply(pipe)
    state = state_of(pipe)
    with pytest.raises(way.error, match=way.pattern):
        run(pipe, way)
    assert state_of(pipe) == state
    assert restore(pipe) is pipe and attachment_of(pipe) is None
