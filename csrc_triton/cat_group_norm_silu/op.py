"""`cat_group_norm_silu`: the registered op and the bare launcher, with the signature of the reference."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.library import custom_op

from .._common import (
    HAS_TRITON,
    check_join,
    check_kernel_dtype,
    device_of,
    joint_format,
    multiprocessors,
    require_triton,
    warp_size,
)
from .launch import THREADS, group_tile, groups_of_block, launch_parameters, merge_tile, one_launch
from .reference import cat_group_norm_silu_reference

if HAS_TRITON:
    from .kernel import cat_group_norm_silu_kernel
    from .two_launches import channel_statistics_kernel, normalize_silu_kernel


def _check(
    h: Tensor,
    skip: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    h2: Tensor | None,
    h3: Tensor | None,
    mix: Tensor | None,
) -> None:
    check_join(h, skip, h2, h3, mix)
    channels = h.shape[1] + skip.shape[1]
    if num_groups < 1 or channels % num_groups != 0:
        raise ValueError(f"num_groups={num_groups} does not divide the {channels} channels of h and skip together")
    if weight.shape != (channels,) or bias.shape != (channels,):
        raise ValueError(f"weight {tuple(weight.shape)} and bias {tuple(bias.shape)} must be ({channels},)")


class Launch(NamedTuple):
    """One kernel launch."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]


def _launches(
    h: Tensor,
    skip: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    h2: Tensor | None,
    h3: Tensor | None,
    mix: Tensor | None,
) -> tuple[list[Launch], Tensor]:
    """The launches of a call in order, and the tensor that the last one fills."""
    check_kernel_dtype(h)
    memory_format = joint_format(h, skip)
    channels_last = memory_format == torch.channels_last
    batch, c1, height, width = h.shape
    c2 = skip.shape[1]
    channels, pixels = c1 + c2, height * width
    group_size = channels // num_groups
    out = torch.empty((batch, channels, height, width), dtype=h.dtype, device=h.device, memory_format=memory_format)
    inputs: dict[str, Any] = {
        "h": h.contiguous(memory_format=memory_format),
        # To Triton None is a constant, so a kernel that used a missing buffer would not compile.
        "h2": None if h2 is None else h2.contiguous(memory_format=memory_format),
        "h3": None if h3 is None else h3.contiguous(memory_format=memory_format),
        "mix": None if mix is None else mix.contiguous(),
        "skip": skip.contiguous(memory_format=memory_format),
        "HW": pixels,
        "C1": c1,
        "C2": c2,
        "NUM_MIX": 0 if mix is None else mix.shape[-1],
        "HALVES": mix is not None and mix.dim() == 2,
    }
    result: dict[str, Any] = {
        "weight": weight.contiguous(),
        "bias": bias.contiguous(),
        "out": out,
        "eps": eps,
        "GROUP_SIZE": group_size,
    }
    if one_launch(c1, c2, num_groups, pixels, channels_last):
        buffers = 1 if mix is None else mix.numel()
        tile = group_tile(group_size, pixels, h.element_size(), buffers)
        arguments = (
            inputs
            | result
            | {
                "SEAM": c1 % group_size != 0,
                "EVEN_P": pixels % (2 * tile.block_p) == 0,
                "BLOCK_C": tile.block_c,
                "BLOCK_P": tile.block_p,
                "num_warps": max(tile.threads // warp_size(h.device), 1),
            }
        )
        return [Launch(cat_group_norm_silu_kernel, (batch, num_groups), arguments)], out

    p = launch_parameters(batch, c1, c2, pixels, channels_last, multiprocessors(h.device))
    means = torch.empty((batch, p.splits, channels), dtype=torch.float32, device=h.device)
    m2s = torch.empty_like(means)
    statistics = inputs | {
        "means": means,
        "m2s": m2s,
        "chunk": p.chunk,
        "CHANNELS_LAST": channels_last,
        "WIDE": (p.step * channels if channels_last else p.block_c * pixels) >= 2**31,
        "EVEN_C": c1 % p.block_c == 0 and c2 % p.block_c == 0,
        "EVEN_P": pixels % p.step == 0,
        "BLOCK_C": p.block_c,
        "BLOCK_P": p.block_p,
        "num_warps": THREADS // warp_size(h.device),
    }
    groups = groups_of_block(p.block_c, group_size)
    members, unroll = merge_tile(groups, group_size)
    normalize = statistics | result | {"GROUPS": groups, "MEMBERS": members, "UNROLL": unroll}
    # Images come first, because only a grid's first axis may have more than 65535 programs.
    grid = (batch, p.blocks, p.splits)
    return [Launch(channel_statistics_kernel, grid, statistics), Launch(normalize_silu_kernel, grid, normalize)], out


@custom_op("stepcache::cat_group_norm_silu", mutates_args=())
def cat_group_norm_silu(
    h: Tensor,
    skip: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    h2: Tensor | None = None,
    h3: Tensor | None = None,
    mix: Tensor | None = None,
) -> Tensor:
    """silu(group_norm(cat([h, skip], 1))) without the concat, as an op for torch.compile and torch.export.

    Args:
        h: [N, C1, H, W], in float32, float16 or bfloat16; CPU tensors may be float64.
        skip: [N, C2, H, W], of h's dtype and device.
        weight: [C1 + C2], in h's dtype or in float32.
        bias: [C1 + C2], likewise.
        num_groups: divides C1 + C2; a group may straddle the seam.
        eps: added to the variance.
        h2: a second buffer like h. The hidden state is then mix[0] h + mix[1] h2 (+ mix[2] h3).
        h3: a third buffer like h.
        mix: float32 [number of buffers] on h's device. The kernels read it, so a CUDA graph sees new values. With
            [2, number of buffers], mix[1] weighs in addition what the buffers hold for the other half of the batch,
            sample (n + N / 2) mod N; N must be even.

    Returns:
        [N, C1 + C2, H, W] in h's dtype; channels_last if h or skip is, else contiguous (`joint_format`).

    No autograd. It launches Triton kernels on CUDA and ROCm, and runs the reference elsewhere. To a compiler it is one
    opaque call (README.md, "Why the ops are opaque").
    """
    if h.device.type != "cuda":
        _check(h, skip, weight, bias, num_groups, h2, h3, mix)
        out = cat_group_norm_silu_reference(h, skip, weight, bias, num_groups, eps, h2, h3, mix)
        return out.contiguous(memory_format=joint_format(h, skip))
    return cat_group_norm_silu_triton(h, skip, weight, bias, num_groups, eps, h2, h3, mix)


@cat_group_norm_silu.register_fake
def _(
    h: Tensor,
    skip: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    h2: Tensor | None = None,
    h3: Tensor | None = None,
    mix: Tensor | None = None,
) -> Tensor:
    _check(h, skip, weight, bias, num_groups, h2, h3, mix)
    batch, c1, height, width = h.shape
    sizes = (batch, c1 + skip.shape[1], height, width)
    return torch.empty(sizes, dtype=h.dtype, device=h.device, memory_format=joint_format(h, skip))


def cat_group_norm_silu_triton(
    h: Tensor,
    skip: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    h2: Tensor | None = None,
    h3: Tensor | None = None,
    mix: Tensor | None = None,
) -> Tensor:
    """`cat_group_norm_silu` without torch's dispatcher. Takes CPU tensors if TRITON_INTERPRET=1."""
    require_triton()
    _check(h, skip, weight, bias, num_groups, h2, h3, mix)
    launches, out = _launches(h, skip, weight, bias, num_groups, eps, h2, h3, mix)
    with device_of(h):
        for kernel, grid, arguments in launches:
            kernel[grid](**arguments)
    return out
