"""Images as a page holds them: 8 bits, encoded, in data URIs; and what differs between two of them."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

# Up to so many pixels an image is stored losslessly: such small ones cost next to nothing.
LOSSLESS = 128 * 128
QUALITY = 90  # of WebP otherwise: some 65 kB for a photograph of 512x512
DIFFERENCE_QUALITY = 60  # noise, mostly, that costs more than it tells

# Differences are shown so many times as large as they are. The same everywhere: pages can be compared.
GAIN = 4


def eight_bit(image: np.ndarray) -> np.ndarray:
    """Floats in 0..1 as 0..255, uint8, of the same shape."""
    return (image * 255).round().astype(np.uint8)


def difference(image: np.ndarray, original: np.ndarray) -> np.ndarray:
    """How far each pixel is off, [H, W, 3] in 0..1 both -> [H, W] in 0..1: GAIN times the largest of its channels.

    Black where both are the same. White stands for 1/GAIN of the whole range, and for anything beyond.
    """
    largest = np.abs(image.astype(np.float32) - original.astype(np.float32)).max(axis=-1)
    return np.clip(GAIN * largest, 0, 1)


def data_uri(image: np.ndarray, quality: int = QUALITY) -> str:
    """The image, floats [H, W, 3] or grey [H, W] in 0..1, as a `data:` URI of a WebP file of that quality (0..100)."""
    file = io.BytesIO()
    lossless = image.shape[0] * image.shape[1] <= LOSSLESS
    Image.fromarray(eight_bit(image)).save(file, "WEBP", lossless=lossless, quality=quality, method=4)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
