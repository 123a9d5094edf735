"""`dual_conv1x1`: the registered op and the bare launcher, with the signature of the reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from .._common import (
    HAS_TRITON,
    check_join,
    check_kernel_dtype,
    device_of,
    interpreting,
    joint_format,
    multiprocessors,
    require_triton,
)
from .launch import LARGEST_BLOCK, programs, tile
from .reference import dual_conv1x1_reference

if HAS_TRITON:
    from .kernel import dual_conv1x1_kernel


def _check(
    h: Tensor,
    skip: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    h2: Tensor | None,
    h3: Tensor | None,
    mix: Tensor | None,
    residual_bias: Tensor | None,
) -> None:
    check_join(h, skip, h2, h3, mix)
    batch, c1, height, width = h.shape
    c2 = skip.shape[1]
    if weight.dim() != 4 or weight.shape[1:] != (c1 + c2, 1, 1):
        raise ValueError(f"weight must be [O, {c1} + {c2}, 1, 1], got {tuple(weight.shape)}")
    if weight.dtype != h.dtype:
        raise ValueError(f"weight ({weight.dtype}) and h ({h.dtype}) must agree in dtype")
    out_channels = weight.shape[0]
    for name, vector in (("bias", bias), ("residual_bias", residual_bias)):
        if vector is not None and vector.shape != (out_channels,):
            raise ValueError(f"{name} must be ({out_channels},), got {tuple(vector.shape)}")
    if residual is not None and residual.shape != (batch, out_channels, height, width):
        raise ValueError(f"residual must be {(batch, out_channels, height, width)}, got {tuple(residual.shape)}")


def _precision(dtype: torch.dtype) -> str:
    """How to multiply float32 inputs: as torch's settings allow cuDNN's convolutions. Other dtypes have one way.

    torch resolves "none" to the next setting: `torch.backends.cudnn.fp32_precision`, then that of all backends.
    `torch.backends.cudnn.allow_tf32` says the same, but raises once a user has set one of the newer settings.
    """
    return "tf32" if dtype == torch.float32 and torch.backends.cudnn.conv.fp32_precision == "tf32" else "ieee"


def _launch(
    h: Tensor,
    skip: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    h2: Tensor | None,
    h3: Tensor | None,
    mix: Tensor | None,
    residual_bias: Tensor | None = None,
) -> tuple[tuple[int], dict[str, Any], Tensor]:
    """The grid of the launch, its arguments, and the tensor that it fills."""
    check_kernel_dtype(h)
    memory_format = joint_format(h, skip)
    channels_last = memory_format == torch.channels_last
    h, skip = h.contiguous(memory_format=memory_format), skip.contiguous(memory_format=memory_format)
    images, c1, height, width = h.shape
    c2, out_channels = skip.shape[1], weight.shape[0]
    out = torch.empty(
        (images, out_channels, height, width), dtype=h.dtype, device=h.device, memory_format=memory_format
    )
    buffers, precision = 0 if mix is None else mix.shape[-1], _precision(h.dtype)
    halves = mix is not None and mix.dim() == 2
    images = images // 2 if halves else images
    images, pixels = (1, images * height * width) if channels_last else (images, height * width)
    t = tile(
        images, pixels, c1, c2, out_channels, h.element_size(), precision, buffers, multiprocessors(h.device), halves
    )
    arguments: dict[str, Any] = {
        "h": h,
        "h2": None if h2 is None else h2.contiguous(memory_format=memory_format),
        "h3": None if h3 is None else h3.contiguous(memory_format=memory_format),
        "mix": None if mix is None else mix.contiguous(),
        "skip": skip,
        # With one pixel, contiguous and channels_last are the same [O, C1 + C2] in memory.
        "weight": weight if weight.is_contiguous(memory_format=torch.channels_last) else weight.contiguous(),
        "bias": None if bias is None else bias.contiguous(),
        "residual": None if residual is None else residual.contiguous(memory_format=memory_format),
        "residual_bias": None if residual_bias is None else residual_bias.contiguous(),
        "out": out,
        "P": pixels,
        "C1": c1,
        "C2": c2,
        "C_OUT": out_channels,
        "NUM_MIX": buffers,
        "HALVES": halves,
        "CHANNELS_LAST": channels_last,
        # The longest row of a tile times the most rows of any tile.
        "WIDE": LARGEST_BLOCK * max(c1 + c2, out_channels, 0 if channels_last else pixels) >= 2**31,
        "EVEN_K": c1 % t.block_k == 0 and c2 % t.block_k == 0,
        "PRECISION": precision,
        "ROUND": precision == "tf32" and torch.version.hip is None and not interpreting(),
        "UPCAST": interpreting(),
        "BLOCK_P": t.block_p,
        "BLOCK_O": t.block_o,
        "BLOCK_K": t.block_k,
        "num_warps": t.num_warps,
        "num_stages": t.num_stages,
    }
    return (programs(t, images, pixels, out_channels, halves),), arguments, out


@custom_op("stepcache::dual_conv1x1", mutates_args=())
def dual_conv1x1(
    h: Tensor,
    skip: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    h2: Tensor | None = None,
    h3: Tensor | None = None,
    mix: Tensor | None = None,
    residual_bias: Tensor | None = None,
) -> Tensor:
    """conv2d(cat([h, skip], 1), weight, bias) + residual + residual_bias without the concat, as an op.

    Args:
        h: [N, C1, H, W], in float32, float16 or bfloat16; CPU tensors may be float64.
        skip: [N, C2, H, W], of h's dtype and device.
        weight: [O, C1 + C2, 1, 1] as nn.Conv2d holds it, of h's dtype.
        bias: [O], in h's dtype or in float32, or None.
        residual: [N, O, H, W], added in float32 before the result is rounded.
        h2: a second buffer like h. The hidden state is then mix[0] h + mix[1] h2 (+ mix[2] h3).
        h3: a third buffer like h.
        mix: float32 [number of buffers] on h's device. The kernel reads it, so a CUDA graph sees new values. With
            [2, number of buffers], mix[1] weighs in addition what the buffers hold for the other half of the batch,
            sample (n + N / 2) mod N; N must be even.
        residual_bias: [O], dtype as `bias`: the bias of the convolution that made the residual, which then runs without
            it. In a compiled graph that saves a launch, and a read and a write of the residual.

    Returns:
        [N, O, H, W] in h's dtype; channels_last if h or skip is, else contiguous (`joint_format`).

    No autograd. It is one Triton launch on CUDA and ROCm, and the reference elsewhere. To a compiler it is one opaque
    call (README.md, "Why the ops are opaque").
    """
    if h.device.type != "cuda":
        _check(h, skip, weight, bias, residual, h2, h3, mix, residual_bias)
        out = dual_conv1x1_reference(h, skip, weight, bias, residual, h2, h3, mix, residual_bias)
        return out.contiguous(memory_format=joint_format(h, skip))
    return dual_conv1x1_triton(h, skip, weight, bias, residual, h2, h3, mix, residual_bias)


@dual_conv1x1.register_fake
def _(
    h: Tensor,
    skip: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    h2: Tensor | None = None,
    h3: Tensor | None = None,
    mix: Tensor | None = None,
    residual_bias: Tensor | None = None,
) -> Tensor:
    _check(h, skip, weight, bias, residual, h2, h3, mix, residual_bias)
    batch, _, height, width = h.shape
    sizes = (batch, weight.shape[0], height, width)
    return torch.empty(sizes, dtype=h.dtype, device=h.device, memory_format=joint_format(h, skip))


def dual_conv1x1_triton(
    h: Tensor,
    skip: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    h2: Tensor | None = None,
    h3: Tensor | None = None,
    mix: Tensor | None = None,
    residual_bias: Tensor | None = None,
) -> Tensor:
    """`dual_conv1x1` without torch's dispatcher. Takes CPU tensors if TRITON_INTERPRET=1."""
    require_triton()
    _check(h, skip, weight, bias, residual, h2, h3, mix, residual_bias)
    grid, arguments, out = _launch(h, skip, weight, bias, residual, h2, h3, mix, residual_bias)
    with device_of(h):
        dual_conv1x1_kernel[grid](**arguments)
    return out
