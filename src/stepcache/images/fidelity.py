"""How far images are from their originals: PSNR and SSIM. More is closer."""

from __future__ import annotations

import math

import numpy as np

from ..errors import InvalidSetting

WINDOW = 11  # pixels of SSIM's window, each way


def psnr(images: np.ndarray, originals: np.ndarray) -> np.ndarray:
    """PSNR of each image, [N] in dB: 10 * log10(1 / mse), infinite where the mean squared error is 0.

    images, originals: [N, H, W, C], floats in 0..1 (what a pipeline returns for output_type="np"). InvalidSetting for
    other shapes, for integers, and for values outside 0..1 (pixels of 0..255 would give a figure that means nothing).
    """
    _check("psnr", images, originals)
    mse = np.square(images.astype(np.float64) - originals.astype(np.float64)).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return -10 * np.log10(mse)


def ssim(images: np.ndarray, originals: np.ndarray) -> np.ndarray:
    """SSIM of each image, [N] in -1..1, 1 for identical ones; mean over channels. Arguments and errors as in `psnr`.

    Gaussian window of 11 pixels, sigma 1.5, no padding (InvalidSetting for images smaller than the window).
    Source: Wang, Bovik, Sheikh, Simoncelli, Image quality assessment, IEEE TIP 2004.
    """
    _check("ssim", images, originals)
    if min(images.shape[1:3]) < WINDOW:
        raise InvalidSetting(f"ssim() needs images of at least {WINDOW} pixels a side, got {images.shape[1:3]}.")
    x, y = images.astype(np.float64), originals.astype(np.float64)
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    each = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    each /= (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return each.mean(axis=(1, 2, 3))


def _blur(pixels: np.ndarray) -> np.ndarray:
    """[N, H, W, C] under SSIM's window; the borders that it does not fit in are left out."""
    taps = np.exp(-0.5 * ((np.arange(WINDOW) - WINDOW // 2) / 1.5) ** 2)
    taps /= taps.sum()
    for axis in (1, 2):
        pixels = np.lib.stride_tricks.sliding_window_view(pixels, WINDOW, axis=axis) @ taps
    return pixels


def _check(name: str, images: np.ndarray, originals: np.ndarray) -> None:
    if images.ndim != 4 or images.shape != originals.shape or not images.size:
        raise InvalidSetting(
            f"{name}() compares two non-empty [N, H, W, C] of one shape, got {images.shape} and {originals.shape}."
        )
    for which, pixels in (("images", images), ("originals", originals)):
        if not np.issubdtype(pixels.dtype, np.floating):
            raise InvalidSetting(f"{name}() takes floats in 0..1, got {which} of {pixels.dtype}: divide 0..255 by 255.")
        if not (pixels.min() >= 0 and pixels.max() <= 1):  # false for a NaN too
            raise InvalidSetting(f"{name}() takes values in 0..1, got {which} in {pixels.min():g}..{pixels.max():g}.")


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
