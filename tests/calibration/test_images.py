"""What is made and how close it is."""

import math

import numpy as np
import pytest
from support.small import demo_pipe

from stepcache.calibration.images import Closeness, Shots, score
from stepcache.errors import StepCacheError


def shots(count=3, batch=2, **call):
    prompts, negatives = ("rose", "tulip", "lemon")[:count], ("", "red", "")[:count]
    return Shots(
        prompts, negatives, (5, 6, 7)[:count], {"num_inference_steps": 2, "guidance_scale": 3.0, **call}, batch
    )


def test_an_image_depends_on_its_own_seed_and_prompt_only():
    pipe = demo_pipe()
    together = np.concatenate([shots().make(pipe, part) for part in shots().batches()])
    alone = np.concatenate([shots(batch=1).make(pipe, part) for part in shots(batch=1).batches()])
    assert together.shape == (3, 64, 64, 3) and np.abs(together - alone).max() < 1e-3
    assert [part.stop for part in shots().batches()] == [2, 4]
    unseeded = Shots(("tulip",), ("",), (6,), shots().call, 1).make(pipe, slice(0, 1))
    assert np.abs(unseeded - together[1:2]).max() > 1e-3  # the negative prompt counts


def test_images_that_are_no_numbers_are_refused():
    class Broken:
        dtype = "float16"

        def __call__(self, prompt, **call):
            return type("Output", (), {"images": np.full((len(prompt), 8, 8, 3), np.nan)})

    with pytest.raises(StepCacheError, match="'rose' have values that are no numbers, in float16"):
        shots().make(Broken(), slice(0, 2))


def test_closeness_leaves_identical_images_out_of_the_mean():
    originals = np.full((2, 16, 16, 3), 0.5)
    images = originals.copy()
    images[1] += 0.1
    close = Closeness.of(images, originals)
    assert close.psnr[0] == math.inf and close.mean_psnr == pytest.approx(20)
    assert Closeness.of(originals, originals).mean_psnr == math.inf


def test_an_identical_image_does_not_make_a_score_infinite():
    assert score([40.0, 42.0]) == 41 and score([math.inf, 40.0]) == 80
