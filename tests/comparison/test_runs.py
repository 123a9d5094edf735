import argparse

import numpy as np
import pytest
import torch
from support import small
from support.comparing import comparison_of, fake_make

from stepcache import accelerate
from stepcache.comparison import runs
from stepcache.comparison.results import Comparison, FewerSteps, Variant
from stepcache.comparison.runs import Scores, make_all, requests_of, try_sizes
from stepcache.errors import StepCacheError
from stepcache.images.make import Request
from stepcache.images.prompts import Prompt


@pytest.fixture
def record(monkeypatch):
    monkeypatch.setattr(runs, "last_run", lambda pipe: argparse.Namespace(kinds="FP"))


def test_what_the_pipeline_itself_refuses_is_said_before_the_first_image():
    requests = requests_of([Prompt("a"), Prompt("b", height=44, width=64)], steps=4, guidance=3.0, seed=0)
    with pytest.raises(StepCacheError, match=r"cannot make 'b' at 44x64 px: .*divisible by 8"):
        try_sizes(small.tiny_pipe(), requests)


def test_one_prompt_of_each_size_is_tried(monkeypatch):
    tried, pipe = [], argparse.Namespace(unet=torch.nn.Identity())

    def make(self, pipe, steps, each_step):
        tried.append((self.text, steps))
        pipe.unet(torch.empty(2, 4, 8, (self.call["width"] or 128) // 8))

    monkeypatch.setattr(Request, "make", make)
    prompts = [Prompt("a"), Prompt("b"), Prompt("c", width=64), Prompt("d"), Prompt("e", width=64)]
    latents = try_sizes(pipe, requests_of(prompts, 4, 3.0, 0))
    assert tried == [("a", 2), ("c", 2)]
    assert latents == [(8, 16), (8, 16), (8, 8), (8, 16), (8, 8)]
    monkeypatch.setattr(Request, "make", lambda *args, **kwargs: pipe.unet.forward(torch.empty(2, 4, 8, 8)))
    assert try_sizes(pipe, requests_of(prompts, 4, 3.0, 0)) == []


def test_requests_have_seeds_and_sizes():
    prompts = [Prompt("a"), Prompt("b", negative="x"), Prompt("c", seed=3, height=64)]
    requests = requests_of(prompts, 4, 3.0, seed=10, size=(32, 48))
    assert [(r.text, r.seed, r.steps) for r in requests] == [("a", 10, 4), ("b", 11, 4), ("c", 3, 4)]
    assert [(r.call["height"], r.call["width"]) for r in requests] == [(32, 48), (32, 48), (64, 48)]
    assert [r.call["negative_prompt"] for r in requests] == [None, "x", None]
    (only,) = requests_of([Prompt("a")], 4, 3.0, 0)
    assert only.call == {"negative_prompt": None, "height": None, "width": None, "guidance_scale": 3.0}


def test_an_interrupted_run_keeps_whole_prompts(monkeypatch, record):
    pipe, comparison = small.tiny_pipe(), comparison_of((2, 0))
    monkeypatch.setattr(Request, "make", fake_make(0.5, 0.6, 0.5, None))
    requests = requests_of([Prompt("a"), Prompt("b"), Prompt("c")], 2, 3.0, 0)
    assert make_all(pipe, requests, comparison, Scores(), drift=0) is False
    (result,) = comparison.results
    assert result.request.text == "a" and result.shots[0].psnr == pytest.approx(20.0)
    assert "_stepcache_attachment" not in vars(type(pipe))
    monkeypatch.setattr(Request, "make", fake_make(None))
    with pytest.raises(KeyboardInterrupt):
        make_all(pipe, requests_of([Prompt("a")], 2, 3.0, 0), comparison_of((2, 0)), Scores(), drift=0)


def test_images_that_the_safety_checker_blackened_are_not_compared(monkeypatch, record):
    comparison = comparison_of((2, 0), (3, 0))
    monkeypatch.setattr(Request, "make", fake_make(0.5, 0.6, 0.0, censored={2}))
    assert make_all(small.tiny_pipe(), requests_of([Prompt("a")], 2, 3.0, 0), comparison, Scores(), drift=0)
    compared, blackened = comparison.results[0].shots
    assert compared.psnr == pytest.approx(20.0) and not compared.censored
    assert blackened.psnr is None and blackened.ssim is None and blackened.censored


def test_fewer_steps_are_stock_runs_and_variants_predict_as_they_say():
    """Against calls of the pipeline itself, with the prompt's seed."""
    pipe, variant = small.tiny_pipe(), Variant(2, 0, "linear")
    comparison = Comparison("m", "s", [variant, FewerSteps(2, 6, (variant,))])
    (request,) = requests_of([Prompt("red apple")], 6, 3.0, seed=4)
    before = small.state_of(pipe).modules
    assert make_all(pipe, [request], comparison, Scores(), drift=1)
    assert small.state_of(pipe).modules == before
    (result,) = comparison.results
    original, fewer = request.make(pipe).images, request.make(pipe, steps=2).images
    reused = request.make(accelerate(pipe, 2, 0, predict="linear", **runs.EAGER)).images
    for shot, images in zip((result.original, *result.shots), (original, reused, fewer), strict=True):
        assert (np.asarray(shot.thumbnail) == runs.eight_bit(images[0])).all()
        if shot is not result.original:
            assert shot.psnr == pytest.approx(runs.fidelity.psnr(images, original)[0])
    assert [result.original.kinds, *(shot.kinds for shot in result.shots)] == ["FFFFFF", "FPFPFP", "FF"]
    assert list(comparison.drifts) == [variant]
