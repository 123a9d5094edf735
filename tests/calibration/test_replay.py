"""Runs that begin in the middle of the original's, against the same runs from the start."""

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler
from support.small import demo_pipe, state_of, tiny_pipe

from stepcache.calibration.grams import Collector
from stepcache.calibration.replay import Partial, Replay
from stepcache.graphs.settings import GraphSettings
from stepcache.images.make import Request
from stepcache.reuse.predict import HOLD, Apart, Line
from stepcache.reuse.schedule import Schedule
from stepcache.run.attach import attach, detach
from stepcache.settings import Settings

STEPS = 7


def recorded(pipe, guidance=7.5):
    request = Request(("tiger face", "rose"), (3, 4), STEPS, {"guidance_scale": guidance, "height": 32, "width": 32})
    collector = Collector(pipe, (0, 1))
    collector.run(lambda: request.make(pipe), lambda: guidance > 1, record=True)
    return Replay(pipe, request, collector.recordings[0])


def accelerated(replay, mask, predictor, branch=0, reuse=False):
    """Samples [T, B, C, H, W] and images of the run with this mask, as `accelerate` makes it."""
    samples = []
    hook = replay.unet.register_forward_pre_hook(
        lambda module, args, kwargs: samples.append((args[0] if args else kwargs["sample"]).clone()), with_kwargs=True
    )
    graphs = GraphSettings(compile=False, cuda_graphs=False, kernels=False)
    attach(replay.pipe, Settings(Schedule.explicit(mask), branch, graphs, 2, predictor, reuse_guidance=reuse))
    try:
        return samples, replay.request.make(replay.pipe).images
    finally:
        detach(replay.pipe)
        hook.remove()


@pytest.mark.parametrize("scheduler", [DPMSolverMultistepScheduler, EulerDiscreteScheduler])
@pytest.mark.parametrize(
    ("predictor", "branch", "reuse"),
    [(HOLD, 0, False), (Line(1.0), 1, False), (Apart(1.0, -0.25), 0, False), (Apart(1.0, 0.5), 0, True)],
)
def test_a_stretch_is_what_a_whole_run_gives(scheduler, predictor, branch, reuse):
    pipe = demo_pipe()
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    replay = recorded(pipe)
    found = replay.errors(Partial((2, 1), 5, branch, reuse, predictor), STEPS)
    samples, images = accelerated(replay, "FFFPPFF", predictor, branch, reuse)
    assert sorted(found) == [4, 5, 6, 7]
    for step in (4, 5, 6):
        want = (samples[step] - replay.recording.samples[step]).double()[:2].flatten(1)
        size = want[0].numel()
        assert want.abs().max() > 1e-4
        for half in (found[step][:, :size], found[step][:, size:]):
            torch.testing.assert_close(half, want, rtol=1e-4, atol=1e-6)
    want = torch.from_numpy(images.astype("float64") - replay.recording.images).flatten(1)
    torch.testing.assert_close(found[7], want, rtol=1e-3, atol=1e-5)


def test_without_guidance():
    replay = recorded(tiny_pipe(), guidance=1.0)
    found = replay.errors(Partial((0,), 3, 0, False, HOLD), 3)
    samples, _ = accelerated(replay, "FPPFFFF", HOLD)
    want = (samples[3] - replay.recording.samples[3]).double().flatten(1)
    torch.testing.assert_close(found[3], want, rtol=1e-4, atol=1e-6)


def test_nothing_is_run_that_is_known_or_not_needed(monkeypatch):
    """Before its start and after its stop a replay calls no U-Net, and leaves no trace on the pipe."""
    pipe = tiny_pipe()
    replay = recorded(pipe)
    before = vars(state_of(pipe))
    calls = []
    hook = pipe.unet.mid_block.register_forward_hook(lambda *args: calls.append(1))
    decoded = []
    monkeypatch.setattr(pipe.vae, "decode", lambda *args, **kwargs: decoded.append(1))
    assert sorted(replay.errors(Partial((3, 1), 6, 0, False, HOLD), 6)) == [5, 6]
    assert not calls and not decoded  # a partial step has no mid block
    hook.remove()
    monkeypatch.undo()
    with pytest.raises(ZeroDivisionError):
        monkeypatch.setattr(pipe.scheduler, "step", lambda *args, **kwargs: 1 / 0)
        replay.errors(Partial((3, 1), 6, 0, False, HOLD), 6)
    monkeypatch.undo()
    assert vars(state_of(pipe)) == before
