"""How a call of `cat_group_norm_silu` is cut into programs: tiles, chunks, stages. Reasoned, not yet tuned on a GPU."""

from __future__ import annotations

from typing import NamedTuple

from .._common import cdiv

NUM_WARPS = 8
# Two programs of 8 warps for each multiprocessor of an A100, H100 or B200 (108 to 148 of them), with two or three tiles
# of 8 KB in flight each: more bytes than the latency of DRAM times its bandwidth asks for. More programs would only
# mean more partials to merge.
PROGRAMS = 256
# Lanes of the tile in which launch 2 merges partials: 8 (mean, M2) pairs a thread, all loaded at once.
MERGE_LANES = 2048


class LaunchParameters(NamedTuple):
    """How one call is cut into programs; both launches use the same."""

    block_c: int
    """Channels of a tile."""
    block_p: int
    """Pixels of a tile."""
    blocks: int
    """Blocks of channels over both inputs; a block never crosses the seam."""
    chunk: int
    """Pixels of a program, a multiple of block_p."""
    splits: int
    """Chunks that cover the pixels."""


def launch_parameters(batch: int, c1: int, c2: int, pixels: int, channels_last: bool) -> LaunchParameters:
    """Fill the chip with as few chunks as that takes, each of two tiles or more, so that partials stay few.

    Tiles hold 4096 elements: 64 x 64 in channels_last (128 bytes of 16-bit channels, a cache line, for each pixel) and
    in contiguous images below 256 pixels, 16 channels x 256 pixels in larger ones. Sizes may be SymInts.
    """
    block_c, block_p = (64, 64) if channels_last or pixels < 256 else (16, 256)
    blocks = cdiv(c1, block_c) + cdiv(c2, block_c)
    wanted = cdiv(PROGRAMS, batch * blocks)
    chunk = max(cdiv(cdiv(pixels, wanted), block_p), 2) * block_p
    return LaunchParameters(block_c, block_p, blocks, chunk, cdiv(pixels, chunk))


def groups_of_block(block_c: int, group_size: int) -> int:
    """Groups that a block of channels can touch at the most, rounded up to a power of two."""
    return 1 << int((block_c + group_size - 2) // group_size).bit_length()


def loop_stages(element_size: int, mixed: bool) -> int:
    """Stages of the loops over pixels: the tiles that are on their way in, plus the one worked on.

    A further stage costs shared memory for a tile of every buffer that is read; two 16-bit tiles, one 32-bit tile and
    one tile of each of three mixed buffers are about as many bytes in flight.
    """
    return 3 if element_size == 2 and not mixed else 2
