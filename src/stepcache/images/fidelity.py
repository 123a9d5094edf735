"""How close images are to their originals: PSNR and SSIM. Higher is closer."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from ..errors import InvalidSetting

WINDOW = 11  # pixels of SSIM's window, each way


def psnr(images: np.ndarray, originals: np.ndarray) -> np.ndarray:
    """PSNR of each image, [N] in dB: 10 * log10(1 / mse), infinite for a mean squared error of 0.

    images, originals: [N, H, W, C], floats in 0..1 (a pipeline's output_type="np"). InvalidSetting for other shapes,
    for integers, and for values outside 0..1 (0..255 would give a meaningless figure).
    """
    _check("psnr", images, originals)
    mse = np.square(images.astype(np.float64) - originals.astype(np.float64)).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return -10 * np.log10(mse)


def ssim(images: np.ndarray, originals: np.ndarray) -> np.ndarray:
    """SSIM of each image, [N] in -1..1, 1 if identical; mean over channels. Arguments and errors as in `psnr`.

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
    """[N, H, W, C] under SSIM's window, without the borders where it does not fit."""
    taps = np.exp(-0.5 * ((np.arange(WINDOW) - WINDOW // 2) / 1.5) ** 2)
    taps /= taps.sum()
    for axis in (1, 2):
        pixels = np.lib.stride_tricks.sliding_window_view(pixels, WINDOW, axis=axis) @ taps
    return pixels


def _check(name: str, images: np.ndarray, originals: np.ndarray) -> None:
    if images.ndim != 4 or images.shape != originals.shape or not images.size:
        raise InvalidSetting(
            f"{name}() compares two non-empty [N, H, W, C] of the same shape, got {images.shape} and {originals.shape}."
        )
    for which, pixels in (("images", images), ("originals", originals)):
        if not np.issubdtype(pixels.dtype, np.floating):
            raise InvalidSetting(f"{name}() takes floats in 0..1, got {which} of {pixels.dtype}: divide 0..255 by 255.")
        if not (pixels.min() >= 0 and pixels.max() <= 1):  # false for a NaN too
            raise InvalidSetting(f"{name}() takes values in 0..1, got {which} in {pixels.min():g}..{pixels.max():g}.")


def mean_psnr(images: np.ndarray, originals: np.ndarray) -> float:
    """`mean_of` the images' PSNR. Arguments and errors as in `psnr`."""
    return mean_of(psnr(images, originals))


def mean_of(psnrs: Iterable[float]) -> float:
    """The mean of several images' PSNR in dB, infinite if all are identical to their originals.

    Identical images are left out: a single one would make the mean infinite.
    """
    different = [value for value in psnrs if math.isfinite(value)]
    return float(np.mean(different)) if different else math.inf


def signed(value: float, digits: int = 1) -> str:
    """ "+1.4", "-0.3", and "+0.0" for all that is rounded to 0."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def in_words(decibel: float, name: str = "") -> str:
    """ "31.4 dB", or "identical" if infinite. name: goes before the number, "PSNR " for example."""
    return "identical" if math.isinf(decibel) else f"{name}{decibel:.1f} dB"
