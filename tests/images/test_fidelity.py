import itertools
import math

import numpy as np
import pytest

from stepcache.errors import InvalidSetting
from stepcache.images.fidelity import in_words, interval_of, mean_psnr, psnr, ssim


def grey(*levels, shape=(4, 4, 3)):
    """Images [N, 4, 4, 3], each of one level."""
    return np.stack([np.full(shape, level) for level in levels])


def test_a_hundredth_of_a_mean_squared_error_is_20_db():
    assert psnr(grey(0.6), grey(0.5)) == pytest.approx([20.0])


def test_each_image_has_a_figure_of_its_own():
    assert psnr(grey(0.6, 0.51), grey(0.5, 0.5)) == pytest.approx([20.0, 40.0])


def test_the_mean_is_over_figures_not_over_errors():
    assert mean_psnr(grey(0.6, 0.51), grey(0.5, 0.5)) == pytest.approx(30.0)


def test_the_error_is_averaged_over_pixels_and_channels():
    image = grey(0.5)
    image[0, 0, 0, 0] += 0.05 * math.sqrt(48)  # one of 48 values, with the error of all of them
    assert psnr(image, grey(0.5)) == pytest.approx(psnr(grey(0.55), grey(0.5)))


def test_identical_images_are_infinite_without_a_warning():
    images = grey(0.2, 0.9)
    with np.errstate(all="raise"):
        assert np.isposinf(psnr(images, images.copy())).all()
        assert mean_psnr(images, images.copy()) == math.inf


def test_an_identical_image_does_not_hide_the_others():
    assert mean_psnr(grey(0.5, 0.6), grey(0.5, 0.5)) == pytest.approx(20.0)


def test_half_precision_does_not_lose_a_small_error():
    images, originals = grey(0.5).astype(np.float16), grey(0.501).astype(np.float16)
    assert psnr(images, originals)[0] == pytest.approx(60.0, abs=1.0)


@pytest.mark.parametrize(
    ("images", "originals", "words"),
    [
        (grey(0.5, 0.5), grey(0.5), "(2, 4, 4, 3) and (1, 4, 4, 3)"),
        (grey(0.5)[0], grey(0.5)[0], "(4, 4, 3)"),
        (grey(0.5)[:0], grey(0.5)[:0], "non-empty"),
        ((255 * grey(0.5)).astype(np.uint8), grey(0.5), "images of uint8"),
        (grey(0.5), 255 * grey(0.5), "originals in 127.5..127.5"),
        (grey(math.nan), grey(0.5), "images in nan..nan"),
    ],
)
def test_what_is_no_pair_of_images_is_refused_with_its_values(images, originals, words):
    with pytest.raises(InvalidSetting) as error:
        psnr(images, originals)
    assert words in str(error.value)


def test_in_words():
    assert in_words(31.44) == "31.4 dB"
    assert in_words(math.inf) == "identical"


def test_ssim_by_hand():
    """Against the definition, window by window, with numpy alone."""
    rng = np.random.default_rng(0)
    x, y = rng.random((2, 13, 14, 3)), rng.random((2, 13, 14, 3))
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    for image in range(2):
        values = []
        for c in range(3):
            for i in range(3):
                for j in range(4):
                    a, b = x[image, i : i + 11, j : j + 11, c], y[image, i : i + 11, j : j + 11, c]
                    ma, mb = (window * a).sum(), (window * b).sum()
                    va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
                    cov = (window * (a - ma) * (b - mb)).sum()
                    values.append((2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4)))
        np.testing.assert_allclose(ssim(x, y)[image], np.mean(values), rtol=1e-9)
    np.testing.assert_allclose(ssim(x, x), 1)


def test_ssim_of_images_smaller_than_its_window():
    with pytest.raises(InvalidSetting, match="11 pixels"):
        ssim(np.zeros((1, 10, 32, 3)), np.zeros((1, 10, 32, 3)))


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_the_interval_is_that_of_all_resamples(level):
    """Against the exact distribution: the means of all 5**5 ways to draw five of five with replacement."""
    values = np.array([-1.0, 0.2, 0.7, 1.9, 4.0])
    means = values[list(itertools.product(range(5), repeat=5))].mean(axis=1)
    exact = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    assert interval_of(values, level, draws=100_000) == pytest.approx(exact, abs=0.05)


def test_the_interval_of_many_is_the_normal_one_and_comes_in_blocks():
    values = np.random.default_rng(1).normal(0.5, 2.0, 3000)
    low, high = interval_of(list(values), draws=1000)  # three blocks
    half = 1.96 * values.std() / math.sqrt(3000)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)


def test_the_interval_is_the_same_each_time():
    assert (
        interval_of([0.1, 0.5, 0.2]) == interval_of([0.1, 0.5, 0.2]) != interval_of([0.1, 0.5, 0.2], seed=1, draws=50)
    )
    assert interval_of([0.25, 0.25]) == (0.25, 0.25)


@pytest.mark.parametrize(
    ("differences", "words"),
    [
        ([1.0], "got 1 of shape"),
        ([], "got 0 of shape"),
        ([1.0, math.nan], "2 of shape .2,., 1 of them finite"),
        ([1.0, math.inf, 2.0], "2 of them finite"),
        ([[1.0, 2.0]], r"shape \(1, 2\)"),
    ],
)
def test_what_has_no_interval(differences, words):
    with pytest.raises(InvalidSetting, match=words):
        interval_of(differences)
    with pytest.raises(InvalidSetting, match=r"got 1\.5, 10"):
        interval_of([1.0, 2.0], level=1.5, draws=10)
