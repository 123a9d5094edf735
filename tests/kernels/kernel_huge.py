"""Programs at the far end of tensors of more than 2^31 elements, run in the interpreter on sparse memory.

A whole launch of that size takes the interpreter hours, so the program with the largest offsets runs alone, as
programs do. Pages that no program touches are never backed by memory. With 32-bit offsets the reads and writes would
land elsewhere: in the NaN-free zero pages of another place, or outside the mapping, which kills the worker.
"""

from __future__ import annotations

import mmap

import numpy as np
import torch
from kernel_worker import one_program
from stepcache.kernels.cat_group_norm_silu import cat_group_norm_silu_reference
from stepcache.kernels.cat_group_norm_silu.kernel import channel_statistics_kernel, normalize_silu_kernel
from stepcache.kernels.cat_group_norm_silu.launch import MERGE_LANES, groups_of_block, launch_parameters
from stepcache.kernels.dual_conv1x1 import dual_conv1x1_reference
from stepcache.kernels.dual_conv1x1.kernel import dual_conv1x1_kernel
from stepcache.kernels.dual_conv1x1.launch import tiles
from torch import Tensor

MAP_NORESERVE = 0x4000  # Linux; in Python's mmap from 3.13 on
_kept: list[mmap.mmap] = []


def sparse(*shape: int) -> Tensor:
    """A float16 tensor of zeros that costs no memory until it is written to."""
    elements = int(np.prod(shape, dtype=np.int64))
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    memory = mmap.mmap(-1, 2 * elements, flags=flags)
    _kept.append(memory)
    return torch.from_numpy(np.frombuffer(memory, np.float16)).view(shape)


def norm_at_the_end(channels_last: bool) -> tuple[Tensor, Tensor]:
    """The last image of 2^19 + 1, where only the last one is not 0: our result for its last block, and the reference's.

    Returned as [block's channels, H * W]; N * C * H * W is above 2^31 for h, skip and the output.
    """
    batch, c1, c2, height, width, groups = 2**19 + 1, 64, 64, 8, 8, 4
    pixels, channels = height * width, c1 + c2
    p = launch_parameters(batch, c1, c2, pixels, channels_last)
    assert p.splits == 1
    last = torch.randn(1, channels, height, width, generator=torch.Generator().manual_seed(0)).half()
    sources = [sparse(batch, pixels, c) if channels_last else sparse(batch, c, pixels) for c in (c1, c2)]
    for source, x in zip(sources, last.view(channels, pixels).split([c1, c2]), strict=True):
        source[-1] = x.T if channels_last else x
    h, skip = sources
    out = sparse(batch, pixels, channels) if channels_last else sparse(batch, channels, pixels)
    means, m2s = (torch.zeros(batch, 1, channels) for _ in range(2))
    weight, bias = torch.ones(channels), torch.zeros(channels)
    common = {
        "h": h, "h2": h, "h3": h, "mix": h, "skip": skip, "means": means, "m2s": m2s, "HW": pixels, "C1": c1, "C2": c2,
        "blocks": p.blocks, "splits": p.splits, "chunk": p.chunk, "NUM_MIX": 0, "CHANNELS_LAST": channels_last,
        "WIDE": False, "BLOCK_C": p.block_c, "BLOCK_P": p.block_p, "STAGES": 2,
    }  # fmt: skip
    programs = batch * p.splits * p.blocks
    for index in range(programs - p.blocks, programs):
        with one_program(index, programs):
            channel_statistics_kernel[(1,)](**common)
    with one_program(0, programs):  # the second launch goes backwards
        normalize_silu_kernel[(1,)](
            **common, weight=weight, bias=bias, out=out, eps=1e-5, GROUP_SIZE=channels // groups,
            GROUPS=groups_of_block(p.block_c, channels // groups), MERGE_LANES=MERGE_LANES,
        )  # fmt: skip
    expected = cat_group_norm_silu_reference(last[:, :c1], last[:, c1:], weight, bias, groups, 1e-5)
    got = out[-1].T if channels_last else out[-1]
    return got[-p.block_c :].clone(), expected.view(channels, pixels)[-p.block_c :]


def norm_wide_rows() -> tuple[Tensor, Tensor]:
    """Contiguous rows of 2^27 + 128 pixels, 16 channels: offsets within a tile pass 2^31. Means of the first pixels."""
    pixels, c = 2**27 + 128, 17
    h = sparse(1, c, pixels)
    h[0, :, :256] = torch.randn(c, 256, generator=torch.Generator().manual_seed(0)).half()
    p = launch_parameters(1, c, c, pixels, False)
    assert p.block_c * pixels >= 2**31
    means, m2s = torch.zeros(1, 1, 2 * c), torch.zeros(1, 1, 2 * c)
    channel_statistics_kernel[(p.blocks,)](
        h=h, h2=h, h3=h, mix=h, skip=h, means=means, m2s=m2s, HW=pixels, C1=c, C2=c, blocks=p.blocks, splits=1,
        chunk=256, NUM_MIX=0, CHANNELS_LAST=False, WIDE=True, BLOCK_C=p.block_c, BLOCK_P=p.block_p, STAGES=2,
    )  # fmt: skip
    return means[0, 0], h[0, :, :256].float().mean(1).repeat(2)


def conv_at_the_end(channels_last: bool) -> tuple[Tensor, Tensor]:
    """The last image of 2^19 + 1 again, for the convolution: [O, H * W], ours and the reference's."""
    batch, c, out_channels, height, width = 2**19 + 1, 64, 64, 8, 8
    pixels = height * width
    generator = torch.Generator().manual_seed(0)
    last = torch.randn(1, 2 * c, height, width, generator=generator).half()
    weight = (torch.randn(out_channels, 2 * c, 1, 1, generator=generator) / (2 * c) ** 0.5).half()
    sources = [sparse(batch, pixels, c) if channels_last else sparse(batch, c, pixels) for _ in range(3)]
    h, skip, residual = sources
    for source, x in zip(sources, last.view(2 * c, pixels).split([c, c]), strict=False):
        source[-1] = x.T if channels_last else x
    residual[-1] = 1.0
    out = sparse(batch, pixels, out_channels) if channels_last else sparse(batch, out_channels, pixels)
    size = batch * pixels if channels_last else pixels
    tile = tiles(2, "ieee", 0)[-1]
    last_tiles = -(-pixels // tile.block_p) * -(-out_channels // tile.block_o)
    programs = batch * last_tiles
    for index in range(programs - last_tiles, programs):
        with one_program(index, programs):
            dual_conv1x1_kernel[(1,)](
                h=h, h2=None, h3=None, mix=None, skip=skip, weight=weight, bias=None, residual=residual,
                residual_bias=None, out=out, P=size, C1=c, C2=c, C_OUT=out_channels, NUM_MIX=0,
                CHANNELS_LAST=channels_last, WIDE=False, EVEN_K=True,
                PRECISION="ieee", UPCAST=True, BLOCK_P=tile.block_p, BLOCK_O=tile.block_o, BLOCK_K=tile.block_k,
            )  # fmt: skip
    expected = dual_conv1x1_reference(last[:, :c], last[:, c:], weight, None, torch.ones(1, out_channels, 8, 8))
    return (out[-1].T if channels_last else out[-1]).clone(), expected.view(out_channels, pixels)


def conv_wide_rows() -> tuple[Tensor, Tensor]:
    """Contiguous rows of 2^27 pixels, 80 channels of h, 32 of the output: offsets pass 2^31. The first 32 pixels."""
    pixels, c1, c2, out_channels = 2**27, 80, 16, 32
    generator = torch.Generator().manual_seed(0)
    h, skip, out = sparse(1, c1, pixels), sparse(1, c2, pixels), sparse(1, out_channels, pixels)
    for source in (h, skip):
        source[0, :, :32] = torch.randn(source.shape[1], 32, generator=generator).half()
    weight = (torch.randn(out_channels, c1 + c2, 1, 1, generator=generator) / (c1 + c2) ** 0.5).half()
    tile = tiles(2, "ieee", 0)[-1]
    assert min(tile.block_k, tile.block_o) * pixels > 2**31
    with one_program(0, pixels // tile.block_p):
        dual_conv1x1_kernel[(1,)](
            h=h, h2=None, h3=None, mix=None, skip=skip, weight=weight, bias=None, residual=None, residual_bias=None,
            out=out, P=pixels,
            C1=c1, C2=c2, C_OUT=out_channels, NUM_MIX=0, CHANNELS_LAST=False, WIDE=True, EVEN_K=False,
            PRECISION="ieee", UPCAST=True, BLOCK_P=tile.block_p, BLOCK_O=tile.block_o, BLOCK_K=tile.block_k,
        )  # fmt: skip
    first = [x[:, :, :32].reshape(1, -1, 1, 32) for x in (h, skip)]
    return out[:, :, :32].clone(), dual_conv1x1_reference(*first, weight, None).view(1, out_channels, 32)


def conv_wide_pixels() -> tuple[Tensor, Tensor]:
    """64 pixels in channels_last, 2^26 output channels each: offsets pass 2^31. The last 32 of these channels."""
    pixels, c, out_channels = 64, 24, 2**26
    generator = torch.Generator().manual_seed(0)
    h, skip = (torch.randn(pixels, c, generator=generator).half() for _ in range(2))
    weight, out = sparse(out_channels, 2 * c), sparse(pixels, out_channels)
    weight[-32:] = (torch.randn(32, 2 * c, generator=generator) / (2 * c) ** 0.5).half()
    tile = tiles(2, "ieee", 0)[-1]
    assert tile.block_p == pixels and tile.block_o == 32
    programs = out_channels // tile.block_o
    with one_program(programs - 1, programs):
        dual_conv1x1_kernel[(1,)](
            h=h, h2=None, h3=None, mix=None, skip=skip, weight=weight, bias=None, residual=None, residual_bias=None,
            out=out, P=pixels,
            C1=c, C2=c, C_OUT=out_channels, NUM_MIX=0, CHANNELS_LAST=True, WIDE=True, EVEN_K=False,
            PRECISION="ieee", UPCAST=True, BLOCK_P=tile.block_p, BLOCK_O=tile.block_o, BLOCK_K=tile.block_k,
        )  # fmt: skip
    sources = [x.T.reshape(1, c, 1, pixels) for x in (h, skip)]
    expected = dual_conv1x1_reference(*sources, weight[-32:].view(32, 2 * c, 1, 1), None)
    return out[:, -32:].clone(), expected.view(32, pixels).T
