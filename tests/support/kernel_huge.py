"""Programs at the far end of tensors of more than 2^31 elements, run in the interpreter on sparse memory.

A whole launch of that size would take hours in the interpreter, so only the programs with the largest offsets run.
Pages that no program touches take no memory. With 32-bit offsets the reads and writes would land elsewhere: in zeros of
another page, or outside the mapping, which kills the worker.
"""

from __future__ import annotations

import math
import mmap
from unittest import mock

import torch
from stepcache.kernels.cat_group_norm_silu import cat_group_norm_silu_reference
from stepcache.kernels.cat_group_norm_silu import op as norm_op
from stepcache.kernels.cat_group_norm_silu.two_launches import normalize_silu_kernel
from stepcache.kernels.dual_conv1x1 import dual_conv1x1_reference
from stepcache.kernels.dual_conv1x1.kernel import dual_conv1x1_kernel
from stepcache.kernels.dual_conv1x1.launch import tiles
from support.kernel_worker import one_program
from torch import Tensor

MAP_NORESERVE = 0x4000  # Linux; in Python's mmap from 3.13 on
_kept: list[mmap.mmap] = []


def sparse(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    """A tensor of zeros that costs no memory until it is written to."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=flags)
    _kept.append(memory)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def _norm_launches(
    h: Tensor, skip: Tensor, groups: int, channels_last: bool, one: bool, mix: Tensor | None = None
) -> list[norm_op.Launch]:
    """The launches of a call on h and skip, [N, H * W, C] or [N, C, H * W]; all others but mix are sparse tensors."""

    def image(x: Tensor) -> Tensor:
        x = x.to("meta")[:, None]
        return x.permute(0, 3, 1, 2) if channels_last else x.transpose(1, 2)

    affine = torch.empty(sum(image(x).shape[1] for x in (h, skip)), device="meta")
    with mock.patch.object(norm_op, "one_launch", lambda *_: one):
        weights = None if mix is None else mix.to("meta")
        made, _ = norm_op._launches(image(h), image(skip), affine, affine, groups, 1e-5, None, None, weights)
    assert len(made) == (1 if one else 2)
    tensors = {"h": h, "skip": skip, "mix": mix}
    for launch in made:
        for name, x in launch.arguments.items():
            if isinstance(x, Tensor):
                if name not in tensors:
                    tensors[name] = sparse(*x.shape, dtype=x.dtype)
                launch.arguments[name] = tensors[name]
    return made


def _run_programs(made: list[norm_op.Launch], programs: list[tuple[int, int, int]]) -> None:
    """Run those programs of each launch. The second of two launches goes backwards."""
    for launch in made:
        size = (*launch.grid, 1)[:3]
        for at in programs:
            back = launch.kernel is normalize_silu_kernel
            index = tuple(n - 1 - i for n, i in zip(size, at, strict=True)) if back else at
            with one_program(index, size):
                launch.kernel[(1,)](**launch.arguments)


# What the last image takes from itself, and from the last image of the first half of the batch.
OF_HALVES = torch.tensor([[1.5], [-0.75]])


def norm_at_the_end(channels_last: bool, c1: int, one: bool, halves: bool = False) -> tuple[Tensor, Tensor]:
    """The last of 2^24 + 1 images, the only one that is not 0: our result and the reference's, [C, H * W].

    h, skip, the output and the partials have more than 2^31 elements each. With halves there are 2^24 + 2 images; the
    last one of the first half is not 0 either, and in h more than 2^31 elements before the last.
    """
    batch, channels, pixels, groups = 2**24 + 1 + halves, 160, 4, 5
    sizes = [c1, channels - c1]
    assert min(*sizes) * pixels * batch > 2**31 / 8 and channels * batch > 2**31
    last = torch.randn(1, channels, 2, 2, generator=torch.Generator().manual_seed(0)).half()
    sources = [sparse(batch, pixels, c) if channels_last else sparse(batch, c, pixels) for c in sizes]
    for source, x in zip(sources, last.view(channels, pixels).split(sizes), strict=True):
        source[-1] = x.T if channels_last else x
    h, mix = last[:, :c1], OF_HALVES if halves else None
    if halves:
        assert c1 * pixels * batch // 2 > 2**31
        middle = torch.randn(1, c1, 2, 2, generator=torch.Generator().manual_seed(1)).half()
        sources[0][batch // 2 - 1] = middle.view(c1, pixels).T if channels_last else middle.view(c1, pixels)
        h = (OF_HALVES[0] * h.float() + OF_HALVES[1] * middle.float()).half()
    made = _norm_launches(*sources, groups, channels_last, one, mix)
    weight, bias = (made[-1].arguments[name] for name in ("weight", "bias"))
    weight.fill_(1)
    _run_programs(made, [(batch - 1, i, 0) for i in range(made[0].grid[1])])
    out = made[-1].arguments["out"].view(batch, *((pixels, channels) if channels_last else (channels, pixels)))[-1]
    expected = cat_group_norm_silu_reference(h, last[:, c1:], weight, bias, groups, 1e-5)
    return (out.T if channels_last else out).clone(), expected.view(channels, pixels)


def norm_wide(channels_last: bool) -> tuple[Tensor, Tensor]:
    """Rows so long that offsets within a tile, and from one tile to the next, exceed 2^31: our result and the expected.

    It runs one block of h for two steps, and returns its partial means and its output with only these partials.
    """
    c, pixels = (2**25 + 2**24, 128) if channels_last else (8, 2**28 + 2**27)
    block_c, group_size, seen = (64, 32, 128) if channels_last else (8, 8, 1024)
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(block_c, seen, generator=generator).half()
    h, skip = (sparse(1, pixels, c) if channels_last else sparse(1, c, pixels) for _ in range(2))
    corner = (0, slice(seen), slice(block_c)) if channels_last else (0, slice(block_c), slice(seen))
    h[corner] = block.T if channels_last else block
    made = _norm_launches(h, skip, 2 * c // group_size, channels_last, False)
    for launch in made:
        assert launch.arguments["WIDE"] and launch.arguments["BLOCK_C"] == block_c
        launch.arguments["chunk"] = seen
    made[-1].arguments["weight"][:block_c] = 1
    made = [launch._replace(grid=(1, launch.grid[1], 1)) for launch in made]
    _run_programs(made, [(0, 0, 0)])
    means, out = (made[-1].arguments[name] for name in ("means", "out"))
    out = out.view(1, pixels, 2 * c)[corner].T if channels_last else out.view(1, 2 * c, pixels)[corner]

    # A partial's M2 counts once, and its channel's mean for all pixels.
    x = block.double().view(-1, group_size, seen)
    mean = x.mean((1, 2), keepdim=True)
    within = (x - x.mean(2, keepdim=True)).square().sum(2, keepdim=True) / pixels
    var = (within + (x.mean(2, keepdim=True) - mean).square()).mean(1, keepdim=True)
    y = torch.nn.functional.silu((x - mean) / (var + 1e-5).sqrt())
    got = torch.cat([means.flatten()[:block_c], out.flatten()]).double()
    return got, torch.cat([x.mean(2).flatten(), y.flatten()])


def conv_at_the_end(channels_last: bool, halves: bool = False) -> tuple[Tensor, Tensor]:
    """The last of 2^19 + 1 images, for the convolution: our result and the reference's, [O, H * W].

    With halves there are 2^20 + 2 images, and the last one of the first half is not 0 either.
    """
    batch, c, out_channels, height, width = (2**20 + 2 if halves else 2**19 + 1), 64, 64, 8, 8
    pixels = height * width
    generator = torch.Generator().manual_seed(0)
    last = torch.randn(1, 2 * c, height, width, generator=generator).half()
    weight = (torch.randn(out_channels, 2 * c, 1, 1, generator=generator) / (2 * c) ** 0.5).half()
    sources = [sparse(batch, pixels, c) if channels_last else sparse(batch, c, pixels) for _ in range(3)]
    h, skip, residual = sources
    for source, x in zip(sources, last.view(2 * c, pixels).split([c, c]), strict=False):
        source[-1] = x.T if channels_last else x
    residual[-1] = 1.0
    expected_h, images, rows = last[:, :c], batch, 1
    if halves:
        images, rows = batch // 2, 2
        assert images * c * pixels > 2**31
        middle = torch.randn(1, c, height, width, generator=generator).half()
        h[images - 1] = middle.view(c, pixels).T if channels_last else middle.view(c, pixels)
        expected_h = (OF_HALVES[0] * expected_h.float() + OF_HALVES[1] * middle.float()).half()
    out = sparse(batch, pixels, out_channels) if channels_last else sparse(batch, out_channels, pixels)
    size = images * pixels if channels_last else pixels
    tile = tiles(2, "ieee", 0)[-1]
    last_tiles = -(-pixels * rows // tile.block_p) * -(-out_channels // tile.block_o)
    programs = images * last_tiles
    for index in range(programs - last_tiles, programs):
        with one_program(index, programs):
            dual_conv1x1_kernel[(1,)](
                h=h, h2=None, h3=None, mix=OF_HALVES if halves else None, skip=skip, weight=weight, bias=None,
                residual=residual, residual_bias=None, out=out, P=size, C1=c, C2=c, C_OUT=out_channels,
                NUM_MIX=1 if halves else 0, HALVES=halves,
                CHANNELS_LAST=channels_last, WIDE=False, EVEN_K=True, ROUND=False,
                PRECISION="ieee", UPCAST=True, BLOCK_P=tile.block_p, BLOCK_O=tile.block_o, BLOCK_K=tile.block_k,
            )  # fmt: skip
    expected = dual_conv1x1_reference(expected_h, last[:, c:], weight, None, torch.ones(1, out_channels, 8, 8))
    return (out[-1].T if channels_last else out[-1]).clone(), expected.view(out_channels, pixels)


def conv_wide_rows() -> tuple[Tensor, Tensor]:
    """Contiguous rows of 2^27 pixels, 80 channels of h, 32 of the output: offsets exceed 2^31. The first 32 pixels."""
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
            C1=c1, C2=c2, C_OUT=out_channels, NUM_MIX=0, HALVES=False, CHANNELS_LAST=False, WIDE=True, EVEN_K=False,
            ROUND=False, PRECISION="ieee", UPCAST=True,
            BLOCK_P=tile.block_p, BLOCK_O=tile.block_o, BLOCK_K=tile.block_k,
        )  # fmt: skip
    first = [x[:, :, :32].reshape(1, -1, 1, 32) for x in (h, skip)]
    return out[:, :, :32].clone(), dual_conv1x1_reference(*first, weight, None).view(1, out_channels, 32)


def conv_wide_pixels() -> tuple[Tensor, Tensor]:
    """64 pixels in channels_last with 2^26 output channels: offsets exceed 2^31. The last 32 of these channels."""
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
            C1=c, C2=c, C_OUT=out_channels, NUM_MIX=0, HALVES=False, CHANNELS_LAST=True, WIDE=True, EVEN_K=False,
            ROUND=False, PRECISION="ieee", UPCAST=True,
            BLOCK_P=tile.block_p, BLOCK_O=tile.block_o, BLOCK_K=tile.block_k,
        )  # fmt: skip
    sources = [x.T.reshape(1, c, 1, pixels) for x in (h, skip)]
    expected = dual_conv1x1_reference(*sources, weight[-32:].view(32, 2 * c, 1, 1), None)
    return out[:, -32:].clone(), expected.view(32, pixels).T
