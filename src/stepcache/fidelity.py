"""How far images are from their originals: PSNR, in dB. More is closer; equal images have an infinite one."""

from __future__ import annotations

import math

import numpy as np

from .errors import InvalidSetting


def psnr(images: np.ndarray, originals: np.ndarray) -> np.ndarray:
    """PSNR of each image, [N] in dB: 10 * log10(1 / mse), infinite where the mean squared error is 0.

    images, originals: [N, H, W, C], floats in 0..1 (what a pipeline returns for output_type="np"). InvalidSetting for
    other shapes, for integers, and for values outside 0..1 (pixels of 0..255 would give a figure that means nothing).
    """
    if images.ndim != 4 or images.shape != originals.shape or not images.size:
        raise InvalidSetting(
            f"psnr() compares two non-empty arrays [N, H, W, C] of one shape, got {images.shape} and {originals.shape}."
        )
    for name, pixels in (("images", images), ("originals", originals)):
        if not np.issubdtype(pixels.dtype, np.floating):
            raise InvalidSetting(f"psnr() takes floats in 0..1, got {name} of {pixels.dtype}: divide 0..255 by 255.")
        if not (pixels.min() >= 0 and pixels.max() <= 1):  # false for a NaN too
            raise InvalidSetting(f"psnr() takes values in 0..1, got {name} in {pixels.min():g}..{pixels.max():g}.")
    mse = np.square(images.astype(np.float64) - originals.astype(np.float64)).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return -10 * np.log10(mse)


def mean_psnr(images: np.ndarray, originals: np.ndarray) -> float:
    """Mean over images of their PSNR in dB; infinite where all are identical. Arguments and errors as in `psnr`.

    Images that are identical to their originals are left out of the mean: with one of them it would be infinite,
    whatever the others look like.
    """
    each = psnr(images, originals)
    different = each[np.isfinite(each)]
    return float(different.mean()) if different.size else math.inf


def in_words(decibel: float) -> str:
    """ "31.4 dB", or "identical" for an infinite one."""
    return "identical" if math.isinf(decibel) else f"{decibel:.1f} dB"
