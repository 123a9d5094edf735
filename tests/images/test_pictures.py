import base64
import io

import numpy as np
import pytest
from PIL import Image

from stepcache.images.pictures import GAIN, data_uri, difference, eight_bit


def decoded(uri):
    head, _, body = uri.partition(",")
    assert head == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(body))).convert("RGB")).astype(float)


def test_eight_bit_rounds():
    assert eight_bit(np.array([0.0, 0.4999, 0.5, 1.0])).tolist() == [0, 127, 128, 255]


def test_the_difference_is_the_largest_channel_amplified():
    original = np.full((2, 2, 3), 0.5)
    image = original.copy()
    image[0, 0] += [0.01, -0.02, 0.0]
    image[1, 1] -= 0.4
    assert difference(image, original) == pytest.approx(np.array([[GAIN * 0.02, 0], [0, 1]]), abs=1e-6)


def test_small_images_are_stored_as_they_are():
    image = np.random.default_rng(0).random((128, 128, 3))
    assert (decoded(data_uri(image)) == eight_bit(image)).all()


def test_large_ones_are_stored_small():
    y, x = np.mgrid[0:512, 0:512] / 512
    image = np.stack([x, y, (1 + np.sin(20 * x * y)) / 2], axis=-1)
    uri = data_uri(image)
    assert len(uri) < 512 * 512 // 4
    assert np.abs(decoded(uri) - 255 * image).mean() < 3


def test_grey_images():
    image = np.linspace(0, 1, 64 * 64).reshape(64, 64)
    assert (decoded(data_uri(image))[..., 1] == eight_bit(image)).all()
