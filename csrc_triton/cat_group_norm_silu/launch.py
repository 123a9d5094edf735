"""How a call of `cat_group_norm_silu` is divided into launches and programs. Reasoned, not yet tuned on a GPU."""

from __future__ import annotations

from typing import NamedTuple

from .._common import cdiv

# Threads of a program in the two launches.
THREADS = 256
# Programs for each multiprocessor. Two hide each other's waits, and together have 16 KB in flight, about the latency of
# DRAM times its bandwidth. More would have more partials to merge.
PROGRAMS_PER_MULTIPROCESSOR = 2
# (mean, M2) pairs that launch 2 loads at once: 8 per thread.
MERGE_LANES = 2048


class LaunchParameters(NamedTuple):
    """How the two launches of a call are divided into programs. Both use the same division."""

    block_c: int
    """Channels of a tile."""
    block_p: int
    """Pixels of a tile."""
    step: int
    """Pixels that a program loads at once, in two tiles."""
    blocks: int
    """Blocks of channels over both inputs. A block never crosses the seam."""
    chunk: int
    """Pixels of a program, a multiple of step."""
    splits: int
    """Chunks that cover the pixels."""


class GroupTile(NamedTuple):
    """The tile of a program of the one launch."""

    block_c: int
    """Channels: the group's, rounded up to a power of two."""
    block_p: int
    """Pixels."""
    threads: int
    """Threads of a program."""


def one_launch(c1: int, c2: int, num_groups: int, pixels: int, channels_last: bool) -> bool:
    """Whether one launch, in which a program computes a whole group, should be faster than two.

    It should for small images, where launching takes as long as computing and a group stays in L1 between two reads.
    """
    group_size = (c1 + c2) // num_groups
    most = 32 * 32 if c1 % group_size == 0 else 16 * 16
    # The kernel's tiles have at most 128 channels, and its offsets within an image are 32-bit.
    return channels_last and group_size <= 128 and pixels <= most and 2 * pixels * (c1 + c2) < 2**31


def launch_parameters(
    batch: int, c1: int, c2: int, pixels: int, channels_last: bool, multiprocessors: int
) -> LaunchParameters:
    """Choose as many chunks as the chip runs at once, none shorter than a step, so that there are few partials.

    A tile has 2048 elements, 8 per thread: 64 channels (for 16-bit channels a cache line of 128 bytes per pixel) x 32
    pixels in channels_last and in contiguous images below 256 pixels, 8 x 256 in larger contiguous images.
    """
    block_c, block_p = (64, 32) if channels_last or pixels < 256 else (8, 256)
    step = 2 * block_p
    blocks = cdiv(c1, block_c) + cdiv(c2, block_c)
    # Rounded down, because one program more than fit at once would run alone at the end.
    wanted = max(PROGRAMS_PER_MULTIPROCESSOR * multiprocessors // (batch * blocks), 1)
    chunk = cdiv(cdiv(pixels, wanted), step) * step
    return LaunchParameters(block_c, block_p, step, blocks, chunk, cdiv(pixels, chunk))


def groups_of_block(block_c: int, group_size: int) -> int:
    """The most groups that a block of channels can touch, rounded up to a power of two."""
    return 1 << ((block_c + group_size - 2) // group_size).bit_length()


def merge_tile(groups: int, group_size: int) -> tuple[int, int]:
    """How many channels of each group, and chunks of each channel, launch 2 merges at once. Powers of two."""
    members = min(power_of_two(group_size), MERGE_LANES // groups)
    return members, min(8, MERGE_LANES // (groups * members))


def group_tile(group_size: int, pixels: int, element_size: int, buffers: int) -> GroupTile:
    """The tile for a group of up to 128 channels: up to 512 threads with 8 elements each.

    buffers: how many are read; those that are read for both halves of the batch count twice.
    """
    block_c = power_of_two(group_size)
    # 512 threads have 128 registers each. Two tiles of each of three float32 buffers need more.
    threads = 512 if element_size * buffers <= 8 else 256
    # A step is two tiles, and not longer than the image if possible.
    block_p = min(threads * 8 // block_c, max(power_of_two(pixels) // 2, 1))
    return GroupTile(block_c, block_p, max(block_c * block_p // 8, 32))


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()
