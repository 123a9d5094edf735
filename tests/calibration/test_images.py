"""What is made and how close it is."""

import math

import numpy as np
import pytest
from support.small import demo_pipe

from stepcache.calibration.images import Closeness, PromptSet, score
from stepcache.images.fidelity import mean_of
from stepcache.images.make import Request


def prompt_set(batch=2, negatives=("", "red", "")):
    return PromptSet(("rose", "tulip", "lemon"), negatives, (5, 6, 7), 2, {"guidance_scale": 3.0}, batch)


def test_requests_are_batches_with_their_own_prompts_and_seeds():
    call = {"guidance_scale": 3.0}
    assert prompt_set().requests() == [
        Request(("rose", "tulip"), (5, 6), 2, {**call, "negative_prompt": ["", "red"]}),
        Request(("lemon",), (7,), 2, {**call, "negative_prompt": [""]}),
    ]
    (whole,) = prompt_set(batch=9, negatives=("", "", "")).requests()
    assert whole == Request(("rose", "tulip", "lemon"), (5, 6, 7), 2, call)  # without any negative prompt


def test_images_do_not_depend_on_the_batch():
    pipe = demo_pipe()
    images = prompt_set().make(pipe)
    assert images.shape == (3, 64, 64, 3) and np.abs(images - prompt_set(batch=1).make(pipe)).max() < 1e-3
    without = prompt_set(batch=3, negatives=("",) * 3).make(pipe)
    assert np.abs(images - without)[1].max() > 1e-3  # the negative prompt counts


def test_closeness_leaves_identical_images_out_of_the_mean():
    originals = np.full((2, 16, 16, 3), 0.5)
    images = originals.copy()
    images[1] += 0.1
    close = Closeness.of(images, originals)
    assert close.psnr[0] == math.inf and mean_of(close.psnr) == pytest.approx(20)
    assert mean_of(Closeness.of(originals, originals).psnr) == math.inf


def test_an_identical_image_does_not_make_a_score_infinite():
    assert score([40.0, 42.0]) == 41 and score([math.inf, 40.0]) == 80
