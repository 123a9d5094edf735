"""How a call of `dual_conv1x1` is divided into programs. Reasoned from the compiled code, not tuned."""

from __future__ import annotations

import functools
from typing import NamedTuple

from .._common import cdiv

# Pixels, output channels, warps and stages of a tile, largest first. The stages keep at least 48 KiB in flight, as much
# as a multiprocessor takes from L2 while it waits for one load (350 cycles from L2, 1000 from DRAM). They fit in the
# 99 KiB of shared memory of sm_89, and in the 64 KiB of gfx942, which needs one stage less. No tile spills registers on
# any target. float32 products outside tensor cores need more registers, so they have their own tiles.
TENSOR_TILES = ((128, 128, 8, 3), (128, 64, 4, 3), (64, 64, 4, 4), (64, 32, 4, 5))
IEEE_TILES = ((128, 64, 8, 3), (64, 32, 4, 5))
LARGEST_BLOCK = 128
# Bytes of a tile's row in one step of the reduction: a cache line, whatever the dtype.
STEP_BYTES = 128

# What one multiprocessor of an H100 does in a clock cycle. Other GPUs have similar ratios.
PORT_BYTES = 64  # bytes that it takes from L2 when it asks alone
L2_BYTES = 24  # its share when all of them ask
TENSOR_PRODUCTS = 1740  # multiply-adds of 16-bit numbers; half as many in TF32
IEEE_PRODUCTS = 100
# Cycles of a step that overlap with neither loads nor products: the barrier, and the step's last products.
STEP_CYCLES = 200


class Tile(NamedTuple):
    """What one program computes, and its warps and stages."""

    block_p: int
    """Pixels."""
    block_o: int
    """Output channels."""
    block_k: int
    """Input channels of one step of the reduction."""
    num_warps: int
    num_stages: int


def tiles(element_size: int, precision: str, buffers: int) -> list[Tile]:
    """All tiles for a dtype, a precision and the number of buffers that h consists of, largest first.

    Each step loads all buffers. With several, half the channels per step keep them within the same shared memory.
    Where the halves of the batch take from each other, a step loads as many pixels, half of them from each.
    """
    block_k = STEP_BYTES // element_size // (2 if buffers > 1 else 1)
    shapes = IEEE_TILES if _ieee(element_size, precision) else TENSOR_TILES
    return [Tile(p, o, block_k, warps, stages) for p, o, warps, stages in shapes]


@functools.lru_cache
def tile(
    images: int, pixels: int, c1: int, c2: int, out_channels: int, element_size: int, precision: str, buffers: int,
    multiprocessors: int, halves: bool = False,
) -> Tile:  # fmt: skip
    """The fastest tile by `cycles`, among those that are at least half full, or else the smallest.

    images: 1 in channels_last, where `pixels` counts those of all images. halves: as in `programs`.
    """
    every = tiles(element_size, precision, buffers)
    fitting = [t for t in every if _rows(t, halves) < 2 * pixels and t.block_o < 2 * out_channels] or every[-1:]

    def time(t: Tile) -> float:
        count = programs(t, images, pixels, out_channels, halves)
        return cycles(t, count, c1, c2, element_size, precision, multiprocessors)

    return min(fitting, key=time)


def programs(t: Tile, images: int, pixels: int, out_channels: int, halves: bool = False) -> int:
    """How many programs cover the output.

    halves: the halves of the batch take from each other, so that half of a tile's pixels are from each of them. images
    and pixels are then those of one half.
    """
    return images * cdiv(pixels, _rows(t, halves)) * cdiv(out_channels, t.block_o)


def cycles(t: Tile, programs: int, c1: int, c2: int, element_size: int, precision: str, multiprocessors: int) -> float:
    """About how long the programs take, in clock cycles of an H100.

    A step of the multiprocessor with the most programs takes as long as its loads or its products, the longer of the
    two. Meanwhile L2 serves the loads of all programs. The slower of both decides: large tiles load fewer bytes, small
    ones leave fewer multiprocessors idle.
    """
    steps = cdiv(c1, t.block_k) + cdiv(c2, t.block_k)
    step_bytes = (t.block_p + t.block_o) * t.block_k * element_size
    rate = IEEE_PRODUCTS if _ieee(element_size, precision) else TENSOR_PRODUCTS * 2 / element_size
    step = max(step_bytes / PORT_BYTES, t.block_p * t.block_o * t.block_k / rate) + STEP_CYCLES
    busiest = cdiv(programs, multiprocessors) * steps * step
    return max(busiest, programs * steps * step_bytes / (L2_BYTES * multiprocessors))


def _rows(t: Tile, halves: bool) -> int:
    """The pixels of a tile, or those of one half of the batch."""
    return t.block_p // 2 if halves else t.block_p


def _ieee(element_size: int, precision: str) -> bool:
    """Whether the products run outside tensor cores."""
    return element_size == 4 and precision == "ieee"
