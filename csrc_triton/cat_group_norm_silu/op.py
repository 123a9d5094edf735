"""`cat_group_norm_silu`: the registered op and the bare launcher, with the signature of the reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from .._common import HAS_TRITON, check_join, check_kernel_dtype, device_of, joint_format, require_triton
from .launch import MERGE_LANES, NUM_WARPS, groups_of_block, launch_parameters, loop_stages
from .reference import cat_group_norm_silu_reference

if HAS_TRITON:
    from .kernel import channel_statistics_kernel, normalize_silu_kernel


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
) -> tuple[tuple[int], dict[str, Any], dict[str, Any], Tensor]:
    """The grid of both launches, the arguments of each, and the tensor that the second one fills."""
    check_kernel_dtype(h)
    memory_format = joint_format(h, skip)
    channels_last = memory_format == torch.channels_last
    h, skip = h.contiguous(memory_format=memory_format), skip.contiguous(memory_format=memory_format)
    batch, c1, height, width = h.shape
    c2 = skip.shape[1]
    channels, pixels = c1 + c2, height * width
    p = launch_parameters(batch, c1, c2, pixels, channels_last)

    means = torch.empty((batch, p.splits, channels), dtype=torch.float32, device=h.device)
    m2s = torch.empty_like(means)
    out = torch.empty((batch, channels, height, width), dtype=h.dtype, device=h.device, memory_format=memory_format)
    common: dict[str, Any] = {
        "h": h,
        # Pointers that NUM_MIX says are not read; any tensor does.
        "h2": h if h2 is None else h2.contiguous(memory_format=memory_format),
        "h3": h if h3 is None else h3.contiguous(memory_format=memory_format),
        "mix": h if mix is None else mix.contiguous(),
        "skip": skip,
        "means": means,
        "m2s": m2s,
        "HW": pixels,
        "C1": c1,
        "C2": c2,
        "blocks": p.blocks,
        "splits": p.splits,
        "chunk": p.chunk,
        "NUM_MIX": 0 if mix is None else mix.shape[0],
        "CHANNELS_LAST": channels_last,
        "WIDE": (p.block_p * channels if channels_last else p.block_c * pixels) >= 2**31,
        "BLOCK_C": p.block_c,
        "BLOCK_P": p.block_p,
        "STAGES": loop_stages(h.element_size(), mix is not None),
        "num_warps": NUM_WARPS,
    }
    group_size = channels // num_groups
    normalize = common | {
        "weight": weight.contiguous(),
        "bias": bias.contiguous(),
        "out": out,
        "eps": eps,
        "GROUP_SIZE": group_size,
        "GROUPS": groups_of_block(p.block_c, group_size),
        "MERGE_LANES": MERGE_LANES,
    }
    return (batch * p.splits * p.blocks,), common, normalize, out


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
    """silu(group_norm(cat([h, skip], 1))) without the concat: the op, which torch.compile and torch.export know.

    Args:
        h: [N, C1, H, W], in float32, float16 or bfloat16; CPU tensors may be float64.
        skip: [N, C2, H, W], of h's dtype and device.
        weight: [C1 + C2], in h's dtype or in float32.
        bias: [C1 + C2], likewise.
        num_groups: divides C1 + C2; a group may straddle the seam.
        eps: added to the variance.
        h2: a second buffer like h. Then h + h2 (+ h3) stand for mix[0] h + mix[1] h2 (+ mix[2] h3).
        h3: a third one.
        mix: float32 [number of buffers] on h's device, read by the kernels, so a CUDA graph sees new values.

    Returns:
        [N, C1 + C2, H, W] in h's dtype; channels_last if h or skip is, else contiguous (`joint_format`).

    No autograd. On CUDA and ROCm Triton launches (kernel.py), elsewhere the reference. To a compiler it is one opaque
    call (README.md, "Why the ops are opaque").
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
    """`cat_group_norm_silu` as two bare launches, without the dispatcher; takes CPU tensors if TRITON_INTERPRET=1."""
    require_triton()
    _check(h, skip, weight, bias, num_groups, h2, h3, mix)
    grid, statistics, normalize, out = _launches(h, skip, weight, bias, num_groups, eps, h2, h3, mix)
    with device_of(h):
        channel_statistics_kernel[grid](**statistics)
        normalize_silu_kernel[grid](**normalize)
    return out
