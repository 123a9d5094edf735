"""Images for a page: 8 bits, encoded as data URIs; and pictures of the difference of two images."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

# Images of up to so many pixels are stored losslessly, which costs next to nothing.
LOSSLESS = 128 * 128
QUALITY = 90  # of WebP otherwise: about 65 kB for a photograph of 512x512
DIFFERENCE_QUALITY = 60  # mostly noise, which would cost more than it shows

# Differences are amplified by this factor, the same on every page, so that pages can be compared.
GAIN = 4


def eight_bit(image: np.ndarray) -> np.ndarray:
    """Floats in 0..1 as 0..255, uint8, of the same shape."""
    return (image * 255).round().astype(np.uint8)


def difference(image: np.ndarray, original: np.ndarray) -> np.ndarray:
    """How far each pixel is off: GAIN times its largest difference over channels. [H, W, 3] in 0..1 -> [H, W] in 0..1.

    Black: no difference. White: 1/GAIN of the range or more.
    """
    largest = np.abs(image.astype(np.float32) - original.astype(np.float32)).max(axis=-1)
    return np.clip(GAIN * largest, 0, 1)


def data_uri(image: np.ndarray, quality: int = QUALITY) -> str:
    """An image, floats [H, W, 3] or grey [H, W] in 0..1, as a `data:` URI of a WebP file of that quality (0..100)."""
    file = io.BytesIO()
    lossless = image.shape[0] * image.shape[1] <= LOSSLESS
    Image.fromarray(eight_bit(image)).save(file, "WEBP", lossless=lossless, quality=quality, method=4)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
